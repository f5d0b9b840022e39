"""Starts a network from the weights of another: a run's, or those of a file."""

from pathlib import Path

from jaxseg.base.config import Run
from jaxseg.base.errors import UserError
from jaxseg.base.terminal import console
from jaxseg.nn import torch_weights
from jaxseg.nn.network import Network
from jaxseg.nn.torch_weights import Colors
from jaxseg.nn.weight_files import is_pretrained, read_weights
from jaxseg.runs import pretrained
from jaxseg.runs.checkpoint import load_model
from jaxseg.runs.differences import table


def start(net: Network, run: Run, reads: str | None = "bgr") -> None:
    """Loads the weights with which `run` starts, if it says any: --load or --encoder-weights.

    `reads`: what `net` reads, see `load_weights`. Raises UserError as that.
    """
    if run.load is not None:
        load_weights(net, run.load, run.load_channels, reads)
    if run.encoder_weights is not None:
        found = pretrained.find(run.encoder_weights, net.encoder.name)
        pretrained.checked_digest(found, run.encoder_sha256)
        load_encoder(net, found.path, run.load_channels, reads)


def load_weights(net: Network, path: Path, channels: Colors = "rgb", reads: str | None = "bgr") -> None:
    """Loads weights into `net`: the best ones of a run's folder, or those of a file or a folder of `save_pretrained`.

    - `net`: network to change
    - `path`: folder of a run, or what `jaxseg.nn.weight_files.read_weights` reads
    - `channels`: order of the colors that the file's network was trained on; a run's is known
    - `reads`: what `net` reads: "bgr" for color pictures; other channels are taken in the file's order

    The colors of the file's first convolution are reversed where their order differs from that of `net`, and a line
    says so. Raises UserError when there are no weights, or when they belong to another network, with the differences
    side by side. Then nothing is changed.
    """
    of_run = path.is_dir() and not is_pretrained(path)
    state = torch_weights.to_torch(load_model(path)[0]) if of_run else torch_weights.spelled(read_weights(path))
    given, wanted = torch_weights.architecture(state), torch_weights.architecture(torch_weights.to_torch(net))
    if given and (differences := table("there", given, "here", wanted)):
        raise UserError(f"{path}: holds the weights of another network:\n{differences}")
    here: Colors = "bgr" if of_run or reads != "bgr" else channels
    try:
        torch_weights.from_torch(net, state, here)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    tell_order(path, here, wanted["channels"])


def load_encoder(net: Network, path: Path, channels: Colors = "rgb", reads: str | None = "bgr") -> None:
    """Loads the weights of a pretrained encoder into that of `net`, and says which of the file's are not used.

    Arguments as in `load_weights`. Raises UserError when there are no weights, or when they belong to another encoder.
    """
    here: Colors = "bgr" if reads != "bgr" else channels
    try:
        unused = torch_weights.encoder_from_torch(net, read_weights(path), here)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if unused:
        some = ", ".join(unused[:3]) + ", ..." * (len(unused) > 3)
        console.print(f"load  {path}: {len(unused)} arrays are not of the encoder, and not used: {some}")
    tell_order(path, here, net.in_channels)


def tell_order(path: Path, channels: Colors, count: int) -> None:
    """Says so where weights for red, green, blue are turned for a network with `count` channels."""
    if channels == "rgb" and count in (3, 4):
        what = "trained on red, green, blue, which is turned here to blue, green, red"
        console.print(f"load  {path}: taken as {what}; if not so, --load-channels bgr")
