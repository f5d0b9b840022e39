"""The network: U-Net, its layers, initializers, and weights from and to PyTorch."""
