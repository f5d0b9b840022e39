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
from benchmarks import jax_side, match, program, report, roofline, torch_side, workers
from benchmarks.match import Failed, Match, Outcome, Rules
from benchmarks.program import Bench, Options
from benchmarks.task import Source
from benchmarks.workers import Worker

# Matches


class Player:
    """Notes its turns; takes `seconds` per repetition; fails at the start, in its third turn or at the end."""

    def __init__(self, name, log, seconds=1.0, fails=""):
        if fails == "start":
            raise Failed("cannot start")
        self.name, self.log, self.seconds, self.fails, self.facts = name, log, seconds, fails, {"name": name}

    def turn(self, times):
        self.log.append((self.name, times))
        if self.fails == "turn" and sum(name == self.name for name, _ in self.log) == 3:
            raise Failed("out of memory")
        return {"seconds": self.seconds * times, "count": 10 * times}

    def finish(self):
        if self.fails == "finish":
            raise Failed("gone")
        return {"peak_mib": 1.0}

    def close(self):
        self.log.append((self.name, "closed"))


def played(rules, **players):
    """The match and the turns in it; by its clock a turn takes a second."""
    log = []

    def clock():
        return sum(times != "closed" for _, times in log)

    entrants = {name: lambda name=name, how=how: Player(name, log, **how) for name, how in players.items()}
    return match.play(Match("step", {"batch": 1}, "images"), entrants, rules, clock), log


def test_order_rotates_from_round_to_round():
    found, log = played(Rules(3, 3, turn=0), a={}, b={}, c={})
    assert "".join(name for name, times in log if times != "closed") == "abc" + "abc" + "bca" + "cab"
    assert [len(outcome.turns) for outcome in found.outcomes.values()] == [3, 3, 3]
    assert [entry for entry in log if entry[1] == "closed"] == [(name, "closed") for name in "abc"]


def test_short_turns_are_repeated():
    found, log = played(Rules(1, 1, turn=1.0), short={"seconds": 0.3}, long={"seconds": 2.0})
    assert log[:4] == [("short", 1), ("long", 1), ("short", 4), ("long", 1)]
    np.testing.assert_allclose(report.costs(found.outcomes["short"]), 0.03)


@pytest.mark.parametrize(("least", "most", "rounds"), [(2, 50, 5), (8, 50, 8), (2, 4, 4)])
def test_rounds_end_with_the_budget_between_least_and_most(least, most, rounds):
    found, _ = played(Rules(least, most, budget=5, turn=0), a={})
    assert len(found.outcomes["a"].turns) == rounds


@pytest.mark.parametrize(
    ("when", "message", "turns"), [("start", "cannot start", 0), ("turn", "out of memory", 1), ("finish", "gone", 4)]
)
def test_failed_contender_becomes_a_row_and_the_others_go_on(when, message, turns):
    found, log = played(Rules(4, 4, turn=0), jaxseg={}, broken={"fails": when}, other={"seconds": 2.0})
    assert found.outcomes["broken"].failed == message
    assert sum(turn is not None for turn in found.outcomes["broken"].turns) == turns
    for name in ("jaxseg", "other"):
        assert None not in found.outcomes[name].turns
        assert found.outcomes[name].facts == {"name": name, "peak_mib": 1.0}
    assert sum(times == "closed" for _, times in log) == 3 - (when == "start")
    figures = report.figures(found)
    assert figures["jaxseg"]["ratio"] == (2, 2, 2)
    assert (figures["broken"]["rate"] is None) == (when == "start")
    json.dumps(figures, allow_nan=False)
    assert report.notes(found) == [f"broken: {message}"]
    assert report.table(found, figures).row_count == 3


def figures(**turns):
    outcomes = {name: Outcome(turns=[s and {"seconds": s, "count": 2} for s in turns[name]]) for name in turns}
    return report.figures(Match("step", {}, "images", outcomes))


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=30))
def test_ratios_do_not_depend_on_a_load_that_both_meet(load):
    found = figures(jaxseg=load, eager=[3 * x for x in load])["jaxseg"]
    assert found["ratio"] == pytest.approx((3, 3, 3))
    assert found["best_ratio"] == pytest.approx(3)


