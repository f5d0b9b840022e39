"""The article's rule for initial weights."""

from torch import nn


def init_weights(module: nn.Module) -> None:
    """Kaiming normal (fan_out, ReLU) for a Conv2d, 1 and 0 for a BatchNorm2d; for `model.apply`, at any depth.

    The article asks for the exact type, so everything else keeps what PyTorch gave it when it was built: a
    ConvTranspose2d (no Conv2d to PyTorch) its kaiming_uniform(a=sqrt(5)) over the fan_in that torch reads from
    (in, out, kh, kw), which is out*kh*kw; and every bias U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    """
    if type(module) is nn.Conv2d:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif type(module) is nn.BatchNorm2d:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
