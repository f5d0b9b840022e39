"""Mistakes to inject, one module for each question that has to catch them; see `parity/mutations.py`."""
