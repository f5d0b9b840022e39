"""Tiles on disk -> seeded batches on the device."""
