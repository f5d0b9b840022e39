"""Contenders in processes of their own, which take turns over pipes.

Why not both frameworks in one process: there the peak memory of a contender could not be told from the others', one
that runs out of memory would end all, and each framework would run with the other's allocator and libraries loaded. A
worker whose turn it is not is blocked in a read.
"""

import importlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.match import Failed

PATIENCE = 1800.0
"""Seconds after which a contender that has not answered is given up."""


class Worker:
    """The class `target`, "module:name", made and called in a new process with `environment` added to its own.

    It has `turn`, and may have `facts` and `finish`: see `match.Contender`.
    Raises Failed where that raised anything, died, or did not answer in time.
    """

    def __init__(self, target: str, environment: Mapping[str, str], arguments: Mapping[str, object]):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, target, dict(environment), dict(arguments)))
        self._process.start()
        theirs.close()
        try:
            self.facts = self._answer()
        except BaseException:
            self.close()
            raise

    def turn(self, times: int) -> dict:
        """See `match.Contender`."""
        return self._ask("turn", times)

    def finish(self) -> dict:
        """See `match.Contender`."""
        return self._ask("finish")

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _ask(self, *what: object) -> dict:
        try:
            self._connection.send(what)
        except OSError:
            raise Failed(self._end()) from None
        return self._answer()

    def _answer(self) -> dict:
        if not self._connection.poll(PATIENCE):
            raise Failed(f"no answer within {PATIENCE:.0f} s")
        try:
            fine, answer = self._connection.recv()
        except (EOFError, OSError):
            raise Failed(self._end()) from None
        if not fine:
            raise Failed(answer)
        return answer

    def _end(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        killed = " (killed; out of memory?)" if code == -9 else ""
        return f"its process ended with status {code}{killed}"


def _serve(connection: Connection, target: str, environment: dict[str, str], arguments: dict) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # the platform's own again: PyTorch's loader forks where it may
    try:
        module, name = target.split(":")
        contender = getattr(importlib.import_module(module), name)(**arguments)
        connection.send((True, getattr(contender, "facts", {})))
        while True:
            method, *given = connection.recv()
            act = contender.turn if method == "turn" else getattr(contender, "finish", dict)
            connection.send((True, act(*given)))
    except (EOFError, ConnectionError):  # the parent is done
        return
    except BaseException as error:
        if os.environ.get("BENCHMARK_DEBUG"):
            traceback.print_exc()
        connection.send((False, brief(error)))


def brief(error: BaseException) -> str:
    """The kind of an error and the first line that it says."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def timed(work: Callable[[], object], count: int) -> dict:
    """A turn: does the work, which takes care of `count` items."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu, "count": count}


def peak_mib() -> float | None:
    """The largest resident memory of this process so far; None on Windows.

    Linux's getrusage would count what the parent held when it started this process.
    """
    if (status := Path("/proc/self/status")).exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    try:
        import resource
    except ModuleNotFoundError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
