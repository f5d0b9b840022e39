import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import benchmark
from benchmarks import match, program, readers, report, torch_side
from benchmarks.commands import Command
from benchmarks.match import Failed, Match, Outcome, Rules
from benchmarks.options import Options, Plan
from benchmarks.sources import Source, open_folder
from benchmarks.task import Task
from benchmarks.workers import Worker

from jaxseg.base.errors import UserError

# Matches


class Player:
    """Notes who took a turn; takes `seconds` for each repetition; fails where it is told to."""

    def __init__(self, name, log, seconds=1.0, fails=""):
        if fails == "start":
            raise Failed("cannot start")
        self.name, self.log, self.seconds, self.fails, self.facts = name, log, seconds, fails, {"name": name}

    def turn(self, times):
        self.log.append((self.name, times))
        if self.fails == "turn" and sum(name == self.name for name, _ in self.log) == 3:
            raise Failed("out of memory")
        return {"seconds": self.seconds * times, "cpu_seconds": 2 * self.seconds * times, "count": 10 * times}

    def finish(self):
        if self.fails == "finish":
            raise Failed("gone")
        return {"peak_mib": 1.0}

    def close(self):
        self.log.append((self.name, "closed"))


def played(rules, **players):
    """The match and what happened in it; by its clock a turn takes a second."""
    log = []

    def clock():
        return sum(times != "closed" for _, times in log)

    entrants = {name: lambda name=name, how=how: Player(name, log, **how) for name, how in players.items()}
    return match.play(Match("step", {}, "images"), entrants, rules, clock), log


def test_the_order_moves_on_from_round_to_round():
    found, log = played(Rules(3, 3, turn=0), a={}, b={}, c={})
    assert "".join(name for name, times in log if times != "closed") == "abc" + "abc" + "bca" + "cab"
    assert [len(outcome.turns) for outcome in found.outcomes.values()] == [3, 3, 3]
    assert [entry for entry in log if entry[1] == "closed"] == [(name, "closed") for name in "abc"]


def test_short_turns_are_repeated():
    found, log = played(Rules(1, 1, turn=1.0), short={"seconds": 0.3}, long={"seconds": 2.0})
    assert log[:4] == [("short", 1), ("long", 1), ("short", 4), ("long", 1)]
    np.testing.assert_allclose(match.costs(found.outcomes["short"]), 0.03)


def test_rounds_end_with_the_budget_between_least_and_most():
    def rounds(**rules):
        return len(played(Rules(turn=0, **rules), a={})[0].outcomes["a"].turns)

    assert rounds(least=2, most=50, budget=5) == 5
    assert rounds(least=8, most=50, budget=5) == 8
    assert rounds(least=2, most=4, budget=5) == 4


@pytest.mark.parametrize(
    ("when", "message", "turns"), [("start", "cannot start", 0), ("turn", "out of memory", 1), ("finish", "gone", 4)]
)
def test_who_fails_becomes_a_row_and_the_others_go_on(when, message, turns):
    found, log = played(Rules(4, 4, turn=0), jaxseg={}, broken={"fails": when}, other={"seconds": 2.0})
    assert found.outcomes["broken"].failed == message
    assert sum(turn is not None for turn in found.outcomes["broken"].turns) == turns
    for name in ("jaxseg", "other"):
        assert None not in found.outcomes[name].turns
        assert found.outcomes[name].facts == {"name": name, "peak_mib": 1.0}
    assert sum(times == "closed" for _, times in log) == 3 - (when == "start")
    found.section = "other"
    figures = report.figures(found)
    assert figures["jaxseg"]["ratio"] == (2, 2, 2)
    assert (figures["broken"]["rate"] is None) == (when == "start")
    json.dumps(figures, allow_nan=False)
    assert report.notes(found) == [f"broken: {message}"]


def outcome(*seconds):
    return Outcome(turns=[s and {"seconds": s, "count": 2} for s in seconds])


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=30))
def test_ratios_do_not_feel_a_load_that_both_meet(load):
    one, other = outcome(*load), outcome(*(3 * x for x in load))
    assert match.ratios(one, other) == pytest.approx((3, 3, 3))
    assert match.best_ratio(one, other) == pytest.approx(3)


