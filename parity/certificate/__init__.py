"""A certificate that a model of yours in JAX does what your model in PyTorch does: `parity.certify`.

Read in this order:

- `certificate`: `certify`, and what it returns
- `theirs`, `ours`: a step of either side, with every module's output and gradient; `twins`, `recorder`: how the twin is
  called
- `layouts`, `pieces`, `matching`: which weight is which, and how it is transposed
- `pair`, `losses`: both sides with equal weights, and their inputs, losses and optimizers
- `ambiguous`: layouts that shapes leave open
- `layers`: the two passes compared, and the first module that differs
- `causes`, `trials`, `altered`: the likely reason, tried
- `training`: step by step in float64
- `rounding`: float32, judged by PyTorch's distance from itself
- `injected`: mistakes that show what the certificate can see
- `page`, `terminal`: what it looks like
"""
