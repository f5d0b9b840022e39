"""The questions of schedule, initial weights and data pass on jaxseg as it is, and see mistakes."""

import json
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from flax import nnx  # noqa: E402

from jaxseg.base.errors import UserError  # noqa: E402
from jaxseg.data.feed.pipeline import Pipeline  # noqa: E402
from jaxseg.data.find import folders  # noqa: E402
from jaxseg.data.find.listing import list_images  # noqa: E402
from jaxseg.data.find.pairs import Match, Rule  # noqa: E402
from jaxseg.data.read import samples  # noqa: E402
from jaxseg.doctor import survey  # noqa: E402
from jaxseg.learn import schedules, step  # noqa: E402
from jaxseg.nn import initializers, layers, unet  # noqa: E402
from parity.checks import data, init, schedule  # noqa: E402
from parity.judge.answer import Settings  # noqa: E402
from parity.reference.dataset import OTHER_GRAYS, TileDataset, gray_of  # noqa: E402
from parity.reference.initialization import RULES, draw, fans, law, readings  # noqa: E402
from parity.twins import schedule_pairs  # noqa: E402
from parity.twins.awkward import NAMES, make_awkward  # noqa: E402
from parity.twins.draws import LAYERS, cases  # noqa: E402


def failed(check, **settings) -> set[str]:
    return {row.name for row in check.run(Settings(quick=True, **settings)).rows if not row.passed}


# Schedules


@pytest.mark.full  # CI asks `python -m parity --quick`
def test_schedule_check_passes_and_draws_both_sides_past_the_end():
    answer = schedule.run(Settings(quick=True, seed=3))
    assert answer.passed
    evidence = json.loads(json.dumps(answer.evidence))
    assert evidence["epochs"] == list(range(45))
    assert {curve["name"] for curve in evidence["curves"]} == {"article", "warmup_cosine"}
    article, cosine = (np.array([curve["torch"], curve["jaxseg"]]) for curve in evidence["curves"])
    np.testing.assert_array_equal(*article)
    np.testing.assert_allclose(*cosine[:, :41], rtol=0, atol=1e-16)
    assert cosine[0, 44] > 1e-4 > cosine[1, 44]  # PyTorch's own rises again
    assert evidence["share"] == pytest.approx(0.605, abs=5e-4)
    assert evidence["hazards"]["asked twice in epoch 9"] == pytest.approx([9.1113e-3, 9.4114e-3], rel=1e-4)
    assert np.divide(*evidence["hazards"]["made anew at epoch 20"]) == pytest.approx(8.49, abs=0.01)


class Remembering:
    """A schedule that counts how often it was asked, as the article's class does."""

    def __init__(self, schedule):
        self.schedule, self.asked = schedule, 0

    def __call__(self, tick):
        self.asked += 1
        return self.schedule(tick) * 0.999**self.asked


right_article, right_cosine = schedules.article, schedules.warmup_cosine
SCHEDULE_MISTAKES = {
    "decay steps without the warm-up": (
        "warmup_cosine",
        lambda peak, *, warmup, total, **k: right_cosine(
            peak, warmup=warmup, total=max(total - warmup, 1 + warmup), **k
        ),
        {"warmup_cosine, float64", "warmup_cosine, float32", "warmup_cosine, float64, PyTorch's own"},
    ),
    "remembers": (
        "warmup_cosine",
        lambda *a, **k: Remembering(right_cosine(*a, **k)),
        {"asked twice and out of order", "made anew, asked from the middle on"},
    ),
}


@pytest.fixture
def few_curves(monkeypatch):
    """Asks for the curves of the replaced functions alone."""
    every = schedule.curves
    asked = ("article: ", "warmup_cosine: ", "per_epoch: ", "schedule_from: ")
    monkeypatch.setattr(schedule, "curves", lambda: {n: c for n, c in every().items() if n.startswith(asked)})
    for name in ("own_curves", "warmed_up"):  # of other functions
        monkeypatch.setattr(schedule_pairs, name, dict)


@pytest.mark.usefixtures("few_curves")
@pytest.mark.parametrize("mistake", SCHEDULE_MISTAKES)
def test_schedule_check_sees(mistake):
    name, broken, rows = SCHEDULE_MISTAKES[mistake]
    with mock.patch.object(schedules, name, broken):
        assert failed(schedule) >= rows


