import dataclasses
import json
import typing
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

torch = pytest.importorskip("torch")

from scipy import stats  # noqa: E402

from jaxseg import train  # noqa: E402
from jaxseg.base.config import Config, Model, Optimization  # noqa: E402
from jaxseg.data.feed.pipeline import Pipeline  # noqa: E402
from jaxseg.data.made.fields import make_fields  # noqa: E402
from jaxseg.learn import losses, optimizers, schedules  # noqa: E402
from jaxseg.learn.augment import flips_and_turns  # noqa: E402
from jaxseg.learn.step import step_key  # noqa: E402
from jaxseg.nn import unet  # noqa: E402
from jaxseg.nn.torch_weights import to_torch  # noqa: E402
from jaxseg.training import dataset  # noqa: E402
from parity import race  # noqa: E402
from parity.judge import compare  # noqa: E402
from parity.reference import training  # noqa: E402
from parity.report import memory, race_report  # noqa: E402
from parity.twins.ours import Ours  # noqa: E402

RECIPE = ["--widths", "4", "8", "--epochs", "2", "--batch-size", "4", "--optimizer", "sgd", "--lr", "0.05"]


@pytest.fixture
def no_memory(monkeypatch):
    """Two processes less, where they are not the question."""
    monkeypatch.setattr(memory, "measure", lambda *_: None)


@pytest.fixture(scope="module")
def raced(tiles_root, tmp_path_factory):
    """A race of two seeds: its folder, record, exit status and what it printed."""
    out = tmp_path_factory.mktemp("race") / "out"
    with race.console.capture() as captured:
        status = race.main([*RECIPE, "--data", str(tiles_root), "--seeds", "2", "--seed", "3", "--out", str(out)])
    return out, json.loads((out / "race.json").read_text(encoding="utf-8")), status, captured.get()


# Equivalence


@given(
    hnp.arrays(float, st.integers(2, 12), elements=st.floats(-1, 1)), st.floats(1e-3, 1.0), st.sampled_from([0.05, 0.2])
)
def test_tost_is_the_larger_of_scipys_two_one_sided_tests(differences, margin, alpha):
    if np.ptp(differences) < 1e-6:  # SciPy warns of cancellation
        differences = differences + np.arange(len(differences))
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    found = compare.tost(differences, margin, alpha)
    assert found.p == pytest.approx(max(above, below), rel=1e-9, abs=1e-300)
    expected = stats.t.interval(1 - 2 * alpha, len(differences) - 1, differences.mean(), stats.sem(differences))
    assert found.interval == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if abs(found.p - alpha) > 1e-9:
        assert (found.p < alpha) == (-margin < found.interval[0] and found.interval[1] < margin)


SPREAD = np.array([-0.002, 0.001, 0.0, 0.001])


@pytest.mark.parametrize(
    ("shift", "margin", "passes"),
    [
        (0, 0.01, True),
        (0.005, 0.01, True),
        (-0.005, 0.01, True),
        (0.02, 0.03, True),
        (0, 0.001, False),
        (0.005, 0.005, False),
        (0.0095, 0.01, False),
        (-0.0095, 0.01, False),
        (0.02, 0.01, False),
        (-0.02, 0.01, False),
    ],
)
def test_scores_are_equivalent_when_their_differences_lie_well_inside_the_margin(shift, margin, passes):
    expected = np.array([0.81, 0.74, 0.86, 0.79])
    row = compare.equivalent("race", "", expected + SPREAD + shift, expected, margin)
    assert row.passed is passes
    assert row.gate == 0.05


def test_pairs_are_compared_pair_by_pair():
    scores = np.array([0.5, 0.6, 0.7, 0.8])
    assert compare.equivalent("race", "", scores, scores + SPREAD, 0.01).passed
    assert not compare.equivalent("race", "", scores[::-1], scores + SPREAD, 0.01).passed


