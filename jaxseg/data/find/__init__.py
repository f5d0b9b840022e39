"""Finds pairs of image and mask and splits them into training and validation."""
