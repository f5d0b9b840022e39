"""One network, batch, layer, schedule or training run on both sides, in jaxseg and in PyTorch."""
