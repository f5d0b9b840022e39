"""The networks: U-Net, U-Net with an encoder, their layers, initializers, and weights from and to PyTorch."""

from jaxseg.nn.blocks import ConvBlock
from jaxseg.nn.encoder_unet import EncoderUNet
from jaxseg.nn.layers import BatchNorm, Conv, UpConv
from jaxseg.nn.unet import UNet

__all__ = ["BatchNorm", "Conv", "ConvBlock", "EncoderUNet", "UNet", "UpConv"]
