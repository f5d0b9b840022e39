"""Which comparisons there are, and who takes part in each."""

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.commands import Command, FirstStep
from benchmarks.match import Contender, Match, Rules
from benchmarks.options import Plan
from benchmarks.sources import Source, open_folder
from benchmarks.task import Task
from benchmarks.workers import Worker
from jaxseg.data.made.fields import make_fields

READ_BATCH = 8
"""Pairs in a batch of the pipeline."""


class Entry(NamedTuple):
    """A comparison that is to be held."""

    match: Match
    entrants: dict[str, Callable[[], Contender]]
    rules: Rules


def program(plan: Plan, temporary: Path) -> Iterator[Entry]:
    """The comparisons of the sections that were asked for, in order; files go into `temporary`."""
    sections = {"step": steps, "pipeline": pipeline, "epoch": epochs, "startup": startup}
    for name, section in sections.items():
        if name in plan.options.only:
            yield from section(plan, temporary)


def worker(plan: Plan, temporary: Path, target: str, **arguments) -> Callable[[], Worker]:
    """A contender in its own process, in which nothing compiled earlier is found, but what was compiled ahead."""

    def start() -> Worker:
        environment = {} if plan.gpu else machine.without_gpu()
        # JAX would take three quarters of a GPU at once, and leave too little to the others
        environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        environment["JAXSEG_CACHE_DIR"] = str(temporary / "jaxseg")
        inductor = temporary / "inductor" if plan.options.ahead else tempfile.mkdtemp(prefix="inductor-", dir=temporary)
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(inductor)
        return Worker(f"benchmarks.{target}", environment, arguments)

    return start


def tasks(plan: Plan) -> Iterator[Task]:
    """Every configuration."""
    o = plan.options
    for precision, base, batch in itertools.product(o.precisions, plan.bases, plan.batches):
        yield Task(base, batch, plan.side, precision, conv_bias=o.conv_bias)


def torch_ways(plan: Plan) -> dict[str, dict]:
    """How PyTorch is set up, by name: what people write, what is recommended, and torch.compile's modes."""
    ways = {"eager": {"layout": "contiguous", "fused": False}, "channels_last, fused Adam": {}}
    if plan.options.torch_compile:
        modes = ("max-autotune-no-cudagraphs", "reduce-overhead") if plan.gpu else ("default",)
        ways |= {f"torch.compile, {mode}": {"compiled": mode} for mode in plan.options.torch_modes or modes}
    return ways


def steps(plan: Plan, temporary: Path) -> Iterator[Entry]:
    """A training step from the same weights on the same batch."""
    ways = torch_ways(plan)
    with ThreadPoolExecutor() as pool:
        ready = compiled_ahead(plan, temporary, pool) if plan.options.ahead else {}
        for number, task in enumerate(tasks(plan)):
            weights = temporary / f"weights-{number}.npz"
            with_weights = {"task": task, "weights": weights}
            entrants = {"jaxseg": worker(plan, temporary, "jax_side:Step", **with_weights)}
            for name, how in ways.items():
                start = worker(plan, temporary, "torch_side:Step", **with_weights, **how)
                entrants[name] = partial(after, ready.get((task, how.get("compiled"))), start)
            yield Entry(Match("step", dataclasses.asdict(task), "images"), entrants, plan.rules)
            weights.unlink(missing_ok=True)


def compiled_ahead(plan: Plan, temporary: Path, pool: ThreadPoolExecutor) -> dict[tuple[Task, str], Future]:
    """All that torch.compile will be asked for, by step and mode; each leaves its programs in Inductor's cache."""

    def compile_one(task: Task, how: dict) -> None:
        worker(plan, temporary, "torch_side:Step", task=task, tuned=False, **how)().close()

    compiled = [how for how in torch_ways(plan).values() if "compiled" in how]
    return {
        (task, how["compiled"]): pool.submit(compile_one, task, how)
        for task, how in itertools.product(tasks(plan), compiled)
    }


def after(other: Future | None, start: Callable[[], Contender]) -> Contender:
    """What `start` makes once `other`, if there is one, is done. Raises Failed if that failed."""
    if other is not None:
        other.result()
    return start()


