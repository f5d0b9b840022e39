"""Certifies that a twin in JAX does what a PyTorch model does: `python -m parity.certify my_pair.py`

The file defines `torch_model`, `twin` and `batch`, and may define `loss`, `optimizer`, `rules`, `steps`, `layout` and
`weights_from`, all as for `parity.certify`; or a function `pair()` that returns them as a dict.

Exit status: 0 if all rows pass, 1 if any fails, 2 for a mistake in the command or the file.
"""

import dataclasses
import difflib
import importlib.util
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

import tyro

NEEDED = ("torch_model", "twin", "batch")
OTHERS = ("loss", "optimizer", "rules", "steps", "layout", "weights_from")


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare a PyTorch model with its twin in JAX, module by module and step by step."""

    file: tyro.conf.Positional[Path]
    """Python file that defines torch_model, twin and batch, or a function pair() that returns them as a dict."""
    out: Path = Path("certificate.html")
    """File to write; an earlier certificate there is replaced."""
    steps: int | None = None
    """Training steps; 50, or what the file says."""
    mistakes: bool = True
    """Inject mistakes into the twin, to show what the certificate sees."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = tyro.cli(Options, args=argv, prog="python -m parity.certify")
    if importlib.util.find_spec("torch") is None:
        print("error: a certificate needs PyTorch and SciPy: pip install 'jaxseg[parity]'", file=sys.stderr)
        return 2
    from jaxseg.base import doors, files
    from jaxseg.base.errors import ArgumentError, UserError

    def run() -> int:
        files.try_writing(options.out.parent)
        given = read(options.file) | ({} if options.steps is None else {"steps": options.steps})
        from parity.certificate.certificate import certify

        try:
            report = certify(**given, mistakes=options.mistakes)
        except ArgumentError as error:  # its names are of the file, not flags
            raise UserError(f"{options.file}: {error}") from error
        report.show()
        print(report.save(options.out))
        return 0 if report.passed else 1

    return doors.enter(run)


def read(file: Path) -> dict[str, Any]:
    """What a file defines. Raises UserError that names everything that is missing."""
    from jaxseg.base.errors import UserError

    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a Python file that defines {', '.join(NEEDED)}")
    sys.path.insert(0, str(file.parent.absolute()))  # as for `python FILE`
    try:
        found = runpy.run_path(str(file))
        if callable(found.get("pair")):
            found = found["pair"]()
    except UserError:
        raise
    except Exception as error:
        where = [
            f"line {frame.lineno}" for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)
        ]
        raise UserError(f"{file}, {where[-1] if where else 'when run'}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(file.parent.absolute()))
    if not isinstance(found, dict):
        raise UserError(f"{file}: pair() returned {type(found).__name__}; expected a dict with {', '.join(NEEDED)}")
    if missing := [name for name in NEEDED if name not in found]:
        close = {
            name: difflib.get_close_matches(name, [n for n in found if not n.startswith("_")], 1) for name in missing
        }
        told = [name + (f" (it has {near[0]})" if near else "") for name, near in close.items()]
        raise UserError(f"{file}: does not define {', '.join(told)}")
    return {name: found[name] for name in (*NEEDED, *OTHERS) if name in found}


if __name__ == "__main__":
    sys.exit(main())
