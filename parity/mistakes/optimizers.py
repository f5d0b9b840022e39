"""Optimizers with their pieces in another order, such as Optax's or Keras', or with other constants."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxseg.learn import optimizers
from parity.mistakes import mistake


def default(name: str, value):
    """Gives an option of the optimizer another default."""

    def wrong(right):
        signature = inspect.signature(right)

        def make(*args, **kwargs):
            given = signature.bind(*args, **kwargs).arguments
            return right(*args, **({} if name in given else {name: value}), **kwargs)

        make.__signature__ = signature.replace(
            parameters=[p.replace(default=value) if p.name == name else p for p in signature.parameters.values()]
        )
        return make

    return wrong


def keras_momentum(right):
    """Puts the learning rate inside the momentum buffer."""

    def sgd(learning_rate, momentum=0.0, *, nesterov=False, weight_decay=0.0):
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
            optax.trace(momentum, nesterov) if momentum else optax.identity(),
        )

    return sgd


def decoupled_sgd(right):
    """Applies weight decay after the momentum."""

    def sgd(learning_rate, momentum=0.0, *, nesterov=False, weight_decay=0.0):
        return optax.chain(
            optax.trace(momentum, nesterov) if momentum else optax.identity(),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )

    return sgd


def averaged_momentum(right):
    """Averages gradients instead of summing them (dampening)."""

    def sgd(learning_rate, momentum=0.0, *, nesterov=False, weight_decay=0.0):
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.ema(momentum, debias=False) if momentum else optax.identity(),
            optax.scale_by_learning_rate(learning_rate),
        )

    return sgd


def adam_with(scale=optax.scale_by_adam, **fixed):
    """Replaces the scaling inside Adam."""

    def wrong(right):
        def adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8, *, weight_decay=0.0):
            return optax.chain(
                optax.add_decayed_weights(weight_decay),
                scale(b1, b2, **({"eps": eps} | fixed)),
                optax.scale_by_learning_rate(learning_rate),
            )

        return adam

    return wrong


def without_correction(b1, b2, eps):
    """Adam's scaling without the bias correction."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, zeros)

    def update(updates, state, params=None):
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        out = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return out, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def without_decay(right):
    """Ignores weight_decay."""
    return lambda *args, **kwargs: right(*args, **(kwargs | {"weight_decay": 0.0}))


def optax_rmsprop(right):
    """Applies the learning rate before the buffer, as Optax does."""

    def rmsprop(learning_rate, decay=0.99, eps=1e-8, momentum=0.0, *, weight_decay=0.0):
        inner = optax.rmsprop(learning_rate, decay, eps, momentum=momentum or None, eps_in_sqrt=False)
        return optax.chain(optax.add_decayed_weights(weight_decay), inner)

    return rmsprop


def clipped(scale):
    """Clips by another factor, `scale(max_norm, norm)`."""

    def wrong(right):
        def clip_by_global_norm(max_norm):
            def clip(grads, _):
                factor = scale(max_norm, optax.tree.norm(grads))
                return jax.tree.map(lambda grad: factor * grad, grads)

            return optax.stateless(clip)

        return clip_by_global_norm

    return wrong


def clip_each(right):
    """Clips each array by its own norm."""

    def clip_by_global_norm(max_norm):
        def clip(grads, _):
            return jax.tree.map(lambda g: jnp.minimum(max_norm / (jnp.linalg.norm(g.ravel()) + 1e-6), 1) * g, grads)

        return optax.stateless(clip)

    return clip_by_global_norm


def averaging(average):
    """Replaces `average_parameters` by `average(decay, count, old, params, updates)` of each array."""

    def wrong(right):
        def average_parameters(decay):
            def update(updates, state, params=None):
                of = partial(average, decay, state.count)
                averages = jax.tree.map(of, state.averaged_parameters, params, updates)
                return updates, optimizers.AveragedParameters(state.count + 1, averages)

            return optax.GradientTransformation(right(decay).init, update)

        return average_parameters

    return wrong


def of_gradients(decay, count, old, params, updates):
    """Averages the updates, as `optax.ema` does."""
    return jnp.where(count == 0, updates, old + (1 - decay) * (updates - old))


def one_late(decay, count, old, params, updates):
    """Averages the parameters before the update."""
    return jnp.where(count == 0, params, old + (1 - decay) * (params - old))


def from_initial(decay, count, old, params, updates):
    """Averages the first update like every other instead of copying it."""
    return old + (1 - decay) * (params + updates - old)


def debiased(decay, count, old, params, updates):
    """Averages from 0 and divides by 1 - decay^t."""
    before = jnp.where(count == 0, 0, old * (1 - decay**count))
    return (decay * before + (1 - decay) * (params + updates)) / (1 - decay ** (count + 1))


