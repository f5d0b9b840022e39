"""Predictions and scores of a trained run."""