def test_rates_are_quartiles_and_missing_turns_count_for_nothing():
    assert match.rates(outcome(1, 2, None, 4, 8, 16)) == (2 / 8, 2 / 4, 2 / 2)
    assert match.ratios(outcome(1, None, 4), outcome(2, 5, None)) == (2, 2, 2)
    assert match.rates(outcome(None)) is None
    assert match.best_ratio(outcome(1), outcome(None)) is None


def test_the_fastest_is_not_jaxsegs():
    outcomes = {"jaxseg": outcome(1), "eager": outcome(4, 4), "compiled": outcome(3, 3), "none": outcome(None)}
    assert match.fastest(outcomes) == "compiled"
    assert match.fastest({"jaxseg": outcome(1)}) is None


# Processes


def test_a_worker_answers_from_its_own_process(tiles_root):
    worker = Worker("benchmarks.readers:Decoder", {}, {"source": Source(tiles_root, 5, 1)})
    assert worker.turn(2)["count"] == 10
    assert worker.finish() == {}
    worker.close()


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("benchmarks.nothing:Here", {}, "ModuleNotFoundError: No module named 'benchmarks.nothing'"),
        ("os:_exit", {"status": 3}, "its process ended with status 3"),
    ],
)
def test_a_worker_that_cannot_is_a_failure_with_a_reason(target, arguments, message):
    with pytest.raises(Failed, match=message):
        Worker(target, {}, arguments)


def test_a_command_that_fails_says_why():
    assert Command("-c", "pass", environment={}).turn(1)["seconds"] > 0
    with pytest.raises(Failed, match="ended with status 1: ValueError: no"):
        Command("-c", "raise ValueError('no')", environment={}).turn(1)


# The command


class Local:
    """What `Worker` is, in this process."""

    def __init__(self, target, environment, arguments):
        module, name = target.split(":")
        try:
            self._contender = getattr(importlib.import_module(module), name)(**arguments)
        except Exception as error:
            raise Failed(str(error)) from error
        self.facts, self.turn = getattr(self._contender, "facts", {}), getattr(self._contender, "turn", None)

    def finish(self):
        return getattr(self._contender, "finish", dict)()

    def close(self):
        pass


@pytest.fixture
def local(monkeypatch):
    """Contenders in this process, and networks of two levels."""
    monkeypatch.setattr(program, "Worker", Local)
    monkeypatch.setattr(benchmark, "Worker", Local)
    monkeypatch.setattr(torch_side, "threads", lambda: 1)
    monkeypatch.setattr(program, "Task", lambda *args, **how: Task(*args, **how, levels=2))


TINY = ["--quick", "--bases", "2", "--side", "16", "--precisions", "f32", "--no-torch-compile", "--rounds", "2"]


