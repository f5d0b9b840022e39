"""Measures every image and mask of a data set once, in threads, and caches the facts.

The cache is in the user's cache folder (JAXSEG_CACHE_DIR overrides it), one file per data set, which begins with its
digest. The facts of a pair are valid while the paths and stamps of its files, world files included, stay the same.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxseg.base import files
from jaxseg.base.config import Data, cache_folder
from jaxseg.base.digests import of_content
from jaxseg.base.errors import DataError
from jaxseg.base.terminal import console
from jaxseg.data.find.ground import read_ground, world_files
from jaxseg.data.find.listing import Pair
from jaxseg.data.read.images import read_palette, read_pixels
from jaxseg.data.read.images import stamp as stamp_of
from jaxseg.data.read.masks import values_of
from jaxseg.doctor.facts import ImageFacts, MaskFacts, image_facts, mask_facts

VERSION = 6  # version of the facts: increase it when other things are measured


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts of a pair. An unreadable file has None and an error message."""

    pair: Pair
    image: ImageFacts | None
    mask: MaskFacts | None
    digests: tuple[str, ...] = ()
    """`digests.of_content` of image and mask; () if one of them is unreadable."""
    image_error: str = ""
    mask_error: str = ""


def survey(
    pairs: Sequence[Pair],
    settings: Data,
    workers: int,
    colors: bool = False,
    tell: Callable[[int, int], None] | None = None,
) -> list[Facts]:
    """Returns the facts of every pair, in order; unchanged files are not read again.

    - `pairs`: image and mask files.
    - `settings`: nodata value and channels.
    - `workers`: number of reader threads; 0 reads in the calling thread.
    - `colors`: read masks with a palette as colors, not indices.
    - `tell`: called after each pair with the number of pairs read, and the number to read.

    An unreadable file raises no error; its facts say why.
    """
    store = _store(pairs, settings, colors)
    known, stamps = _load(store), [_stamp(pair) for pair in pairs]
    facts: dict[Pair, Facts] = {}
    for pair, stamp in zip(pairs, stamps):
        saved, *held = known.get(str(pair.image.absolute()), (None,))
        if stamp is not None and saved == stamp:
            facts[pair] = Facts(pair, *held)
    rest = [pair for pair in pairs if pair not in facts]
    try:
        for done, found in enumerate(_map(lambda pair: look(pair, settings, colors), rest, workers), start=1):
            facts[found.pair] = found
            if tell is not None:
                tell(done, len(rest))
    finally:  # keeps the facts read before Ctrl-C
        if rest:
            _save(store, [(stamp, facts[pair]) for pair, stamp in zip(pairs, stamps) if pair in facts])
    return [facts[pair] for pair in pairs]


def look(pair: Pair, settings: Data, colors: bool = False) -> Facts:
    """Reads and measures the two files of a pair; arguments as for `survey`."""
    image, mask, errors = None, None, {}
    try:
        pixels = read_pixels(pair.image)
        image, has_data = image_facts(pixels, settings)
        if (ground := read_ground(pair.image, image.height, image.width)) is not None:
            image = dataclasses.replace(image, crs=ground.crs, corners=ground.corners)
    except DataError as error:
        errors["image_error"] = _reason(error, pair.image)
    try:
        drawn = read_pixels(pair.mask, indices=not colors)
        values, color = values_of(drawn, pair.mask)
        with pair.mask.open("rb") as file:
            jpeg = file.read(3) == b"\xff\xd8\xff"
        fits = image is not None and values.shape == has_data.shape
        palette = None if colors else read_palette(pair.mask)
        beside = (pixels.array, has_data) if fits else (None, None)
        mask = mask_facts(values, color, jpeg, *beside, palette, drawn.orientation)
        mask = dataclasses.replace(mask, nodata=drawn.nodata)
    except DataError as error:
        errors["mask_error"] = _reason(error, pair.mask)
    digests = () if errors else (of_content(pair.image), of_content(pair.mask))
    return Facts(pair, image, mask, digests, **errors)


def _reason(error: DataError, path: Path) -> str:
    return "; ".join(problem.removeprefix(f"{path}: ") for problem in error.problems) or error.headline


def _map(function: Callable, items: Sequence, workers: int) -> Iterable:
    if not workers:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


# the cache


def _stamp(pair: Pair) -> list[object] | None:
    """Returns the mask's path, and the stamps of both files and of world files; None if a file is missing."""
    try:
        return [str(pair.mask.absolute()), *map(stamp_of, (pair.image, pair.mask, *world_files(pair.image)))]
    except OSError:
        return None


def _store(pairs: Sequence[Pair], settings: Data, colors: bool) -> Path:
    """Returns the cache file, named after the data set's folders and the settings that change its facts."""
    folders = sorted({str(folder.absolute()) for pair in pairs for folder in (pair.image.parent, pair.mask.parent)})
    what = repr((VERSION, folders, settings.nodata, settings.channels, colors))
    key = hashlib.blake2b(what.encode(), digest_size=16).hexdigest()
    return cache_folder() / f"survey-{key}.json"


def _load(store: Path) -> dict[str, tuple[list, ImageFacts, MaskFacts, tuple[str, ...]]]:
    """Returns stamp, facts and digests by image path; empty if the file is missing or damaged."""
    try:
        digest, _, content = store.read_bytes().partition(b"\n")
        if digest != _digest(content):
            console.print(f"cache {store} is damaged: all files are read again")
            return {}
        return {
            image: (stamp, ImageFacts(**_tuples(facts)), MaskFacts(**_tuples(mask)), tuple(digests))
            for image, (stamp, facts, mask, digests) in json.loads(content).items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _tuples(values: dict) -> dict:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _save(store: Path, facts: Iterable[tuple[list | None, Facts]]) -> None:
    """Writes the cache, without pairs that have an error: these are read again."""
    entries = {
        str(found.pair.image.absolute()): (stamp, vars(found.image), vars(found.mask), found.digests)
        for stamp, found in facts
        if stamp and found.image and found.mask
    }
    with contextlib.suppress(OSError):  # with a read-only home or a full disk the next run reads all files again
        store.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(entries).encode()
        files.replace(store, _digest(content) + b"\n" + content)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()
