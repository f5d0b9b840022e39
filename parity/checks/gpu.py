"""The gpu question: do `precision` and `divergence` hold with both frameworks on a GPU, in float32 and bfloat16?

A GPU may compute float32 convolutions and matrix products in TF32, which keeps 10 of 23 bits. PyTorch does so for
convolutions by default, JAX for products too. So float32 is asked twice:

- with TF32 switched off on both sides, the strict comparison
- with each side's own defaults, in rows whose names say so

Figures and gates are those of `precision` and `divergence`: PyTorch's own error on the same GPU. With its defaults
PyTorch may use no TF32 at all: for networks this narrow cuDNN chooses float32 kernels, and XLA chooses TF32. Half an
ulp of TF32 is therefore also a baseline there. bfloat16 does not depend on TF32 and is asked once. Unlike on a CPU,
autocast gives the loss float32 logits.

Not run if either framework sees no GPU.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import torch

from jaxseg.base.errors import UserError
from parity.checks import divergence, precision
from parity.judge.answer import Answer, Settings

QUESTION = "gpu"
TF32 = {"half an ulp of TF32": 2.0**-11}
"""Largest relative error from rounding a factor to 10 bits."""


def run(settings: Settings) -> Answer:
    """Answers the gpu question. Raises UserError if `settings.device` is "gpu" and a framework sees no GPU.

    Evidence, for the forms "exact" and "default":

    - "switches": {form: {name: value}}
    - form: {"precision": evidence of that question, "divergence": evidence of that question}
    """
    if settings.device == "cpu":
        return Answer(QUESTION, (), not_run="--device cpu was asked for")
    if missing := no_gpu():
        if settings.device == "gpu":
            raise UserError(f"--device gpu: {missing}. Install both with CUDA, or leave the flag out.")
        return Answer(QUESTION, (), not_run=missing)
    return measure(settings, "gpu")


def no_gpu() -> str:
    """Text that names each framework without a GPU; empty if both see one."""
    missing = [] if torch.cuda.is_available() else [f"PyTorch {torch.__version__} sees no GPU"]
    kinds = sorted({device.platform for device in jax.devices()})
    if "gpu" not in kinds:
        missing.append(f"JAX {jax.__version__} sees {', '.join(kinds)} only")
    return "; ".join(missing)


def measure(settings: Settings, device: str) -> Answer:
    """Answer from both forms with both frameworks on `device`."""
    rows, evidence = [], {"switches": {}}
    forms = (
        ("exact", without_tf32, "", ("float32", "bfloat16"), {}),
        ("default", contextlib.nullcontext, "own defaults (TF32): ", ("float32",), TF32),
    )
    for form, switched, label, dtypes, allowed in forms:
        with switched():
            evidence["switches"][form] = switches()
            passes, passes_evidence = precision.measure(QUESTION, settings, device, label, dtypes, allowed)
            steps, steps_evidence = divergence.measure(settings, device, QUESTION, allowed)
        rows += [*passes, *(dataclasses.replace(row, name=f"{label}{row.name}") for row in steps)]
        evidence[form] = {"precision": passes_evidence, "divergence": steps_evidence}
    return Answer(QUESTION, tuple(rows), evidence)


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Context without TF32, so float32 means float32 on both sides."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with jax.default_matmul_precision("highest"):  # applies to convolutions as well
            yield
    finally:
        for backend, allowed in zip(backends, before):
            backend.allow_tf32 = allowed


def switches() -> dict[str, str]:
    """Current switches by which either side may compute in less than float32."""
    return {
        "jax_default_matmul_precision": str(jax.config.jax_default_matmul_precision),
        "torch.backends.cuda.matmul.allow_tf32": str(torch.backends.cuda.matmul.allow_tf32),
        "torch.backends.cudnn.allow_tf32": str(torch.backends.cudnn.allow_tf32),
    }
