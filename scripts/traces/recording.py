"""How long each operation of a program ran, from a trace that jax's profiler wrote."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
from jax.profiler import ProfileData


class Span(NamedTuple):
    """One run of an operation."""

    start: float
    """ns"""
    end: float
    operation: str
    """Its name in the HLO text; empty if the trace does not tell."""
    kernel: str
    """The name of the kernel on a GPU; elsewhere that of the operation."""


def record(run: Callable[[], object]) -> list[Span]:
    """Traces `run`, which has to wait for what it computes."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder, profiler_options=options)
        run()
        jax.profiler.stop_trace()
        (path,) = Path(folder).rglob("*.xplane.pb")
        return spans(ProfileData.from_file(str(path)))


def spans(data: ProfileData) -> list[Span]:
    """The kernels of GPUs if there are any, otherwise the operations of the CPU."""
    planes = list(data.planes)
    lines = [line for plane in planes if plane.name.startswith("/device:GPU") for line in plane.lines]
    streams = [line for line in lines if "Stream" in line.name] or [line for line in lines if line.name == "XLA Ops"]
    found = [span for line in streams for span in _kernels(line)]
    return found or [span for plane in planes if plane.name == "/host:CPU" for span in _thunks(plane)]


def _kernels(line) -> Iterable[Span]:
    for event in line.events:
        yield Span(event.start_ns, event.end_ns, str(dict(event.stats).get("hlo_op", "")), event.name)


def _thunks(plane) -> Iterable[Span]:
    """An operation that goes on in other threads has a second event at its end, with the number of the first."""
    begun, ends = [], {}
    for line in plane.lines:
        for event in line.events:
            stats = dict(event.stats)
            if "hlo_op" in stats:
                begun.append((event, stats))
            elif event.name.startswith("end: "):
                ends[stats.get("_c")] = event.start_ns
    for event, stats in begun:
        yield Span(event.start_ns, max(event.end_ns, ends.get(stats.get("_p"), 0)), stats["hlo_op"], stats["hlo_op"])


def shared_time(intervals: Iterable[tuple[float, float, object]]) -> Counter:
    """What -> its part of the time covered by (start, end, what): while n run, each has an nth of it.

    So the parts add up to the time in which anything ran.
    """
    edges = sorted(edge for start, end, what in intervals for edge in ((start, 1, what), (end, -1, what)))
    running, parts, before = Counter(), Counter(), 0.0
    for time, change, what in edges:
        if total := running.total():
            for other, count in running.items():
                parts[other] += (time - before) * count / total
        running[what] += change
        if not running[what]:
            del running[what]
        before = time
    return parts
