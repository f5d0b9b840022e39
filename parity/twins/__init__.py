"""The same network, batch, layer or schedule on both sides, in jaxseg and in PyTorch."""
