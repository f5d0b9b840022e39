"""A trained run to export: its network, how it reads files, its scores."""

import contextlib
import dataclasses
import json
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from jaxseg.data.read.samples import FULL, Reading
from jaxseg.nn.network import Network
from jaxseg.nn.torch_weights import architecture, to_torch
from jaxseg.runs.checkpoint import load_model


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained run.

    - `run`: its folder
    - `net`: its network in evaluation, which computes in the dtype of its parameters
    - `reading`: how it reads files
    - `checkpoint`: "best" or "last"
    - `epoch`: line of log.jsonl with the scores of the checkpoint, empty if there is none
    """

    run: Path
    net: Network
    reading: Reading
    checkpoint: str
    epoch: dict

    @property
    def title(self) -> str:
        """Name of the network for a person."""
        return f"U-Net with {self.encoder}" if self.encoder else f"U-Net {'-'.join(map(str, self.built['--widths']))}"

    @cached_property
    def built(self) -> dict[str, object]:
        """Architecture by jaxseg's flags."""
        return architecture(to_torch(self.net))

    @property
    def encoder(self) -> str | None:
        """Name of the encoder; None for a network without one."""
        return self.built["--encoder"]

    @property
    def origin(self) -> str:
        """Whose names the weights have in PyTorch."""
        return "Unet in segmentation_models.pytorch" if self.encoder else "milesial's U-Net"

    @property
    def colors(self) -> bool:
        """True if the first channels of an image are blue, green, red."""
        return self.reading.order == "bgr" and self.reading.channels in (3, 4)

    @property
    def channels(self) -> list[str]:
        """Name of each channel of an image, in the order that the network reads."""
        reading = self.reading
        if self.colors:
            return ["blue", "green", "red", "alpha"][: reading.channels]
        kind = "band" if reading.order == "bands" else "channel"  # not known for runs of earlier versions
        return [f"{kind} {number}" for number in reading.bands or range(1, reading.channels + 1)]

    @property
    def full(self) -> int:
        """Value of an image that is scaled to 1."""
        return FULL[self.reading.dtype]

    @property
    def mean(self) -> list[float]:
        """Mean of each channel, of values scaled to 1; subtracted."""
        return list(self.reading.mean) or [0.0] * self.reading.channels

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel, likewise; divided by."""
        return list(self.reading.std) or [1.0] * self.reading.channels


def load(run: Path, checkpoint: str) -> Trained:
    """Loads a run. Networks of `--precision bf16` compute in float32 here, as they will elsewhere.

    Raises UserError as `load_model` does.
    """
    net, description = load_model(run, checkpoint)
    for _, layer in nnx.iter_graph(net):
        if isinstance(layer, nnx.Module) and getattr(layer, "dtype", None) is jnp.bfloat16:
            layer.dtype = jnp.float32
    taken = description["checkpoint"]
    return Trained(run, net, Reading.from_dict(description["reading"]), taken, scores_of(run, taken))


def scores_of(run: Path, checkpoint: str) -> dict:
    """Returns the line of log.jsonl with the best validation mIoU, or the last one; empty if there is no log."""
    path, epochs = run / "log.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):  # the last one, if the run was killed
            epochs.append(json.loads(line))
    if not epochs:
        return {}
    return epochs[-1] if checkpoint == "last" else max(epochs, key=lambda epoch: epoch["validation"]["miou"] or 0.0)
