"""The layers question passes in its quick form, and a layer that is broken on purpose fails the rows about it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

from jaxseg.nn.layers import BatchNorm
from parity import mutations
from parity.checks import batch_norm, convolution, layers
from parity.judge.answer import Settings
from parity.mistakes import Mistake, mistake
from parity.mistakes.layers import MISTAKES

QUICK = Settings(quick=True)


def failed_with(wrong: Mistake) -> set[str]:
    with mutations.injected(wrong):
        return {row.name for row in layers.run(QUICK).rows if not row.passed}


def known(name: str) -> Mistake:
    (wrong,) = (m for m in MISTAKES if m.name == name)
    return wrong


@pytest.mark.full  # CI asks `python -m parity --quick`, where the ledger's rows see names that are not unique
def test_it_passes_and_every_row_has_a_name_of_its_own():
    answer = layers.run(QUICK)
    assert [row for row in answer.rows if not row.passed] == []
    assert len({row.name for row in answer.rows}) == len(answer.rows) >= 30
    assert set(answer.evidence) == {"batch_norm", "conv"}


def test_evidence_has_both_sides_of_every_figure_of_float32(rng):
    with jax.enable_x64(False):
        _, conv = convolution.float32_row(rng)
        _, errors = batch_norm.float32_rows(rng, quick=True)
    assert {e["ratio"] for e in errors} == set(batch_norm.RATIOS)
    assert {e["what"] for e in errors} == {"y", "d x", "d scale", "d bias", "running mean", "running variance"}
    assert all(0 <= e["jaxseg"] < 1e-3 and 0 <= e["pytorch"] < 1e-3 for e in errors)
    assert conv["elements"] > 10_000


@pytest.mark.full
def test_a_mistake_fails_the_rows_about_it_and_no_others():
    assert failed_with(known("BatchNorm: running variance biased")) == {
        "BatchNorm in training: running variance",
        "BatchNorm: samples that are not valid",
        "BatchNorm in evaluation",
        "BatchNorm: two values per channel",
        "float32: BatchNorm running variance",
        "BatchNorm in the form of a GPU",
    }


def test_a_mean_in_one_pass_over_float32_is_seen():
    def one_pass(right):
        def wrong(self, x, valid):
            right(self, x, valid)  # for the running statistics and what it refuses
            weight = jnp.ones(len(x), x.dtype) if valid is None else valid.astype(x.dtype)
            n, weight = weight.sum() * x[0, ..., 0].size, weight[:, None, None, None]
            mean = (x * weight).sum((0, 1, 2)) / n
            return mean, (jnp.square(x - mean[None, None, None]) * weight).sum((0, 1, 2)) / n

        return wrong

    wrong = mistake("mean in one pass", BatchNorm, "_statistics", one_pass)
    with mutations.injected(wrong), jax.enable_x64(False):
        rows, _ = batch_norm.float32_rows(np.random.default_rng(0), quick=True)
    assert {row.name for row in rows if not row.passed} == {"float32: BatchNorm of two channels"}
