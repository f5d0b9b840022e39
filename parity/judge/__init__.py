"""The judge of pass or fail: comparisons of arrays, laws of random draws, the ledger of known divergences.

Nothing here imports another room of `parity`.
"""
