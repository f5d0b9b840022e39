"""What the benchmark can be told, and what that means on this machine."""

import dataclasses
from pathlib import Path
from typing import Literal

from benchmarks.match import Rules
from jaxseg.base.errors import UserError

Section = Literal["step", "pipeline", "epoch", "startup"]
SECTIONS: tuple[Section, ...] = ("step", "pipeline", "epoch", "startup")
Precision = Literal["f32", "bf16"]


@dataclasses.dataclass(frozen=True)
class Options:
    """jaxseg against PyTorch on this machine."""

    only: tuple[Section, ...] = SECTIONS
    """Sections to run."""
    bases: tuple[int, ...] | None = None
    """Channels of the networks at full resolution: 16 32 64."""
    batches: tuple[int, ...] | None = None
    """Images in a batch: 5, and on a GPU 5 16 32."""
    side: int | None = None
    """Pixels a side: 256."""
    precisions: tuple[Precision, ...] = ("f32", "bf16")
    """Types of the computation."""
    conv_bias: bool = True
    """Biases in the 3x3 convolutions, as jaxseg's default has them; milesial's network has none."""
    torch_compile: bool = True
    """torch.compile among the contenders: up to two minutes for each configuration on 2 CPU cores."""
    torch_modes: tuple[str, ...] | None = None
    """Of torch.compile: default, and on a GPU max-autotune-no-cudagraphs and reduce-overhead."""
    ahead: bool = False
    """torch.compile's programs for the steps are all compiled from the start, in the background: for a GPU that is lent
    for minutes. PyTorch's compile times say nothing then. Not for modes that tune on the GPU, which disturbs others."""
    data: Path | None = None
    """Folder with train/ and Ltrain/ to read tiles from; made-up fields if not given."""
    tiles: int | None = None
    """Tiles of an epoch: 384 to read; to train on 40, on a GPU 1536."""
    rounds: int | None = None
    """Rounds of a comparison, instead of as many as --budget allows."""
    budget: float | None = None
    """Seconds of rounds for a comparison, 30; there are 3 to 50 of them. Compilation comes on top."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """A GPU if both frameworks see one."""
    out: Path | None = None
    """Folder for benchmark.json; benchmark-<date>-<time> if not given."""
    quick: bool = False
    """A tiny network and few rounds: whether all of it works, in a minute or two. The figures mean nothing."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """`Options` with everything decided."""

    options: Options
    gpu: bool
    workers: int
    """Threads of the pipeline, processes of PyTorch's loader."""

    def _choose(self, given, quick, cpu, gpu):
        if given is not None:
            return given
        return quick if self.options.quick else gpu if self.gpu else cpu

    @property
    def bases(self) -> tuple[int, ...]:
        """Of the networks."""
        return self._choose(self.options.bases, (8,), (16, 32, 64), (16, 32, 64))

    @property
    def batches(self) -> tuple[int, ...]:
        """Images in a batch."""
        return self._choose(self.options.batches, (2,), (5,), (5, 16, 32))

    @property
    def side(self) -> int:
        """Pixels."""
        return self._choose(self.options.side, 64, 256, 256)

    @property
    def tiles_read(self) -> int:
        """In an epoch of the pipeline."""
        return self._choose(self.options.tiles, 32, 384, 384)

    def steps(self, batch: int) -> int:
        """In an epoch of training."""
        return max(2, self._choose(self.options.tiles, 8, 40, 1536) // batch)

    @property
    def rules(self) -> Rules:
        """Of a comparison."""
        if self.options.rounds is not None:
            return Rules(self.options.rounds, self.options.rounds)
        budget = self._choose(self.options.budget, 2.0, 30.0, 30.0)
        return Rules(2 if self.options.quick else 3, 50, budget)


def check(options: Options) -> None:
    """Raises UserError naming all that cannot be."""
    numbers = {name: getattr(options, name) for name in ("bases", "batches", "side", "tiles", "rounds", "budget")}
    problems = [
        f"--{name} {value}: expected numbers above 0"
        for name, value in numbers.items()
        if value is not None and not all(x > 0 for x in (value if isinstance(value, tuple) else (value,)))
    ]
    problems += [f"--{name}: expected one or more" for name in ("only", "bases", "batches", "precisions")
                 if getattr(options, name) == ()]  # fmt: skip
    if options.side is not None and options.side % 16:
        problems.append(f"--side {options.side}: expected a multiple of 16")
    if (
        options.out is not None
        and options.out.exists()
        and not (options.out.is_dir() and not any(options.out.iterdir()))
    ):
        problems.append(f"--out {options.out}: is not an empty folder; nothing is written over")
    if problems:
        raise UserError("\n".join(problems))
