"""Process of one tracker: reads the messages of a `Link` from standard input, and calls the tracker's library."""

import contextlib
import io
import json
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import psutil

from jaxseg.base.files import replace
from jaxseg.runs.services.libraries import LIBRARIES

LEFT_ALONE = 60
"""Seconds that a tracker gets when the run's process has died."""


def main() -> None:
    """Serves one run until standard input ends. Says on stderr where the run is, and the first fault."""
    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(signal.Signals.__members__):
        signal.signal(getattr(signal, name), signal.SIG_IGN)  # the run decides when it ends
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    messages, said = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(2), "w", errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # libraries print, and ask for passwords
        os.dup2(nowhere, descriptor)
    serve(messages, said)


def serve(messages: io.BufferedIOBase, said: io.TextIOBase) -> None:
    """Opens the run that the first message names, and logs what the others have. Ends when it cannot be opened.

    - `messages`: pickled tuples, a method of the tracker and its arguments each, the last one "close"
    - `said`: takes a line on where the run is, and one on the first fault
    """

    def fault(error: BaseException, what: str) -> None:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _say(said, f"warning: --log {name}: {reason}; {what}")

    _, name, run, settings = pickle.load(messages)
    record = run / "trackers" / f"{name}.json"
    try:
        known = json.loads(record.read_text(encoding="utf-8"))["id"] if record.exists() else None
        tracker = LIBRARIES[name](run.name, known, settings)
        keep(record, tracker.id)
    except (Exception, SystemExit) as error:
        advice = f" (or delete {record} to begin anew there)" if record.exists() else ""
        return fault(error, f"the run goes on without it{advice}")
    _say(said, f"note: --log {name}: {tracker.where}")
    failed, closed = False, False
    while not closed:
        what, arguments = _next(messages)
        closed = what == "close"
        try:
            getattr(tracker, what)(*arguments)
        except (Exception, SystemExit) as error:
            if not failed:
                fault(error, "parts of the log are missing there")
            failed = True


def keep(record: Path, identity: str) -> None:
    """Writes the tracker's id of the run, with which a resumed run goes on there."""
    record.parent.mkdir(exist_ok=True)
    replace(record, (json.dumps({"id": identity}) + "\n").encode())


def _next(messages: io.BufferedIOBase) -> tuple[str, tuple]:
    """The next message; where they end without "close", the run's process was killed."""
    try:
        what, *arguments = pickle.load(messages)
    except (EOFError, pickle.UnpicklingError):
        return "close", ("stopped",)
    return what, tuple(arguments)


def _say(said: io.TextIOBase, line: str) -> None:
    with contextlib.suppress(OSError):
        print(line, file=said, flush=True)


def _end_with(parent: int) -> None:
    """Ends this process some time after its parent, whatever the library does."""
    with contextlib.suppress(psutil.Error):
        psutil.Process(parent).wait()
    time.sleep(LEFT_ALONE)
    os._exit(1)
