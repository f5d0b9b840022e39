"""The recipes question: the covering array, the independent reading, and what a wrong assembly shows."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxseg.base import cli
from jaxseg.base.config import Config
from jaxseg.learn import class_weights as ours
from parity import __main__ as parity
from parity import mutations
from parity.checks import recipes
from parity.judge.answer import Settings
from parity.reference.class_weights import class_weights
from parity.twins import covering

RUNS = Path(__file__).parent / "runs"
NO_NUMBER = {
    *("data", "images", "masks", "val_images", "val_masks", "train_list", "val_list"),  # which files
    *("image_suffix", "mask_suffix", "unpaired", "on_bad_file", "validation", "group_by"),
    *("class_names", "workers", "cache", "cache_mb", "snap_colors"),
    *("preset", "out", "overwrite", "resume", "load", "load_channels", "dry_run", "log_every", "log", "debug"),
    *("precision", "early_stopping"),
    *("encoder", "encoder_weights", "encoder_sha256", "encoder_mean", "encoder_std"),  # see the encoders question
    *("freeze_encoder", "encoder_lr_factor"),
    *("devices", "coordinator", "processes", "process"),  # see the devices question
}
"""Settings that change no number of the first steps, say which files are taken, or have a question of their own."""


@pytest.fixture(scope="module")
def array() -> tuple[covering.Recipe, ...]:
    return covering.recipes()


def test_every_pair_of_values_that_the_rules_allow_is_in_a_recipe(array):
    made = {pair for recipe in array for pair in itertools.combinations(recipe.items(), 2)}
    pairs = np.argwhere(np.triu(covering.wanted()))
    assert len(pairs) > 7000
    missing = [(covering.VALUES[i], covering.VALUES[j]) for i, j in pairs]
    assert [pair for pair in missing if pair not in made] == []
    assert 40 <= len(array) <= 80


def test_recipes_are_command_lines_that_parse(array):
    assert all(covering.faults(recipe) == [] for recipe in array)
    for recipe in array[:5]:
        config = cli.parse(covering.command(recipe))
        expected = covering.config_of(recipe)
        assert dataclasses.replace(config, data=expected.data, optimization=expected.optimization) == expected


def test_pairs_left_out_break_a_rule_or_are_named():
    possible, owner = covering.possible(), {value: name for name, value in covering.VALUES if value}
    number = {value: i for i, (_, value) in enumerate(covering.VALUES) if value}
    assert not possible[number["--ohem 0.3"], number["--loss dice"]]
    assert not possible[number["--nesterov"], number["--momentum 0"]]
    assert possible[number["--nesterov"], number["--ohem 0.3"]]
    out = ~possible & ~np.array([[a == b for b, _ in covering.VALUES] for a, _ in covering.VALUES])
    for i, j in np.argwhere(np.triu(out)):
        (a, x), (b, y) = covering.VALUES[i], covering.VALUES[j]
        assert covering.faults({a: x, b: y}), (x, y)
    assert set(itertools.chain(*covering.NOT_PAIRED)) <= set(owner.values())


def test_every_setting_that_changes_a_number_is_varied():
    fields = {name for group in vars(Config()).values() for name in vars(group)}
    varied = set().union(*(covering.fields_of(value) for _, value in covering.VALUES))
    varied |= set().union(*map(covering.fields_of, covering.MASKS.values()))
    assert fields - varied == NO_NUMBER


def test_a_seeded_tenth_is_asked_quickly(array):
    chosen = list(enumerate(array))
    assert len(recipes.tenth(chosen, 0)) == -(-len(array) // 10)
    assert recipes.tenth(chosen, 0) == recipes.tenth(chosen, 0) != recipes.tenth(chosen, 1)


@pytest.mark.parametrize("rule", ours.AUTOMATIC)
def test_class_weights_of_both_sides_agree(rule):
    pixels, around = (500, 0, 20, 1480), (2000, 0, 700, 1900)
    np.testing.assert_allclose(
        class_weights((rule,), pixels, around), ours.weights((rule,), pixels, around), rtol=1e-13
    )


SMALL = ("--loss tversky", "--tversky-alpha 0.3", "--class-weights inverse", "--dropout 0.4", "--contrast 0.3")


def test_a_recipe_passes_and_names_its_command():
    rows = recipes.run(Settings(recipe=SMALL)).rows
    assert [row.name for row in rows if not row.passed] == []
    kinds = ["batches", "initial weights", "learning rates", "losses", "parameters", "biases before BatchNorm"]
    assert [row.name.split(": ")[1] for row in rows] == [*kinds, "running statistics", "validation"]
    assert all("--tversky-alpha 0.3" in row.note for row in rows)


def test_a_setting_that_a_builder_forgets_fails_a_row():
    names = [wrong.name for wrong in mutations.all_mistakes()["recipes"]]
    assert len(names) >= 25
    with mutations.injected(mutations.all_mistakes()["recipes"][names.index("Tversky: alpha and beta exchanged")]):
        rows = recipes.run(Settings(recipe=SMALL)).rows
    failed = [row.name.split(": ")[1] for row in rows if not row.passed]
    assert failed == ["losses", "parameters", "running statistics", "validation"]


def test_every_mistake_names_a_recipe_that_there_is():
    for wrong in mutations.all_mistakes()["recipes"]:
        assert covering.faults(covering.recipe_with(wrong.recipe)) == []


# A finished run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Path:
    return shutil.copytree(RUNS / "v0.1.0", tmp_path / "run")


def certify(run: Path, out: Path, *words: str) -> int:
    return parity.main(["--run", str(run), "--out", str(out), "--steps", "3", *words])


def test_a_finished_run_is_certified_on_a_page(run, tmp_path, capsys):
    assert certify(run, tmp_path / "page", "--data", str(RUNS / "fields")) == 0
    report = json.loads((tmp_path / "page/report.json").read_text())
    assert report["passed"]
    assert len(report["questions"][0]["evidence"]["curves"][0]["losses"]) == 3
    text = (tmp_path / "page/report.html").read_text()
    for part in ("8 of 8 rows pass", "--noise 0.01", "SHA-256", "drawn from seed", "torch"):
        assert part in text
    assert "The ledger" not in text
    assert text.count("data:image/svg+xml") == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: None, "fields"),  # the folder that the run names is not there
        (lambda run: (run / "config.json").unlink(), "not a run folder"),
    ],
)
def test_a_run_that_cannot_be_repeated_is_refused(run, tmp_path, capsys, monkeypatch, change, says):
    monkeypatch.chdir(tmp_path)
    change(run)
    assert certify(run, tmp_path / "page") == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_changed_data_are_refused(run, tmp_path, capsys):
    data = shutil.copytree(RUNS / "fields", tmp_path / "fields")
    (data / "train/train_0.png").write_bytes((data / "train/train_1.png").read_bytes())
    split = json.loads((run / "split.json").read_text())
    assert "contents" not in split or certify(run, tmp_path / "page", "--data", str(data)) == 2
    (data / "train/train_0.png").unlink()
    (data / "Ltrain/train_0_mask.png").unlink()
    assert certify(run, tmp_path / "page", "--data", str(data)) == 2
    assert "train_0" in capsys.readouterr().err


def test_settings_that_the_reference_does_not_know_are_named(run, tmp_path, capsys):
    settings = json.loads((run / "config.json").read_text())
    settings["data"] |= {"labels": ["0", "255"], "snap_colors": True}
    (run / "config.json").write_text(json.dumps(settings))
    assert certify(run, tmp_path / "page", "--data", str(RUNS / "fields")) == 2
    assert "--snap-colors is not known to the reference" in capsys.readouterr().err
