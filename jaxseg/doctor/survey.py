"""What the files of a data set are: every image and mask decoded once, in threads, and remembered.

The facts of a pair are kept in the user's cache folder (JAXSEG_CACHE_DIR overrides it), one file a data set, under
the paths, sizes and times of change of its two files: a second look costs no more than asking for those.
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
from jaxseg.base.errors import DataError
from jaxseg.data.find.listing import Pair
from jaxseg.data.read.images import read_palette, read_pixels
from jaxseg.data.read.masks import read_values
from jaxseg.doctor.facts import ImageFacts, MaskFacts, image_facts, mask_facts

VERSION = 2  # of the facts: counted up with every change of what is measured


@dataclasses.dataclass(frozen=True)
class Facts:
    """A pair of files. What cannot be read is None and says why."""

    pair: Pair
    image: ImageFacts | None
    mask: MaskFacts | None
    image_error: str = ""
    mask_error: str = ""


def survey(
    pairs: Sequence[Pair],
    settings: Data,
    workers: int,
    colors: bool = False,
    tell: Callable[[int, int], None] | None = None,
) -> list[Facts]:
    """The facts of every pair, in order. Files that are as they were the last time are not read again.

    `colors`: masks with a palette are read as its colors, not its numbers. `tell` is called with how many pairs are
    done and how many there are to read. A file that cannot be read is no error here.
    """
    store = _store(pairs, settings, colors)
    known, stamps = _load(store), [_stamp(pair) for pair in pairs]
    facts: dict[Pair, Facts] = {}
    for pair, stamp in zip(pairs, stamps):
        saved, image, mask = known.get(str(pair.image.absolute()), (None, None, None))
        if stamp is not None and saved == stamp:
            facts[pair] = Facts(pair, image, mask)
    rest = [pair for pair in pairs if pair not in facts]
    try:
        for done, found in enumerate(_map(lambda pair: look(pair, settings, colors), rest, workers), start=1):
            facts[found.pair] = found
            if tell is not None:
                tell(done, len(rest))
    finally:  # what was read before Ctrl-C is not read again either
        if rest:
            _save(store, [(stamp, facts[pair]) for pair, stamp in zip(pairs, stamps) if pair in facts])
    return [facts[pair] for pair in pairs]


def look(pair: Pair, settings: Data, colors: bool = False) -> Facts:
    """Reads the two files of a pair."""
    image, mask, errors = None, None, {}
    try:
        pixels = read_pixels(pair.image)
        image, has_data = image_facts(pixels, settings)
    except DataError as error:
        errors["image_error"] = _reason(error, pair.image)
    try:
        values, color = read_values(pair.mask, colors)
        with pair.mask.open("rb") as file:
            jpeg = file.read(3) == b"\xff\xd8\xff"
        fits = image is not None and values.shape == has_data.shape
        palette = None if colors else read_palette(pair.mask)
        mask = mask_facts(values, color, jpeg, *((pixels.array, has_data) if fits else (None, None)), palette)
    except DataError as error:
        errors["mask_error"] = _reason(error, pair.mask)
    return Facts(pair, image, mask, **errors)


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
    """What tells whether a pair is still what it was; None if a file is not there."""
    try:
        stats = [path.stat() for path in (pair.image, pair.mask)]
    except OSError:
        return None
    return [str(pair.mask.absolute()), *(n for stat in stats for n in (stat.st_size, stat.st_mtime_ns))]


def _store(pairs: Sequence[Pair], settings: Data, colors: bool) -> Path:
    """The file for a data set: its folders, and the settings on which facts depend."""
    folders = sorted({str(folder.absolute()) for pair in pairs for folder in (pair.image.parent, pair.mask.parent)})
    what = repr((VERSION, folders, settings.nodata, settings.channels, colors))
    key = hashlib.blake2b(what.encode(), digest_size=16).hexdigest()
    return cache_folder() / f"survey-{key}.json"


def _load(store: Path) -> dict[str, tuple[list, ImageFacts, MaskFacts]]:
    """Stamp and facts by image; none when there is no file or it is damaged."""
    try:
        return {
            image: (stamp, ImageFacts(**_tuples(facts)), MaskFacts(**_tuples(mask)))
            for image, (stamp, facts, mask) in json.loads(store.read_bytes()).items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _tuples(values: dict) -> dict:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _save(store: Path, facts: Iterable[tuple[list | None, Facts]]) -> None:
    """Pairs with an error are left out: they are looked at again."""
    entries = {
        str(found.pair.image.absolute()): (stamp, vars(found.image), vars(found.mask))
        for stamp, found in facts
        if stamp and found.image and found.mask
    }
    with contextlib.suppress(OSError):  # a read-only home, a full disk: the next pass takes longer, that is all
        store.parent.mkdir(parents=True, exist_ok=True)
        files.replace(store, json.dumps(entries).encode())