@pytest.mark.full
@pytest.mark.usefixtures("few_curves")
def test_schedule_check_sees_several_mistakes_each_in_its_row(monkeypatch):
    monkeypatch.setattr(schedules, "article", lambda *a, **k: lambda tick: right_article(*a, **k)(tick + 1))
    monkeypatch.setattr(schedules, "warmup_cosine", lambda *a, **k: right_cosine(*a, **k | {"final_lr": 0.0}))
    monkeypatch.setattr(schedules, "per_epoch", lambda schedule, steps: schedule)
    rows = {"article, float64", "warmup_cosine, float32", "per_epoch, float32", "schedule_from, float32"}
    assert failed(schedule) >= rows


@pytest.mark.usefixtures("few_curves")
def test_schedule_check_sees_what_only_a_trainer_gets_and_what_it_does_not_know():
    def half(*a, **k):
        return lambda tick: right_article(*a, **k)(tick).astype(jnp.float16).astype(jnp.float32)

    with mock.patch.dict(schedules.SCHEDULES, {"article": half, "step": schedules.constant}):
        assert failed(schedule) == {"schedule_from, float64", "schedule_from, float32", "none left out"}


# Initial weights


@pytest.mark.full  # CI asks `python -m parity --quick`
def test_init_check_passes_and_draws_histograms_of_the_laws():
    answer = init.run(Settings(quick=True, seed=11))
    assert answer.passed
    evidence = json.loads(json.dumps(answer.evidence))
    assert evidence["tests"] > 400
    pictures = evidence["histograms"]
    assert {picture["law"] for picture in pictures} == {"normal", "uniform"}
    for picture in pictures:
        widths = np.diff(picture["edges"])
        for side in ("jaxseg", "torch"):
            assert len(picture[side]) == len(widths)
            assert np.dot(picture[side], widths) == pytest.approx(1, abs=1e-3)
    (contrast,) = (picture for picture in pictures if "jax_he_normal" in picture)
    he_normal = np.array(contrast["jax_he_normal"])
    assert he_normal[0] == he_normal[-1] == 0  # truncated
    assert he_normal.max() > 1.2 * max(contrast["jaxseg"])  # narrower, for its fan is twice as large


@pytest.mark.full
def test_init_check_sees_several_mistakes_each_in_its_row(monkeypatch):
    article, conv, bias = initializers.RULES["article"], unet.Conv.__init__, layers.torch_default_bias

    def cut(key, shape, dtype=jnp.float32):
        end = 2.3 * np.sqrt(2 / initializers.fans(shape)[1])
        return jnp.clip(article.conv(key, shape, dtype), -end, end)

    def one_key(self, *args, rngs, **options):
        conv(self, *args, rngs=nnx.Rngs(rngs.params.key[...]), **options)

    def xavier_normal(gain=1.0, *, transposed=False):
        return lambda key, shape, dtype=jnp.float32: initializers.normal(
            gain / np.sqrt(initializers.fans(shape, transposed)[0])
        )(key, shape, dtype)

    swapped = initializers.RULES["kaiming_uniform"]
    monkeypatch.setitem(initializers.RULES, "article", initializers.Rule(cut, article.up))
    monkeypatch.setitem(initializers.RULES, "xavier_uniform", swapped)
    monkeypatch.setattr(unet.Conv, "__init__", one_key)
    monkeypatch.setattr(layers, "torch_default_bias", lambda shape, *, transposed=False: bias(shape))
    monkeypatch.setattr(initializers, "xavier_normal", xavier_normal)
    assert failed(init) >= {
        "U-Net: not truncated",
        "U-Net: independent",
        "U-Net: bounds",
        "U-Net by other rules: standard deviation",
        "initializers: fans",
    }


