"""Optimizers with PyTorch's meaning of every option, composed from Optax.

Order matters and Optax's own aliases differ in it or in their defaults: the weight decay of SGD and Adam is added to
the gradient *before* the momentum, that of AdamW is multiplied by the learning rate and taken off the weights
(default 0.01, Optax has 0.0001), and the learning rate multiplies *after* the momentum buffer.
"""

import optax

from jaxseg.config import Optimization
from jaxseg.schedules import Schedule


def sgd(
    learning_rate: float | Schedule, momentum: float = 0.0, *, nesterov: bool = False, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """`torch.optim.SGD`: g += wd p; buf = momentum buf + g; p -= lr (g + momentum buf if nesterov else buf)."""
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
    """`torch.optim.Adam`: eps outside the root, weight decay inside the gradient (Kingma and Ba 2015)."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_adam(b1, b2, eps),
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
    """`torch.optim.AdamW`: p -= lr (m / (sqrt(v) + eps) + wd p) (Loshchilov and Hutter 2019)."""
    return optax.chain(
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
    )


def build(settings: Optimization, schedule: Schedule) -> optax.GradientTransformation:
    """The optimizer that `settings` describe."""
    if settings.optimizer == "sgd":
        return sgd(schedule, settings.momentum, nesterov=settings.nesterov, weight_decay=settings.decay)
    return {"adam": adam, "adamw": adamw}[settings.optimizer](schedule, weight_decay=settings.decay)
