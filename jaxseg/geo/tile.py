"""Cuts scenes and their labels into tiles: the body of `jaxseg.tile`."""

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

import jaxseg
from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import DataError, UserError
from jaxseg.base.options import Tiling
from jaxseg.base.terminal import command, console
from jaxseg.data.read.masks import few
from jaxseg.geo.burn import Polygons
from jaxseg.geo.grid import crs_text
from jaxseg.geo.raster import Scene, environment
from jaxseg.geo.tile_folder import Tile, check_free, drafted, finish, write_tile
from jaxseg.geo.tile_source import Source, bands_of, check_alike, covered, place, read_image, read_mask, windows


def tile(options: Tiling, argv: Sequence[str] = ()) -> None:
    """Writes the tiles of all scenes, their masks and descriptions to a folder, and prints what it did.

    - `options`: scenes, labels and how to cut them
    - `argv`: command line, for tiles.json

    Raises UserError for settings out of range, DataError for scenes and labels that do not go together, OSError if the
    folder cannot be written. Nothing is written then.
    """
    check(options)
    check_free(options.out, options.overwrite)
    with contextlib.ExitStack() as open_files:
        open_files.enter_context(environment())
        scenes = [open_files.enter_context(Scene(path)) for path in options.scenes]
        check_alike(scenes)
        sources = place(scenes, options)
        with drafted(options.out, options.overwrite) as draft:
            tiles, left = cut(sources, options, draft)
            drawn = finish(draft, tiles, sources[0].labels.names, record(options, sources, argv))
    tell(tiles, left, sources, options)
    console.print(f"split   {drawn}" if drawn else "split   too few tiles for a split by blocks on the ground")
    console.print("  " + command("jaxseg.train", "--data", options.out, *(["--group-by", "auto"] if drawn else [])))


def check(options: Tiling) -> None:
    """Raises UserError naming every setting that is out of range."""
    rules = [
        (len(options.scenes) > 0, "no scene: give one or more files"),
        (len(options.labels) in (1, len(options.scenes)), f"--labels has {len(options.labels)} files for "
         f"{len(options.scenes)} scenes; expected one for all, or one for each"),
        (options.size >= 16, f"--size is {options.size}; expected pixels, 16 or more"),
        (0 <= options.overlap <= 0.9, f"--overlap is {options.overlap:g}; expected a share of 0 to 0.9"),
        (options.resolution is None or 0 < options.resolution < math.inf,
         f"--resolution is {options.resolution}; expected a number above 0"),
        (options.border >= 0, f"--border is {options.border}; expected pixels, 0 or more"),
        (0 <= options.keep_empty <= 1, f"--keep-empty is {options.keep_empty:g}; expected a share of 0 to 1"),
        (options.seed >= 0, f"--seed is {options.seed}; expected 0 or more"),
        (not options.class_values or options.class_field is not None,
         "--class-values needs --class-field, the attribute that has them"),
        (len(set(options.class_values)) == len(options.class_values), "--class-values names a value twice"),
    ]  # fmt: skip
    if wrong := [message for holds, message in rules if not holds]:
        raise UserError("\n".join(wrong))


def cut(sources: Sequence[Source], options: Tiling, draft: Path) -> tuple[list[Tile], Counter[str]]:
    """Writes tiles and masks; returns the tiles, and how many were left out and why. Raises DataError for none."""
    (draft / "images").mkdir()
    (draft / "masks").mkdir()
    rng, tiles, left = np.random.default_rng(options.seed), [], Counter()
    for source, row, column, window in track(
        list(windows(sources, options)), "cutting", console=console, transient=True, disable=not console.is_terminal
    ):
        image, there = read_image(source, window)
        mask = read_mask(source, window)
        mask[~there] = IGNORE_INDEX
        pixels = np.bincount(mask.ravel(), minlength=256)
        if pixels[IGNORE_INDEX] == mask.size:
            left["without labels or data"] += 1
            continue
        if not pixels[1:IGNORE_INDEX].any() and rng.random() >= options.keep_empty:
            left["without objects (--keep-empty)"] += 1
            continue
        grid = source.grid.window(*window)
        found = Tile(source.name, row, column, grid, pixels)
        size = {"height": grid.height, "width": grid.width, "crs": grid.crs, "transform": grid.transform}
        write_tile(draft / "images", found.name(), image, size | bands_of(source.scene))
        write_tile(draft / "masks", found.name(), mask[None], size | {"count": 1, "dtype": "uint8", "nodata": 255})
        tiles.append(found)
    if not tiles:
        raise DataError(
            "No tile is left:", [f"{n} {why}" for why, n in left.items()], "Check --aoi and the nodata value."
        )
    return tiles, left


def record(options: Tiling, sources: Sequence[Source], argv: Sequence[str]) -> dict[str, object]:
    """Returns what tiles.json says: settings, scenes, labels and classes."""
    asked = {name: value for name, value in vars(options).items() if name not in ("overwrite", "debug")}
    scenes = [
        {"name": s.name, "file": str(s.scene.path), "crs": crs_text(s.grid.crs), "height": s.grid.height}
        | {"width": s.grid.width, "transform": list(s.grid.transform[:6])}
        for s in sources
    ]
    return {
        "version": jaxseg.__version__,
        "command": command("jaxseg.tile", *argv),
        "settings": asked,
        "scenes": scenes,
        "classes": sources[0].labels.names,
        "split": "tiles.gpkg shows the split of python -m jaxseg.train --group-by auto with its default settings",
    }


def tell(tiles: Sequence[Tile], left: Counter[str], sources: Sequence[Source], options: Tiling) -> None:
    """Prints scenes, labels, tiles and shares of the classes."""
    for source in sources:
        grid, labels = source.grid, source.labels
        console.print(f"scene   {source.scene.path}: {grid.width}x{grid.height} pixels, {crs_text(grid.crs)}")
        if isinstance(labels, Polygons):
            console.print(f"labels  {labels.path}: {source.placed.count:,} of {labels.count:,} polygons lie on it")
        if (share := covered(source)) < 0.95 and source.area is None:
            what = f"labels  they extend over {share:.0%} of it; the rest is background, unless --aoi is given"
            console.print(what, style="yellow")
    for labels in dict.fromkeys(source.labels for source in sources):
        if labels.odd:
            listed = few(f"{number:,} of {value}" for value, number in labels.odd.most_common())
            console.print(f"labels  {labels.path}: polygons of other values are ignored: {listed}", style="yellow")
    pixels = sum(tile.pixels for tile in tiles)
    names = dict(enumerate(sources[0].labels.names or ())) | {IGNORE_INDEX: "ignored"}
    shares = [f"{v} {names.get(v, '')}".strip() + f" {pixels[v] / pixels.sum():.1%}" for v in np.flatnonzero(pixels)]
    console.print(f"tiles   {len(tiles):,} of {options.size}x{options.size} in {options.out}: {', '.join(shares)}")
    for why, number in left.items():
        console.print(f"tiles   {number:,} {why} left out")