@pytest.mark.parametrize("found", [[0.8], [0.8, np.nan], [0.8, 0.7, 0.9], []])
def test_what_cannot_be_tested_is_not_equivalent(found):
    expected = np.array(found[:2]) if len(found) < 3 else np.array([0.8, 0.7])
    row = compare.equivalent("race", "", np.array(found), np.nan_to_num(expected), 0.5)
    assert not row.passed
    assert np.isnan(row.figure)


def test_equal_differences_need_no_spread():
    assert compare.tost(np.full(3, 0.004), 0.01).p == 0
    assert compare.tost(np.full(3, 0.01), 0.01).p == 1


def test_a_true_difference_of_the_margin_passes_one_time_in_twenty(rng):
    scores = rng.normal(0.01, 0.003, (1500, 5))
    passed = np.mean([compare.equivalent("race", "", row, np.zeros(5), 0.01).passed for row in scores])
    assert passed == pytest.approx(0.05, abs=0.02)


# Judgment


def record(ours, theirs, margin=0.01):
    """A race that is over, with these final mIoU."""

    def side(score, loss):
        return {"miou": score, "first_loss": loss, "learning_rates": [1e-9, 0.05], "train_loss": loss, "loss": loss} | {
            "seconds": [9.0, 2.0, 2.0],
            "cpu_seconds": [9.0, 2.0, 2.0],
        }

    return {
        "recipe": {"optimization": {"learning_rate": 0.05}},
        "race": {"margin": margin},
        "data": {"constant_miou": 0.3},
        "memory": {"jaxseg": {"import": 1.0, "training": 2.0}, "PyTorch": None},
        "seeds": [
            {"seed": i, "epochs": [{"epoch": 1, "jaxseg": side(a, 0.7), "PyTorch": side(b, 0.7), "images": [4, 4, 2]}]}
            for i, (a, b) in enumerate(zip(ours, theirs))
        ],
    }


THEIRS = [0.81, 0.74, 0.86, 0.79]


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [
        (0.0, "equivalent within 0.01"),
        (0.004, "equivalent within 0.01"),  # the interval leaves 0 out, and does not matter
        (0.0095, "not shown"),
        (-0.0105, "not shown"),
        (0.03, "different"),
        (-0.03, "different"),
    ],
)
def test_the_verdict_follows_from_where_the_interval_lies(shift, verdict):
    found = record(THEIRS + SPREAD + shift, THEIRS)
    assert race_report.judge(found)["verdict"].startswith(verdict)
    assert all(row.passed for row in race_report.rows(found)) is (verdict.startswith("equivalent"))


def test_the_last_epoch_counts_not_the_best():
    found, better = record(THEIRS, THEIRS), record([0.99] * 4, THEIRS)
    for seed, other in zip(found["seeds"], better["seeds"]):
        seed["epochs"] = other["epochs"] + seed["epochs"]
    assert race_report.judge(found)["differences"] == [0, 0, 0, 0]


def test_one_seed_is_not_tested_and_says_so():
    found = record([0.8], [0.7])
    assert race_report.judge(found)["verdict"] == "not tested: one seed, difference +0.1000 mIoU"
    assert all(row.passed for row in race_report.rows(found))


def test_equal_scores_of_networks_that_learned_nothing_are_called_that():
    found = race_report.judge(record([0.3, 0.3], [0.3, 0.3]))
    assert "equivalent" in found["verdict"]
    assert "learned nothing" in found["verdict"]
    assert "learned nothing" not in race_report.judge(record([0.31, 0.4], [0.31, 0.4]))["verdict"]


@pytest.mark.parametrize(("name", "value"), [("first_loss", 0.71), ("learning_rates", [1e-9, 0.0501])])
def test_a_race_that_was_not_fair_fails(name, value):
    found = record(THEIRS, THEIRS)
    found["seeds"][2]["epochs"][0]["jaxseg"][name] = value
    assert [row.passed for row in race_report.rows(found)] == [name != "first_loss", name != "learning_rates", True]


