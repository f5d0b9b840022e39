import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxseg.base.config import Optimization
from jaxseg.learn import optimizers, schedules

STEPS = 40
RATES = 0.3 * (1 + np.cos(np.arange(STEPS))) * 0.9 ** np.arange(STEPS)  # changes at every step, also upward

# (optimizer here, its options, the one in torch.optim, its options)
CASES = {
    "sgd": (optimizers.sgd, {}, "SGD", {}),
    "sgd decay": (optimizers.sgd, {"weight_decay": 0.1}, "SGD", {"weight_decay": 0.1}),
    "sgd momentum": (optimizers.sgd, {"momentum": 0.9}, "SGD", {"momentum": 0.9}),
    "sgd momentum decay": (
        optimizers.sgd,
        {"momentum": 0.9, "weight_decay": 0.1},
        "SGD",
        {"momentum": 0.9, "weight_decay": 0.1},
    ),
    "sgd nesterov decay": (
        optimizers.sgd,
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
        "SGD",
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    "adam": (optimizers.adam, {}, "Adam", {}),
    "adam decay": (optimizers.adam, {"weight_decay": 0.1}, "Adam", {"weight_decay": 0.1}),
    "adam betas": (optimizers.adam, {"b1": 0.5, "b2": 0.9, "eps": 1e-3}, "Adam", {"betas": (0.5, 0.9), "eps": 1e-3}),
    "adamw": (optimizers.adamw, {}, "AdamW", {}),
    "adamw decay": (optimizers.adamw, {"weight_decay": 0.1}, "AdamW", {"weight_decay": 0.1}),
    "adamw no decay": (optimizers.adamw, {"weight_decay": 0.0}, "AdamW", {"weight_decay": 0.0}),
    "rmsprop": (optimizers.rmsprop, {}, "RMSprop", {}),
    "rmsprop decay": (
        optimizers.rmsprop,
        {"decay": 0.9, "eps": 1e-3, "weight_decay": 0.1},
        "RMSprop",
        {"alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1},
    ),
    "rmsprop momentum decay": (
        optimizers.rmsprop,
        {"momentum": 0.9, "weight_decay": 0.1},
        "RMSprop",
        {"momentum": 0.9, "weight_decay": 0.1},
    ),
}


def parameters() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"kernel": rng.standard_normal((3, 4)), "bias": rng.standard_normal(5)}


def gradients() -> list[dict[str, np.ndarray]]:
    """Of sizes from 1e-9 to 1, some elements always 0 and some steps all 0."""
    rng, out = np.random.default_rng(1), []
    for step in range(STEPS):
        scale = {"kernel": 10.0 ** -np.arange(12).reshape(3, 4).clip(0, 9), "bias": np.array([1, 1e-9, 1e-9, 0, 0])}
        out.append({name: rng.standard_normal(s.shape) * s * (step % 7 != 3) for name, s in scale.items()})
    return out


def run(tx: optax.GradientTransformation) -> list[dict[str, np.ndarray]]:
    """Parameters after each step, in float64."""

    @jax.jit
    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, parameters())
        state, out = tx.init(params), []
        for grads in gradients():
            params, state = update(params, state, grads)
            out.append(jax.device_get(params))
    return out


def rates(step):
    return jnp.asarray(RATES)[step]


@pytest.mark.parametrize("name", CASES)
def test_optimizers_take_the_steps_of_torch(name):
    """To 1e-13 of parameters near 1 after 40 steps; the nearest other order of operations is 1e-4 off."""
    torch = pytest.importorskip("torch")
    make, options, theirs, their_options = CASES[name]
    params = {k: torch.tensor(v, requires_grad=True) for k, v in parameters().items()}
    optimizer = getattr(torch.optim, theirs)(params.values(), lr=1.0, **their_options)
    found = run(make(rates, **options))
    for step, grads in enumerate(gradients()):
        optimizer.param_groups[0]["lr"] = float(RATES[step])
        for k, g in grads.items():
            params[k].grad = torch.tensor(g)
        optimizer.step()
        for k, p in params.items():
            where = f"{k} after step {step}"
            np.testing.assert_allclose(found[step][k], p.detach(), rtol=1e-13, atol=1e-13, err_msg=where)


def test_first_step_of_sgd_uses_the_first_rate():
    found = run(optimizers.sgd(rates))
    for name, start in parameters().items():
        np.testing.assert_allclose(found[0][name], start - RATES[0] * gradients()[0][name], rtol=1e-15)


