"""jaxseg: semantic segmentation in JAX and Flax, proven against PyTorch."""

__version__ = "0.2.0"
