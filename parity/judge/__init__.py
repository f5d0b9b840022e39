"""Decides pass or fail: comparisons of arrays, laws of random draws, and the ledger of known divergences."""
