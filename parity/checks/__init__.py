"""One module for each question, with `run(settings) -> Answer`; its head gives the reasons for its gates.

`batch_norm`, `convolution`, `normalization`, `dropping` and `optimizer_state` are parts of larger questions.
"""
