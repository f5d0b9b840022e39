"""The parent's end of a worker: its process, and answers that may fail to come."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from attempts.spec import Spec

SCRIPTS = Path(__file__).parents[1]


class Failed(Exception):
    """A worker ended, or did not answer in time; with the end of what it printed."""


class Child:
    """A worker for `spec`: used with `with`, which ends it. `built` is what it said first.

    Raises Failed from the beginning of the block on. `timeout`: seconds for compilation, and for each answer. `caches`:
    folder in which workers leave what autotuning found, one for the next.
    """

    def __init__(self, spec: Spec, timeout: float, caches: str = ""):
        self.spec, self.timeout, self.caches, self.failed = spec, timeout, caches, False

    def __enter__(self) -> "Child":
        paths = [str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        flags = " ".join(filter(None, [os.environ.get("XLA_FLAGS"), "" if self.spec.target else self.spec.flags]))
        more = {"PYTHONPATH": os.pathsep.join(paths), "XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if self.caches:
            more["JAX_COMPILATION_CACHE_DIR"] = self.caches
            more["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "xla_gpu_per_fusion_autotune_cache_dir"
        self._printed = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "attempts.worker", self.spec.dumps()],
            env=os.environ | more,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            encoding="utf-8",
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self.built = self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._printed.close()

    def ask(self, **request) -> dict:
        """The answer to a request, see `worker`."""
        with contextlib.suppress(OSError):  # if it has ended, no answer will come either
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _listen(self) -> None:
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _answer(self) -> dict:
        self.failed = True  # unless an answer comes
        try:
            line = self._answers.get(timeout=self.timeout)
        except queue.Empty:
            raise Failed(f"no answer within {self.timeout:.0f} s") from None
        if line:
            self.failed = False
            return json.loads(line)
        status = self._process.wait()
        self._printed.seek(0)
        raise Failed(f"ended with status {status}: {reason(self._printed.read().decode(errors='replace'))}")


def reason(printed: str) -> str:
    """The line of an output that says most about how it ended: an error's own, or the last."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "unknown flag" in line.lower() or line.startswith("F0")]
    return (telling or lines or ["nothing printed"])[-1][:400]
