"""Losses (logits, labels), with the meaning of PyTorch and segmentation_models.pytorch (smp).

Every loss takes
- `logits`: float [b h w k]
- `labels`: integers [b h w], 0 to k - 1 or `ignore_index`. Others match no class; data is checked on reading
- `ignore_index`: pixels with this label have no value, no count and gradient 0
- `class_weights`: k numbers, of any scale except for `hinge`; ValueError for another count

and returns a float [ ]. A batch in which nothing counts (all ignored, or all of weight 0) has loss 0 and gradient 0,
where PyTorch's losses that divide by the number of pixels are NaN. Sums are over the rows of all devices.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from jaxseg.base.config import IGNORE_INDEX, Optimization
from jaxseg.devices import rows

Logits = Float[Array, "b h w k"]
Labels = Integer[Array | np.ndarray, "b h w"]
Loss = Callable[[Logits, Labels], Float[Array, ""]]
"""One of the functions below, possibly with options bound."""
ClassWeights = Sequence[float] | Float[np.ndarray | Array, "k"] | None


def cross_entropy(
    logits: Logits,
    labels: Labels,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weights: ClassWeights = None,
    label_smoothing: float = 0.0,
    ohem: float | None = None,
) -> Float[Array, ""]:
    """Mean over the pixels of -log softmax(logits)[label]: `torch.nn.functional.cross_entropy`.

    - `logits`, `labels`, `ignore_index`, `class_weights`: see the module
    - `label_smoothing`: e in 0 to 1; the target is (1 - e) one_hot + e / k
    - `ohem`: share above 0, up to 1, of the pixels not ignored, rounded up; only those with the largest loss count
      (online hard example mining, as with `torch.topk`). None counts all

    With weights w: the sum of w[y] (-log p[y]) over the sum of w[y]. With smoothing, each class's share has that
    class's weight. With `ohem`, pixels are ranked by their weighted and smoothed loss; ties at the limit all count in
    part. Raises ValueError for a `label_smoothing` or an `ohem` out of range.

    >>> logits, labels = jnp.zeros((1, 1, 2, 2)), jnp.array([[[0, 255]]])
    >>> round(float(cross_entropy(logits, labels)), 4)
    0.6931
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"`label_smoothing` is {label_smoothing}; expected 0 to 1")
    if ohem is not None and not 0 < ohem <= 1:
        raise ValueError(f"`ohem` is {ohem}; expected above 0 and at most 1")
    keep, target = labels != ignore_index, one_hot(labels, logits.shape[-1])
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    loss = log_sum - jnp.where(target, logits, 0).sum(-1)  # no gather, so no scatter in the gradient
    count = _pixel_weights(target, keep, class_weights, logits)
    loss = count * loss
    if label_smoothing:
        weights = 1.0 if class_weights is None else _weights(class_weights, logits)
        smooth = (weights * (log_sum[..., None] - logits)).mean(-1)
        loss = (1 - label_smoothing) * loss + label_smoothing * smooth
    if ohem is not None:
        hard = _hardest(loss, keep, ohem)
        loss, count = hard * loss, hard * count
    return _ratio(*rows.total((jnp.where(keep, loss, 0).sum(), count.sum())))


def dice(
    logits: Logits,
    labels: Labels,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weights: ClassWeights = None,
    smooth: float = 0.0,
    eps: float = 1e-7,
) -> Float[Array, ""]:
    """1 - 2 TP / (2 TP + FP + FN): smp's `DiceLoss(mode="multiclass")`. See `tversky`.

    >>> labels = jnp.array([[[0, 1]]])
    >>> round(float(dice(jnp.zeros((1, 1, 2, 2)), labels)), 4)
    0.5
    """
    return _overlap(logits, labels, 0.5, 0.5, ignore_index, class_weights, smooth, eps)


def jaccard(
    logits: Logits,
    labels: Labels,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weights: ClassWeights = None,
    smooth: float = 0.0,
    eps: float = 1e-7,
) -> Float[Array, ""]:
    """1 - TP / (TP + FP + FN): smp's `JaccardLoss(mode="multiclass")`. See `tversky`.

    >>> labels = jnp.array([[[0, 1]]])
    >>> round(float(jaccard(jnp.zeros((1, 1, 2, 2)), labels)), 4)
    0.6667
    """
    return _overlap(logits, labels, 1.0, 1.0, ignore_index, class_weights, smooth, eps)