def test_a_step_is_the_same_work_on_both_sides_and_all_is_written_down(local, monkeypatch, tmp_path, capsys):
    ways = program.torch_ways
    monkeypatch.setattr(program, "torch_ways", lambda plan: ways(plan) | {"broken": {"layout": "sideways"}})
    assert benchmark.main([*TINY, "--only", "step", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "not the same work" not in printed
    assert "broken: 'sideways'" in printed
    found = json.loads((tmp_path / "out" / "benchmark.json").read_text(encoding="utf-8"))
    (step,) = found["matches"]
    assert step["configuration"].items() >= {"base": 2, "batch": 2, "side": 16, "precision": "f32"}.items()
    assert set(step["outcomes"]) == {"jaxseg", "eager", "channels_last, fused Adam", "broken"}
    losses = [outcome["facts"]["first_loss"] for name, outcome in step["outcomes"].items() if name != "broken"]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)
    for name in ("jaxseg", "eager"):
        figures, turns = step["figures"][name], step["outcomes"][name]["turns"]
        assert len(turns) == 2
        assert figures["rate"][1] == pytest.approx(np.median([turn["count"] / turn["seconds"] for turn in turns]))
    assert found["machine"]["versions"].keys() >= {"jax", "torch"}


def test_an_epoch_from_files_takes_as_many_steps_as_the_step_alone(local, tiles_root, tmp_path):
    plan = Plan(Options(quick=True, bases=(2,), tiles=8, data=tiles_root), gpu=False, workers=0)
    (entry,) = program.epochs(plan, tmp_path)
    contenders = ("jaxseg, the step alone", "jaxseg, from files")
    found = match.play(entry.match, {name: entry.entrants[name] for name in contenders}, Rules(2, 2, turn=0))
    assert entry.match.configuration["side"] == 32
    figures = report.figures(found)
    assert figures["jaxseg, the step alone"]["ratio"] == (1, 1, 1)
    for name, outcome in found.outcomes.items():
        assert outcome.failed is None
        assert [turn["count"] for turn in outcome.turns] == [8, 8]
        assert 0 <= figures[name]["waited"] < 1


@pytest.mark.parametrize("cache", ["none", "memory", "device"])
def test_readers_count_all_pairs(tiles_root, cache):
    source = Source(tiles_root, 12, workers=1)
    assert len({pair.image for pair in source.pairs}) == 10  # over and over
    assert readers.Ours(source, 4, cache).turn(2)["count"] == 24
    theirs = readers.Theirs(source, 4, workers=0)
    assert theirs.turn(1)["count"] == 12
    assert sum(len(images) for images, _ in theirs._loader) == 12


def test_all_mistakes_are_named_at_once(tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    assert benchmark.main(["--bases", "0", "--side", "40", "--rounds", "0", "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    for part in ("--bases (0,)", "--side 40: expected a multiple of 16", "--rounds 0", f"--out {tmp_path}: is not"):
        assert part in message


def test_a_folder_that_the_articles_loader_cannot_read_is_refused(tiles_root, tmp_path):
    assert open_folder(tiles_root, tmp_path, 32) == tiles_root
    with pytest.raises(UserError, match=r"no folder .*train, no folder .*Ltrain"):
        open_folder(tmp_path, tmp_path, 32)


@pytest.mark.parametrize("fails", [False, True])
def test_what_torch_compiles_can_be_compiled_ahead(monkeypatch, tmp_path, fails):
    """All at once and untuned, into the cache that the contenders have; a contender comes in when its own is there."""
    begun = []

    class Noted(Local):
        def __init__(self, target, environment, arguments):
            ahead = not arguments.get("tuned", True)
            begun.append((ahead, arguments.get("compiled"), environment["TORCHINDUCTOR_CACHE_DIR"]))
            if ahead and fails:
                raise Failed("no compiler")

    monkeypatch.setattr(program, "Worker", Noted)
    modes = ("default", "reduce-overhead")
    options = Options(bases=(2, 4), batches=(2,), precisions=("f32",), ahead=True, torch_modes=modes)
    entries = list(program.steps(Plan(options, gpu=True, workers=1), tmp_path))
    assert sorted(begun) == sorted((True, mode, str(tmp_path / "inductor")) for mode in modes * 2)
    for name in ("jaxseg", "eager"):
        entries[0].entrants[name]()
    if fails:
        with pytest.raises(Failed, match="no compiler"):
            entries[1].entrants["torch.compile, reduce-overhead"]()
    else:
        entries[1].entrants["torch.compile, reduce-overhead"]()
        assert begun[-1] == (False, "reduce-overhead", str(tmp_path / "inductor"))


def test_a_gpu_brings_its_own_contenders_and_sizes():
    plan = Plan(Options(), gpu=True, workers=16)
    assert {"torch.compile, max-autotune-no-cudagraphs", "torch.compile, reduce-overhead"} < set(
        program.torch_ways(plan)
    )
    assert (plan.bases, plan.batches) == ((16, 32, 64), (5, 16, 32))
    assert len(list(program.tasks(plan))) == 18
