"""What the figures depend on, as both frameworks see it."""

import os
import shutil
import subprocess
from pathlib import Path


def threads() -> int:
    """Cores that this process may use: XLA takes as many threads by itself, and PyTorch is given as many."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def without_gpu() -> dict[str, str]:
    """Environment in which neither framework sees a GPU."""
    return {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class Facts:
    """For `workers.Worker`, so that the process that directs the match opens no GPU."""

    def __init__(self):
        import jax
        import torch

        from parity.report.environment import environment

        self.facts = environment() | {
            "gpu": jax.default_backend() == "gpu" and torch.cuda.is_available(),
            "nvidia-smi": nvidia_smi(),
            "cores used": threads(),
        }


def nvidia_smi() -> str:
    """Name, driver, power limit and clocks of the graphics cards; "" without."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = "--query-gpu=name,driver_version,power.limit,clocks.max.sm"
    done = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def python_path(*folders: Path) -> str:
    """PYTHONPATH with these folders first."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
