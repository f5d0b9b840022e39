"""Command line, invalid settings and config.json."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.base import config
from jaxseg.base.cli import check, parse
from jaxseg.base.config import Augmentation, Config, Data, Model, Optimization, Run
from jaxseg.base.errors import UserError

FIELDS = [field for group in dataclasses.fields(Config) for field in dataclasses.fields(group.default)]

# invalid flags, and words of the message: the flag, its value, what was expected
WRONG = {
    "--data a --images b --masks c": ["--data", "--images", "one of them"],
    "--images b": ["--images", "--masks", "together"],
    "--masks b": ["--images", "--masks", "together"],
    "--images a --masks b --val-images c": ["--val-images", "--val-masks", "together"],
    "--data a --val-images c --val-masks d": ["--val-images", "needs", "--images", "--masks"],
    "--validation 0.2": ["--validation", "0.2", "percentage", "1 to 90", "mean 20"],
    "--validation 95": ["--validation", "95", "1 to 90"],
    "--validation nan": ["--validation", "nan", "1 to 90"],
    "--workers -1": ["--workers", "-1", "0 or more"],
    "--cache-mb -1": ["--cache-mb", "-1", "0 or more"],
    "--widths": ["--widths", "0 value", "at least 2"],
    "--widths 8": ["--widths", "1 value", "at least 2"],
    "--widths 8 0": ["--widths", "(8, 0)", "positive"],
    "--widths 8 9 --upsample bilinear": ["--widths", "(8, 9)", "bilinear", "even"],
    "--epochs 0 --schedule constant": ["--epochs", "0", "1 or more"],
    "--batch-size 0": ["--batch-size", "0", "1 or more"],
    "--epochs 5 --warmup-epochs 5": ["--warmup-epochs", "5", "less than --epochs"],
    "--warmup-epochs -1": ["--warmup-epochs", "-1", "at least 0"],
    "--warmup-epochs nan": ["--warmup-epochs", "nan", "at least 0"],
    "--schedule constant --epochs 2 --warmup-epochs 2": ["--warmup-epochs", "2", "less than --epochs"],
    "--milestones 5": ["--milestones is for --schedule piecewise_constant and multi_factor"],
    "--schedule cosine --gamma 0.5": ["--gamma is for --schedule factor and multi_factor and"],
    "--schedule linear --power 2": ["--power is for --schedule polynomial"],
    "--schedule multi_factor": ["needs --milestones"],
    "--schedule multi_factor --milestones 9 5": ["--milestones is 9 5", "increasing", "before 40"],
    "--schedule multi_factor --milestones 3 --warmup-epochs 4": ["--milestones is 3", "after the warm-up (4)"],
    "--schedule multi_factor --milestones 3.5 --schedule-per epoch": ["--milestones is 3.5", "whole"],
    "--schedule piecewise_constant --milestones 3 --rates 0.1": ["--rates has 1", "one more than --milestones"],
    "--schedule piecewise_constant --milestones 3 --rates 0.1 -1": ["--rates is (0.1, -1.0)", "0 or more"],
    "--schedule factor --gamma 1": ["--gamma is 1", "between 0 and 1"],
    "--schedule factor --period 0": ["--period is 0", "more than 0"],
    "--schedule factor --period 2.5 --schedule-per epoch": ["--period is 2.5", "whole number"],
    "--schedule cyclic --period 1 --schedule-per epoch": ["--period is 1", "expected 2"],
    "--schedule cosine_restarts --cycle-factor 0.5": ["--cycle-factor is 0.5", "1 or more"],
    "--schedule polynomial --power 0": ["--power is 0", "above 0"],
    "--schedule plateau --patience -1": ["--patience is -1", "0 or more"],
    "--schedule linear -l 0.1 --final-lr 0.2": ["--final-lr is 0.2", "--learning-rate, which is 0.1"],
    "--schedule one_cycle --schedule-per epoch -e 3": ["--schedule one_cycle", "4 epochs"],
    "--warmup-epochs 1.5 --schedule article": ["--warmup-epochs", "1.5", "--schedule-per epoch", "whole"],
    "--optimizer sgd --nesterov --momentum 0": ["--nesterov", "--momentum above 0"],
    "--nesterov": ["--nesterov", "--optimizer sgd", "not adam"],
    "--label-smoothing -0.1": ["--label-smoothing", "-0.1", "0 to 1"],
    "--label-smoothing nan": ["--label-smoothing", "nan", "0 to 1"],
    "--label-smoothing 0.1 --loss focal": ["--label-smoothing", "cross_entropy and dice_ce", "not focal"],
    "--clip-norm 0": ["--clip-norm", "0", "above 0"],
    "--clip-norm inf": ["--clip-norm", "inf", "a number"],
    "--momentum 1": ["--momentum", "1", "less than 1"],
    "--momentum -0.5": ["--momentum", "-0.5", "0 or more"],
    "--log-every 0": ["--log-every", "0", "1 or more"],
    "--seed -1": ["--seed", "-1", "0 or more"],
    "--lr -1": ["--learning-rate", "-1", "0 or more"],
    "--lr inf": ["--learning-rate", "inf", "a number"],
    "--begin-lr nan": ["--begin-lr", "nan", "a number"],
    "--final-lr -2": ["--final-lr", "-2", "0 or more"],
    "--epochs 5 --warmup-epochs 7 --schedule constant": ["--warmup-epochs", "7", "less than --epochs"],
    "--val-list a": ["--val-list", "needs --train-list"],
    "--crop 0": ["--crop", "0", "1 or more"],
    "--crop 8 --crops 0": ["--crops", "0", "1 or more"],
    "--crops 2": ["--crops", "2", "--crop"],
    "--classes 1": ["--classes", "1", "2 to 255"],
    "--channels 0 1": ["--channels", "0 1", "from 1"],
    "--classes 2 --labels 0 1": ["--classes and --labels", "one of them"],
    "--snap-colors": ["--snap-colors", "--labels"],
    "--binarize 0": ["--binarize", "0", "1 or more"],
    "--labels 0 1 2 --class-names a b": ["--class-names", "2 names", "3 classes"],
    "--zoom -1": ["--zoom", "-1", "0 or more"],
    "--contrast 1.5": ["--contrast", "1.5", "0 to 1"],
    "--dropout 1": ["--dropout", "1", "less than 1"],
    "--steps 0": ["--steps", "0", "1 or more"],
    "--accumulate 3": ["--accumulate", "3", "divisor", "--batch-size", "4"],
    "--ohem 0.5 --loss dice": ["--ohem", "cross_entropy", "not dice"],
    "--ohem 0": ["--ohem", "0", "above 0"],
    "--tversky-alpha 0.3": ["--tversky-alpha", "--loss tversky", "not cross_entropy"],
    "--focal-gamma -1 --loss focal": ["--focal-gamma", "-1", "0 or more"],
    "--ema 1": ["--ema", "1", "between 0 and 1"],
    "--early-stopping 0": ["--early-stopping", "0", "1 or more"],
    "--overfit -1": ["--overfit", "-1", "0 for off"],
    "--weight-decay -3": ["--weight-decay", "-3", "0 or more"],
}


@pytest.mark.parametrize("line", WRONG)
def test_invalid_setting_is_refused_with_flag_value_and_expectation(line):
    with pytest.raises(UserError) as caught:
        parse(line.split())
    (message,) = str(caught.value).splitlines()
    assert [words for words in WRONG[line] if words not in message] == []


def test_all_invalid_settings_are_named_at_once():
    line = "--images a --validation 0.5 --workers -1 --widths 8 --epochs 0 --batch-size 0 --momentum 2 --lr -1"
    with pytest.raises(UserError) as caught:
        parse(line.split())
    flags = [word for word in line.split() if word.startswith("--") and word != "--lr"] + ["--learning-rate"]
    message = str(caught.value)
    assert [flag for flag in flags if flag not in message] == []
    assert len(message.splitlines()) == len(flags)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--data a",
        "--images a --masks b",
        "--images a --masks b --val-images c --val-masks d",
        "--validation 1",
        "--validation 90",
        "--workers 0 --cache-mb 0 --seed 0 --momentum 0 --lr 0 --weight-decay 0 --warmup-epochs 0",
        "--widths 1 1 --epochs 1 --batch-size 1 --log-every 1",
        "--widths 2 4 --upsample bilinear",
        "--epochs 5 --warmup-epochs 4.5",
        "--schedule constant --epochs 9 --warmup-epochs 7 --schedule-per epoch",
        "--steps 10 --warmup-epochs 50",
        "--accumulate 2 --ohem 1 --ema 0.5 --early-stopping 1 --overfit 1",
        "--loss tversky --tversky-alpha 0 --tversky-beta 1 --dropout 0.5 --remat",
        "--crop 1 --crops 9 --labels 0 #ff0000 --snap-colors --ignore-index 7 8 --channels 1 1 4",
        "--zoom 0.5 --brightness 0 --contrast 1 --noise 0.1 --blur 2",
        "--classes 255 --normalize imagenet --nodata -9999 --on-bad-file skip --group-by x(.)",
        "--schedule article --warmup-epochs 3",
        "--label-smoothing 1 --loss dice_ce --clip-norm 1e-9",
        "--optimizer rmsprop --momentum 0",
    ],
)
def test_limits_of_valid_ranges_are_accepted(line):
    assert isinstance(parse(line.split()), Config)


def test_flags_set_the_fields_they_name():
    line = "--images a/b --masks c --widths 4 8 16 -e 7 -b 3 -l 0.5 --optimizer sgd --nesterov --no-augment --out d"
    assert parse(line.split()) == Config(
        Data(images=Path("a/b"), masks=Path("c")),
        Augmentation(augment=False),
        Model(widths=(4, 8, 16)),
        Optimization(epochs=7, batch_size=3, learning_rate=0.5, optimizer="sgd", nesterov=True),
        Run(out=Path("d")),
    )
    line = "--loss dice_ce --label-smoothing 0.1 --optimizer rmsprop --momentum 0.5 --clip-norm 1"
    assert parse(line.split()).optimization == Optimization(
        loss="dice_ce", label_smoothing=0.1, optimizer="rmsprop", momentum=0.5, clip_norm=1.0
    )
    long, short = "--epochs 7 --batch-size 3 --lr 2", "-e 7 -b 3 --learning-rate 2"
    assert parse(long.split()) == parse(short.split())


def test_empty_command_line_gives_the_defaults():
    assert parse([]) == Config()


@given(epochs=st.integers(1, 500), schedule=st.sampled_from(["warmup_cosine", "article"]))
def test_warmup_defaults_to_an_eighth_of_the_epochs(epochs, schedule):
    settings = Optimization(epochs=epochs, schedule=schedule)
    check(Config(optimization=settings))
    if schedule == "article":
        assert abs(settings.warmup - epochs / 8) <= 0.5
        assert settings.warmup == int(settings.warmup)
    else:
        assert settings.warmup == epochs / 8


def test_schedule_defaults_are_the_articles_and_explicit_warmup_is_kept():
    assert Optimization(schedule="article").warmup == 5
    assert (Optimization().epochs, Optimization().begin_lr, Optimization().final_lr) == (40, 1e-9, 1e-9)
    assert Optimization(warmup_epochs=0.0).warmup == 0
    assert Optimization(warmup_epochs=1.5).warmup == 1.5


def test_weight_decay_defaults_to_pytorchs_for_each_optimizer():
    assert {name: Optimization(optimizer=name).decay for name in ("sgd", "adam", "adamw", "rmsprop")} == {
        "sgd": 0,
        "adam": 0,
        "adamw": 0.01,
        "rmsprop": 0,
    }
    assert Optimization(optimizer="adamw", weight_decay=0.0).decay == 0
    assert Optimization(optimizer="sgd", weight_decay=0.5).decay == 0.5


def test_article_schedule_counts_epochs_and_others_count_steps_by_default():
    names = ("article", "warmup_cosine", "constant")
    assert [Optimization(schedule=name).per for name in names] == ["epoch", "step", "step"]
    assert [Optimization(schedule=name, schedule_per="step").per for name in names] == ["step"] * 3
    assert [Optimization(schedule=name, schedule_per="epoch").per for name in names] == ["epoch"] * 3


def test_help_shows_every_flag_with_its_default_and_exits_with_0(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        parse(["-h"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert [field.name for field in FIELDS if "--" + field.name.replace("_", "-") not in text] == []
    for default in ("16 32 64 128 256", "adam", Optimization().epochs, Optimization().learning_rate, Data().cache_mb):
        assert f"(default: {default})" in text


@pytest.mark.parametrize("line", ["--bogus", "--epochs many", "--optimizer lion", "--epochs"])
def test_unknown_flags_and_values_exit_with_2(line, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(line.split())
    assert caught.value.code == 2
    assert line.split()[0] in "".join(capsys.readouterr())


def test_parsing_does_not_import_jax():
    code = "import sys; from jaxseg.base.cli import parse; parse([]); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# config.json

numbers = st.floats(allow_nan=False, allow_infinity=False)
paths = st.lists(st.text("aé .", min_size=1), min_size=1, max_size=3).map(lambda parts: Path(*parts))
KINDS = {Path: paths, int: st.integers(), float: numbers, bool: st.booleans(), str: st.text()}


def values_of(kind) -> st.SearchStrategy:
    """Strategy for all values of a setting's type."""
    if kind in KINDS:
        return KINDS[kind]
    if kind is type(None):
        return st.none()
    if get_origin(kind) is tuple:
        return st.lists(values_of(get_args(kind)[0]), max_size=3).map(tuple)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if hasattr(kind, "__metadata__"):
        return values_of(get_args(kind)[0])
    return st.one_of(*map(values_of, get_args(kind)))


