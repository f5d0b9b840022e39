"""Losses with another reduction, other pixels, or another package's meaning of a name."""

import jax
import jax.numpy as jnp

from jaxseg.learn import losses
from parity.mistakes import mistake

IGNORE = losses.IGNORE_INDEX


def cross_entropy(per_pixel, total):
    """Replaces cross-entropy by `total(loss, keep, count)` of `per_pixel(nll, target, weights, smoothing)`.

    nll: -log p [b h w k].
    keep, count: which pixels are not ignored, and their weights.
    """

    def wrong(right):
        def loss(logits, labels, *, ignore_index=IGNORE, class_weights=None, label_smoothing=0.0, ohem=None):
            if ohem is not None:  # not what is broken
                smoothing = {"label_smoothing": label_smoothing, "ohem": ohem}
                return right(logits, labels, ignore_index=ignore_index, class_weights=class_weights, **smoothing)
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
    """Loss of each pixel, right as in PyTorch."""
    hard = (weights * target * nll).sum(-1)
    return (1 - smoothing) * hard + smoothing * (weights * nll).mean(-1)


def smoothed_over_others(nll, target, weights, smoothing):
    """Loss of each pixel with the smoothing spread over the other k - 1 classes."""
    others = (weights * ~target * nll).sum(-1) / (nll.shape[-1] - 1)
    return (1 - smoothing) * (weights * target * nll).sum(-1) + smoothing * others


def smoothed_by_target(nll, target, weights, smoothing):
    """Loss of each pixel with the smoothing weighted by the label's weight."""
    return (weights * target).sum(-1) * ((1 - smoothing) * (target * nll).sum(-1) + smoothing * nll.mean(-1))


def weighted_mean(value, keep, count):
    """Weighted mean over the pixels, right as in PyTorch."""
    return jnp.where(count.sum() > 0, value.sum() / jnp.where(count.sum() > 0, count.sum(), 1), 0)


def option(name: str, value):
    """Calls a loss with another value of an option."""
    return lambda right: lambda *args, **kwargs: right(*args, **(kwargs | {name: value}))


def ignoring_nothing(right):
    """Counts ignored pixels as class 0."""

    def loss(logits, labels, *, ignore_index=IGNORE, **options):
        return right(logits, jnp.where(labels == ignore_index, 0, labels), ignore_index=ignore_index, **options)

    return loss


def by_sample(right):
    """Averages the losses of the samples, as the Dice losses of Optax and milesial do."""

    def loss(logits, labels, **options):
        alone = [right(logits[i : i + 1], labels[i : i + 1], **options) for i in range(len(logits))]
        return jnp.stack(alone).mean()

    return loss


def index_itself(right):
    """Returns the index instead of 1 minus the index."""
    return lambda *args, **kwargs: 1 - right(*args, **kwargs)


def all_ties(right):
    """Keeps all pixels tied at the threshold."""
    return lambda loss, keep, share: (right(loss, keep, share) > 0).astype(loss.dtype)


def first_ties(right):
    """Keeps the first of the tied pixels, as a stable sort does."""

    def hardest(loss, keep, share):
        places = jnp.argsort(-jnp.where(keep, loss, -1), axis=None).argsort().reshape(loss.shape)
        return (places < right(loss, keep, share).sum().round()).astype(loss.dtype)

    return hardest


def chosen_without_weights(right):
    """Chooses the hardest pixels by their losses without weights and smoothing."""

    def loss(logits, labels, *, ohem=None, **options):
        if ohem is None:
            return right(logits, labels, **options)
        target = losses.one_hot(labels, logits.shape[-1])
        plain = -jnp.where(target, jax.nn.log_softmax(logits), 0).sum(-1)
        hard = losses._hardest(plain, labels != IGNORE, ohem)
        return right(logits, jnp.where(hard > 0, labels, IGNORE), **options)

    return loss


