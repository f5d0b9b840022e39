"""One side of an attempt: what is computed, how it is driven, and the flags of its process."""

import dataclasses
import json
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Spec:
    """A training step, and the process that runs it."""

    widths: tuple[int, ...]
    side: int
    batch: int
    precision: Literal["f32", "bf16", "f16"] = "bf16"
    conv_bias: bool = True
    remat: bool = False
    rewrites: tuple[str, ...] = ()
    """Names in `rewrites.REWRITES`."""
    drive: str = "queued"
    """A name in `drives.DRIVES`."""
    flags: str = ""
    """Added to XLA_FLAGS."""
    target: str = ""
    """Path of a description of a GPU to compile for, without one; nothing is run then."""

    def dumps(self) -> str:
        """As JSON, for a command line."""
        return json.dumps(dataclasses.asdict(self))


def loads(text: str) -> Spec:
    """What `dumps` wrote."""
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(text).items()}
    return Spec(**given)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Something that may make the step faster, against the step without it."""

    name: str
    prediction: str
    """What it is expected to change, by the model of operations and bytes."""
    change: dict
    """Fields of `Spec` with it; or, if `present`, without it."""
    present: bool = False
    """Whether the trainer does it already, so that it is tried by leaving it out."""
    small: bool = False
    """Tried on the small network, whose step is short, instead of the large one."""
    both: dict = dataclasses.field(default_factory=dict)
    """Fields of `Spec` on both sides."""

    @property
    def needs_gpu(self) -> bool:
        """Flags of XLA's compiler for GPUs mean nothing elsewhere; on a CPU remat is compiled in another way."""
        return "xla_gpu" in self.change.get("flags", "") or "remat" in self.change
