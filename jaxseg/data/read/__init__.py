"""Reads images and masks from files into NumPy arrays."""
