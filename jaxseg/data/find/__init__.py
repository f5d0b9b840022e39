"""Which files make pairs of image and mask, and on which side of the split each stands."""
