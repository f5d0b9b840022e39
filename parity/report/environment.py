"""Facts that the figures depend on: versions, processor, threads, precision switches, and the commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "jaxseg", "jax", "jaxlib", "flax", "optax", "torch", "numpy", "scipy", "opencv-python", "opencv-python-headless"
)  # fmt: skip
FLAGS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")


def environment() -> dict[str, dict[str, str]]:
    """Groups of facts for the report, every value a string."""
    return {"versions": versions(), "machine": machine(), "threads": threads(), "precision": switches()}


def versions() -> dict[str, str]:
    """Installed packages, Python, and the commit if jaxseg runs from a checkout."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found | {"commit": commit()}


def commit() -> str:
    """Git hash of the checkout that this file lies in, with a mark if files were changed."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "not a git checkout"


def machine() -> dict[str, str]:
    """Processor, its vector instructions (both frameworks choose kernels by them), and GPUs."""
    import jax
    import torch

    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    lines = {key.strip(): value.strip() for key, value in lines.items()}
    has = set(lines.get("flags", lines.get("Features", "")).split())
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": lines.get("model name") or platform.processor() or "unknown",
        "cores": str(os.cpu_count()),
        "CPU flags": " ".join(flag for flag in FLAGS if flag in has) or "unknown",
        "PyTorch's kernels": torch.backends.cpu.get_cpu_capability(),
        "JAX's devices": ", ".join(sorted({device.device_kind for device in jax.devices()})),
        "PyTorch's GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def threads() -> dict[str, str]:
    """Numbers of threads; the order of PyTorch's sums depends on them."""
    import torch

    asked = {name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {"PyTorch": str(torch.get_num_threads())} | {name: value for name, value in asked.items() if value}


def switches() -> dict[str, str]:
    """Switches by which either side may compute in less than float32."""
    import jax
    import torch

    return {
        "jax_default_matmul_precision": str(jax.config.jax_default_matmul_precision),
        "jax_enable_x64": f"{jax.config.jax_enable_x64}, except for float64",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") or "none",
        "torch float32 matmul precision": torch.get_float32_matmul_precision(),
        "torch.backends.cudnn.allow_tf32": str(torch.backends.cudnn.allow_tf32),
        "torch.backends.cuda.matmul.allow_tf32": str(torch.backends.cuda.matmul.allow_tf32),
        "oneDNN": str(torch.backends.mkldnn.enabled),
    }