def all_classes(right):
    """Averages over all classes (Berman's classes="all"); the loss of an absent class is its largest probability."""

    def loss(logits, labels, *, class_weights=None, **options):
        k = logits.shape[-1]
        each = jnp.stack([right(logits, labels, class_weights=jnp.arange(k) == i, **options) for i in range(k)])
        keep = (labels != IGNORE)[..., None]
        present = (losses.one_hot(labels, k) & keep).any((0, 1, 2))
        each = jnp.where(present, each, jnp.where(keep, jax.nn.softmax(logits), 0).max((0, 1, 2)))
        weights = jnp.ones(k) if class_weights is None else jnp.asarray(class_weights)
        return (weights * each).sum() / weights.sum()

    return loss


def share_of(number):
    """Counts `number(share * pixels)` hard examples, at least one."""

    def wrong(right):
        def hardest(loss, keep, share):
            pixels = keep.sum()
            limit = jnp.sort(jnp.where(keep, loss, -jnp.inf), axis=None)
            wanted = jnp.clip(number(share * pixels).astype(int), 1, loss.size)
            return (keep & (loss >= limit[loss.size - wanted])).astype(loss.dtype)

        return hardest

    return wrong


def ties_in_reverse(right):
    """Sorts equal errors by falling index in the batch."""
    back = (slice(None, None, -1),) * 3
    return lambda error, target: right(error[back], target[back])[back]


def mse(p=jax.nn.softmax, by_column=False):
    """Replaces the MSE by that of `p(logits)`, with weights for labels, or for columns of the one-hot target."""

    def wrong(right):
        def loss(logits, labels, *, class_weights=None):
            keep, target = labels != IGNORE, losses.one_hot(labels, logits.shape[-1])
            weights = jnp.ones(logits.shape[-1]) if class_weights is None else jnp.asarray(class_weights)
            weights = weights.astype(logits.dtype)[None, None, None, :]
            if not by_column:
                weights = jnp.where(target, weights, 0).sum(-1, keepdims=True)
            square = jnp.where(keep[..., None], weights * jnp.square(p(logits) - target), 0)
            count = jnp.where(keep, jnp.broadcast_to(weights, logits.shape).mean(-1), 0).sum()
            return square.mean(-1).sum() / jnp.where(count > 0, count, 1)

        return loss

    return wrong


def hinge(per_pixel, by_weight=False):
    """Replaces the hinge by `per_pixel(z, target)` of z = 1 - x[y] + x[j] [b h w k] and one-hot labels."""

    def wrong(right):
        def loss(logits, labels, *, class_weights=None):
            keep, target = labels != IGNORE, losses.one_hot(labels, logits.shape[-1])
            z = 1 - jnp.where(target, logits, 0).sum(-1, keepdims=True) + logits
            count = losses._pixel_weights(target, keep, class_weights, logits)
            number = count.sum() if by_weight else keep.sum()
            return jnp.where(keep, count * per_pixel(z, target), 0).sum() / jnp.where(number > 0, number, 1)

        return loss

    return wrong


