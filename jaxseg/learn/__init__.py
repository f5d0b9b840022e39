"""Learning: the training step, losses, metrics, optimizers, schedules and augmentation."""
