"""Schedules against PyTorch's own, of random settings and metrics; and what the reference makes of a recipe."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.base.config import Optimization
from jaxseg.base.errors import UserError
from jaxseg.learn import schedules
from jaxseg.learn.schedules import Plateau
from parity.reference import training
from parity.reference.scheduler import SCHEDULERS, torch_plateau, torch_rates

# few values, so that they tie, differ by just more or less than the threshold, or are no numbers
METRICS = st.sampled_from([0.0, 0.5, 0.50004, 0.5000499, 0.5000501, 0.50006, 0.6, 1.0, -0.5, -0.49, float("nan")])


@given(
    st.lists(METRICS | st.floats(0, 1), max_size=60),
    st.integers(0, 4),
    st.sampled_from([0.1, 0.5, 0.97]),
    st.sampled_from([0.0, 1e-9, 1e-3, 1.0]),
    st.sampled_from([1e-8, 2e-3, 0.3]),
    st.integers(0, 60),
)
def test_plateau_is_reduce_lr_on_plateau(metrics, patience, gamma, final_lr, base_lr, resumed):
    how = {"gamma": gamma, "patience": patience, "final_lr": final_lr}
    plateau, scales = Plateau(base_lr, **how), []
    for epoch, metric in enumerate(metrics):
        if epoch == resumed:
            plateau = Plateau(base_lr, **how, state=json.loads(json.dumps(plateau.state, allow_nan=False)))
        scales.append(plateau.update(metric))
    assert scales == [rate / base_lr for rate in torch_plateau(metrics, base_lr, **how)]


@given(
    st.sampled_from(sorted(SCHEDULERS)),
    st.integers(4, 30),
    st.integers(0, 7),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.data(),
)
def test_schedules_are_pytorchs_of_any_settings(name, total, warmup, peak, part, data):
    options = {"final_lr": part * peak, "total": total}
    options |= {"gamma": data.draw(st.floats(0.05, 0.95)), "power": data.draw(st.floats(0.3, 3))}
    options |= {"period": data.draw(st.integers(2, 12)), "cycle_factor": float(data.draw(st.integers(1, 3)))}
    options["milestones"] = tuple(sorted(data.draw(st.lists(st.integers(1, 30), min_size=2, max_size=2))))
    taken = {
        "constant": (),
        "piecewise_constant": ("milestones",),
        "factor": ("gamma", "period", "total", "final_lr"),
        "multi_factor": ("gamma", "milestones", "final_lr"),
        "exponential": ("gamma", "period", "final_lr"),
        "polynomial": ("power", "total", "final_lr"),
        "cosine_restarts": ("period", "cycle_factor", "total", "final_lr"),
        "cyclic": ("period", "final_lr"),
    }.get(name, ("total", "final_lr"))
    given = {key: float(options[key]) if key == "period" and name != "factor" else options[key] for key in taken}
    rates = {"rates": (peak, 0.5 * peak, 0.7 * peak)} if name == "piecewise_constant" else {}
    schedule = getattr(schedules, name)(*(rates.values() or [peak]), **given)
    begin_lr = data.draw(st.floats(0, 1)) * peak
    with jax.enable_x64(True):
        warmed_up = jax.jit(schedules.linear_warmup(schedule, warmup=warmup, begin_lr=begin_lr))
        found = [float(warmed_up(tick)) for tick in range(warmup + total)]
    asked = {"final_lr": 0.0} | given | rates | {"total": total, "warmup": warmup, "begin_lr": begin_lr}
    np.testing.assert_allclose(found, torch_rates(name, warmup + total, peak, **asked), rtol=0, atol=1e-13 * peak)


def test_the_reference_has_no_rates_for_plateau():
    assert "plateau" not in training.SCHEDULES
    with pytest.raises(UserError, match="--schedule plateau has no rates before the run"):
        training.learning_rates(Optimization(schedule="plateau"), 3)


@pytest.mark.parametrize("per", ["step", "epoch"])
@pytest.mark.parametrize("name", training.SCHEDULES)
def test_the_reference_knows_steps_as_jaxseg_does(name, per):
    how = {"milestones": (2.0, 4.0)} if name in ("piecewise_constant", "multi_factor") else {}
    how |= {"rates": (0.2, 0.1, 0.3)} if name == "piecewise_constant" else {}
    recipe = Optimization(schedule=name, schedule_per=per, epochs=40, steps=33, learning_rate=0.2, **how)
    expected = np.broadcast_to(schedules.schedule_from(recipe, 5)(np.arange(33)), 33)
    np.testing.assert_allclose(training.learning_rates(recipe, 5), expected, rtol=0, atol=3e-7 * 0.3)
