"""Advice on lack of memory, on a full disk, on one class everywhere, and on waiting for data."""

import errno

import pytest

from jaxseg.base.config import Config, Model, Optimization
from jaxseg.base.errors import UserError
from jaxseg.training.advice import one_class_only, out_of_memory, resumable, waits_for_data

CUDNN = "INTERNAL: Failed to determine best cudnn convolution algorithm for: %cudnn-conv = (f32[...])"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."),
        RuntimeError(CUDNN),
        MemoryError(),
    ],
    ids=["xla", "cudnn", "host"],
)
def test_every_kind_of_memory_error_gets_ordered_advice(error):
    config = Config(model=Model(widths=(64, 128)), optimization=Optimization(batch_size=8))
    message = out_of_memory(error, config, (512, 256))
    for part in ("8 samples of 256x512", "f32", "64 128"):
        assert part in message
    order = ["--accumulate 2", "--precision bf16", "--remat", "--crop 256", "--widths"]
    places = [message.rindex(what) for what in order]
    assert places == sorted(places)


def test_memory_advice_leaves_out_settings_already_in_use():
    config = Config(model=Model(precision="bf16", remat=True), optimization=Optimization(batch_size=4, accumulate=4))
    message = out_of_memory(MemoryError(), config, (64, 64))
    assert "1 samples" in message
    for flag in ("--accumulate", "--precision", "--remat"):
        assert flag not in message


def test_other_errors_get_no_memory_advice():
    assert out_of_memory(RuntimeError("INVALID_ARGUMENT: shapes"), Config(), (64, 64)) is None


def epochs(*shares: list[float]) -> list[dict]:
    return [{"validation": {"predicted": list(share)}} for share in shares]


BLACK, OTHER, MIXED = [1.0, 0.0], [0.0, 1.0], [0.9, 0.1]
CLASSES, PIXELS = ["background", "field"], [992, 8]


def test_one_class_in_three_evaluations_gives_a_warning_with_shares_and_flags():
    message = one_class_only(epochs(MIXED, BLACK, BLACK, BLACK), CLASSES, PIXELS, Optimization())
    for part in ("100 % background", "3 evaluations", "field is 0.8%", "--class-weights auto", "--loss dice_ce"):
        assert part in message
    assert "background is 99.2%" in one_class_only(epochs(OTHER, OTHER, OTHER), CLASSES, PIXELS, Optimization())


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({}, "Try --class-weights auto or --loss dice_ce;"),
        ({"class_weights": ("auto",)}, "Try --loss dice_ce;"),
        ({"loss": "dice_ce"}, "Try --class-weights auto;"),
        ({"class_weights": ("auto",), "loss": "dice"}, "Try --class-weights inverse, or a lower --learning-rate;"),
    ],
)
def test_what_was_given_is_not_advised(given, advice):
    message = one_class_only(epochs(BLACK, BLACK, BLACK), CLASSES, PIXELS, Optimization(**given))
    assert advice in message


@pytest.mark.parametrize(
    "shares",
    [[], [BLACK, BLACK], [BLACK, BLACK, MIXED], [BLACK, MIXED, BLACK], [BLACK, OTHER, BLACK], [BLACK] * 4],
    ids=["none", "two", "better now", "better between", "not the same", "said before"],
)
def test_one_class_warning_comes_neither_early_nor_twice(shares):
    assert one_class_only(epochs(*shares), CLASSES, PIXELS, Optimization()) is None


def waited(*shares) -> list[dict]:
    return [{"waited": share} for share in shares]


def test_waiting_for_data_gives_advice_once():
    assert waits_for_data(waited(0.04), "none", 2) is None
    advice = waits_for_data(waited(0.04, 0.25), "none", 2)
    for part in ("25% of the time", "--workers (now 2)", "--cache memory, disk or device"):
        assert part in advice
    assert waits_for_data(waited(0.25, 0.25), "none", 2) is None
    assert waits_for_data(waited(0.25, None, 0.25), "none", 2) is not None  # None: not known


def test_waiting_in_the_first_epoch_of_a_cache_gives_no_advice():
    assert waits_for_data(waited(0.9), "memory", 2) is None
    assert waits_for_data(waited(0.9, 0.01, 0.01), "memory", 2) is None
    assert "--cache device" in waits_for_data(waited(0.9, 0.2), "memory", 2)
    assert waits_for_data(waited(0.9, 0.2, 0.2), "memory", 2) is None
    assert "--cache memory or device" in waits_for_data(waited(0.9, 0.2), "disk", 0)
    assert "--cache" not in waits_for_data(waited(0.9, 0.2), "device", 2)


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ((), "There is no checkpoint yet"),
        (("last/8", "last/12"), "The checkpoint after 12 steps is kept"),
        (("best/12",), "The checkpoint after 12 steps is kept"),
        (("best/12", "last/8"), "The checkpoint after 12 steps is kept"),
    ],
)
def test_full_disk_says_what_is_kept_and_how_to_go_on(tmp_path, steps, kept):
    for step in steps:
        (tmp_path / f"checkpoints/{step}").mkdir(parents=True)
    (tmp_path / "checkpoints/last/16.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(UserError) as caught, resumable(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "log.jsonl"))
    assert str(caught.value).splitlines() == [
        f"{tmp_path / 'log.jsonl'}: No space left on device",
        f"{kept}. Once this is fixed, go on with",
        f"  python -m jaxseg.train --resume {tmp_path}",
    ]