def test_speed_is_the_median_of_steps_without_the_one_that_compiles():
    found = record(THEIRS, THEIRS)
    found["seeds"][0]["epochs"][0]["jaxseg"]["seconds"] = [99.0, 1.0, 1.0]
    speed = race_report.speed(found)
    # of the first epoch the steps of 4 and 2 images without the first; of the others [4 / 9, 4 / 2, 2 / 2]
    assert speed["jaxseg per seconds"] == [1.0, 1.0, 3.0]
    assert speed["PyTorch per seconds"] == [1.0, 1.0, 1.5]
    assert speed["ratio per seconds"] == [1.0, 1.0, 2.0]
    assert speed["jaxseg first step"] == 99.0


# The race


def test_a_race_says_what_it_found_and_writes_it_down(raced):
    out, found, status, printed = raced
    assert [seed["seed"] for seed in found["seeds"]] == [3, 4]
    assert [epoch["epoch"] for seed in found["seeds"] for epoch in seed["epochs"]] == [1, 2, 1, 2]
    assert found["data"].items() >= {"training": 10, "validation": 4, "size": [32, 32], "cache": "memory"}.items()
    assert found["recipe"]["optimization"]["learning_rate"] == 0.05
    assert found["race"]["margin"] == 0.01
    assert found["environment"]["versions"].keys() >= {"jax", "torch"}
    rows = found["result"]["rows"]
    assert status == (0 if all(row["passed"] for row in rows) else 1)
    assert [row["passed"] for row in rows[:2]] == [True, True]
    differences = [
        seed["epochs"][-1]["jaxseg"]["miou"] - seed["epochs"][-1]["PyTorch"]["miou"] for seed in found["seeds"]
    ]
    assert found["result"]["equivalence"]["differences"] == differences
    assert rows[2]["figure"] == compare.tost(np.array(differences), 0.01).p
    for part in (found["result"]["equivalence"]["verdict"], "seed 4 epoch 2/2", "images/CPU s", "TOST", "race.json"):
        assert part in printed
    assert cv2.imread(str(out / "race.png")).std() > 10


def test_both_sides_learn_alike_from_the_same_weights_and_batches(raced):
    _, found, _, _ = raced
    for seed in found["seeds"]:
        ours, theirs = ([epoch[side] for epoch in seed["epochs"]] for side in race.NAMES)
        assert ours[0]["first_loss"] == pytest.approx(theirs[0]["first_loss"], rel=1e-5)
        assert [e["train_loss"] for e in ours] == pytest.approx([e["train_loss"] for e in theirs], rel=1e-3)
        assert ours[1]["train_loss"] < ours[0]["train_loss"]
        assert theirs[1]["train_loss"] < theirs[0]["train_loss"]
        assert all(epoch["agreement"] > 0.95 for epoch in seed["epochs"])
        assert all(epoch["images"] == [4, 4, 2] for epoch in seed["epochs"])
    assert found["seeds"][0]["epochs"][0]["jaxseg"]["loss"] != found["seeds"][1]["epochs"][0]["jaxseg"]["loss"]


def test_jaxsegs_side_starts_from_the_trainers_draw_of_each_seed():
    config = Config(model=Model(widths=(4, 8)))
    side = Ours(config, 3)
    for seed in (7, 8):
        side.start(seed)
        drawn = to_torch(unet.unet_from(config.model, in_channels=3, classes=2, seed=seed))
        jax.tree.map(np.testing.assert_array_equal, side.weights(), drawn)


@pytest.mark.full
def test_jaxsegs_side_is_the_trainers_run(raced, tiles_root, tmp_path):
    """Same weights, order, augmentation and step; only the short batch's share of the mean is counted otherwise."""
    assert train.main([*RECIPE, "--data", str(tiles_root), "--seed", "3", "--out", str(tmp_path / "run")]) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [epoch["jaxseg"] for epoch in raced[1]["seeds"][0]["epochs"]]
    assert [e["train_loss"] for e in found] == pytest.approx([e["train"]["loss"] for e in log], rel=1e-4)
    assert [e["miou"] for e in found] == pytest.approx([e["validation"]["miou"] for e in log], abs=2e-3)


