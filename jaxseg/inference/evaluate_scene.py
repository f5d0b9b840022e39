"""Scores a run on a scene with coordinates and its labels: pixels, outlines and objects."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import rasterio
from jaxtyping import Int, UInt8
from rasterio.windows import Window
from rich.table import Table

from jaxseg.base import terminal
from jaxseg.base.config import IGNORE_INDEX, LARGEST, Data, flag
from jaxseg.base.errors import UserError, problem
from jaxseg.base.options import Evaluation, Tiling, loading
from jaxseg.base.terminal import console
from jaxseg.data.read.masks import few
from jaxseg.data.read.samples import Reading
from jaxseg.devices.processes import at_first, devices_of, once, tell_devices
from jaxseg.geo import maps as geotiff
from jaxseg.geo.burn import Labels, Placed, Raster, is_background, sort_values
from jaxseg.geo.objects import ObjectScores
from jaxseg.geo.raster import Scene, as_read, cache_for, environment
from jaxseg.geo.regions import find_regions, places
from jaxseg.geo.tile_source import Source, check_alike, place, read_mask
from jaxseg.inference import results
from jaxseg.inference.predictor import Predictor, load
from jaxseg.inference.progress import ImageBar
from jaxseg.inference.scenes import background, object_numbers, regions_of, tell
from jaxseg.inference.scores import Scores
from jaxseg.inference.tiles import Raster as Image


def evaluate_scene(options: Evaluation) -> Path:
    """Scores a scene, writes the results and returns their folder.

    Predicts as `jaxseg.predict` does. Several processes share the tiles, and the first one scores. Blocks of 1024x1024
    pixels are the images of per_image.csv. Objects are polygons of the labels, or connected regions where these are a
    raster. Raises UserError for invalid options or existing results, DataError for labels that do not go with the
    scene or the run.
    """
    tiling, out = once(lambda: (check(options), results.place(options, options.folder.stem)))
    predictor = load(options.run, **loading(options), devices=devices_of(options.machine.devices))
    with ExitStack() as stack:
        opened = at_first(lambda: open_labels(stack, tiling, predictor.reading))
        scene = stack.enter_context(Scene(options.folder))
        stack.enter_context(environment(cache_for(scene, options.tile)))
        terminal.greet()
        tell_devices(predictor.devices)
        console.print(f"{options.folder}, classes {', '.join(predictor.names)}")
        made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxseg-")))
        image, _ = predict(made, scene, predictor)
        return once(lambda: score(made, *opened, image, predictor, options, tiling, out))


def open_labels(stack: ExitStack, tiling: Tiling, reading: Reading) -> tuple[Source, UInt8[np.ndarray, "256"]]:
    """Opens a scene with its labels, in `stack`; returns them, and the run's class of each class number of the labels.

    Raises DataError for labels that do not go with the scene or the run.
    """
    scene = stack.enter_context(Scene(*tiling.scenes))
    check_alike([scene])
    tell(scene, polygons=True)
    (source,) = place([scene], tiling)
    return source, class_table(source.labels, reading)


def score(
    made: Path,
    source: Source,
    table: UInt8[np.ndarray, "256"],
    image: Image,
    predictor: Predictor,
    options: Evaluation,
    tiling: Tiling,
    out: Path,
) -> Path:
    """Scores a predicted scene, writes the results to folder `out` and returns it. Other arguments as in `count`."""
    scores, objects = Scores(predictor.reading.labels, options.worst), ObjectScores()
    count(made, source, table, image, scores, objects, options)
    about = {"run": options.run.as_posix(), "checkpoint": predictor.checkpoint, "scene": options.folder.as_posix()}
    about |= {"labels": [path.as_posix() for path in tiling.labels], "tile": options.tile, "overlap": options.overlap}
    found = objects.summary()
    results.write(out, scores, about | {"tta": options.tta, "objects": found})
    results.tell(scores, f"{options.folder.name}, {predictor.checkpoint} checkpoint")
    console.print(object_table(found))
    results.tell_files(out)
    return out


def check(options: Evaluation) -> Tiling:
    """Returns how labels are opened. Raises UserError naming all invalid options."""
    data = Data(**vars(options.data))
    changed = [name for name, value in vars(data).items() if value != getattr(Data(), name) and name != "labels"]
    rules = [
        (len(data.labels or ()) == 1, f"{options.folder}: is a file; give --labels and one file of polygons or labels"),
        (not changed, f"{', '.join(map(flag, changed))}: not for a scene; leave it out"),
        (options.split is None, f"--split {options.split}: a scene is scored as a whole; leave it out"),
        (options.worst >= 0, f"--worst is {options.worst}; expected 0 or more"),
        (options.min_area >= 0, f"--min-area is {options.min_area:g}; expected 0 or more square meters"),
    ]
    if wrong := [message for holds, message in rules if not holds]:
        raise UserError("\n".join(wrong))
    how = {"layer": options.layer, "class_field": options.class_field, "aoi": options.aoi}
    return Tiling(scenes=(options.folder,), labels=(Path(data.labels[0]),), out=Path(), **how)


def class_table(labels: Labels, reading: Reading) -> UInt8[np.ndarray, "256"]:
    """Returns the run's class of each class number of the labels; 255 where the run has none.

    Polygons are matched by name or mask value, a raster by mask value. Raises DataError if no class is matched.
    """
    names, known = reading.labels.names, reading.labels.known(color=False)
    by_text = {str(value): number for value, number in known.items()} | {name: i for i, name in enumerate(names)}
    table, what = np.full(256, IGNORE_INDEX, np.uint8), getattr(labels, "field", None) or "it"
    if isinstance(labels, Raster):
        given = labels.names or [str(value) for value in range(IGNORE_INDEX)]
        table[: len(given)] = [by_text.get(name, IGNORE_INDEX) for name in given]
        unknown = sort_values(labels.values - by_text.keys())
    else:
        table[0] = 0 if is_background(names[0]) else IGNORE_INDEX
        if labels.field is None and len(names) > 2:
            raise problem(labels.path, f"which class has a polygon? The run has {few(names)}", "Give --class-field.")
        given = labels.names[1:] if labels.field else names[1:]
        table[1 : len(given) + 1] = [by_text.get(name, IGNORE_INDEX) for name in given]
        unknown = [name for name in given if name not in by_text]
    expected = f"the run's classes are {few(names)}, in masks {few(known)}"
    if len(unknown) == len(labels.values if isinstance(labels, Raster) else given):
        raise problem(labels.path, f"{what} holds {few(unknown)}; {expected}")
    if unknown:
        console.print(f"{labels.path}: ignored: {what} holds {few(unknown)}; {expected}", style="yellow")
    return table


def predict(made: Path, scene: Scene, predictor: Predictor) -> tuple[Image, Image]:
    """Writes the classes of a scene, and their packed probabilities, to a folder. Returns the scene as it is read."""
    image, has_data = as_read(scene, predictor.reading)
    height, width = image.shape[:2]
    with ExitStack() as stack:
        bar = stack.enter_context(ImageBar(1))
        file = stack.enter_context(geotiff.open_map(made / "sure.tif", scene, 1, "uint8", nodata=IGNORE_INDEX))
        to_sure = stack.enter_context(geotiff.rows_of(file))
        palette = predictor.reading.labels.palette()
        to_classes = stack.enter_context(geotiff.class_map(made / "classes.tif", scene, predictor.names, palette))
        bar.start(scene.path, height * width)
        for rows, classes, p in predictor.class_bands(image):
            classes[~has_data[rows, :]] = IGNORE_INDEX
            to_classes(classes)
            to_sure(geotiff.pack(p.max(-1)))
            bar.advance(classes.size)
    return image, has_data


def count(
    made: Path,
    source: Source,
    table: UInt8[np.ndarray, "256"],
    image: Image,
    scores: Scores,
    objects: ObjectScores,
    options: Evaluation,
) -> None:
    """Adds the pixels and objects of a predicted scene to the scores.

    - `made`: folder of its classes
    - `source`: the scene with its labels
    - `table`: class of each class number of the labels
    - `image`: the scene as the network reads it
    - `scores`, `objects`: scores of pixels, and of objects
    - `options`: how objects are separated
    """
    scene, names = source.scene, scores.labels.names
    regions = regions_of(made, scene, names, options)
    found = object_numbers(regions, names)
    with rasterio.open(made / "classes.tif") as file:
        masks = ((at, table[read_mask(source, at)]) for at in places(file.shape, LARGEST))
        true = true_objects(made, source, table, names)
        for (row, column, height, width), mask in masks:
            prediction = file.read(1, window=Window(column, row, width, height))
            mask[prediction == IGNORE_INDEX] = IGNORE_INDEX
            block = image[row : row + height, column : column + width]
            scores.count(f"row {row} column {column}", block, mask, prediction)
            objects.add(found[regions.read((row, column, height, width))], next(true), mask != IGNORE_INDEX)


def true_objects(
    made: Path, source: Source, table: UInt8[np.ndarray, "256"], names: tuple[str, ...]
) -> Iterator[Int[np.ndarray, "h w"]]:
    """Yields the numbers of the true objects in each block: of polygons, or of connected regions of a raster."""
    size, left_out = (source.grid.height, source.grid.width), [*background(names), IGNORE_INDEX]
    if isinstance(source.placed, Placed):
        classes = np.append(np.uint8(IGNORE_INDEX), table[source.placed.classes])
        numbers = np.where(np.isin(classes, left_out), 0, np.arange(len(classes)))
        for at in places(size, LARGEST):
            yield numbers[source.placed.objects(*at)]
        return
    with geotiff.open_map(made / "true.tif", source.scene, 1, "uint8", nodata=IGNORE_INDEX) as file:
        for at in places(size, LARGEST):
            row, column, height, width = at
            file.write(table[read_mask(source, at)], 1, window=Window(column, row, width, height))
    regions = find_regions(made / "true-regions.tif", made / "true.tif", source.scene)
    numbers = object_numbers(regions, names)
    for at in places(size, LARGEST):
        yield numbers[regions.read(at)]


def object_table(found: dict[str, float | int]) -> Table:
    """Returns a table of the scores of objects."""
    table = Table(title="objects, matched at IoU over 0.5", title_justify="left", show_header=False)
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in found.items():
        shown = f"{value:,}" if isinstance(value, int) else results.number(value)
        table.add_row({"iou": "mean IoU of matches", "f1": "F1"}.get(name, name.replace("_", "-")), shown)
    return table
