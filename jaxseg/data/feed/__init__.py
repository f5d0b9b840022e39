"""Batches samples and moves them to the device."""