def test_rates_are_quartiles_and_missing_turns_do_not_count():
    found = figures(jaxseg=(1, 2, None, 4, 8, 16), eager=(2, None, 5, None, None, None), none=(None,) * 6)
    assert found["jaxseg"]["rate"] == (2 / 8, 2 / 4, 2 / 2)
    assert found["jaxseg"]["ratio"] == (2, 2, 2)
    assert found["none"]["rate"] is None


def test_jaxseg_is_compared_with_the_fastest_of_pytorch():
    found = figures(jaxseg=(1, 1), eager=(4, 4), compiled=(3, 3), none=(None, None))
    assert [found[name]["best_ratio"] for name in found] == [3, 0.75, 1, None]


@pytest.mark.parametrize(
    ("facts", "precision", "share"),
    [
        ({"device": "NVIDIA H200", "flop": 989e12, "bytes": 2.4e12}, "bf16", 0.5),  # FLOP take 1 s, memory half
        ({"device": "NVIDIA H200", "flop": 98.9e12, "bytes": 2.4e12}, "bf16", 0.25),
        ({"device": "NVIDIA H200", "flop": 494e12, "bytes": 0.0}, "f32", 0.5),
        ({"device": "cpu", "flop": 1e12, "bytes": 1e12}, "bf16", None),
        ({"device": "NVIDIA H200", "flop": None, "bytes": None}, "bf16", None),
        ({}, "bf16", None),
    ],
)
def test_share_of_the_roofline_is_of_what_limits_a_known_gpu(facts, precision, share):
    assert roofline.share(facts, precision, seconds=2.0) == (share and pytest.approx(share))


def test_figures_of_a_step_have_the_share_of_the_roofline():
    facts = {"device": "NVIDIA H200", "flop": 989e12, "bytes": 0.0, "first_seconds": 9.0}
    outcome = Outcome(facts, [{"seconds": 8.0, "count": 4}])
    played = Match("step", {"batch": 2, "precision": "bf16"}, "images", {"jaxseg": outcome})
    found = report.figures(played)
    assert found["jaxseg"]["roofline"] == pytest.approx(1 / 4)
    assert report.table(played, found).columns[-1].header == "of roofline"


# Processes


def test_worker_answers_from_its_own_process_and_says_why_it_fails():
    worker = Worker("benchmarks.workers:command", {}, {"words": ("-c", "pass")})
    assert worker.turn(2)["count"] == 2
    assert worker.finish() == {}
    worker.close()
    with pytest.raises(Failed, match=r"ModuleNotFoundError: .*'benchmarks\.nothing'"):
        Worker("benchmarks.nothing:here", {}, {})
    with pytest.raises(Failed, match="its process died"):
        Worker("os:_exit", {}, {"status": 3})


def test_failing_command_says_why():
    with pytest.raises(RuntimeError, match="ended with status 1: ValueError: no"):
        workers.command(("-c", "raise ValueError('no')")).turn(1)


# The command


class Local:
    """A `Worker` in this process."""

    def __init__(self, target, environment, arguments):
        module, name = target.split(":")
        try:
            contender = getattr(importlib.import_module(module), name)(**arguments)
        except Exception as error:
            raise Failed(str(error)) from error
        self.facts, self.turn, self.finish = contender.facts, contender.turn, contender.finish

    def close(self):
        pass


@pytest.fixture
def local(monkeypatch):
    """Contenders in this process."""
    monkeypatch.setattr(program, "Worker", Local)
    monkeypatch.setattr(benchmark, "Worker", Local)
    monkeypatch.setattr(torch_side, "threads", lambda: 1)