def plateau(change):
    """Scales updates by `change(scale)`."""

    def wrong(right):
        def scale_by_plateau():
            def update(updates, state, params=None):
                return jax.tree.map(lambda u: change(state.rate_scale) * u, updates), state

            return optax.GradientTransformation(right().init, update)

        return scale_by_plateau

    return wrong


def compounding(right):
    """Multiplies by the scale once more at each step."""

    def scale_by_plateau():
        def init(params):
            return optimizers.RateScale(jnp.ones([])), jnp.ones([])

        def update(updates, state, params=None):
            scale = state[1] * state[0].rate_scale
            return jax.tree.map(lambda u: scale * u, updates), (state[0], scale)

        return optax.GradientTransformation(init, update)

    return scale_by_plateau


MISTAKES = [
    mistake("SGD: learning rate inside the buffer", optimizers, "sgd", keras_momentum),
    mistake("SGD: weight decay decoupled", optimizers, "sgd", decoupled_sgd),
    mistake("SGD: no weight decay", optimizers, "sgd", without_decay),
    mistake("SGD: dampened", optimizers, "sgd", averaged_momentum),
    mistake("SGD: momentum unless another is given", optimizers, "sgd", default("momentum", 0.9)),
    mistake(
        "SGD: nesterov instead of plain momentum",
        optimizers,
        "sgd",
        lambda right: lambda lr, momentum=0.0, **k: right(lr, momentum, **(k | {"nesterov": momentum > 0})),
    ),
    mistake(
        "SGD: plain momentum instead of nesterov",
        optimizers,
        "sgd",
        lambda right: lambda lr, momentum=0.0, **k: right(lr, momentum, **(k | {"nesterov": False})),
    ),
    mistake("Adam: eps inside the root", optimizers, "adam", adam_with(eps=0.0, eps_root=1e-8)),
    mistake("Adam: eps 1e-7, Keras'", optimizers, "adam", default("eps", 1e-7)),
    mistake("Adam: b2 0.99", optimizers, "adam", default("b2", 0.99)),
    mistake(
        "Adam: Optax's bias correction, which cancels in float32",
        optimizers,
        "scale_by_adam",
        lambda right: lambda b1=0.9, b2=0.999, eps=1e-8: optax.scale_by_adam(b1, b2, eps),
    ),
    mistake("Adam: averages not corrected", optimizers, "adam", adam_with(without_correction)),
    mistake("Adam: weight decay decoupled", optimizers, "adam", lambda right: optimizers.adamw),
    mistake("AdamW: weight decay coupled", optimizers, "adamw", lambda right: optimizers.adam),
    mistake("AdamW: Optax's weight decay 1e-4", optimizers, "adamw", default("weight_decay", 1e-4)),
    mistake(
        "AdamW: weight decay not times the learning rate",
        optimizers,
        "adamw",
        lambda right: (
            lambda lr, *a, weight_decay=0.01, **k: optax.chain(
                right(lr, *a, weight_decay=0.0, **k), optax.add_decayed_weights(-weight_decay * 1e-3)
            )
        ),
    ),
    mistake("RMSprop: Optax's order, learning rate before the buffer", optimizers, "rmsprop", optax_rmsprop),
    mistake("RMSprop: Optax's decay 0.9", optimizers, "rmsprop", default("decay", 0.9)),
    mistake(
        "RMSprop: eps inside the root",
        optimizers,
        "rmsprop",
        lambda right: (
            lambda lr, decay=0.99, eps=1e-8, momentum=0.0, *, weight_decay=0.0: optax.chain(
                optax.add_decayed_weights(weight_decay),
                optax.scale_by_rms(decay, eps),
                optax.trace(momentum) if momentum else optax.identity(),
                optax.scale_by_learning_rate(lr),
            )
        ),
    ),
    mistake(
        "clipping without the 1e-6",
        optimizers,
        "clip_by_global_norm",
        clipped(lambda most, norm: jnp.minimum(most / norm, 1)),
    ),
    mistake(
        "clipping that lengthens short gradients",
        optimizers,
        "clip_by_global_norm",
        clipped(lambda most, norm: most / (norm + 1e-6)),
    ),
    mistake("clipping array by array", optimizers, "clip_by_global_norm", clip_each),
    mistake("average of the gradients", optimizers, "average_parameters", averaging(of_gradients)),
    mistake("average of the parameters before the update", optimizers, "average_parameters", averaging(one_late)),
    mistake("average from the initial parameters on", optimizers, "average_parameters", averaging(from_initial)),
    mistake("average corrected for its bias", optimizers, "average_parameters", averaging(debiased)),
    mistake(
        "average with the decay of the other side",
        optimizers,
        "average_parameters",
        lambda right: lambda decay: right(1 - decay),
    ),
    mistake("plateau: no scale", optimizers, "scale_by_plateau", plateau(lambda scale: 1.0)),
    mistake("plateau: the root of the scale", optimizers, "scale_by_plateau", plateau(jnp.sqrt)),
    mistake("plateau: the scale of all steps so far", optimizers, "scale_by_plateau", compounding),
]
