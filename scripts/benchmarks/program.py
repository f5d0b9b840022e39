"""Options of the benchmark, its comparisons, and who takes part in each."""

import dataclasses
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks.match import Match, Rules
from benchmarks.task import Source, Task
from benchmarks.workers import Worker
from jaxseg.base.errors import UserError
from jaxseg.data.made.fields import make_fields

Section = Literal["step", "pipeline", "epoch", "startup"]
READ_BATCH = 8  # pairs
FIRST_STEP = """
import os, sys
from jaxseg import train
from jaxseg.runs.tracker import Tracker
Tracker.steps = lambda *_: os._exit(0)  # the first to be told of a step
sys.exit(train.main() or 1)
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """jaxseg against PyTorch on this machine."""

    only: tuple[Section, ...] = ("step", "pipeline", "epoch", "startup")
    """Sections to run."""
    bases: tuple[int, ...] = ()
    """Channels of the networks at full resolution; 16 32 64 if not given."""
    encoders: tuple[Literal["resnet18", "resnet34", "resnet50"], ...] = ()
    """Networks with these encoders, after those of --bases if it is given; for the section step."""
    batches: tuple[int, ...] = ()
    """Images in a batch; 5 if not given, on a GPU 5 16 32."""
    precisions: tuple[Literal["f32", "bf16"], ...] = ("f32", "bf16")
    """Types of the computation."""
    devices: int = 1
    """Include jaxseg's step on so many devices, which a CPU is made to have."""
    torch_eager: bool = True
    """Include PyTorch without torch.compile."""
    torch_compile: bool = True
    """Include torch.compile: up to two minutes for each configuration on 2 CPU cores."""
    torch_modes: tuple[str, ...] = ()
    """Modes of torch.compile: default, or on a GPU max-autotune-no-cudagraphs and reduce-overhead, if not given."""
    ahead: bool = False
    """Compile torch.compile's steps in the background from the start, for a GPU that is lent for minutes. PyTorch's
    compile times mean nothing then. Not for modes that tune on the GPU, which disturbs others."""
    data: Path | None = None
    """Folder with train/ and Ltrain/ to read tiles from; made-up fields if not given."""
    budget: float | None = None
    """Seconds of rounds for a comparison; 30 if not given. There are 3 to 50 rounds. Compilation comes on top."""
    out: Path | None = None
    """Folder for benchmark.json; benchmark-<date>-<time> if not given."""
    quick: bool = False
    """A tiny network and few rounds, to see in two minutes that all of it works. The figures mean nothing."""

    def check(self) -> None:
        """Raises UserError naming every wrong option."""
        numbers = {"bases": self.bases, "batches": self.batches, "budget": [x for x in [self.budget] if x is not None]}
        problems = [f"--{k} {v}: expected numbers above 0" for k, v in numbers.items() if min(v, default=1) <= 0]
        problems += [f"--devices {self.devices}: expected 1 or more"] * (self.devices < 1)
        problems += [f"--{k}: expected one or more" for k in ("only", "precisions") if not getattr(self, k)]
        missing = [name for name in ("train", "Ltrain") if self.data and not (self.data / name).is_dir()]
        if missing:
            problems.append(f"--data {self.data}: no folder {', '.join(missing)}, which the article's loader needs")
        if self.out and self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
            problems.append(f"--out {self.out}: is not an empty folder; nothing is overwritten")
        if problems:
            raise UserError("\n".join(problems))


Entry = tuple[Match, dict[str, Callable[[], Worker]], Rules]
"""A comparison to be held: arguments of `match.play`."""


