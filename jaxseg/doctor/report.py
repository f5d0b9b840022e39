"""Prints a data set's description, its findings, and the command to run next."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress
from rich.table import Table
from rich.text import Text

from jaxseg.base import cli, config
from jaxseg.base.config import Config, Data, Run
from jaxseg.base.errors import DataError, UserError
from jaxseg.base.terminal import command, console
from jaxseg.data.find.folders import find_split
from jaxseg.doctor import class_findings, mask_findings, values
from jaxseg.doctor.classes import show
from jaxseg.doctor.examine import Examination, examine
from jaxseg.doctor.findings import Finding, count

MOST_FILES, MOST_ROWS = 5, 8
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@dataclasses.dataclass(frozen=True)
class Check:
    """Settings of `python -m jaxseg.check`."""

    folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = None
    """Data folder, an alias of --data."""
    data: tyro.conf.OmitArgPrefixes[Data] = dataclasses.field(default_factory=Data)
    seed: int = 0
    """Seed of the random split, used if there is no validation set."""
    debug: bool = False
    """Show the traceback of an error."""


def check(asked: Check) -> int:
    """Examines the data, prints the report, and returns the exit status: 0 if ready to train, 2 with errors.

    Raises DataError if files do not pair up, and UserError for settings that do not go together.
    """
    split = find_split(asked.data, asked.seed)
    with Progress("reading", BarColumn(), MofNCompleteColumn(), console=console, transient=True) as bar:
        bar.disable = not console.is_terminal
        task = bar.add_task("", total=None)
        found = examine(
            split, asked.data, asked.data.workers, lambda done, total: bar.update(task, completed=done, total=total)
        )
    describe(found)
    for finding in found.findings:
        tell(finding)
    conclude(found, asked)
    return 2 if found.errors else 0


def describe(found: Examination) -> None:
    """Prints layout, split, classes, sizes and types."""
    say("layout", found.split.layout)
    say("pairs", f"{found.training.pairs:,} training, {found.validation.pairs:,} validation")
    console.print()
    if not found.facts.all:
        return
    console.print(class_table(found), soft_wrap=False)
    console.print()
    side_by_side = Table.grid(padding=(0, 4))
    side_by_side.add_row(size_table(found), type_table(found))
    console.print(side_by_side, soft_wrap=False)
    console.print()
    for line in values.describe_input(found.reading, found.facts) if found.reading is not None else ():
        say("input", line)


def class_table(found: Examination) -> Table:
    """Builds a table of the classes and their shares of labeled pixels; of mask values if classes are unknown."""
    labels = found.labels
    if labels is None:
        return value_table(found)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, justify in (("value", "right"), ("class", "right"), ("name", "left")):
        table.add_column(heading, justify=justify, overflow="fold")
    for heading in ("training", "validation"):
        table.add_column(heading, justify="right")
    table.add_column("")
    parts = (found.training, found.validation)
    sums = [max(1, sum(part.class_pixels)) for part in parts]
    for i, (value, name) in enumerate(zip(labels.values, labels.names)):
        text = show(value, labels.color) if labels.binarize is None else ("below ", "from ")[i] + str(labels.binarize)
        shares = [part.class_pixels[i] / total for part, total in zip(parts, sums)]
        table.add_row(text, str(i), name, *map(percent, shares), bar(shares[0]))
    if any(part.ignored_pixels for part in parts):
        ignored = ", ".join(show(value, labels.color) for value in labels.ignored)
        pixels = [max(1, sum(height * width for height, width in part.sizes)) for part in parts]
        shares = [part.ignored_pixels / total for part, total in zip(parts, pixels)]
        table.add_row(ignored, "", "ignored, of all", *map(percent, shares), "", style="dim")
    return table


def value_table(found: Examination) -> Table:
    """Builds a table of the commonest mask values and their shares of all pixels."""
    drawn = mask_findings.drawn(found.facts.all, found.facts.settings)
    counts, color = class_findings.value_counts(drawn or found.facts.all)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("mask value", justify="right")
    table.add_column("pixels", justify="right")
    table.add_column("")
    total = sum(counts.values())
    common = sorted(counts, key=lambda value: -counts[value])
    for value in common[:MOST_ROWS]:
        table.add_row(show(value, color), percent(counts[value] / total), bar(counts[value] / total))
    if rest := common[MOST_ROWS:]:
        table.add_row(f"{len(rest):,} others", percent(sum(counts[value] for value in rest) / total), "", style="dim")
    return table


def size_table(found: Examination) -> Table:
    """Builds a table of the number of images of each size."""
    sizes = Counter(f"{f.image.width}x{f.image.height}" for f in found.facts.all)
    return _count_table("size", sizes)


def type_table(found: Examination) -> Table:
    """Builds a table of the number of images of each dtype and number of channels."""
    types = Counter(
        f"{f.image.dtype}, {count(f.image.channels, 'channel')}{' (color)' if f.image.color else ''}"
        for f in found.facts.all
    )
    return _count_table("type", types)


def _count_table(heading: str, counts: Counter) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(heading)
    table.add_column("images", justify="right")
    for name, number in counts.most_common(MOST_ROWS):
        table.add_row(name, f"{number:,}")
    if rest := counts.most_common()[MOST_ROWS:]:
        table.add_row(f"{len(rest)} others", f"{sum(number for _, number in rest):,}", style="dim")
    return table


def percent(share: float) -> str:
    """Formats a share: 0.0123 as '1.23 %'. A positive share is never shown as 0."""
    if 0 < share < 0.0001:
        return "< 0.01 %"
    return f"{100 * share:.2f} %"


def bar(share: float, width: int = 20) -> str:
    """Draws a share, 0 to 1, as a bar; in ASCII if the terminal has no other characters."""
    full = round(share * width) or int(share > 0)
    return ("#" if console.options.ascii_only else "█") * full


def tell(finding: Finding) -> None:
    """Prints a finding, its first files, and what to do."""
    say(finding.level, finding.what, STYLES[finding.level])
    for file in finding.files[:MOST_FILES]:
        say("", file, "dim")
    if len(finding.files) > MOST_FILES:
        say("", f"... and {len(finding.files) - MOST_FILES:,} more", "dim")
    for number, line in enumerate(finding.advice.splitlines()):
        say("", line.strip(), "green", arrow="   " if number else "-> ")


def say(label: str, what: str, style: str = "", arrow: str = "") -> None:
    """Prints text after a label, wrapped with a hanging indent."""
    indent = " " * (8 + len(arrow))
    lines = Text(what).wrap(console, max(20, console.width - len(indent)), overflow="fold")
    for number, line in enumerate(lines):
        text = Text(indent if number else f"{label:<8}{arrow}", style if label in STYLES else "")
        console.print(text.append(line.plain.rstrip(), style if label == "" else ""))


def conclude(found: Examination, asked: Check) -> None:
    """Prints the verdict, and the command to run next."""
    levels = Counter(finding.level for finding in found.findings)
    numbers = ", ".join(count(levels[level], level) for level in ("error", "warning") if levels[level])
    if found.findings:
        console.print()
    if not found.errors:
        console.print(f"Ready to train{f'; {numbers}' * bool(numbers)}.", style="bold green")
        console.print("  " + command("jaxseg.train", *words(asked)))
        return
    console.print(f"Not ready to train: {numbers}.", style="bold red")
    if (fixed := fixed_settings(found, asked)) is not None:
        console.print("These flags fix all errors:")
        console.print("  " + command("jaxseg.train", *words(fixed)))
    else:
        console.print("Fix the errors, and check again.")


def fixed_settings(found: Examination, asked: Check) -> Check | None:
    """Adds the flags that the findings propose, and examines again; returns None unless no error is left."""
    if not all(error.flags for error in found.errors):
        return None
    flags = {error.flags[0]: error.flags for error in found.errors}
    given = [arguments for arguments in _flags(asked) if arguments[0].partition("=")[0] not in flags]
    try:
        fixed = parse([word for arguments in [*given, *flags.values()] for word in arguments])
        again = examine(find_split(fixed.data, fixed.seed), fixed.data, fixed.data.workers)
    except UserError:
        return None
    return None if again.errors else fixed


def words(asked: Check) -> list[str]:
    """Converts settings to the command line that gives them."""
    return [word for arguments in _flags(asked) for word in arguments]


def _flags(asked: Check) -> list[tuple[str, ...]]:
    """Lists every flag that differs from its default, with its values."""
    result = []
    for field in dataclasses.fields(Data):
        value, flag = getattr(asked.data, field.name), config.flag(field.name)
        if value == field.default:
            continue
        if isinstance(value, tuple):
            result.append((flag, *map(str, value)))
        else:
            given = () if value is True else (str(value),)
            result.append((f"{flag}={value}",) if str(value).startswith("-") else (flag, *given))
    return [*result, ("--seed", str(asked.seed))] if asked.seed != Check.seed else result


def as_finding(error: UserError) -> Finding:
    """Converts an error to a finding, for `tell`."""
    if isinstance(error, DataError):
        return Finding("error", error.headline, tuple(error.problems), error.advice)
    what, _, rest = str(error).partition("\n")
    return Finding("error", what, tuple(rest.splitlines()))


def parse(argv: list[str]) -> Check:
    """Parses a command line. Raises UserError for invalid settings; exits with 2 on unknown flags."""
    asked = tyro.cli(
        Check,
        args=argv,
        prog="python -m jaxseg.check",
        description="Check a data set: describe it, find its faults, and say how to fix them.",
    )
    if asked.folder is not None:
        if asked.data.data not in (None, asked.folder):
            raise UserError(f"{asked.folder} and --data {asked.data.data}: give one of them, not both")
        asked = dataclasses.replace(asked, data=dataclasses.replace(asked.data, data=asked.folder), folder=None)
    if asked.data.data is None and asked.data.images is None:
        raise UserError("no data to check: give a FOLDER, or --images and --masks")
    cli.check(Config(data=asked.data, run=Run(seed=asked.seed)))
    return asked