@pytest.mark.parametrize("b2", [0.99, 0.999])
def test_adam_bias_correction_is_accurate_in_float32(b2):
    """Under a constant gradient both moments are that gradient, so every step is the learning rate.

    With 1 - b2^t as it stands a step of 0.999 would be 6e-6 short.
    """
    tx, params = optimizers.adam(1.0, b2=b2, eps=0.0), {"w": jnp.zeros(3)}
    grads, state = {"w": jnp.float32([1e-3, 1.0, 1e3])}, tx.init(params)
    for _ in range(5):
        updates, state = tx.update(grads, state)
        np.testing.assert_allclose(updates["w"], -1, rtol=4e-7)


def test_rmsprop_matches_a_calculation_by_hand():
    tx = optimizers.rmsprop(lambda step: 0.5 - 0.25 * step, decay=0.75, eps=1.0, momentum=0.5)
    params = {"w": jnp.ones(1)}
    state = tx.init(params)
    first, state = tx.update({"w": jnp.full(1, 4.0)}, state)
    second, _ = tx.update({"w": jnp.zeros(1)}, state)
    buffer = 4 / (np.sqrt(0.25 * 16) + 1)
    np.testing.assert_allclose(first["w"], -0.5 * buffer, rtol=1e-6)
    np.testing.assert_allclose(second["w"], -0.25 * 0.5 * buffer, rtol=1e-6)


@pytest.mark.parametrize("length", [0, 1e-7, 1e-3, 1, 50])
def test_clip_by_global_norm_matches_torch(length):
    grads = {"kernel": np.full((2, 2), 0.3), "bias": np.array([0.6, -0.5])}
    unit = np.sqrt(sum((g**2).sum() for g in grads.values()))
    grads = {name: g * length / unit for name, g in grads.items()}
    for limit in (1e-3, 2.0):
        tx = optimizers.clip_by_global_norm(limit)
        with jax.enable_x64(True):
            found, _ = tx.update(jax.tree.map(jnp.asarray, grads), tx.init(grads))
        scale = min(1, limit / (length + 1e-6))
        for name, g in grads.items():
            np.testing.assert_allclose(found[name], scale * g, rtol=1e-14)


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_clip_by_global_norm_refuses_norms_of_0_or_less(limit):
    with pytest.raises(ValueError, match=f"`max_norm` is {limit}; expected a number above 0"):
        optimizers.clip_by_global_norm(limit)


def test_sgd_refuses_nesterov_without_momentum():
    with pytest.raises(ValueError, match="`nesterov` needs a `momentum` above 0"):
        optimizers.sgd(0.1, nesterov=True)


@pytest.mark.parametrize(
    ("settings", "make", "options"),
    [
        (Optimization(optimizer="adam"), optimizers.adam, {}),
        (Optimization(optimizer="adam", weight_decay=0.2), optimizers.adam, {"weight_decay": 0.2}),
        (Optimization(optimizer="adamw"), optimizers.adamw, {"weight_decay": 0.01}),
        (Optimization(optimizer="adamw", weight_decay=0.0), optimizers.adamw, {"weight_decay": 0.0}),
        (Optimization(optimizer="sgd"), optimizers.sgd, {"momentum": 0.9}),
        (
            Optimization(optimizer="sgd", momentum=0.5, nesterov=True, weight_decay=0.2),
            optimizers.sgd,
            {"momentum": 0.5, "nesterov": True, "weight_decay": 0.2},
        ),
        (Optimization(optimizer="rmsprop"), optimizers.rmsprop, {"momentum": 0.9}),
        (
            Optimization(optimizer="rmsprop", momentum=0.0, weight_decay=0.2),
            optimizers.rmsprop,
            {"weight_decay": 0.2},
        ),
    ],
    ids=["adam", "adam decay", "adamw", "adamw no decay", "sgd", "sgd all", "rmsprop", "rmsprop decay"],
)
def test_optimizer_from_builds_what_the_settings_describe(settings, make, options):
    found, expected = run(optimizers.optimizer_from(settings, rates))[-1], run(make(rates, **options))[-1]
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "sgd"])
def test_optimizer_from_clips_first(optimizer):
    settings = {"optimizer": optimizer, "weight_decay": 0.5}
    params = {"w": jnp.ones(2), "b": jnp.zeros(1)}
    clipped, plain = (
        optimizers.optimizer_from(Optimization(clip_norm=limit, **settings), schedules.constant(0.5))
        for limit in (0.5, None)
    )
    long, short = ({"w": jnp.float32([3, 0]) * scale, "b": jnp.float32([4]) * scale} for scale in (1, 0.1))
    found, _ = clipped.update(long, clipped.init(params), params)
    expected, _ = plain.update(short, plain.init(params), params)
    for name in params:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize(("optimizer", "decay"), [("adam", 0.0), ("sgd", 0.0), ("rmsprop", 0.0), ("adamw", 0.01)])
