"""The check of optimizers passes on jaxseg as it is, and fails in the rows that are meant to where jaxseg is broken."""

import json

import jax
import jax.numpy as jnp
import optax
import pytest

pytest.importorskip("torch")

from jaxseg.learn import optimizers
from parity import mutations
from parity.checks import optimizer_state
from parity.checks import optimizers as check
from parity.judge.answer import Settings

LOOKS = {"step 1", "step 2", "step 100", "clipped"}


def failed(monkeypatch, *cases: str) -> set[str]:
    """Names of the rows that fail of these cases alone."""
    monkeypatch.setattr(check, "CASES", {case: check.CASES[case] for case in cases})
    monkeypatch.setattr(optimizer_state, "rows", lambda *args: [])
    rows = check.run(Settings(quick=True)).rows[1:]  # the first misses the cases left out
    assert {f"{case}: {look}" for case in cases for look in LOOKS} <= {row.name for row in rows}
    return {row.name for row in rows if not row.passed}


@pytest.mark.full  # CI asks `python -m parity --quick`
def test_it_passes():
    answer = check.run(Settings(quick=True))
    assert [row.name for row in answer.rows if not row.passed] == []
    assert answer.passed
    assert set(json.loads(json.dumps(answer.evidence))["three_way"]) == check.IN_FLOAT32_WHEN_QUICK
    float64 = [row.figure for row in answer.rows if row.gate == check.GATE]
    state = len(optimizer_state.DECAYS) + len(optimizer_state.SCALED)
    assert len(float64) == 2 + 4 * len(check.CASES) + len(check.LOOKS) * state
    assert max(float64) < check.GATE / 10


def test_it_sees_the_learning_rate_inside_the_buffer(monkeypatch):
    def wrong(learning_rate, decay=0.99, eps=1e-8, momentum=0.0, *, weight_decay=0.0):
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.rmsprop(learning_rate, decay, eps, eps_in_sqrt=False, momentum=momentum),
        )

    monkeypatch.setattr(optimizers, "rmsprop", wrong)
    case = "RMSprop, momentum and decay"
    assert failed(monkeypatch, case) >= {f"{case}: {look}" for look in LOOKS}


def test_it_sees_a_bias_correction_that_cancels_in_float32(monkeypatch):
    monkeypatch.setattr(optimizers, "scale_by_adam", optax.scale_by_adam)
    assert failed(monkeypatch, "Adam, decay") == {"Adam, decay: float32"}


def test_it_sees_clipping_without_its_millionth(monkeypatch):
    monkeypatch.setattr(optimizers, "clip_by_global_norm", optax.clip_by_global_norm)
    assert failed(monkeypatch, "SGD") == {
        "clip_by_global_norm",
        "clip_by_global_norm at the norm",
        "SGD: clipped",
    }


def test_it_sees_parameters_that_only_gradients_near_1e_9_move(monkeypatch):
    """Of all that moves, a 1e-9th."""

    def wrong(learning_rate, **options):
        tiny = optax.stateless(lambda grads, _: jax.tree.map(lambda g: jnp.where(abs(g) < 1e-7, 0, g), grads))
        return optax.chain(tiny, optax.sgd(learning_rate))

    monkeypatch.setattr(optimizers, "sgd", wrong)
    assert "SGD: step 100" in failed(monkeypatch, "SGD")


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("average of the parameters before the update", {"step 1", "step 2", "step 100", "float32"}),
        ("average corrected for its bias", {"step 2", "step 100", "float32"}),
        ("plateau: no scale", {"step 100"}),
    ],
)
def test_it_sees_a_mistake_in_what_comes_after_the_update(name, rows):
    (wrong,) = (m for m in mutations.all_mistakes()["optimizers"] if m.name == name)
    with mutations.injected(wrong):
        start, grads = check.parameters(0), check.gradients(0)
        found = optimizer_state.rows(start, grads, check.RATES, check.LOOKS, check.GATE)
        failed = {row.name for row in found if not row.passed}
    subject = "plateau" if "plateau" in name else "average"
    assert {row.rpartition(": ")[2] for row in failed if subject in row} == rows


def test_it_sees_another_default(monkeypatch):
    right = optimizers.adamw

    def wrong(learning_rate, b1=0.9, b2=0.999, eps=1e-8, *, weight_decay=1e-4):
        return right(learning_rate, b1, b2, eps, weight_decay=weight_decay)

    assert check.defaults_row("adamw").passed
    monkeypatch.setattr(optimizers, "adamw", wrong)
    row = check.defaults_row("adamw")
    assert not row.passed
    assert row.worst == "weight_decay: 0.0001 against 0.01"


def test_an_optimizer_and_an_option_that_it_does_not_know_fail(monkeypatch):
    assert check.unmatched_row().passed
    monkeypatch.setattr(optimizers, "lion", lambda learning_rate: optax.lion(learning_rate), raising=False)
    monkeypatch.setattr(optimizers, "sgd", lambda learning_rate, momentum=0.0, dampening=0.0: optax.sgd(learning_rate))
    row = check.unmatched_row()
    assert not row.passed
    assert row.worst == "lion, sgd dampening"
    assert not check.defaults_row("adam").worst
