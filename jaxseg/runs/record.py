"""What a run remembers of its data and its epochs: split.json and log.jsonl, checked when the run goes on."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jaxseg.base.errors import UserError
from jaxseg.base.files import replace
from jaxseg.data.find.splits import Split
from jaxseg.doctor.survey import Facts

PARTS = ("training", "validation")


def of_split(split: Split, facts: Iterable[Facts]) -> dict[str, object]:
    """Returns the content of split.json.

    - `split`: pairs of the run
    - `facts`: facts of these pairs

    It has the names of the images by "training" and "validation", and as "contents" for each of these two and each name
    `digests.of_content` of image and mask, separated by a space.
    """
    held = {f.pair: " ".join(f.digests) for f in facts}
    names = dict(zip(PARTS, (split.training_names, split.validation_names)))
    pairs = dict(zip(PARTS, (split.training, split.validation)))
    return names | {"contents": {part: {n: held[pair] for n, pair in zip(names[part], pairs[part])} for part in PARTS}}


def check_split(path: Path, split: Mapping[str, object]) -> None:
    """Raises UserError unless `split` has the same images, with the same contents, as split.json at `path`.

    Contents are compared where both have them; earlier versions wrote none. Also raised when the file cannot be read.
    """
    saved = read_split(path)
    problems = []
    for part in PARTS:
        before, now = set(saved[part]), set(split[part])
        problems += _some(part, "images are missing", before - now) + _some(part, "images are new", now - before)
        contents = [record.get("contents", {}).get(part, {}) for record in (saved, split)]
        pairs = {name: [c[name].split(" ") for c in contents] for name in contents[0].keys() & contents[1].keys()}
        for kind, i in (("images", 0), ("masks", 1)):
            changed = {name for name, (was, is_) in pairs.items() if was[i] != is_[i]}
            problems += _some(part, f"{kind} have another content", changed)
    if problems:
        found = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(
            f"the data changed since the run began ({path}):\n{found}\n"
            "Restore it, or start a new run (--load takes the weights along)."
        )


def read_split(path: Path, advice: str = "without it the run cannot be resumed") -> dict:
    """Reads split.json. Raises UserError, which ends with `advice`, when it is missing or damaged."""
    try:
        saved = json.loads(path.read_bytes().decode(errors="surrogateescape"))
        contents = saved.get("contents", {})
        for part in PARTS:
            if not all(isinstance(name, str) for name in saved[part]):
                raise TypeError(f"{part}: expected names of images")
            if not all(len(value.split(" ")) == 2 for value in contents.get(part, {}).values()):
                raise TypeError(f"contents: {part}: expected two digests a name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {advice}") from None
    return saved


def _some(part: str, what: str, names: set[str]) -> list[str]:
    first = ", ".join(sorted(names)[:3])
    return [f"{part}: {len(names)} {what}, such as {first}"] if names else []


def restore_log(path: Path, epochs: int) -> tuple[list[dict], list[dict]]:
    """Returns the lines of log.jsonl for the first `epochs` epochs, and later ones.

    Removes the later ones from the file, and a last line cut short by a crash.

    A log that is missing, empty or begins late is told on stderr. Raises `UserError` when a line is no record of an
    epoch, or when epochs are missing that the checkpoint has finished.
    """
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    whole, rest = lines[:-1], b"".join(lines[-1:])
    found = [_epoch(path, number, line) for number, line in enumerate(whole, 1)]
    if rest:  # a last line without its end
        try:
            found.append(_epoch(path, len(lines), rest))
        except UserError:
            if len(found) < epochs:
                raise
    kept = [record for record in found if record["epoch"] < epochs]
    numbers = [record["epoch"] for record in kept]
    advice = "Restore the file, or delete it to go on without the log of earlier epochs."
    if not epochs and len(found) > 1:
        raise UserError(f"{path}: has {len(found)} epochs, but there is no checkpoint. Restore it, or delete the log.")
    if numbers and numbers != list(range(numbers[0], epochs)):
        raise UserError(f"{path}: has epochs {_short(numbers)}, but the checkpoint has finished {epochs}. {advice}")
    if epochs and not numbers and lines != [b""] and lines:
        raise UserError(f"{path}: has no epochs, but the checkpoint has finished {epochs}. {advice}")
    if (first := numbers[0] if numbers else epochs) > 0:
        print(f"warning: {path}: the log and the curves begin with epoch {first + 1}", file=sys.stderr)
    if kept != found or rest:
        replace(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
    return kept, found[len(kept) :]


def _epoch(path: Path, number: int, line: bytes) -> dict:
    """The record in a line of log.jsonl. Raises UserError naming file and line."""
    try:
        record = json.loads(line)
        if not isinstance(record["epoch"], int) or not isinstance(record["step"], int):
            raise TypeError
        for part in ("train", "validation"):
            _ = [record[part][name] for name in ("loss", "accuracy", "miou")], record["learning_rate"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = repr(line[:60].decode(errors="backslashreplace"))
        raise UserError(
            f"{path}, line {number}: expected the JSON of an epoch, found {found}. Fix the line, or delete the file to "
            "go on without the log of earlier epochs."
        ) from None
    return record


def _short(numbers: Sequence[int]) -> str:
    return ", ".join(str(number + 1) for number in numbers[:20]) + ", ..." * (len(numbers) > 20)
