"""The network: U-Net, its layers, initializers, and weights from and to PyTorch."""

from jaxseg.nn.layers import BatchNorm, Conv, UpConv
from jaxseg.nn.unet import ConvBlock, UNet

__all__ = ["BatchNorm", "Conv", "ConvBlock", "UNet", "UpConv"]
