"""Contenders of start-up: commands in fresh processes, timed from outside."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.match import Failed

TRAIN = ("--epochs", "1", "--batch-size", "5", "--steps", "2", "--workers", "1")


class Command:
    """`python WORDS`, to its end, in `folder` if there is one."""

    def __init__(self, *words: str, environment: Mapping[str, str], folder: Path | None = None):
        self._words, self._environment, self._folder = words, dict(os.environ) | dict(environment), folder
        self.facts = {"command": " ".join(("python", *words))}

    def turn(self, times: int) -> dict:
        """Counts processes. Raises Failed for one that ended with an error, with the last line that it said."""
        began = time.perf_counter()
        for _ in range(times):
            done = subprocess.run(
                [sys.executable, *self._words],
                env=self._environment,
                cwd=self._folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                check=False,
            )
            if done.returncode:
                said = done.stderr.strip().splitlines() or [""]
                raise Failed(f"ended with status {done.returncode}: {said[-1]}"[:300])
        return {"seconds": time.perf_counter() - began, "count": times}

    def finish(self) -> dict:
        """Nothing more."""
        return {}

    def close(self) -> None:
        """Nothing is left."""


class FirstStep(Command):
    """`python -m jaxseg.train` until it has the result of its first step: `first_step.py`.

    Without `data` that of the command without flags, on the tiles that it makes up the first time. `cold`: the
    compilation cache in `cache` is emptied before each turn; else it is as the last one left it.
    """

    def __init__(self, data: Path | None, cache: Path, *, cold: bool, environment: Mapping[str, str]):
        folder = cache.with_name(f"{cache.name}-run")
        flags = () if data is None else ("--data", str(data), *TRAIN)
        words = ("-m", "benchmarks.first_step", "--out", str(folder / "out"), "--overwrite", *flags)
        folder.mkdir()
        super().__init__(*words, environment=dict(environment) | {"JAXSEG_CACHE_DIR": str(cache)}, folder=folder)
        self._environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # it would take the place of the trainer's own
        self._cache, self._cold = cache, cold

    def turn(self, times: int) -> dict:
        """One, whatever `times` are."""
        if self._cold:
            shutil.rmtree(self._cache, ignore_errors=True)
        self._cache.mkdir(parents=True, exist_ok=True)
        return super().turn(1)
