"""A certificate that a model of yours in JAX does what your model in PyTorch does: `parity.certify`.

Read in this order:

- `certificate`: `certify`, and what it returns
- `theirs`, `twins`: one pass through either side, with every module's output and gradient
- `layouts`, `pieces`, `matching`: which weight is which, and how it is transposed
- `layers`: the two passes compared, and the first module that differs
- `causes`: the likely reason, tried
- `training`: step by step in float64
- `rounding`: float32, judged by PyTorch's distance from itself
- `injected`: mistakes that show what the certificate can see
- `page`: certificate.html and the terminal
"""
