"""Training runs, from settings to the folder of a run."""
