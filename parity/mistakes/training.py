"""Training steps with right pieces combined wrongly, which no single piece shows."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxseg.learn import losses, optimizers, schedules, step
from jaxseg.nn import layers
from parity.mistakes import mistake
from parity.mistakes.schedule import shifted


def doubled_gradient(right):
    """Doubles the gradient of a loss and keeps its value."""
    return lambda *args, **kwargs: (lambda value: 2 * value - jax.lax.stop_gradient(value))(right(*args, **kwargs))


def forgetting(right):
    """Resets the state of an optimizer after every step."""

    def make(*args, **kwargs):
        inner = right(*args, **kwargs)

        def update(updates, state, params=None):
            out, after = inner.update(updates, inner.init(params), params)
            keep = jax.tree.map(lambda new, old: new if jnp.issubdtype(new.dtype, jnp.integer) else old, after, state)
            return out, keep

        return optax.GradientTransformation(inner.init, update)

    return make


def frozen_statistics(right):
    """Keeps the running statistics unchanged in training."""

    def wrong(self, x, valid):
        mean, var = self.mean[...], self.var[...]
        found = right(self, x, valid)
        self.mean[...], self.var[...] = mean, var
        return found

    return wrong


def padding_as_background(right):
    """Trains on the padding of a short batch as background."""

    def wrong(net, batch, *args, **kwargs):
        mask = jnp.where(batch["mask"] == losses.IGNORE_INDEX, 0, batch["mask"])
        return right(net, batch | {"mask": mask, "valid": jnp.ones_like(batch["valid"])}, *args, **kwargs)

    return wrong


def next_rate(right):
    """Counts steps from 1, so each step takes the rate of the next."""
    return lambda rate, *a, **k: right((lambda count: rate(count + 1)) if callable(rate) else rate, *a, **k)


def ascending(right):
    """Ascends the gradient."""
    return lambda *args, **kwargs: optax.chain(right(*args, **kwargs), optax.scale(-1.0))


def single_precision(right):
    """Rounds the update to float32."""

    def make(*args, **kwargs):
        inner = right(*args, **kwargs)

        def update(updates, state, params=None):
            out, state = inner.update(updates, state, params)
            return jax.tree.map(lambda u: u.astype(jnp.float32).astype(u.dtype), out), state

        return optax.GradientTransformation(inner.init, update)

    return make


def frozen_head(right):
    """Does not train the bias of the last layer."""

    def update(self, net, grads, **kwargs):
        right(self, net, jax.tree_util.tree_map_with_path(_without_head_bias, grads), **kwargs)

    return update


def _without_head_bias(path, leaf):
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    return jnp.zeros_like(leaf) if "head" in names and "bias" in names else leaf


def as_one(right):
    """Computes all micro-batches at once, so BatchNorm sees the whole batch."""
    return lambda parts, *args: step.gradients(*args)


def from_nothing(right):
    """Counts an empty micro-batch as a full one for the running statistics."""
    return lambda self, x, valid: right(self, x, valid | ~valid.any())


MISTAKES = [
    mistake("the next step's learning rate", optimizers, "sgd", next_rate),
    mistake("the previous step's learning rate", schedules, "article", shifted(-1)),
    mistake("gradient of twice the loss", losses, "cross_entropy", doubled_gradient),
    mistake("optimizer's state forgotten", optimizers, "sgd", forgetting),
    mistake("uphill", optimizers, "sgd", ascending),
    mistake("update rounded to float32", optimizers, "sgd", single_precision),
    mistake("running statistics frozen", layers.BatchNorm, "_statistics", frozen_statistics),
    mistake("padding trained on as background", step, "loss_fn", padding_as_background),
    mistake("head's bias not trained", nnx.Optimizer, "update", frozen_head),
    mistake(
        "momentum 0.99",
        optimizers,
        "sgd",
        lambda right: lambda lr, momentum=0.0, **k: right(lr, momentum and 0.99, **k),
    ),
    mistake("micro-batches: gradients summed", step, "shares", lambda right: lambda masks: jnp.ones(len(masks))),
    mistake(
        "micro-batches: equal weights", step, "shares", lambda right: lambda masks: jnp.full(len(masks), 1 / len(masks))
    ),
    mistake("micro-batches: BatchNorm sees the whole batch", step, "accumulated_gradients", as_one),
    mistake("micro-batches: an empty one moves the statistics", layers.BatchNorm, "_statistics", from_nothing),
    mistake(
        "evaluation of the weights that are not averaged", optimizers, "averaged", lambda right: lambda net, _: net
    ),
]
