"""Losses of logits `b h w k` against labels `b h w`: PyTorch's cross-entropy, and segmentation_models.pytorch's others.

Pixels labeled `ignore_index` take no part: no value, no count, gradient 0. Labels are integers from 0 to k - 1 or
`ignore_index`; others would count as no class at all, so data is checked on reading. `class_weights` are k numbers of
any scale. A batch in which nothing counts (all ignored, or all of weight 0) has loss 0 and gradient 0, where PyTorch's
cross-entropy and the focal loss of segmentation_models.pytorch are NaN.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from jaxseg.config import Optimization

IGNORE_INDEX = 255
"""The label of pixels that count for nothing: no loss, no gradient, no metric."""

Loss = Callable[[Float[Array, "b h w k"], Integer[Array, "b h w"]], Float[Array, ""]]
"""What `step` takes: one of the functions below, perhaps with some of its options bound."""
ClassWeights = Sequence[float] | Float[np.ndarray | Array, "k"] | None


def cross_entropy(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weights: ClassWeights = None,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean over the pixels of -log softmax(logits)[label]: `torch.nn.functional.cross_entropy`.

    With weights w, the sum of w[y] (-log p[y]) over the sum of w[y]. With smoothing e a pixel's target is
    (1 - e) one_hot + e / k, and each class's share is weighted with that class's own weight. Raises ValueError on a
    smoothing outside 0 to 1.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"`label_smoothing` is {label_smoothing}; expected 0 to 1")
    keep, target = labels != ignore_index, one_hot(labels, logits.shape[-1])
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    loss = log_sum - jnp.where(target, logits, 0).sum(-1)  # no gather, so no scatter in the gradient
    count, weights = keep, 1.0
    if class_weights is not None:
        weights = _weights(class_weights, logits)
        count = jnp.where(target & keep[..., None], weights, 0).sum(-1)
        loss = count * loss
    if label_smoothing:
        smooth = (weights * (log_sum[..., None] - logits)).mean(-1)
        loss = (1 - label_smoothing) * loss + label_smoothing * smooth
    return _ratio(jnp.where(keep, loss, 0).sum(), count.sum())


def dice(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weights: ClassWeights = None,
    smooth: float = 0.0,
    eps: float = 1e-7,
) -> Float[Array, ""]:
    """1 - 2 TP / (2 TP + FP + FN), see `tversky`: `DiceLoss(mode="multiclass")`."""
    return _overlap(logits, labels, 0.5, 0.5, ignore_index, class_weights, smooth, eps)


def jaccard(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weights: ClassWeights = None,
    smooth: float = 0.0,
    eps: float = 1e-7,
) -> Float[Array, ""]:
    """1 - TP / (TP + FP + FN), see `tversky`: `JaccardLoss(mode="multiclass")`."""
    return _overlap(logits, labels, 1.0, 1.0, ignore_index, class_weights, smooth, eps)


def tversky(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
    class_weights: ClassWeights = None,
    smooth: float = 0.0,
    eps: float = 1e-7,
) -> Float[Array, ""]:
    """1 - (TP + smooth) / max(TP + alpha FP + beta FN + smooth, eps): `TverskyLoss(mode="multiclass")`.

    TP, FP and FN are sums of softmax probabilities over all pixels of the batch, class by class. The loss is the mean
    over all k classes (weighted: over the sum of the weights), where a class without a labeled pixel has 0, raised to
    `gamma`. Milletari et al. 2016, Salehi et al. 2017 (arXiv 1706.05721), Abraham and Khan 2018 (arXiv 1810.07842).
    """
    loss = _overlap(logits, labels, alpha, beta, ignore_index, class_weights, smooth, eps)
    return loss if gamma == 1 else loss**gamma


def focal(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    *,
    alpha: float | None = None,
    gamma: float = 2.0,
    ignore_index: int = IGNORE_INDEX,
    class_weights: ClassWeights = None,
) -> Float[Array, ""]:
    """(1 - p)^gamma (-log p) for the sigmoid p of each class against the rest: `FocalLoss(mode="multiclass")`.

    Mean over the pixels, then over the classes (weighted: over the sum of the weights). With `alpha`, pixels of the
    class count alpha and the others 1 - alpha. Sigmoids, not a softmax, as in Lin et al. 2017 (arXiv 1708.02002).
    """
    keep, target = labels != ignore_index, one_hot(labels, logits.shape[-1])
    wrong = jnp.where(target, -logits, logits)  # the logit of 1 - p
    loss = jnp.exp(gamma * jax.nn.log_sigmoid(wrong)) * jax.nn.softplus(wrong)
    if alpha is not None:
        loss = jnp.where(target, alpha, 1 - alpha) * loss
    pixels = jnp.broadcast_to(keep.sum(), logits.shape[-1:])
    return _class_mean(_ratio(jnp.where(keep[..., None], loss, 0).sum((0, 1, 2)), pixels), class_weights)


def dice_ce(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weights: ClassWeights = None,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """`dice` + `cross_entropy`, both weighted: MONAI's `DiceCELoss` with the two losses of this module."""
    shared = {"ignore_index": ignore_index, "class_weights": class_weights}
    return dice(logits, labels, **shared) + cross_entropy(logits, labels, label_smoothing=label_smoothing, **shared)


def build(settings: Optimization) -> Loss:
    """The loss that `settings` describe."""
    if settings.loss in ("cross_entropy", "dice_ce"):
        smoothed = {"cross_entropy": cross_entropy, "dice_ce": dice_ce}[settings.loss]
        return partial(smoothed, label_smoothing=settings.label_smoothing)
    return {"dice": dice, "focal": focal, "jaccard": jaccard}[settings.loss]


def one_hot(labels: Integer[Array, "*shape"], classes: int) -> Bool[Array, "*shape k"]:
    """True where the last axis is the label; all false for labels outside 0 .. classes - 1."""
    return jnp.stack([labels == label for label in range(classes)], axis=-1)


def _overlap(logits, labels, alpha, beta, ignore_index, class_weights, smooth, eps) -> Float[Array, ""]:
    """1 - Tversky index, mean over the classes."""
    keep = (labels != ignore_index)[..., None]
    target = one_hot(labels, logits.shape[-1]) & keep
    p = jnp.where(keep, jax.nn.softmax(logits), 0)
    tp = jnp.where(target, p, 0).sum((0, 1, 2))
    fp, fn = p.sum((0, 1, 2)) - tp, target.sum((0, 1, 2)) - tp
    index = (tp + smooth) / jnp.maximum(tp + alpha * fp + beta * fn + smooth, eps)
    return _class_mean(jnp.where(target.any((0, 1, 2)), 1 - index, 0), class_weights)


def _weights(class_weights: ClassWeights, like: Float[Array, "*shape k"]) -> Float[Array, "*ones k"]:
    """In the type and number of dimensions of `like`. Raises ValueError on other than k."""
    weights = jnp.asarray(class_weights, like.dtype)
    if weights.shape != like.shape[-1:]:
        raise ValueError(f"`class_weights` has the shape {weights.shape}; expected {like.shape[-1]} numbers")
    return weights.reshape((1,) * (like.ndim - 1) + weights.shape)


def _class_mean(loss: Float[Array, "k"], class_weights: ClassWeights) -> Float[Array, ""]:
    if class_weights is None:
        return loss.mean()
    weights = _weights(class_weights, loss)
    return _ratio((weights * loss).sum(), weights.sum())


def _ratio(total: Float[Array, "*shape"], count: Array) -> Float[Array, "*shape"]:
    """total / count, and 0 where there is nothing to count."""
    count = count.astype(total.dtype)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)
