"""XLA's options for tiny programs, which compile longer than they run."""

from importlib.metadata import version

UNOPTIMIZED: dict[str, int | bool] = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
"""Without LLVM's optimization, which takes two thirds of the compile time, and not in parts for several threads."""
QUICKLY = dict(UNOPTIMIZED)
"""Also with XLA's older code for loops, where it still exists."""
if version("jaxlib").startswith("0.10."):  # a later XLA refuses the flag
    QUICKLY["xla_cpu_use_fusion_emitters"] = False


def as_flags() -> str:
    """The options as XLA_FLAGS has them."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in QUICKLY.items())