class Bench:
    """What the options mean on this machine.

    - `gpu`: both frameworks see one
    - `workers`: threads of the pipeline, processes of PyTorch's loader
    - `folder`: for temporary files
    """

    def __init__(self, options: Options, gpu: bool, workers: int, folder: Path):
        self.options, self.gpu, self.workers, self.folder = options, gpu, workers, folder
        o, self.quick = options, options.quick
        self.bases = o.bases or ((4,) if self.quick else (16, 32, 64))
        self.batches = o.batches or ((2,) if self.quick else (5, 16, 32) if gpu else (5,))
        self.side, self.levels = (32, 2) if self.quick else (256, 5)
        self.rules = Rules(2, 2) if self.quick else Rules(budget=30.0 if o.budget is None else o.budget)
        self.environment = {} if gpu else {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}

    def worker(self, target: str, **arguments) -> Callable[[], Worker]:
        """A contender in a process that finds no compiled programs, except those compiled ahead."""

        def start() -> Worker:
            ahead = self.options.ahead
            inductor = self.folder / "inductor" if ahead else tempfile.mkdtemp(prefix="inductor-", dir=self.folder)
            alone = {"TORCHINDUCTOR_CACHE_DIR": str(inductor), "JAX_ENABLE_COMPILATION_CACHE": "false"}
            # JAX would take three quarters of a GPU at once, and leave too little to the others
            alone |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAXSEG_CACHE_DIR": str(self.folder / "jaxseg")}
            return Worker(f"benchmarks.{target}", self.environment | alone, arguments)

        return start

    def tasks(self) -> Iterator[Task]:
        """Every configuration of a step: all networks with the first batch, then all with the next."""
        o = self.options
        networks = [(base, None) for base in self.bases if o.bases or not o.encoders]
        networks += [(64, encoder) for encoder in o.encoders]
        for precision, batch, (base, encoder) in itertools.product(o.precisions, self.batches, networks):
            yield Task(base, batch, self.side, precision, self.levels, encoder)

    def torch_ways(self) -> dict[str, dict]:
        """Ways to set up PyTorch: what people write, what is recommended, and torch.compile's modes."""
        ways = {}
        if self.options.torch_eager:
            ways |= {"eager": {"layout": "contiguous", "fused": False}, "channels_last, fused Adam": {}}
        if self.options.torch_compile:
            modes = ("max-autotune-no-cudagraphs", "reduce-overhead") if self.gpu else ("default",)
            ways |= {f"torch.compile, {mode}": {"compiled": mode} for mode in self.options.torch_modes or modes}
        return ways

    def source(self, tiles: int) -> Source:
        """The tiles that were given, or made-up crop fields."""
        folder, made = self.options.data, self.folder / "fields"
        if folder is None:
            folder = made if made.is_dir() else make_fields(made, train=64, val=8, size=self.side)
        return Source(folder, tiles, self.workers)


def program(bench: Bench) -> Iterator[Entry]:
    """The comparisons of the sections that were asked for, in order."""
    for name, section in {"step": steps, "pipeline": pipeline, "epoch": epochs, "startup": startup}.items():
        if name in bench.options.only:
            yield from section(bench)


def steps(bench: Bench) -> Iterator[Entry]:
    """A training step from the same weights on the same batch."""
    with ThreadPoolExecutor() as pool:
        ready = compiled_ahead(bench, pool) if bench.options.ahead else {}
        for number, task in enumerate(bench.tasks()):
            given = {"task": task, "weights": bench.folder / f"weights-{number}.npz"}
            entrants = {"jaxseg": bench.worker("jax_side:step", **given)}
            if (count := bench.options.devices) > 1:
                entrants[f"jaxseg, {count} devices"] = bench.worker("jax_side:step", task=task, devices=count)
            for name, how in bench.torch_ways().items():
                start = bench.worker("torch_side:step", **given, **how)
                entrants[name] = partial(after, ready.get((task, how.get("compiled"))), start)
            yield Match("step", dataclasses.asdict(task), "images"), entrants, bench.rules
            given["weights"].unlink(missing_ok=True)