def fields_of(group):
    """Strategy for the fields of a group of settings, with all values of their types."""
    return st.fixed_dictionaries({field.name: values_of(field.type) for field in dataclasses.fields(group)})


GROUPS = {group.name: type(group.default) for group in dataclasses.fields(Config)}


@given(values=st.fixed_dictionaries({name: fields_of(kind) for name, kind in GROUPS.items()}))
def test_settings_survive_json(values):
    settings = Config(**{name: kind(**values[name]) for name, kind in GROUPS.items()})
    assert config.from_dict(json.loads(config.dumps(settings))) == settings


def test_saved_settings_are_loaded_unchanged(tmp_path):
    line = "--images é/b --masks c --widths 4 8 --schedule article -l 0.1 --no-augment --out d"
    settings = parse(line.split())
    config.save(settings, tmp_path / "config.json")
    assert config.load(tmp_path) == settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("epochs", value) for value in ("4o", 4.5, True, None, [4])],
        *[("learning_rate", "x"), ("loss", "dicf"), ("milestones", [""]), ("ohem", []), ("nesterov", 1)],
    ],
)
def test_damaged_value_of_another_type_is_named(name, value):
    values = json.loads(config.dumps(Config()))
    values["optimization"][name] = value
    with pytest.raises(
        UserError, match=f"config: values that these settings cannot have: --{name.replace('_', '-')} is"
    ):
        config.from_dict(values)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"{", b"[" * 100_000, b"7", b'{"model": []}', b""])
