"""Shows, piece by piece and to stated tolerances, that jaxseg does what the PyTorch reference does."""