def tversky(
    logits: Logits,
    labels: Labels,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
    class_weights: ClassWeights = None,
    smooth: float = 0.0,
    eps: float = 1e-7,
) -> Float[Array, ""]:
    """1 - (TP + smooth) / max(TP + alpha FP + beta FN + smooth, eps): smp's `TverskyLoss(mode="multiclass")`.

    - `logits`, `labels`, `ignore_index`, `class_weights`: see the module
    - `alpha`, `beta`: weights of false positives and of false negatives, 0 or more
    - `gamma`: power of the mean
    - `smooth`: added to numerator and denominator
    - `eps`: smallest denominator

    TP, FP and FN are sums of softmax probabilities over all pixels of the batch, class by class. The loss is the mean
    over all k classes (weighted: over the sum of the weights), raised to `gamma`. A class without a labeled pixel has
    loss 0. Milletari et al. 2016, Salehi et al. 2017 (arXiv 1706.05721), Abraham and Khan 2018 (arXiv 1810.07842).

    >>> labels = jnp.array([[[0, 1]]])
    >>> round(float(tversky(jnp.zeros((1, 1, 2, 2)), labels, alpha=0.3, beta=0.7)), 4)
    0.5
    """
    loss = _overlap(logits, labels, alpha, beta, ignore_index, class_weights, smooth, eps)
    return loss if gamma == 1 else loss**gamma


def focal(
    logits: Logits,
    labels: Labels,
    *,
    alpha: float | None = None,
    gamma: float = 2.0,
    ignore_index: int = IGNORE_INDEX,
    class_weights: ClassWeights = None,
) -> Float[Array, ""]:
    """(1 - p)^gamma (-log p), p the sigmoid of each class against the rest: smp's `FocalLoss(mode="multiclass")`.

    - `logits`, `labels`, `ignore_index`, `class_weights`: see the module
    - `alpha`: 0 to 1, weight of the pixels of the class; the others have 1 - alpha. None weights none
    - `gamma`: 0 or more

    Mean over the pixels, then over the classes (weighted: over the sum of the weights). Sigmoids, not a softmax, as in
    Lin et al. 2017 (arXiv 1708.02002).

    >>> labels = jnp.array([[[0, 1]]])
    >>> round(float(focal(jnp.zeros((1, 1, 2, 2)), labels)), 4)
    0.1733
    """
    keep, target = labels != ignore_index, one_hot(labels, logits.shape[-1])
    wrong = jnp.where(target, -logits, logits)  # the logit of 1 - p
    loss = jnp.exp(gamma * jax.nn.log_sigmoid(wrong)) * jax.nn.softplus(wrong)
    if alpha is not None:
        loss = jnp.where(target, alpha, 1 - alpha) * loss
    sums, pixels = rows.total((jnp.where(keep[..., None], loss, 0).sum((0, 1, 2)), keep.sum()))
    return _class_mean(_ratio(sums, jnp.broadcast_to(pixels, sums.shape)), class_weights)


def lovasz(
    logits: Logits, labels: Labels, *, ignore_index: int = IGNORE_INDEX, class_weights: ClassWeights = None
) -> Float[Array, ""]:
    """Lovasz-softmax, which extends the Jaccard loss to probabilities: smp's `LovaszLoss(mode="multiclass")`.

    For each class the pixels of the batch are sorted by falling error |one_hot - softmax|. Each error is weighted with
    the growth of the class's Jaccard loss when that pixel joins the wrong ones. Ties keep the batch's order, as in a
    stable sort; only the gradient depends on it. Mean over the classes that have a labeled pixel (weighted: over the
    sum of their weights). Berman et al. 2018 (arXiv 1705.08790).

    >>> labels = jnp.array([[[0, 1]]])
    >>> round(float(lovasz(jnp.zeros((1, 1, 2, 2)), labels)), 4)
    0.5
    """
    keep = (labels != ignore_index)[..., None]
    target = one_hot(labels, logits.shape[-1]) & keep
    error = jnp.where(keep, jnp.abs(target - jax.nn.softmax(logits)), 0)
    # no gradient through the sort: growth is constant between changes of order
    ranked = lax.stop_gradient(jnp.where(keep, error, -1))  # -1: ignored pixels come last
    growth = rows.own(_jaccard_growth(rows.gathered(ranked), rows.gathered(target)))
    sums, pixels = rows.total(((growth * error).sum((0, 1, 2)), target.sum((0, 1, 2))))
    return _class_mean(sums, class_weights, present=pixels > 0)


