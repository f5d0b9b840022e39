"""Peak memory of a framework in training, measured in a fresh process that takes a few steps of the recipe."""

import json
import subprocess
import sys

import numpy as np

from jaxseg.base import config as settings
from jaxseg.base.config import Config

STEPS = 4
# On Linux a process inherits the peak of its parent, so a small process is put in between.
BETWEEN = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"


def measure(name: str, config: Config, size: tuple[int, int], threads: int) -> dict | None:
    """Peak resident memory in MiB: {"import": after the imports, "training": above that}.

    name: "jaxseg" (its compilation included) or "PyTorch".
    config: the recipe.
    size: height and width of a tile.
    threads: of PyTorch.

    None where the `resource` module does not exist (Windows). Raises RuntimeError with the output of a process that
    fails.
    """
    if not importable():
        return None
    command = [
        sys.executable,
        "-c",
        BETWEEN,
        sys.executable,
        "-m",
        "parity.report.memory",
        name,
        *map(str, (*size, threads)),
    ]
    done = subprocess.run(command, input=settings.dumps(config), capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def importable() -> bool:
    """True if this platform reports the peak memory of a process."""
    try:
        import resource  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def peak() -> float:
    """Peak resident memory of this process so far, in MiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(name: str, height: int, width: int, threads: int) -> None:
    """Takes the steps and prints the figures as JSON; the settings come as JSON on the standard input."""
    config = settings.from_dict(json.load(sys.stdin))
    if name == "jaxseg":
        import jax

        from parity.twins.ours import Ours

        jax.config.update("jax_platforms", "cpu")
        before = peak()
        racer = Ours(config, STEPS)
        racer.start(config.run.seed)
    else:
        import torch

        from parity.reference.training import Reference

        torch.set_num_threads(threads)
        before = peak()
        racer = Reference(config, STEPS)
        racer.start({key: value.numpy() for key, value in racer.model.state_dict().items()})
    rng, b = np.random.default_rng(0), config.optimization.batch_size
    image = rng.integers(0, 256, (b, height, width, 3), np.uint8)
    for _ in range(STEPS):
        racer.step({"image": image, "mask": image[..., 0] // 128, "valid": np.ones(b, bool)})
    print(json.dumps({"import": before, "training": peak() - before}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