def test_init_check_misses_no_rule_that_is_added(monkeypatch):
    assert init.every_initializer().passed
    monkeypatch.setitem(initializers.RULES, "orthogonal", initializers.RULES["article"])
    assert init.every_initializer().worst == "orthogonal"


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_the_laws_of_the_reference_are_pytorchs(rule, transposed):
    """Of 40,000 draws: standard deviation within 5 sigma, and no uniform draw outside."""
    call, shape = RULES[rule][transposed], (40, 25, 2, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = torch.cat([draw(call, shape, transposed).ravel() for _ in range(10)])
    claimed = law(call, shape)
    assert draws.std().item() == pytest.approx(claimed.sigma, rel=5 / np.sqrt(2 * len(draws)))
    assert draws.abs().max() <= getattr(claimed, "bound", np.inf) * (1 + 1e-6)


def test_readings_begin_with_the_fan_that_is_meant():
    shape = (40, 24, 3, 3)
    assert fans(shape) == (216, 360)
    for call, fan, others in (
        (RULES["article"][0], "fan_out", {"fan_in": np.sqrt(360 / 216), "fan_avg": np.sqrt(360 / 288)}),
        (RULES["xavier_normal"][0], "fan_avg", {"fan_in": np.sqrt(288 / 216), "fan_out": np.sqrt(288 / 360)}),
    ):
        found = readings(call, shape)
        assert next(iter(found)) == fan
        assert found[fan] == law(call, shape).sigma
        assert {name: found[name] / found[fan] for name in others} == pytest.approx(others)


def test_every_initializer_is_drawn_for_every_kind_of_layer():
    kinds = {}
    for case in cases().values():
        kinds.setdefault(case.call[0], set()).add(case.kernel)
    assert all(kinds.pop(name) == {LAYERS["3x3"]} for name in ("normal", "uniform"))  # know no fans
    assert all(kernels == set(LAYERS.values()) for kernels in kinds.values())
    assert len(kinds) == 6


# Data


def test_data_check_passes_and_gives_hashes_of_both_sides(tiles_root):
    answer = data.run(Settings(quick=True, data=tiles_root))
    assert answer.passed
    evidence = json.loads(json.dumps(answer.evidence))
    for pairs in evidence["hashes"].values():
        assert len(pairs) == 2  # 10 tiles in batches of 5
        assert all(found == expected and len(found) == 64 for found, expected in pairs)
    assert evidence["hashes"]["uint8"][0] != evidence["hashes"]["float32"][0]
    assert evidence["colors"]["all"] == 52**3
    assert evidence["colors"]["Pillow's L"] > 100


right_tile, right_gray = samples.read_tile, samples.read_gray


def swapped(path, reading=samples.ARTICLE_READING):
    image, has_data = right_tile(path, reading)
    return image[..., ::-1], has_data


DATA_MISTAKES = {
    "swapped channels": (samples, "read_tile", swapped, "training tiles, shuffled"),
    "Pillow's gray": (
        samples,
        "read_gray",
        lambda path: OTHER_GRAYS["Pillow's L"](samples.read_image(path)),
        "gray of 140608 colors",
    ),
    "every value above 0": (
        samples,
        "read_mask",
        lambda path, reading=None: (right_gray(path) > 0).astype(np.uint8),
        "awkward names and masks",
    ),
    "masks in their own order": (
        folders,
        "match",
        lambda images, masks, settings, only: Match(
            images, tuple(samples.Pair(*pair) for pair in zip(list_images(images), list_images(masks))), Rule()
        ),
        "awkward names and masks",
    ),
    "one ulp": (step, "normalize", lambda image: image.astype(jnp.float32) / 255, "all 256 bytes / 255"),
    "one order for all epochs": (
        Pipeline,
        "order",
        lambda self, epoch: np.arange(len(self.pairs))[::-1].copy(),
        "epochs differ in order",
    ),
    "a short last batch left out": (
        Pipeline,
        "__len__",
        lambda self: len(self.pairs) // self.batch_size,
        "validation tiles, in order",
    ),
}


@pytest.mark.parametrize("mistake", DATA_MISTAKES)
def test_data_check_sees(mistake, tiles_root):
    where, name, broken, row = DATA_MISTAKES[mistake]
    with mock.patch.object(where, name, broken):
        assert row in failed(data, data=tiles_root)


def test_data_check_sees_batches_that_are_left_out(tiles_root):
    right = Pipeline.epoch
    with mock.patch.object(
        Pipeline, "epoch", lambda self, e=0, s=0: (b for b in right(self, e, s) if b["valid"].all())
    ):
        assert "validation tiles, in order" in failed(data, data=tiles_root)


def test_data_check_counts_the_pixels_that_the_survey_should_see(tmp_path):
    root = make_awkward(tmp_path / "awkward", seed=0)
    row, files = data.lost_pixels(root)
    assert row.passed
    grays = TileDataset(root / "train", root / "Ltrain")
    lost = [int(((g > 0) & (g < 255)).sum()) for g in map(grays.read_gray, range(len(grays)))]
    assert len(files) == 2 * len(NAMES)
    assert sorted(file["lost"] for file in files if file["file"].startswith("train/")) == sorted(lost)
    assert min(lost) >= 254  # every gray value is there
    with mock.patch.object(survey, "values_of", lambda _, path: (right_gray(path) // 255 * 255, False)):
        assert not data.lost_pixels(root)[0].passed


def test_data_check_wants_the_articles_layout(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="train/ Ltrain/ val/ Lval/"):
        data.run(Settings(data=tmp_path))


def test_the_formula_of_gray_is_opencvs_in_15_bits():
    near_white = np.array([[[254, 255, 255], [255, 254, 255], [255, 255, 254], [254, 254, 255]]], np.uint8)
    assert gray_of(near_white).tolist() == [[255, 254, 255, 254]]
    grays = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    np.testing.assert_array_equal(gray_of(grays), grays[..., 0])
