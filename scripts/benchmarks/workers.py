"""Contenders in their own processes.

With both frameworks in one process, neither's peak memory could be told, one that runs out of memory would end all, and
each would run with the other's allocator and libraries.
"""

import dataclasses
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from benchmarks.match import Failed


@dataclasses.dataclass
class Contender:
    """Work that can be timed.

    - `run`: repeats the work a number of times; may return measurements of its own
    - `items`: images, pairs, ... of one repetition
    - `facts`, `finish`: what is known before the first turn, and what only after the last
    """

    run: Callable[[int], dict | None]
    items: int = 1
    facts: dict = dataclasses.field(default_factory=dict)
    finish: Callable[[], dict] = dict

    def turn(self, times: int) -> dict:
        """Returns "seconds", "count" (of items), and what `run` returns."""
        began = time.perf_counter()
        more = self.run(times)
        return {"seconds": time.perf_counter() - began, "count": times * self.items} | (more or {})


class Worker:
    """A `Contender` in a new process. Every method raises Failed if it raises there, or if the process dies.

    - `target`: function that returns the contender, as "module:name"
    - `environment`: added to this process's
    - `arguments`: of the function
    """

    def __init__(self, target: str, environment: Mapping[str, str], arguments: Mapping[str, object]):
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=(dict(environment),))
        self.facts = self._ask("start", target, dict(arguments))

    def turn(self, times: int) -> dict:
        return self._ask("turn", times)

    def finish(self) -> dict:
        return self._ask("finish")

    def close(self) -> None:
        self._pool.shutdown()

    def _ask(self, *what: object) -> dict:
        try:
            return self._pool.submit(_do, *what).result()
        except (BrokenProcessPool, Failed) as error:
            self.close()
            raise Failed(str(error) if isinstance(error, Failed) else "its process died; out of memory?") from None


def _begin(environment: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # the platform's own again: PyTorch's loader forks where it may


def _do(method: str, *arguments) -> dict:
    global _contender
    try:
        if method != "start":
            return getattr(_contender, method)(*arguments)
        target, given = arguments
        module, name = target.split(":")
        _contender = getattr(importlib.import_module(module), name)(**given)
        return _contender.facts
    except Exception as error:  # frameworks' own exceptions may not survive pickling
        raise Failed(f"{type(error).__name__}: {error}".splitlines()[0][:300]) from None


def command(words: tuple[str, ...], folder: Path | None = None, cold: Path | None = None) -> Contender:
    """Runs `python WORDS` in a fresh process in `folder`. `cold`: folder to empty before."""
    # JAX's own variable would take the place of the trainer's cache
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    how = {"cwd": folder, "env": environment, "capture_output": True, "check": False}

    def run(times: int) -> None:
        for _ in range(times):
            if cold is not None:
                shutil.rmtree(cold, ignore_errors=True)
            done = subprocess.run([sys.executable, *words], **how)
            if done.returncode:
                said = done.stderr.decode(errors="replace").strip().splitlines() or [""]
                raise RuntimeError(f"ended with status {done.returncode}: {said[-1]}")

    return Contender(run)


def machine() -> Contender:
    """Facts about the machine. Asked in a worker, so that the process that directs a match opens no GPU."""
    import jax
    import torch

    from parity.report.environment import environment

    gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    return Contender(lambda times: None, facts=environment() | {"gpu": gpu, "cores used": threads()})


def threads() -> int:
    """Cores that this process may use. XLA takes all of them by itself; PyTorch is told to."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_mib() -> float:
    """Largest resident memory of this process so far; NaN except on Linux.

    getrusage would count what the parent held when it started this process.
    """
    if not (status := Path("/proc/self/status")).exists():
        return float("nan")
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
