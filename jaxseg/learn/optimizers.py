"""Optimizers with PyTorch's meaning of every option, composed from Optax.

Optax's own aliases differ in the order of operations or in defaults. Weight decay of SGD, Adam and RMSprop is added to
the gradient *before* everything else. That of AdamW is multiplied by the learning rate and taken off the weights
(default 0.01; Optax: 0.0001). The learning rate multiplies *after* the momentum buffer (not so in `optax.rmsprop`).
Not offered, because Optax has no exact counterpart: SGD's dampening, Adam's amsgrad, NAdam, RAdam.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxseg.base.config import Optimization
from jaxseg.learn.schedules import Schedule


def sgd(
    learning_rate: float | Schedule, momentum: float = 0.0, *, nesterov: bool = False, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """`torch.optim.SGD`: g += wd p; buf = momentum buf + g; p -= lr (g + momentum buf if nesterov else buf).

    - `learning_rate`: a number, or a schedule of steps
    - `momentum`: 0 to 1; 0 keeps no buffer
    - `nesterov`: True for Nesterov's momentum
    - `weight_decay`: wd, 0 or more

    Raises ValueError for `nesterov` without `momentum`.

    >>> tx = sgd(0.1, weight_decay=0.5)
    >>> params = jnp.array(2.0)
    >>> round(float(tx.update(jnp.array(1.0), tx.init(params), params)[0]), 4)
    -0.2
    """
    if nesterov and momentum == 0:
        raise ValueError("`nesterov` needs a `momentum` above 0")
    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
    )


def adam(
    learning_rate: float | Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, *, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """`torch.optim.Adam`: eps outside the root, weight decay inside the gradient (Kingma and Ba 2015).

    - `learning_rate`: a number, or a schedule of steps
    - `b1`, `b2`: decay of the first and of the second moment, 0 to 1
    - `eps`: added to the root
    - `weight_decay`: 0 or more, added to the gradient times the parameters

    >>> tx = adam(0.1)
    >>> params = jnp.array(2.0)
    >>> round(float(tx.update(jnp.array(3.0), tx.init(params), params)[0]), 4)
    -0.1
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        scale_by_adam(b1, b2, eps),
        optax.scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    weight_decay: float = 0.01,
) -> optax.GradientTransformation:
    """`torch.optim.AdamW`: p -= lr (m / (sqrt(v) + eps) + wd p) (Loshchilov and Hutter 2019).

    - `learning_rate`: a number, or a schedule of steps
    - `b1`, `b2`: decay of the first and of the second moment, 0 to 1
    - `eps`: added to the root
    - `weight_decay`: wd, 0 or more

    >>> tx = adamw(0.1, weight_decay=0.5)
    >>> params = jnp.array(2.0)
    >>> round(float(tx.update(jnp.array(3.0), tx.init(params), params)[0]), 4)
    -0.2
    """
    return optax.chain(
        scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """m / (sqrt(v) + eps) with both moments corrected for bias; state as of `optax.scale_by_adam`.

    - `b1`, `b2`: decay of the first and of the second moment, 0 to 1
    - `eps`: added to the root

    1 - b^t is computed as -expm1(t log b). Directly it cancels: in float32 0.999 is 1.3e-8 off, and 1 - 0.999^t 1.3e-5
    for hundreds of steps, so the learning rate is 6e-6 too low. PyTorch computes it in float64.

    >>> tx = scale_by_adam(0.9, 0.999, 1e-8)
    >>> round(float(tx.update(jnp.array(3.0), tx.init(jnp.array(0.0)))[0]), 4)
    1.0
    """

    def update(
        grads: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        unbias1, unbias2 = (1 / -jnp.expm1(count * (math.log(b) if b else -math.inf)) for b in (b1, b2))
        updates = jax.tree.map(lambda m, v: m * unbias1 / (jnp.sqrt(v * unbias2) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def rmsprop(
    learning_rate: float | Schedule,
    decay: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    *,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """`torch.optim.RMSprop`: v = decay v + (1 - decay) g^2; buf = momentum buf + g / (sqrt(v) + eps); p -= lr buf.

    - `learning_rate`: a number, or a schedule of steps
    - `decay`: PyTorch's alpha, 0 to 1 (Optax's default is 0.9)
    - `eps`: added to the root (Optax: inside the root)
    - `momentum`: 0 to 1; 0 keeps no buffer
    - `weight_decay`: 0 or more, added to the gradient times the parameters

    >>> tx = rmsprop(0.1)
    >>> params = jnp.array(2.0)
    >>> round(float(tx.update(jnp.array(3.0), tx.init(params), params)[0]), 4)
    -1.0
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_rms(decay, eps, eps_in_sqrt=False),
        optax.trace(momentum) if momentum else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """`torch.nn.utils.clip_grad_norm_`: g *= min(1, max_norm / (norm + 1e-6)), norm the l2 norm of all gradients.

    Optax's lacks the 1e-6, which matters for gradients of that size. Raises ValueError unless `max_norm` is above 0.

    >>> tx = clip_by_global_norm(1.0)
    >>> [round(float(x), 3) for x in tx.update(jnp.array([3.0, 4.0]), tx.init(None))[0]]
    [0.6, 0.8]
    """
    if max_norm <= 0:
        raise ValueError(f"`max_norm` is {max_norm}; expected a number above 0")

    def clip(grads: optax.Updates, _: optax.Params | None) -> optax.Updates:
        scale = jnp.minimum(max_norm / (optax.tree.norm(grads) + 1e-6), 1)
        return jax.tree.map(lambda grad: scale * grad, grads)

    return optax.stateless(clip)


class RateScale(NamedTuple):
    """State of `scale_by_plateau`."""

    rate_scale: jax.Array


def scale_by_plateau() -> optax.GradientTransformation:
    """Multiplies updates, and thereby the learning rate, by a number that `set_rate_scale` changes; 1 at first.

    The effect of `torch.optim.lr_scheduler.ReduceLROnPlateau`, with the number in the optimizer's state.

    >>> tx = scale_by_plateau()
    >>> float(tx.update(jnp.array(3.0), tx.init(None))[0])
    3.0
    """

    def init(params: optax.Params) -> RateScale:
        return RateScale(jnp.ones([]))

    def update(
        updates: optax.Updates, state: RateScale, params: optax.Params | None = None
    ) -> tuple[optax.Updates, RateScale]:
        return jax.tree.map(lambda u: state.rate_scale.astype(u.dtype) * u, updates), state

    return optax.GradientTransformation(init, update)


class AveragedParameters(NamedTuple):
    """State of `average_parameters`."""

    count: jax.Array
    averaged_parameters: optax.Params


def average_parameters(decay: float) -> optax.GradientTransformation:
    """Keeps a moving average of the parameters after each update. Last in a chain; leaves updates unchanged.

    `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(decay)`. The first update is copied, so there is no
    bias to correct; then average += (1 - decay) (parameters - average). In float32 the average approaches a constant
    parameter to within half an ulp over (1 - decay): 3e-5 of it for 0.999, 3e-4 for 0.9999, as in PyTorch.
    Raises ValueError unless 0 <= decay < 1.

    >>> tx, params = average_parameters(0.9), jnp.array(1.0)
    >>> _, state = tx.update(jnp.array(0.5), tx.init(params), params)
    >>> float(state.averaged_parameters)
    1.5
    """
    if not 0 <= decay < 1:
        raise ValueError(f"`decay` is {decay}; expected 0 or more and less than 1")

    def init(params: optax.Params) -> AveragedParameters:
        return AveragedParameters(jnp.zeros([], jnp.int32), jax.tree.map(jnp.copy, params))

    def update(
        updates: optax.Updates, state: AveragedParameters, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AveragedParameters]:
        def average(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(state.count == 0, new, old + (1 - decay) * (new - old))

        averages = jax.tree.map(average, state.averaged_parameters, optax.apply_updates(params, updates))
        return updates, AveragedParameters(optax.safe_increment(state.count), averages)

    return optax.GradientTransformation(init, update)


def for_encoder(
    make: Callable[[Schedule], optax.GradientTransformation], schedule: Schedule, *, factor: float, frozen: int
) -> optax.GradientTransformation:
    """Optimizer with another learning rate for the encoder, which is frozen at first. PyTorch: two parameter groups.

    - `make`: makes an optimizer of a schedule
    - `schedule`: learning rate by step
    - `factor`: of the encoder's learning rate
    - `frozen`: number of steps in which the encoder's parameters and moments stay as they are

    The encoder's moments and their bias correction begin with its first update, as with `requires_grad=False` before.

    >>> tx = for_encoder(sgd, optax.constant_schedule(0.1), factor=0.5, frozen=1)
    >>> ones, state = {"encoder": jnp.array(1.0), "head": jnp.array(1.0)}, None
    >>> state = tx.init(ones)
    >>> for _ in range(2):
    ...     updates, state = tx.update(ones, state, ones)
    ...     print([round(float(x), 3) for x in updates.values()])
    [0.0, -0.1]
    [-0.05, -0.1]
    """
    encoder = make(lambda count: factor * schedule(count + frozen))
    if frozen:
        encoder = optax.transforms.conditionally_mask(encoder, lambda step: step >= frozen)
    return optax.transforms.partition({True: encoder, False: make(schedule)}, _of_encoder)


def _of_encoder(params: optax.Params) -> optax.Params:
    """Labels of `params`: True for those of the encoder."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "encoder", params)


def optimizer_from(settings: Optimization, schedule: Schedule, epoch_steps: int = 1) -> optax.GradientTransformation:
    """Builds the optimizer that `settings` describe: clipping, update, a plateau's scale, an average of the weights.

    - `settings`: optimizer and its options
    - `schedule`: maps steps to learning rates
    - `epoch_steps`: steps of an epoch, the unit in which an encoder is frozen

    >>> params = {"w": jnp.array(2.0)}
    >>> tx = optimizer_from(Optimization(optimizer="sgd", clip_norm=None), optax.constant_schedule(0.1))
    >>> updates, _ = tx.update({"w": jnp.array(1.0)}, tx.init(params), params)
    >>> updates["w"].shape
    ()
    """
    options = {"weight_decay": settings.decay}
    if settings.optimizer in ("sgd", "rmsprop"):
        options["momentum"] = settings.momentum
    if settings.optimizer == "sgd":
        options["nesterov"] = settings.nesterov
    make = {"adam": adam, "adamw": adamw, "rmsprop": rmsprop, "sgd": sgd}[settings.optimizer]
    make = partial(make, **options)
    parts = [] if settings.clip_norm is None else [clip_by_global_norm(settings.clip_norm)]
    if (settings.freeze_encoder, settings.encoder_lr_factor) == (0, 1):
        parts.append(make(schedule))
    else:
        frozen = settings.freeze_encoder * epoch_steps
        parts.append(for_encoder(make, schedule, factor=settings.encoder_lr_factor, frozen=frozen))
    if settings.schedule == "plateau":
        parts.append(scale_by_plateau())
    if settings.ema is not None:
        parts.append(average_parameters(settings.ema))
    tx = optax.chain(*parts) if len(parts) > 1 else parts[0]
    # jitted: one program for the first state, not one per shape of its zeros
    return optax.GradientTransformation(jax.jit(tx.init), tx.update)


# State of an optimizer ------------------------------------------------------------------------------------------------


def rate_scale(optimizer: nnx.Optimizer) -> jax.Array | float:
    """Scale that `set_rate_scale` set; 1 for an optimizer without one.

    >>> optimizer = nnx.Optimizer(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), sgd(0.1), wrt=nnx.Param)
    >>> rate_scale(optimizer)
    1.0
    """
    found = optax.tree.get(optimizer.opt_state, "rate_scale")
    return 1.0 if found is None else found[...]


def set_rate_scale(optimizer: nnx.Optimizer, scale: float) -> None:
    """Makes the learning rate the schedule's times `scale`, from the next update on.

    Raises ValueError for an optimizer without `scale_by_plateau`.

    >>> tx = optax.chain(sgd(0.1), scale_by_plateau())
    >>> optimizer = nnx.Optimizer(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), tx, wrt=nnx.Param)
    >>> set_rate_scale(optimizer, 0.5)
    >>> float(rate_scale(optimizer))
    0.5
    """
    found = optax.tree.get(optimizer.opt_state, "rate_scale")
    if found is None:
        raise ValueError("this optimizer has no rate to scale; its schedule is not 'plateau'")
    found[...] = jnp.full_like(found[...], scale)


def averaged(model: nnx.Module, optimizer: nnx.Optimizer) -> nnx.Module:
    """View of `model` with the averaged parameters that `optimizer` keeps; `model` itself if it keeps none.

    It has the running statistics of `model`. Both are shared, so it is up to date after every update. For evaluation.

    >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    >>> optimizer = nnx.Optimizer(model, optax.chain(sgd(0.1), average_parameters(0.9)), wrt=nnx.Param)
    >>> averaged(model, optimizer) is model, averaged(model, optimizer)(jnp.ones((1, 1))).shape
    (False, (1, 1))
    """
    averages = optax.tree.get(optimizer.opt_state, "averaged_parameters")
    if averages is None:
        return model
    graphdef, _, rest = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graphdef, averages, rest)