def mse(
    logits: Logits, labels: Labels, *, ignore_index: int = IGNORE_INDEX, class_weights: ClassWeights = None
) -> Float[Array, ""]:
    """Mean over classes and pixels of (softmax(logits) - one_hot)^2: `torch.nn.functional.mse_loss` of probabilities.

    With weights w a pixel counts w[y] and the divisor is the sum of w[y], as in `cross_entropy`. Brier 1950.

    >>> labels = jnp.array([[[0, 1]]])
    >>> round(float(mse(jnp.zeros((1, 1, 2, 2)), labels)), 4)
    0.25
    """
    keep, target = labels != ignore_index, one_hot(labels, logits.shape[-1])
    count = _pixel_weights(target, keep, class_weights, logits)
    loss = count * jnp.square(jax.nn.softmax(logits) - target).mean(-1)
    return _ratio(*rows.total((jnp.where(keep, loss, 0).sum(), count.sum())))


def hinge(
    logits: Logits, labels: Labels, *, ignore_index: int = IGNORE_INDEX, class_weights: ClassWeights = None
) -> Float[Array, ""]:
    """Mean over the pixels of (sum over j != y of max(0, 1 - x[y] + x[j])) / k.

    `torch.nn.functional.multi_margin_loss`, with weights too: a pixel counts w[y], but the divisor is the number of
    pixels, so the scale of the weights scales the loss. Weston and Watkins 1999.

    >>> labels = jnp.array([[[0, 1]]])
    >>> round(float(hinge(jnp.zeros((1, 1, 2, 2)), labels)), 4)
    0.5
    """
    keep, target = labels != ignore_index, one_hot(labels, logits.shape[-1])
    own = jnp.where(target, logits, 0).sum(-1, keepdims=True)
    margin = jnp.where(target, 0, jax.nn.relu(1 - own + logits)).mean(-1)  # relu: gradient 0 at 0, as PyTorch's
    loss = _pixel_weights(target, keep, class_weights, logits) * margin
    return _ratio(*rows.total((jnp.where(keep, loss, 0).sum(), keep.sum())))