def test_damaged_config_is_named(tmp_path, data):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(UserError, match=r"config\.json"):
        config.load(tmp_path)


def test_paths_are_saved_with_forward_slashes_and_loaded_as_paths():
    class Elsewhere(type(Path())):
        def __str__(self):
            return "a\\b"

        def as_posix(self):
            return "a/b"

    text = config.dumps(Config(data=Data(data=Elsewhere("a", "b"))))
    assert json.loads(text)["data"]["data"] == "a/b"
    assert config.from_dict(json.loads(text)).data.data == Path("a", "b")


def test_unknown_settings_and_groups_are_all_named():
    values = json.loads(config.dumps(Config()))
    values["model"]["depth"] = 3
    values["bananas"] = {}
    with pytest.raises(UserError) as caught:
        config.from_dict(values, where="here.json")
    message = str(caught.value)
    assert message.startswith("here.json: ")
    assert "unknown setting model.depth" in message
    assert "unknown group bananas" in message
    assert message.count("unknown") == 2


def test_missing_settings_take_the_earlier_versions_values_and_are_named_once(monkeypatch, capsys):
    monkeypatch.setitem(config.EARLIER, "model.precision", "bf16")
    values = json.loads(config.dumps(Config(run=Run(seed=3), data=Data(crops=2))))
    del values["model"]["precision"], values["optimization"]["clip_norm"], values["augmentation"]
    read = [config.from_dict(values, where="runs/old/config.json") for _ in range(2)]
    assert read == [Config(run=Run(seed=3), data=Data(crops=2), model=Model(precision="bf16"))] * 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: runs/old/config.json: ")
    for part in ("--precision bf16", "--clip-norm None", "--flips True"):
        assert part in line
    assert "--seed" not in line


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"data": 3}', '{"run": [1, 2]}', "{", "", b"\xff\xfe"])
def test_config_file_without_settings_is_refused_by_name(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        config.load(tmp_path)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "runs/nowhere", "file", "file/below"])
def test_resume_refuses_a_folder_that_is_no_run(name, tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError) as caught:
        parse(["--resume", str(tmp_path / name)])
    assert str(tmp_path / name) in str(caught.value)
    assert "config.json" in str(caught.value)