def test_only_adamw_has_weight_decay_by_default(optimizer, decay):
    tx = optimizers.optimizer_from(Optimization(optimizer=optimizer), schedules.constant(0.5))
    params = {"w": jnp.ones(3)}
    updates, _ = tx.update({"w": jnp.zeros(3)}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], np.full(3, -0.5 * decay), rtol=1e-6)


# What comes after the update


def test_average_copies_the_first_update_and_then_follows():
    """By hand, in float32, the copy to the bit."""
    tx, params = optax.chain(optimizers.sgd(1.0), optimizers.average_parameters(0.75)), {"w": jnp.float32([0.1, 0.7])}
    update, state = jax.jit(tx.update), tx.init(params)
    for number, grad in enumerate(([0.3, -0.1], [1.0, 0.0], [0.0, 2.0])):
        updates, state = update({"w": jnp.float32(grad)}, state, params)
        params = optax.apply_updates(params, updates)
        found = optax.tree.get(state, "averaged_parameters")["w"]
        if number == 0:
            np.testing.assert_array_equal(found, params["w"])
            expected = np.float64(params["w"])
        expected = 0.75 * expected + 0.25 * np.float64(params["w"])
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("decay", "reached"), [(0.9, 6e-7), (0.999, 6e-5)])
def test_float32_average_approaches_to_half_an_ulp_over_one_minus_decay(decay, reached):
    """What the docstring says of its precision; in float64 it would arrive."""

    @jax.jit
    def wait(old):
        state = optimizers.AveragedParameters(jnp.asarray(1), {"w": old})
        params, tx = {"w": jnp.ones(1, old.dtype)}, optimizers.average_parameters(decay)
        follow = lambda i, state: tx.update({"w": jnp.zeros(1, old.dtype)}, state, params)[1]  # noqa: E731
        return 1 - jax.lax.fori_loop(0, 30_000, follow, state).averaged_parameters["w"][0]

    distance = float(wait(jnp.full(1, 0.9, jnp.float32)))
    assert reached / 4 < distance <= reached
    with jax.enable_x64(True):
        assert abs(float(wait(jnp.full(1, 0.9)))) < 1e-11


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_average_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"`decay` is {decay}; expected 0 or more and less than 1"):
        optimizers.average_parameters(decay)


class Weights(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.float32([1.0, 2.0]))
        self.seen = nnx.BatchStat(jnp.zeros(1))


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_optimizer_from_scales_after_momentum_and_averages_the_result(clip_norm):
    settings = Optimization(
        optimizer="sgd", momentum=0.5, schedule="plateau", ema=0.5, clip_norm=clip_norm, weight_decay=0.0
    )
    net = Weights()
    optimizer = nnx.Optimizer(net, optimizers.optimizer_from(settings, schedules.constant(0.5)), wrt=nnx.Param)
    grads = nnx.state(Weights(), nnx.Param)  # 1, 2; of length sqrt(5)
    grad = np.array([1.0, 2.0]) / (1 if clip_norm is None else np.sqrt(5))
    optimizer.update(net, grads)
    optimizers.set_rate_scale(optimizer, 0.1)
    assert float(optimizers.rate_scale(optimizer)) == pytest.approx(0.1)
    optimizer.update(net, grads)
    first = [1, 2] - 0.5 * grad
    second = first - 0.05 * 1.5 * grad
    np.testing.assert_allclose(net.w[...], second, rtol=1e-5)
    view = optimizers.averaged(net, optimizer)
    np.testing.assert_allclose(view.w[...], (first + second) / 2, rtol=1e-5)
    net.seen[...] = jnp.ones(1)
    np.testing.assert_array_equal(view.seen[...], 1)  # the model's own


def test_optimizer_without_plateau_or_average_has_neither():
    net = Weights()
    optimizer = nnx.Optimizer(net, optimizers.optimizer_from(Optimization(), schedules.constant(0.5)), wrt=nnx.Param)
    assert optimizers.averaged(net, optimizer) is net
    assert optimizers.rate_scale(optimizer) == 1
    with pytest.raises(ValueError, match="its schedule is not 'plateau'"):
        optimizers.set_rate_scale(optimizer, 0.1)