def dice_ce(
    logits: Logits,
    labels: Labels,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weights: ClassWeights = None,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """`dice` + `cross_entropy`, both weighted: MONAI's `DiceCELoss` with the two losses of this module.

    `label_smoothing` (0 to 1) is for the cross-entropy.

    >>> labels = jnp.array([[[0, 1]]])
    >>> round(float(dice_ce(jnp.zeros((1, 1, 2, 2)), labels)), 4)
    1.1931
    """
    shared = {"ignore_index": ignore_index, "class_weights": class_weights}
    return dice(logits, labels, **shared) + cross_entropy(logits, labels, label_smoothing=label_smoothing, **shared)


def loss_from(settings: Optimization, class_weights: Sequence[float] | None = None) -> Loss:
    """Builds the loss that `settings` describe, with `class_weights` (k numbers) if given.

    >>> loss_from(Optimization(loss="dice")) is dice
    True
    """
    loss, options = {
        "cross_entropy": (cross_entropy, {"label_smoothing": settings.label_smoothing, "ohem": settings.ohem}),
        "dice": (dice, {}),
        "dice_ce": (dice_ce, {"label_smoothing": settings.label_smoothing}),
        "focal": (focal, {"gamma": settings.focal_gamma}),
        "hinge": (hinge, {}),
        "jaccard": (jaccard, {}),
        "lovasz": (lovasz, {}),
        "mse": (mse, {}),
        "tversky": (tversky, {"alpha": settings.tversky_alpha, "beta": settings.tversky_beta}),
    }[settings.loss]
    if class_weights is not None:
        options["class_weights"] = tuple(class_weights)
    return partial(loss, **options) if options else loss


def one_hot(labels: Integer[Array, "*shape"], classes: int) -> Bool[Array, "*shape k"]:
    """True where the last axis is the label; all False for labels outside 0 to classes - 1.

    >>> one_hot(jnp.array([1, 255]), 2).tolist()
    [[False, True], [False, False]]
    """
    return jnp.stack([labels == label for label in range(classes)], axis=-1)


def _overlap(logits, labels, alpha, beta, ignore_index, class_weights, smooth, eps) -> Float[Array, ""]:
    """1 - Tversky index, mean over the classes."""
    keep = (labels != ignore_index)[..., None]
    target = one_hot(labels, logits.shape[-1]) & keep
    p = jnp.where(keep, jax.nn.softmax(logits), 0)
    tp, predicted, labeled = rows.total(tuple(x.sum((0, 1, 2)) for x in (jnp.where(target, p, 0), p, target)))
    fp, fn = predicted - tp, labeled - tp
    index = (tp + smooth) / jnp.maximum(tp + alpha * fp + beta * fn + smooth, eps)
    return _class_mean(jnp.where(labeled > 0, 1 - index, 0), class_weights)


def _jaccard_growth(error: Float[Array, "b h w k"], target: Bool[Array, "b h w k"]) -> Float[Array, "b h w k"]:
    """Growth of a class's Jaccard loss as pixels become wrong one by one, by falling error.

    A pixel of the class leaves the intersection I and adds 1 / U. Any other joins the union U and adds I / U - I / (U +
    1). This form does not cancel digits, which differences of the losses would.
    """
    error, wanted = (x.reshape(-1, x.shape[-1]).T for x in (error, target))  # [k n]
    order = jnp.argsort(-error, axis=-1, stable=True)
    wanted = jnp.take_along_axis(wanted, order, axis=-1)
    pixels = jnp.arange(1, wanted.shape[-1] + 1)[None]
    hits, count = wanted.cumsum(-1), wanted.sum(-1, keepdims=True)
    outside, union = count - hits, count + pixels - hits
    outside, union = outside.astype(error.dtype), union.astype(error.dtype)
    growth = jnp.where(wanted, 1 / union, outside / union / jnp.maximum(union - 1, 1))
    classes = jnp.arange(len(order))[:, None]
    growth = jnp.zeros_like(growth).at[classes, order].set(growth, unique_indices=True)
    return growth.T.reshape(target.shape)


def _hardest(loss: Float[Array, "b h w"], keep: Bool[Array, "b h w"], share: float) -> Float[Array, "b h w"]:
    """1 for the `share` of the pixels with the largest loss, 0 for others; ties at the limit share what is left.

    A NaN is never below the limit, so it is not lost.
    """
    loss = jnp.where(keep, lax.stop_gradient(loss), -jnp.inf)
    share = Fraction(share).limit_denominator(10_000)  # in integers: 0.3 * 10 may exceed 3
    whole, rest = jnp.divmod(rows.total(keep.sum()), share.denominator)
    wanted = whole * share.numerator - (-rest * share.numerator) // share.denominator
    wanted = jnp.maximum(wanted, 1)
    ranked = jnp.sort(rows.gathered(loss), axis=None)
    limit = ranked[ranked.size - wanted]
    below, above = loss < limit, loss > limit
    larger, equal = rows.total((above.sum(), (~below & ~above).sum()))
    part = (wanted - larger) / equal
    return jnp.where(below, 0, jnp.where(above, 1, part)).astype(loss.dtype)


def _pixel_weights(target, keep, class_weights, logits) -> Float[Array, "b h w"]:
    """Weight of each pixel's label, 1 without class weights; 0 where ignored."""
    if class_weights is None:
        return keep.astype(logits.dtype)
    return jnp.where(target & keep[..., None], _weights(class_weights, logits), 0).sum(-1)


def _weights(class_weights: ClassWeights, like: Float[Array, "*shape k"]) -> Float[Array, "*ones k"]:
    """Class weights with the dtype and number of dimensions of `like`. Raises ValueError for another count than k."""
    weights = jnp.asarray(class_weights, like.dtype)
    if weights.shape != like.shape[-1:]:
        raise ValueError(f"`class_weights` has the shape {weights.shape}; expected {like.shape[-1]} numbers")
    return weights.reshape((1,) * (like.ndim - 1) + weights.shape)


def _class_mean(
    loss: Float[Array, " k"], class_weights: ClassWeights, present: Bool[Array, " k"] | bool = True
) -> Float[Array, ""]:
    weights = jnp.ones_like(loss) if class_weights is None else _weights(class_weights, loss)
    weights = jnp.where(present, weights, 0)
    return _ratio((weights * loss).sum(), weights.sum())


def _ratio(total: Float[Array, "*shape"], count: Array) -> Float[Array, "*shape"]:
    """total / count, 0 where the count is 0."""
    count = count.astype(total.dtype)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)
