"""The folder that a run leaves: settings, checkpoints, log, curves and pictures."""
