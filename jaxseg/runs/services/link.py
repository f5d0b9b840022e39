"""Sends a run's log to a tracker in a process of its own, so that its library can neither stop nor hang the run."""

import contextlib
import itertools
import json
import pickle
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

MOST = 10_000
"""Messages that wait for a slow tracker; later ones are dropped."""
PATIENCE = {"finished": 60.0, "failed": 10.0, "stopped": 10.0}
"""Seconds that a tracker gets for its last messages, by the way in which the run ended."""
PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); from jaxseg.runs.services import worker; "


class Link:
    """Tracker of a run, in another process. Methods return at once and never raise; a fault is told once on stderr.

    - `name`: "wandb", "mlflow" or "aim"
    - `run`: folder of the run; its name is the tracker's name of the run, and trackers/`name`.json keeps the id
    - `settings`: settings of the run, nested dicts of JSON values
    """

    def __init__(self, name: str, run: Path, settings: dict):
        self._name, self._told, self._killed = name, set(), False
        self._queue, self._thread = queue.Queue(MOST), None
        path = json.dumps([str(folder) for folder in sys.path])
        try:
            command = [sys.executable, "-c", PROGRAM + "worker.main()", path]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        except (OSError, ValueError) as error:
            self._tell(f"cannot be started ({error}); the run goes on without it")
            return
        first = ("open", name, run.absolute(), settings)
        self._thread = threading.Thread(target=self._send, args=(first,), name=f"log-{name}", daemon=True)
        self._thread.start()

    def scalars(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Logs numbers: pairs of step and {tag: value}."""
        self._put("scalars", rows)

    def image(self, tag: str, image, step: int) -> None:
        """Logs a picture, uint8 RGB [h w 3]."""
        self._put("image", tag, image, step)

    def scores(self, scores: dict[str, int | float], step: int) -> None:
        """Logs the scores of the best epoch, which ended with `step`, as results of the run."""
        self._put("scores", scores, step)

    def end(self, how: str) -> None:
        """Asks the tracker to finish, without waiting for it. `how` is "finished", "stopped" or "failed"."""
        self._deadline = time.monotonic() + PATIENCE[how]
        for message in (("close", how), None):
            while self._thread is not None and self._thread.is_alive():
                with contextlib.suppress(queue.Full):
                    self._queue.put_nowait(message)
                    break
                with contextlib.suppress(queue.Empty):
                    self._queue.get_nowait()  # the oldest makes room

    def join(self) -> None:
        """Waits after `end` until the tracker has finished, or kills it when its time is up."""
        if self._thread is None:
            return
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        if self._thread.is_alive():
            self._killed = True
            self._process.kill()
            self._thread.join(1.0)
            self._tell("did not finish in time; what it had not sent is missing there")

    def _put(self, *message) -> None:
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self._tell("is too slow; parts of the log are missing there")

    def _send(self, first: tuple) -> None:
        with contextlib.suppress(OSError), self._process.stdin as pipe:  # an OSError: the process has ended
            for message in itertools.chain([first], iter(self._queue.get, None)):
                pickle.dump(message, pipe)
                pipe.flush()
        if (code := self._process.wait()) and not self._killed:
            self._tell(f"its process ended with status {code}; the run goes on without it")

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            with contextlib.suppress(OSError):
                print(f"warning: --log {self._name}: {what}", file=sys.stderr, flush=True)
