"""Groups tiles by scene from their names, so that a split does not divide scenes.

Neighboring tiles of a scene look alike. Groups come from `--group-by`; without it, names that look like tiles of scenes
give a warning.
"""

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from jaxseg.base.errors import DataError, UserError

# The stem of a tile ends in a row and a column (x_0_512, tile_r3_c4, a_x_0_y_512), or in one number if the scene has a
# number too (scene07_12).
_AXIS = "(?:row|col|r|c|x|y)"
_TILE = "(?:(?:tile|patch|crop|chip|frame|t|f)[-_]?)?"
_ENDS = (
    re.compile(
        rf"(?P<scene>.*?)(?:(?:^|[-_/]){_AXIS}?|[-_]{_AXIS}[-_])(?P<row>\d+)"
        rf"(?:[-_]{_AXIS}?|{_AXIS}|[-_]{_AXIS}[-_])(?P<column>\d+)",
        re.I,
    ),
    re.compile(rf"(?P<scene>.*\d.*?)[-_/]{_TILE}(?P<row>)(?P<column>\d+)", re.I),
)


def groups(names: Sequence[str], pattern: str) -> list[str]:
    """Group key of each name: what `pattern` (`--group-by`) captures first, or its whole match without captures.

    Raises UserError if `pattern` is not a regular expression, and DataError listing the names that it does not match.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--group-by '{pattern}' is not a regular expression: {error}") from None
    found = [compiled.search(name) for name in names]
    keys = [match and match[1 if compiled.groups else 0] for match in found]
    if odd := [f"{name}: does not match" for name, key in zip(names, keys) if key is None]:
        headline = f"--group-by '{pattern}': {len(odd)} of {len(names)} images do not match it."
        raise DataError(headline, odd, "The pattern may match anywhere in the path of an image below its folder.")
    return keys


def shared(training: Sequence[str], validation: Sequence[str], pattern: str) -> list[str]:
    """Warning, in a list, if a group of `--group-by` is on both sides of the split; else an empty list."""
    keys = groups([*training, *validation], pattern)
    sides = [dict(zip(keys, training)), dict(zip(keys[len(training) :], validation))]
    both = sorted(sides[0].keys() & sides[1].keys())
    count = f"{len(both)} of {len(sides[0] | sides[1])} groups of --group-by '{pattern}'"
    return [
        f"{count} are in both training and validation, such as {key!r}: {sides[0][key]} and {sides[1][key]}"
        for key in both[:1]
    ]


def leak(names: Sequence[str], validation: set[int], ending: str = "") -> list[str]:
    """Warning, in a list, if tiles of one scene seem to be on both sides of the split; else an empty list.

    The warning includes a `--group-by` pattern, if one is found, that keeps scenes whole, or rows of a single scene.

    - `names`: paths of the images.
    - `validation`: indices of the validation images.
    - `ending`: common suffix of the stems.
    """
    tiles = _tiles(names, ending)
    one = len({tile["scene"] for tile in tiles.values()}) == 1  # then the first number may be a row or a scene
    whole, scenes = ("row", "rows or scenes") if one else ("scene", "scenes")
    by_scene: dict[str, list[int]] = {}
    for index in sorted(tiles, key=lambda index: (int(tiles[index]["row"] or 0), int(tiles[index]["column"]))):
        by_scene.setdefault(tiles[index][whole], []).append(index)
    apart = [pair for indices in by_scene.values() if (pair := _apart(indices, validation))]
    if not apart:
        return []
    trains, validates = (names[index] for index in apart[0])
    if pattern := next(_patterns(names, list(tiles.values()), whole), None):
        fix = f"--group-by {shlex.quote(pattern)} keeps {scenes} whole."
    else:
        fix = "Give --group-by a pattern of what must not be divided."
    return [
        f"{len(apart)} of {len(by_scene)} {scenes} have tiles in training and in validation, such as {trains} and "
        f"{validates}: neighbors are alike, so scores will be better than on new data. {fix}"
    ]


def _tiles(names: Sequence[str], ending: str) -> dict[int, re.Match[str]]:
    """Index of each name that reads as a tile of a scene -> its match; empty unless nearly all names do."""
    for end in _ENDS:
        whole = re.compile(rf"{end.pattern}{re.escape(ending)}\.[^./]*", re.I)
        found = {index: tile for index, name in enumerate(names) if (tile := whole.fullmatch(name))}
        scenes = {tile["scene"] for tile in found.values()}
        in_grid = all(_dense(tile[axis] for tile in found.values()) for axis in ("row", "column"))
        if in_grid and len(found) >= max(0.9 * len(names), 2 * len(scenes)) and (len(scenes) > 1 or end is _ENDS[0]):
            return found
    return {}


def _dense(numbers: Iterable[str]) -> bool:
    """True if numbers fill a quarter or more of an even grid: positions do, dates and identifiers do not."""
    values = sorted({int(number or 0) for number in numbers})
    step = math.gcd(*(b - a for a, b in pairwise(values)))
    return len(values) < 2 or 4 * len(values) > (values[-1] - values[0]) // step


def _apart(indices: Sequence[int], validation: set[int]) -> list[int] | None:
    """First neighbors on different sides of the split: [training, validation]; None if there are none."""
    neighbors = (pair for pair in pairwise(indices) if len(validation.intersection(pair)) == 1)
    return next((sorted(pair, key=validation.__contains__) for pair in neighbors), None)


def _patterns(names: Sequence[str], tiles: Sequence[re.Match[str]], whole: str) -> Iterator[str]:
    """Yields `--group-by` patterns that match all names, make two groups or more, and divide no `whole`."""
    scene = tiles[0]["scene"]
    rest = tiles[0].string[len(scene) :].rpartition(".")[0]
    before, after = re.match(r"(\D*)\d+(\D*)", rest).groups()
    if whole == "row":
        patterns = [rf"{_literal(scene + before)}(\d+){_literal(after)}"]
    else:
        numbers = re.sub(r"\d+", r"\\d+", _literal(rest))
        patterns = [rf"{_literal(scene.rstrip('0123456789'))}(\d+){_literal(before)}", rf"^(.+){numbers}"]
    for pattern in patterns:
        if not all(re.search(pattern, name) for name in names):
            continue
        keys = {(tile[whole], re.search(pattern, tile.string)[1]) for tile in tiles}
        if len({part for part, _ in keys}) == len(keys) and len({key for _, key in keys}) > 1:
            yield pattern


def _literal(text: str) -> str:
    return re.escape(text).replace("\\-", "-")
