"""A trained run as files for others: ONNX, weights and code for PyTorch, a model card, the Hugging Face Hub."""