# --resume


@pytest.fixture
def saved(tmp_path) -> Config:
    settings = parse(["--data", "tiles", "-e", "6", "--lr", "0.25", "--out", str(tmp_path), "--overwrite"])
    config.save(settings, tmp_path / "config.json")
    return settings


def test_resumed_run_keeps_its_settings(saved, tmp_path):
    resumed = parse(["--resume", str(tmp_path)])
    assert (resumed.data, resumed.model, resumed.optimization) == (saved.data, saved.model, saved.optimization)
    assert resumed.run == dataclasses.replace(saved.run, resume=tmp_path, out=None)


def test_resume_accepts_flags_that_repeat_the_saved_settings(saved, tmp_path):
    again = parse(["--resume", str(tmp_path), "--data", "tiles", "--epochs", "6", "--lr", "0.25"])
    assert again == parse(["--resume", str(tmp_path)])


def test_resume_refuses_changed_flags_in_two_columns(saved, tmp_path):
    line = ["--data", "tiles", "--lr", "0.5", "--widths", "4", "8", "--seed", "3", "--out", "elsewhere"]
    with pytest.raises(UserError) as caught:
        parse(["--resume", str(tmp_path), *line])
    head, *rows = str(caught.value).splitlines()[1:-1]
    assert {row.split()[0] for row in rows} == {"--learning-rate", "--widths", "--seed", "--out"}
    (rate,) = [row for row in rows if "--learning-rate" in row]
    assert (rate.index("0.25"), rate.index("0.5")) == (head.index("the run"), head.index("command line"))


