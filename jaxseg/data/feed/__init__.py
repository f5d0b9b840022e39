"""From arrays to batches on the device."""
