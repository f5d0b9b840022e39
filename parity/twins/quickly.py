"""XLA's options for tiny programs, which compile longer than they run: less than half the time.

Without LLVM's optimization, not divided into parts for several threads, and with XLA's older code for loops where it
still exists.
"""

from importlib.metadata import version

QUICKLY: dict[str, int | bool] = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
if version("jaxlib").startswith("0.10."):  # a later XLA refuses the flag
    QUICKLY["xla_cpu_use_fusion_emitters"] = False


def as_flags() -> str:
    """The options as XLA_FLAGS has them."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in QUICKLY.items())
