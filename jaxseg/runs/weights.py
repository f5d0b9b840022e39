"""Starts a network from the weights of another: a run's, or those of a PyTorch file."""

from pathlib import Path

from jaxseg.base.errors import UserError
from jaxseg.base.terminal import console
from jaxseg.nn import torch_weights, unet
from jaxseg.nn.pth import read_pth
from jaxseg.nn.torch_weights import Colors
from jaxseg.runs.checkpoint import load_model
from jaxseg.runs.differences import table


def load_weights(net: unet.UNet, path: Path, channels: Colors = "rgb", reads: str | None = "bgr") -> None:
    """Loads weights into `net`: the best ones of a run's folder, or those of a PyTorch file with milesial's names.

    - `net`: network to change
    - `path`: folder of a run, or file
    - `channels`: order of the colors that the file's network was trained on; a run's is known
    - `reads`: what `net` reads: "bgr" for color pictures; other channels are taken in the file's order

    The colors of the file's first convolution are reversed where their order differs from that of `net`, and a line
    says so. Raises UserError when there are no weights, or when they belong to another network, with the differences
    side by side. Then nothing is changed.
    """
    state = torch_weights.to_torch(load_model(path)[0]) if path.is_dir() else read_pth(path)
    given, wanted = torch_weights.architecture(state), torch_weights.architecture(torch_weights.to_torch(net))
    if given and (differences := table("there", given, "here", wanted)):
        raise UserError(f"{path}: holds the weights of another network:\n{differences}")
    here: Colors = "bgr" if path.is_dir() or reads != "bgr" else channels
    try:
        torch_weights.from_torch(net, state, here)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if here == "rgb" and wanted["channels"] in (3, 4):
        what = "trained on red, green, blue, which is turned here to blue, green, red"
        console.print(f"load  {path}: taken as {what}; if not so, --load-channels bgr")