def test_memory_is_of_each_framework_alone(raced):
    found = raced[1]["memory"]
    for name in race.NAMES:
        assert 10 < found[name]["training"] < 2000
        # this process holds both, and a child must not inherit its peak
        assert 50 < found[name]["import"] < 0.8 * memory.peak()


def test_weights_that_are_not_shared_are_noticed(monkeypatch, tiles_root, tmp_path, no_memory, capsys):
    monkeypatch.setattr(Ours, "weights", lambda self, draw=Ours.weights: {k: v * 1.5 for k, v in draw(self).items()})
    assert race.main([*RECIPE, "--data", str(tiles_root), "--seeds", "1", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  loss of the first step" in printed
    assert "no verdict" in printed


class Racer:
    """Notes what it is given; predicts class 0, or `answer`."""

    def __init__(self, calls, loss=0.5, answer=0):
        self.calls, self.loss, self.answer, self.rates = calls, loss, answer, []

    def step(self, batch):
        self.calls.append((self, {key: np.array(value) for key, value in batch.items()}))
        self.rates.append(0.1)
        return self.loss

    def evaluate(self, batch):
        masks = batch["mask"][batch["valid"]]
        predictions = np.where(np.arange(masks.shape[2]) < 8, self.answer, 0) + np.zeros_like(masks)
        return {"loss": self.loss, "confusion": np.eye(2, dtype=int), "predictions": predictions}


def options_for(root, **optimization):
    data = dataclasses.replace(race.Data(), data=root)
    return race.Options(data, optimization=Optimization(batch_size=4, **optimization))


@pytest.mark.parametrize("augment", [False, True])
def test_steps_alternate_and_both_sides_get_the_trainers_batches(tiles_root, augment):
    options = options_for(tiles_root)
    opened, calls = race.open_data(options)[0], []
    data = opened.pipelines(seed=5, workers=0)
    racers = {name: Racer(calls) for name in race.NAMES}
    found = race.run_epoch(racers, *data, epoch=1, seed=5, augment=augment)
    assert [side for side, _ in calls] == [racers["jaxseg"], racers["PyTorch"]] * 3
    assert found["images"] == [4, 4, 2]
    for number, expected in enumerate(
        Pipeline(opened.found.split.training, batch_size=4, shuffle=True, seed=5).epoch(1)
    ):
        if augment:
            expected = jax.device_get(flips_and_turns(step_key(5, 3 + number), expected))
        for _, batch in calls[2 * number : 2 * number + 2]:
            jax.tree.map(np.testing.assert_array_equal, batch, expected)


def test_agreement_is_the_share_of_validation_pixels_with_the_same_class(tiles_root):
    options = options_for(tiles_root)
    pairs = race.open_data(options)[0].found.split.validation
    validation = Pipeline([*pairs, pairs[0]], batch_size=4)  # five: three padded samples
    _, agreement = race.validate({"jaxseg": Racer([]), "PyTorch": Racer([], answer=1)}, validation)
    assert agreement == 1 - 8 / 32
    batch = next(iter(validation.epoch()))
    batch["mask"][:, :, :8] = losses.IGNORE_INDEX  # where they differ
    ignoring = SimpleNamespace(epoch=lambda: [batch])
    assert race.validate({"jaxseg": Racer([]), "PyTorch": Racer([], answer=1)}, ignoring)[1] == 1


@pytest.mark.parametrize("side", race.NAMES)
def test_a_side_that_leaves_the_numbers_stops_the_race(side, tiles_root):
    options = options_for(tiles_root)
    data = race.open_data(options)[0].pipelines(seed=0, workers=0)
    racers = {name: Racer([], loss=np.nan if name == side else 0.5) for name in race.NAMES}
    with pytest.raises(race.Diverged, match=f"{side}: loss nan in epoch 2, step 1, seed 0"):
        race.run_epoch(racers, *data, epoch=1, seed=0, augment=False)


def epochs_that_end(monkeypatch, error):
    """`run_epoch` of made-up figures that raises `error` in the second epoch."""

    def run(racers, training_data, validation, epoch, seed, augment):
        if epoch:
            raise error
        return record([0.8], [0.8])["seeds"][0]["epochs"][0] | {"agreement": 1.0}

    monkeypatch.setattr(race, "run_epoch", run)


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (race.Diverged("PyTorch: loss nan in epoch 2"), 1)]
)
def test_a_race_that_ends_early_leaves_what_it_has(monkeypatch, no_memory, tiles_root, tmp_path, error, status):
    epochs_that_end(monkeypatch, error)
    assert race.main([*RECIPE, "--data", str(tiles_root), "--out", str(tmp_path)]) == status
    found = json.loads((tmp_path / "race.json").read_text(encoding="utf-8"))
    assert [len(seed["epochs"]) for seed in found["seeds"]] == [1]
    assert "result" not in found
    assert (tmp_path / "race.png").stat().st_size > 1000