def test_step_is_equal_work_on_both_sides_and_is_written_down(local, monkeypatch, tmp_path, capsys):
    ways = Bench.torch_ways
    monkeypatch.setattr(Bench, "torch_ways", lambda bench: ways(bench) | {"broken": {"layout": "sideways"}})
    monkeypatch.setattr(jax_side.processes, "start_alone", lambda devices: None)  # JAX has begun, and has two devices
    argv = ["--quick", "--bases", "2", "--precisions", "f32", "--devices", "2", "--no-torch-compile", "--only", "step"]
    assert benchmark.main([*argv, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "not the same work" not in printed
    assert "broken: 'sideways'" in printed
    found = json.loads((tmp_path / "out" / "benchmark.json").read_text(encoding="utf-8"))
    (step,) = found["matches"]
    assert step["configuration"].items() >= {"base": 2, "batch": 2, "side": 32, "precision": "f32"}.items()
    assert set(step["outcomes"]) == {"jaxseg", "jaxseg, 2 devices", "eager", "channels_last, fused Adam", "broken"}
    losses = [outcome["facts"]["first_loss"] for name, outcome in step["outcomes"].items() if name != "broken"]
    assert losses[1:] == pytest.approx([losses[0]] * 3, rel=1e-4)
    assert all(len(outcome["turns"]) == 2 for outcome in step["outcomes"].values())
    facts = step["outcomes"]["jaxseg"]["facts"]
    assert facts["flop"] > 1e5
    assert facts["bytes"] > 1e5
    assert found["machine"]["versions"].keys() >= {"jax", "torch"}


def test_epoch_from_files_takes_as_many_steps_as_the_step_alone(local, tiles_root, tmp_path):
    bench = Bench(Options(quick=True, bases=(2,), data=tiles_root), gpu=False, workers=0, folder=tmp_path)
    (entry,) = program.epochs(bench)
    found = match.play(*entry[:2], Rules(1, 1, turn=0))
    figures = report.figures(found)
    assert figures["jaxseg, the step alone"]["ratio"] == (1, 1, 1)
    for name, outcome in found.outcomes.items():
        assert outcome.failed is None
        assert [turn["count"] for turn in outcome.turns] == [8]
        assert "jaxseg" not in name or 0 <= figures[name]["waited"] < 1


def test_all_networks_come_with_the_first_batch_and_then_with_the_next():
    options = Options(bases=(64, 16), encoders=("resnet34",), batches=(16, 32), precisions=("bf16",), torch_eager=False)
    bench = Bench(options, gpu=True, workers=1, folder=Path())
    found = [(task.base, task.encoder, task.batch) for task in bench.tasks()]
    assert found[:3] == [(64, None, 16), (16, None, 16), (64, "resnet34", 16)]
    assert found[3:] == [(64, None, 32), (16, None, 32), (64, "resnet34", 32)]
    assert list(bench.torch_ways()) == ["torch.compile, max-autotune-no-cudagraphs", "torch.compile, reduce-overhead"]
    alone = Options(encoders=("resnet18",), batches=(2,), precisions=("f32",))
    assert [task.encoder for task in Bench(alone, gpu=False, workers=1, folder=Path()).tasks()] == ["resnet18"]


def test_readers_count_all_pairs(tiles_root):
    source = Source(tiles_root, 12, workers=1)
    assert len({pair.image for pair in source.pairs}) == 10  # the first two again
    for cache in ("none", "memory", "disk", "device"):
        assert jax_side.reader(source, 4, cache).turn(2)["count"] == 24
    assert torch_side.reader(source, 4, workers=0, keep=False).turn(1)["count"] == 12
    assert sum(len(images) for images, _ in torch_side.loader(source, 4, 0, keep=False)) == 12


def test_all_wrong_options_are_named_at_once(tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    argv = ["--bases", "0", "--devices", "0", "--budget", "0", "--data", str(tmp_path), "--out", str(tmp_path)]
    assert benchmark.main(argv) == 2
    message = capsys.readouterr().err
    for part in (
        "--bases (0,)",
        "--devices 0",
        "--budget",
        "no folder train, Ltrain",
        f"--out {tmp_path}: is not an empty folder",
    ):
        assert part in message


@pytest.mark.parametrize("fails", [False, True])
def test_torch_compiles_ahead_into_the_cache_of_the_contenders(monkeypatch, tmp_path, fails):
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
    entries = list(program.steps(Bench(options, gpu=True, workers=1, folder=tmp_path)))
    assert sorted(begun) == sorted((True, mode, str(tmp_path / "inductor")) for mode in modes * 2)
    entries[0][1]["eager"]()
    if fails:
        with pytest.raises(Failed, match="no compiler"):
            entries[1][1]["torch.compile, reduce-overhead"]()
    else:
        entries[1][1]["torch.compile, reduce-overhead"]()
        assert begun[-1] == (False, "reduce-overhead", str(tmp_path / "inductor"))
