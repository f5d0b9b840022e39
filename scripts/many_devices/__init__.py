"""The parts of `scripts/scaling.py`."""