def pipeline(plan: Plan, temporary: Path) -> Iterator[Entry]:
    """Pairs of tiles from files, and from what is kept of them after the first epoch."""
    source = Source(open_folder(plan.options.data, temporary, plan.side), plan.tiles_read, plan.workers)
    enter = partial(worker, plan, temporary, source=source)
    ours, loader = (partial(enter, f"readers:{side}", batch=READ_BATCH) for side in ("Ours", "Theirs"))
    entrants = {"decoder alone": enter("readers:Decoder"), "jaxseg": ours(cache="none")}
    entrants |= {f"jaxseg, cache {cache}": ours(cache=cache) for cache in ("memory", "disk", "device")}
    entrants["DataLoader, 0 workers"] = loader(workers=0)
    entrants[f"DataLoader, {plan.workers} workers"] = loader(workers=plan.workers)
    entrants[f"DataLoader, {plan.workers} workers kept"] = loader(workers=plan.workers, keep=True)
    configuration = {"tiles": source.tiles, "side": source.side(), "batch": READ_BATCH, "threads": plan.workers}
    yield Entry(Match("pipeline", configuration, "pairs"), entrants, plan.rules)


def epochs(plan: Plan, temporary: Path) -> Iterator[Entry]:
    """A whole epoch from files, of the smallest network on a CPU and the largest on a GPU, in float32 or as asked."""
    base, batch = (max(plan.bases), max(plan.batches)) if plan.gpu else (min(plan.bases), min(plan.batches))
    precision = "bf16" if plan.gpu and "bf16" in plan.options.precisions else plan.options.precisions[0]
    count = plan.steps(batch)
    source = Source(open_folder(plan.options.data, temporary, plan.side), count * batch, plan.workers)
    task = Task(base, batch, source.side(), precision, conv_bias=plan.options.conv_bias)
    enter = partial(worker, plan, temporary, task=task, steps=count)
    entrants = {"jaxseg, the step alone": enter("jax_side:Epoch")}
    for name, cache in (("from files", "none"), ("cache memory", "memory"), ("cache device", "device")):
        entrants[f"jaxseg, {name}"] = enter("jax_side:Epoch", source=source, cache=cache)
    entrants[f"PyTorch, from files, {plan.workers} workers kept"] = enter("torch_side:Epoch", source=source)
    yield Entry(Match("epoch", dataclasses.asdict(task) | {"steps": count}, "images"), entrants, plan.rules)


def startup(plan: Plan, temporary: Path) -> Iterator[Entry]:
    """Commands in fresh processes."""
    here = Path(__file__).parents[1]
    environment = {} if plan.gpu else machine.without_gpu()
    environment["PYTHONPATH"] = machine.python_path(here, here.parent)
    environment["PYTHONDONTWRITEBYTECODE"] = ""  # what pip installs is compiled; a checkout is by its first turn
    words = {
        "python": ("-c", "pass"),
        "import jax": ("-c", "import jax"),
        "import flax.nnx": ("-c", "import jax, flax.nnx"),
        "import jaxseg.learn.step": ("-c", "import jax, jaxseg.learn.step"),
        "import jaxseg.training.loop": ("-c", "import jax, jaxseg.training.loop"),
        "import torch": ("-c", "import torch"),
        "jaxseg.train -h": ("-m", "jaxseg.train", "-h"),
    }
    entrants: dict[str, Callable] = {name: partial(Command, *w, environment=environment) for name, w in words.items()}
    data = make_fields(temporary / "few", train=16, val=4, size=plan.side)
    for name, cold, given in (("cold", True, data), ("cached", False, data), ("cached, no flags", False, None)):
        first = partial(FirstStep, given, temporary / name, cold=cold, environment=environment)
        entrants[f"first step, {name}"] = first
    rules = Rules(1, 1) if plan.options.quick else Rules(plan.options.rounds or 3, plan.options.rounds or 7, 60.0)
    yield Entry(Match("startup", {"side": plan.side, "tiles": 20}, "processes"), entrants, rules)