def others(margin):
    """Mean over the k classes with 0 for the label's own, as in PyTorch."""
    return lambda z, target: jnp.where(target, 0, margin(z)).mean(-1)


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
    mistake("Tversky: alpha 1", losses, "tversky", option("alpha", 1.0)),
    mistake("Tversky: ignored pixels are class 0", losses, "tversky", ignoring_nothing),
    mistake("Jaccard: ignored pixels are class 0", losses, "jaccard", ignoring_nothing),
    mistake("a loss without a counterpart", losses, "IGNORE_INDEX", lambda right: lambda logits, labels: 0.0),
    mistake("focal: gamma 1.5", losses, "focal", option("gamma", 1.5)),
    mistake("focal: torchvision's alpha", losses, "focal", option("alpha", 0.25)),
    mistake("focal: ignored pixels are class 0", losses, "focal", ignoring_nothing),
    mistake("hard examples: none, all pixels", losses, "cross_entropy", option("ohem", None)),
    mistake(
        "hard examples: a share of the ignored pixels too",
        losses,
        "_hardest",
        lambda right: lambda loss, keep, share: right(jnp.where(keep, loss, 0), jnp.ones_like(keep), share),
    ),
    mistake("hard examples: the easiest", losses, "_hardest", lambda right: lambda loss, *rest: right(-loss, *rest)),
    mistake(
        "hard examples: one less",
        losses,
        "_hardest",
        lambda right: lambda loss, keep, share: right(loss, keep, share - 1 / keep.size),
    ),
    mistake("hard examples: share rounded to the nearest", losses, "_hardest", share_of(jnp.round)),
    mistake("hard examples: share rounded down", losses, "_hardest", share_of(jnp.floor)),
    mistake(
        "hard examples: share in whole percents",
        losses,
        "_hardest",
        lambda right: lambda loss, keep, share: right(loss, keep, round(share, 2)),
    ),
    mistake("hard examples: share of a float", losses, "_hardest", share_of(jnp.ceil)),
    mistake("hard examples: all ties at the end", losses, "_hardest", all_ties),
    mistake("hard examples: the first ties", losses, "_hardest", first_ties),
    mistake("hard examples: chosen without weights", losses, "cross_entropy", chosen_without_weights),
    mistake(
        "hard examples: mean over all pixels",
        losses,
        "cross_entropy",
        lambda right: lambda *args, ohem=None, **k: right(*args, ohem=ohem, **k) * (ohem or 1),
    ),
    mistake("Lovasz: all classes, not those present", losses, "lovasz", all_classes),
    mistake("Lovasz: sample by sample", losses, "lovasz", by_sample),
    mistake("Lovasz: ignored pixels are class 0", losses, "lovasz", ignoring_nothing),
    mistake("Lovasz: no weights", losses, "lovasz", option("class_weights", None)),
    mistake("Lovasz: Jaccard's soft form", losses, "lovasz", lambda right: losses.jaccard),
    mistake(
        "Lovasz: ignored pixels in the union, first",
        losses,
        "_jaccard_growth",
        lambda right: lambda error, target: right(jnp.where(error < 0, 2, error), target),
    ),
    mistake(
        "Lovasz: smallest errors first",
        losses,
        "_jaccard_growth",
        lambda right: lambda error, target: right(jnp.where(error < 0, -2, -error), target),
    ),
    mistake("Lovasz: ties in reverse", losses, "_jaccard_growth", ties_in_reverse),
    mistake(
        "MSE: sum over the classes", losses, "mse", lambda right: lambda x, *a, **k: x.shape[-1] * right(x, *a, **k)
    ),
    mistake("MSE: of logits", losses, "mse", mse(p=lambda logits: logits)),
    mistake("MSE: of sigmoids", losses, "mse", mse(p=jax.nn.sigmoid)),
    mistake("MSE: weights for columns", losses, "mse", mse(by_column=True)),
    mistake("MSE: ignored pixels are class 0", losses, "mse", ignoring_nothing),
    mistake("MSE: sample by sample", losses, "mse", by_sample),
    mistake("hinge: squared", losses, "hinge", hinge(others(lambda z: jax.nn.relu(z) ** 2))),
    mistake("hinge: margin 0.5", losses, "hinge", hinge(others(lambda z: jax.nn.relu(z - 0.5)))),
    mistake("hinge: half a gradient at the kink", losses, "hinge", hinge(others(lambda z: jnp.maximum(z, 0)))),
    mistake("hinge: the own class too", losses, "hinge", hinge(lambda z, target: jax.nn.relu(z).mean(-1))),
    mistake(
        "hinge: sum over the classes",
        losses,
        "hinge",
        hinge(lambda z, target: jnp.where(target, 0, jax.nn.relu(z)).sum(-1)),
    ),
    mistake(
        "hinge: the worst class, Crammer and Singer's",
        losses,
        "hinge",
        hinge(lambda z, target: jnp.where(target, 0, jax.nn.relu(z)).max(-1)),
    ),
    mistake("hinge: over the sum of the weights", losses, "hinge", hinge(others(jax.nn.relu), by_weight=True)),
    mistake("hinge: ignored pixels are class 0", losses, "hinge", ignoring_nothing),
]
