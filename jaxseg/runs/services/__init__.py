"""Trackers beside TensorBoard: Weights & Biases, MLflow, Aim. Each needs the extra of its name."""
