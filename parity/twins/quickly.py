"""XLA's options for tiny programs, which compile longer than they run: less than half the time."""

from importlib.metadata import version

QUICKLY: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
if version("jaxlib").startswith("0.10."):  # a later XLA refuses the flag
    QUICKLY["xla_cpu_use_fusion_emitters"] = False


def as_flags() -> str:
    """The options as XLA_FLAGS has them."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in QUICKLY.items())
