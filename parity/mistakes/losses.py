"""Losses with another reduction, another set of pixels, or another package's meaning of a name."""

import jax
import jax.numpy as jnp

from jaxseg import losses
from parity.mutations import mistake

IGNORE = losses.IGNORE_INDEX


def cross_entropy(per_pixel, total):
    """Cross-entropy from -log p [b h w k] and what counts: `per_pixel(nll, target, weights, smoothing)`, then
    `total(loss, keep, count)`.
    """

    def wrong(right):
        def loss(logits, labels, *, ignore_index=IGNORE, class_weights=None, label_smoothing=0.0):
            keep, target = labels != ignore_index, losses.one_hot(labels, logits.shape[-1])
            weights = jnp.ones(logits.shape[-1], logits.dtype)
            weights = weights if class_weights is None else jnp.asarray(class_weights, logits.dtype)
            weights = weights[None, None, None, :]
            nll = -jax.nn.log_softmax(logits)
            value = jnp.where(keep, per_pixel(nll, target, weights, label_smoothing), 0)
            return total(value, keep, jnp.where(keep, (target * weights).sum(-1), 0))

        return loss

    return wrong


def picked(nll, target, weights, smoothing):
    """As PyTorch has it."""
    hard = (weights * target * nll).sum(-1)
    return (1 - smoothing) * hard + smoothing * (weights * nll).mean(-1)


def smoothed_over_others(nll, target, weights, smoothing):
    """The smoothing shared by the other k - 1 classes."""
    others = (weights * ~target * nll).sum(-1) / (nll.shape[-1] - 1)
    return (1 - smoothing) * (weights * target * nll).sum(-1) + smoothing * others


def smoothed_by_target(nll, target, weights, smoothing):
    """The whole of it weighted with the weight of the label."""
    return (weights * target).sum(-1) * ((1 - smoothing) * (target * nll).sum(-1) + smoothing * nll.mean(-1))


def weighted_mean(value, keep, count):
    """As PyTorch has it."""
    return jnp.where(count.sum() > 0, value.sum() / jnp.where(count.sum() > 0, count.sum(), 1), 0)


def option(name: str, value):
    """A loss called with another value of an option."""
    return lambda right: lambda *args, **kwargs: right(*args, **(kwargs | {name: value}))


def ignoring_nothing(right):
    """Ignored pixels count as class 0."""

    def loss(logits, labels, *, ignore_index=IGNORE, **options):
        return right(logits, jnp.where(labels == ignore_index, 0, labels), ignore_index=ignore_index, **options)

    return loss


def by_sample(right):
    """The mean of the losses of the samples, as Optax's and milesial's Dice."""

    def loss(logits, labels, **options):
        alone = [right(logits[i : i + 1], labels[i : i + 1], **options) for i in range(len(logits))]
        return jnp.stack(alone).mean()

    return loss


def index_itself(right):
    """The index instead of 1 minus the index."""
    return lambda *args, **kwargs: 1 - right(*args, **kwargs)


MISTAKES = [
    mistake("cross-entropy: sum", losses, "cross_entropy", cross_entropy(picked, lambda v, keep, n: v.sum())),
    mistake(
        "cross-entropy: weights, mean over pixels",
        losses,
        "cross_entropy",
        cross_entropy(picked, lambda v, keep, n: v.sum() / jnp.maximum(keep.sum(), 1)),
    ),
    mistake(
        "cross-entropy: ignored pixels in the denominator",
        losses,
        "cross_entropy",
        cross_entropy(picked, lambda v, keep, n: v.mean()),
    ),
    mistake("cross-entropy: ignored pixels are class 0", losses, "cross_entropy", ignoring_nothing),
    mistake("cross-entropy: mean of the samples' means", losses, "cross_entropy", by_sample),
    mistake(
        "label smoothing over the other classes",
        losses,
        "cross_entropy",
        cross_entropy(smoothed_over_others, weighted_mean),
    ),
    mistake(
        "label smoothing weighted by the label",
        losses,
        "cross_entropy",
        cross_entropy(smoothed_by_target, weighted_mean),
    ),
    mistake("Dice: sample by sample", losses, "dice", by_sample),
    mistake("Dice: smooth 1, Optax's", losses, "dice", option("smooth", 1.0)),
    mistake("Dice: the index itself", losses, "dice", index_itself),
    mistake("Dice: Jaccard instead", losses, "dice", lambda right: losses.jaccard),
    mistake("Dice: ignored pixels are class 0", losses, "dice", ignoring_nothing),
    mistake("Jaccard: Dice instead", losses, "jaccard", lambda right: losses.dice),
    mistake(
        "Tversky: alpha and beta exchanged",
        losses,
        "tversky",
        lambda right: lambda *a, alpha=0.5, beta=0.5, **k: right(*a, alpha=beta, beta=alpha, **k),
    ),
    mistake("focal: gamma 1.5", losses, "focal", option("gamma", 1.5)),
    mistake("focal: torchvision's alpha", losses, "focal", option("alpha", 0.25)),
    mistake("focal: ignored pixels are class 0", losses, "focal", ignoring_nothing),
]