def test_resumed_run_may_change_epochs_and_data_folder(saved, tmp_path):
    line = ["--resume", str(tmp_path), "--data", "moved", "-e", "9", "--early-stopping", "3", "--workers", "0"]
    resumed = parse(line)
    assert (resumed.data.data, resumed.data.workers) == (Path("moved"), 0)
    assert (resumed.optimization.epochs, resumed.optimization.early_stopping) == (9, 3)
    assert resumed.optimization.learning_rate == 0.25


def test_preset_changes_the_defaults_of_other_flags():
    article = parse(["--preset", "article", "-b", "7"])
    o = article.optimization
    assert (o.optimizer, o.learning_rate, o.schedule, o.per, o.batch_size) == ("sgd", 1e-2, "article", "epoch", 7)
    assert (article.data.binarize, article.augmentation.augment) == (255, False)
    assert article.run.preset == "article"
    assert parse(["--preset", "default"]) == Config()


def test_run_that_began_with_load_is_resumed_without_it(tmp_path):
    config.save(Config(run=Run(load=Path("gone.pth"))), tmp_path / "config.json")
    assert parse(["--resume", str(tmp_path)]).run.load is None


def test_names_that_are_not_utf8_are_refused():
    with pytest.raises(UserError, match=r"--data is .*; its name is not UTF-8, rename it"):
        check(Config(data=Data(data=Path(os.fsdecode(b"stra\xdfe")))))


def test_resume_refuses_invalid_saved_settings(tmp_path):
    config.save(Config(optimization=Optimization(epochs=0)), tmp_path / "config.json")
    with pytest.raises(UserError, match="--epochs is 0"):
        parse(["--resume", str(tmp_path)])