# The command


def refused(capsys, *argv):
    """The message of a race that ends with status 2 before it began."""
    assert race.main([*RECIPE, *argv]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    return message


def test_all_mistakes_are_named_at_once(capsys, tmp_path):
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    wrong = ["--seeds", "0", "--margin", "0", "--threads", "0", "--limit", "0", "--precision", "bf16"]
    message = refused(capsys, *wrong, "--batch-size", "0", "--out", str(tmp_path))
    for part in (
        "--seeds is 0",
        "--margin is 0",
        "--threads is 0",
        "--limit is 0",
        "expected f32",
        "--batch-size is 0",
    ):
        assert part in message
    assert f"--out {tmp_path}: is not an empty folder" in message


@pytest.mark.parametrize(("table", "flag"), [("OPTIMIZERS", "--optimizer sgd"), ("LOSSES", "--loss cross_entropy")])
def test_what_the_reference_lacks_is_refused(monkeypatch, capsys, table, flag):
    monkeypatch.setattr(training, table, {"other": None})
    assert f"{flag} has no counterpart in the reference; other have" in refused(capsys)


def test_data_that_is_not_there_is_a_mistake_of_a_person(capsys, tmp_path):
    assert str(tmp_path / "none") in refused(capsys, "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_overwrite_touches_nothing_else(monkeypatch, no_memory, tiles_root, tmp_path):
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "race.json").write_text("old", encoding="utf-8")
    epochs_that_end(monkeypatch, KeyboardInterrupt())
    assert race.main([*RECIPE, "--data", str(tiles_root), "--out", str(tmp_path), "--overwrite"]) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["note.txt", "race.json", "race.png"]
    assert (tmp_path / "race.json").read_text(encoding="utf-8") != "old"


@given(st.integers(1, 50), st.data())
def test_a_limit_spreads_over_all_tiles(total, data):
    count = data.draw(st.integers(1, total))
    chosen = dataset.spread(list(range(total)), count)
    assert len(set(chosen)) == count
    assert list(chosen) == sorted(chosen)
    gaps = np.diff([*chosen, total])
    assert gaps.max() <= -(-total // count)


def test_a_limit_takes_validation_tiles_in_proportion(tmp_path):
    root = make_fields(tmp_path / "fields", train=9, val=6, size=32)
    options = dataclasses.replace(options_for(root), race=race.Race(limit=3))
    opened, facts = race.open_data(options)
    training, validation = opened.found.split.training, opened.found.split.validation
    assert (len(training), len(validation)) == (facts["training"], facts["validation"]) == (3, 2)
    pixels = np.bincount(np.concatenate([cv2.imread(str(p.mask), 0).ravel() // 255 for p in validation]), minlength=2)
    assert facts["constant_miou"] == pytest.approx(pixels.max() / pixels.sum() / 2)


def test_without_the_resource_module_memory_is_not_measured(monkeypatch):
    monkeypatch.setattr(memory, "importable", lambda: False)
    assert memory.measure("jaxseg", Config(), (32, 32), 1) is None
    found = record(THEIRS, THEIRS)
    found["result"] = {"equivalence": race_report.judge(found), "speed": race_report.speed(found)}
    with race.console.capture() as captured:
        race.console.print(race_report.table(found))
    assert "not measured" in captured.get()


# The table from a recipe to PyTorch


def choices(name):
    """What `jaxseg.base.config` offers."""
    return typing.get_args(typing.get_type_hints(Optimization)[name])


@pytest.mark.parametrize(
    ("name", "table"),
    [("optimizer", training.OPTIMIZERS), ("schedule", (*training.SCHEDULES, "plateau")), ("loss", training.LOSSES)],
)
def test_every_recipe_of_the_trainer_can_race(name, table):
    """But with `plateau`, by which the rates of each side would follow from its own scores."""
    assert sorted(choices(name)) == sorted(table)


def test_plateau_is_refused(capsys):
    assert "--schedule plateau has no counterpart in the reference" in refused(capsys, "--schedule", "plateau")


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.05}, {"momentum": 0.6}, {"momentum": 0.6, "nesterov": True, "weight_decay": 0.05}],
    ids=str,
)
@pytest.mark.parametrize("optimizer", choices("optimizer"))
def test_optimizers_are_jaxsegs(optimizer, options, rng):
    recipe = Optimization(optimizer=optimizer, learning_rate=0.1, **options)
    if recipe.nesterov and optimizer != "sgd":
        recipe = dataclasses.replace(recipe, nesterov=False)
    start = rng.normal(size=(5, 7)).astype(np.float32)
    ours, theirs = jnp.array(start), torch.nn.Parameter(torch.tensor(start))
    tx, optimizer = (
        optimizers.optimizer_from(recipe, schedules.constant(0.1)),
        training.OPTIMIZERS[optimizer]([theirs], recipe),
    )
    state = tx.init(ours)
    training.set_learning_rate(optimizer, 0.1)
    for _ in range(6):
        gradient = rng.normal(size=(5, 7)).astype(np.float32)
        updates, state = tx.update(jnp.array(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
        theirs.grad = torch.tensor(gradient)
        optimizer.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("loss", choices("loss"))
def test_losses_are_jaxsegs(loss, smoothing, rng):
    recipe = Optimization(loss=loss, label_smoothing=smoothing)
    logits, labels = rng.normal(0, 3, (2, 6, 5, 2)).astype(np.float32), rng.integers(0, 2, (2, 6, 5))
    labels[0, :2] = losses.IGNORE_INDEX
    expected = losses.loss_from(recipe)(jnp.array(logits), jnp.array(labels))
    found = training.LOSSES[loss](recipe)(torch.tensor(logits).permute(0, 3, 1, 2), torch.tensor(labels))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("per", [None, "step", "epoch"])
@pytest.mark.parametrize("warmup", [None, 0.0, 1.5, 3.0])
@pytest.mark.parametrize("schedule", training.SCHEDULES)
def test_learning_rates_are_jaxsegs(schedule, per, warmup):
    how = {"schedule": schedule, "schedule_per": per, "warmup_epochs": warmup, "learning_rate": 0.02}
    how |= {"milestones": (4.0, 6.0)} if schedule in ("piecewise_constant", "multi_factor") else {}
    how |= {"rates": (0.02, 0.001, 0.01)} if schedule == "piecewise_constant" else {}
    recipe = Optimization(epochs=8, **how)
    expected = np.broadcast_to(schedules.schedule_from(recipe, 5)(jnp.arange(40)), 40)
    np.testing.assert_allclose(training.learning_rates(recipe, 5), expected, atol=1e-7 * 0.02 + 1e-10)
