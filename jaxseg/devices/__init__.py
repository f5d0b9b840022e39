"""Many devices as one: each has some rows of a batch, and the step's sums are over all of them."""