def compiled_ahead(bench: Bench, pool: ThreadPoolExecutor) -> dict[tuple[Task, str], Future]:
    """Compiles each step in each mode of torch.compile. The programs stay in Inductor's cache."""

    def compile_one(task: Task, how: dict) -> None:
        bench.worker("torch_side:step", task=task, tuned=False, **how)().close()

    ways = [how for how in bench.torch_ways().values() if "compiled" in how]
    jobs = itertools.product(bench.tasks(), ways)
    return {(task, how["compiled"]): pool.submit(compile_one, task, how) for task, how in jobs}


def after(other: Future | None, start: Callable[[], Worker]) -> Worker:
    """Starts a contender once `other` is done. Raises Failed if that failed."""
    if other is not None:
        other.result()
    return start()


def pipeline(bench: Bench) -> Iterator[Entry]:
    """Pairs of tiles from files, and from the caches after the first epoch."""
    source = bench.source(16 if bench.quick else 384)
    enter = partial(bench.worker, source=source)
    entrants = {"decoder alone": enter("task:decoder")}
    for cache in ("none", "memory", "disk", "device"):
        entrants[f"jaxseg, cache {cache}"] = enter("jax_side:reader", batch=READ_BATCH, cache=cache)
    for keep in (False, True):
        name = f"DataLoader, {bench.workers} workers{' kept' * keep}"
        entrants[name] = enter("torch_side:reader", batch=READ_BATCH, workers=bench.workers, keep=keep)
    configuration = {"tiles": source.tiles, "side": source.side(), "batch": READ_BATCH, "threads": bench.workers}
    yield Match("pipeline", configuration, "pairs"), entrants, bench.rules


def epochs(bench: Bench) -> Iterator[Entry]:
    """A whole epoch from files: of the smallest network on a CPU, of the largest on a GPU."""
    choose = max if bench.gpu else min
    base, batch, precisions = choose(bench.bases), choose(bench.batches), bench.options.precisions
    precision = "bf16" if bench.gpu and "bf16" in precisions else precisions[0]
    count = max(2, (8 if bench.quick else 1536 if bench.gpu else 40) // batch)
    source = bench.source(count * batch)
    task = Task(base, batch, source.side(), precision, bench.levels)
    enter = partial(bench.worker, task=task, steps=count)
    entrants = {
        "jaxseg, the step alone": enter("jax_side:epoch"),
        "jaxseg, from files": enter("jax_side:epoch", source=source),
        f"PyTorch, from files, {bench.workers} workers kept": enter("torch_side:epoch", source=source),
    }
    yield Match("epoch", dataclasses.asdict(task) | {"steps": count}, "images"), entrants, bench.rules


def startup(bench: Bench) -> Iterator[Entry]:
    """Commands in fresh processes. A first step is `jaxseg.train` until it has the result of one step."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = {
        "python": ("-c", "pass"),
        "import jax": ("-c", "import jax"),
        "import jaxseg.training.loop": ("-c", "import jax, jaxseg.training.loop"),
        "import torch": ("-c", "import torch"),
        "jaxseg.train -h": ("-m", "jaxseg.train", "-h"),
    }
    data = make_fields(bench.folder / "few", train=16, val=4, size=bench.side)
    few = ("--data", str(data), "--epochs", "1", "--batch-size", "5", "--steps", "2", "--workers", "1")
    for name, flags in {"cold": few, "cached": few, "cached, no flags": ()}.items():
        out = ("--out", str(bench.folder / f"{name}-run"), "--overwrite")
        words[f"first step, {name}"] = ("-c", FIRST_STEP, *out, *flags)
    entrants = {}
    for name, given in words.items():
        cache = bench.folder / name
        environment = bench.environment | {"PYTHONPATH": path, "JAXSEG_CACHE_DIR": str(cache)}
        arguments = {"words": given, "folder": bench.folder, "cold": cache if name.endswith("cold") else None}
        entrants[name] = partial(Worker, "benchmarks.workers:command", environment, arguments)
    rules = Rules(1, 1) if bench.quick else Rules(3, 7, 60.0)
    yield Match("startup", {"side": bench.side, "tiles": 20}, "processes"), entrants, rules
