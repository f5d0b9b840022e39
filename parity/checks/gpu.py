"""Does all that hold on a GPU? One pass and many steps again, both frameworks on one, in float32 and bfloat16.

On a GPU either side may compute float32 convolutions and products in TF32, which keeps 10 bits of 23: PyTorch does for
convolutions unless told otherwise, JAX for products too. So float32 is asked twice: with TF32 switched off on both
sides, which is the certificate, and with each side's own defaults, in rows that say so. Figures and gates are those of
`precision` and `divergence`: PyTorch's own error on the same GPU. With defaults PyTorch may have none of TF32: cuDNN
chooses among its kernels, and for networks as narrow as these it takes float32, where XLA takes TF32. So there half an
ulp of TF32 is as good as PyTorch's own error. bfloat16 is asked once, as TF32 has no part in it; there, unlike on a
CPU, autocast gives the loss its logits in float32.

Not run where either framework sees no GPU.
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
"""What rounding a factor to 10 bits does to it."""


def run(settings: Settings) -> Answer:
    """The gpu question. Raises UserError if `settings.device` is "gpu" and a side sees none.

    evidence: {"switches": {"exact" and "default": {name: value}}, "exact" and "default": {"precision": evidence of
    that question, "divergence": likewise}}.
    """
    if settings.device == "cpu":
        return Answer(QUESTION, (), not_run="--device cpu was asked for")
    if missing := no_gpu():
        if settings.device == "gpu":
            raise UserError(f"--device gpu: {missing}. Install both with CUDA, or leave the flag out.")
        return Answer(QUESTION, (), not_run=missing)
    return measure(settings, "gpu")


def no_gpu() -> str:
    """Which of the frameworks sees no GPU, or nothing."""
    missing = [] if torch.cuda.is_available() else [f"PyTorch {torch.__version__} sees no GPU"]
    kinds = sorted({device.platform for device in jax.devices()})
    if "gpu" not in kinds:
        missing.append(f"JAX {jax.__version__} sees {', '.join(kinds)} only")
    return "; ".join(missing)


def measure(settings: Settings, device: str) -> Answer:
    """Both forms with both frameworks on `device`."""
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
    """float32 means float32 on both sides."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with jax.default_matmul_precision("highest"):  # of convolutions as well
            yield
    finally:
        for backend, allowed in zip(backends, before):
            backend.allow_tf32 = allowed


def switches() -> dict[str, str]:
    """What either side may do in less than float32, at this moment."""
    return {
        "jax_default_matmul_precision": str(jax.config.jax_default_matmul_precision),
        "torch.backends.cuda.matmul.allow_tf32": str(torch.backends.cuda.matmul.allow_tf32),
        "torch.backends.cudnn.allow_tf32": str(torch.backends.cudnn.allow_tf32),
    }
