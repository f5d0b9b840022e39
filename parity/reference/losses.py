"""The losses in PyTorch, of logits float [b k h w] and labels int64 [b h w]: each under its name in jaxseg.

`cross_entropy` is PyTorch's own. The others are the formulas of segmentation_models.pytorch 0.6.0 in mode
"multiclass", written out over the pixels that count instead of with masks. That package's own classes, run in float64
with an ignored label, absent classes, weights and logits of +-200, differ from these by at most 6e-16 in the value and
9e-16 in the gradient, relative. (It is no dependency: importing it imports timm and torchvision.)

Where the package is odd:
- It takes class weights in float32 whatever the type of the logits, which moves a float64 loss by up to 3e-8.
- It finds the intersection as (sum p + sum t - |p - t|_1) / 2, whose derivative at p = t is 1/2 where that of p t
  is t. No logit sees it: a softmax that reaches 0 or 1 passes nothing on.
- The focal loss subtracts from 1 what is nearly 1, so a pixel has 0 where it ought to have 1e-48 (so here, too).
- Of a batch with every pixel ignored Dice, Jaccard and Tversky make 0, focal NaN (so here, too).
- `TverskyLoss(gamma)` raises the mean over the classes to gamma, where the paper raises each class's (so here, too).
- `SoftCrossEntropyLoss(ignore_index)` divides by the number of all pixels, ignored ones too, unlike PyTorch's.
- The Lovasz loss is not to be had in float64 (it mixes types), and takes differences of losses next to 1, in which
  digits cancel: in float32 its gradient is off by 1e-4 of 10,000 pixels and by 5e-3 of 262,144, and in float64, were
  there one, by 1e-12 and 1e-11. Here the difference of the two fractions is taken in integers.
- Its sort is not stable, so where pixels have equal errors its gradient is one of many (here: the stable sort's); of a
  batch with every pixel ignored it makes an empty tensor (here 0); it takes no class weights.

PyTorch's `multi_margin_loss` of no pixels is a number from uninitialized memory; the mean of the losses is NaN.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F

IGNORE_INDEX = 255


def cross_entropy(
    logits,
    labels,
    *,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    ohem: float | None = None,
):
    """`torch.nn.functional.cross_entropy`; with `ohem`, of the pixels that `torch.topk` finds in its losses."""
    weight = None if class_weights is None else logits.new_tensor(class_weights)
    options = {"weight": weight, "ignore_index": IGNORE_INDEX, "label_smoothing": label_smoothing}
    if ohem is None:
        return F.cross_entropy(logits, labels, **options)
    kept = labels != IGNORE_INDEX
    losses = F.cross_entropy(logits, labels, **options, reduction="none")[kept]
    if not len(losses):
        return losses.mean()
    chosen = math.ceil(Fraction(str(ohem)) * len(losses))
    limit = losses.detach().topk(chosen).values[-1]
    share = (losses > limit).to(losses.dtype)  # of equals at the end topk takes any; the mean of its choices is this
    share[losses == limit] = (chosen - share.sum()) / (losses == limit).sum()
    return (share * losses).sum() / (share if weight is None else share * weight[labels[kept]]).sum()


def dice(logits, labels, **options):
    """`DiceLoss`: Tversky's with half of either error."""
    return tversky(logits, labels, alpha=0.5, beta=0.5, **options)


def jaccard(logits, labels, **options):
    """`JaccardLoss`: Tversky's with all of either error."""
    return tversky(logits, labels, alpha=1.0, beta=1.0, **options)


def tversky(
    logits,
    labels,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    class_weights: Sequence[float] | None = None,
    smooth: float = 0.0,
    eps: float = 1e-7,
):
    """`TverskyLoss`: a class is one column of `p` and `target`, of every pixel of the batch."""
    logits, target = _pixels(logits, labels)
    p = logits.softmax(dim=1)
    tp, fp, fn = (p * target).sum(0), (p * (1 - target)).sum(0), ((1 - p) * target).sum(0)
    index = (tp + smooth) / (tp + alpha * fp + beta * fn + smooth).clamp_min(eps)
    present = target.sum(0) > 0
    return _mean((1 - index) * present, class_weights) ** gamma


def focal(
    logits, labels, *, alpha: float | None = None, gamma: float = 2.0, class_weights: Sequence[float] | None = None
):
    """`FocalLoss`: a binary one for each class against the rest."""
    logits, target = _pixels(logits, labels)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = (1 - (-loss).exp()) ** gamma * loss
    if alpha is not None:
        loss = (alpha * target + (1 - alpha) * (1 - target)) * loss
    return _mean(loss.mean(0), class_weights)


def lovasz(logits, labels, *, class_weights: Sequence[float] | None = None):
    """`LovaszLoss`: class by class, errors by falling size times the steps of the Jaccard loss."""
    logits, target = _pixels(logits, labels)
    p, present = logits.softmax(dim=1), target.any(0).nonzero()[:, 0].tolist()
    losses = [(p[:, i] - target[:, i]).abs() @ _jaccard_steps(p.detach()[:, i], target[:, i]) for i in present]
    if not losses:
        return p.sum()
    return _mean(torch.stack(losses), None if class_weights is None else [class_weights[i] for i in present])


def _jaccard_steps(p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """For each pixel [n] the Jaccard loss of the pixels up to it, in the order of their errors, less that before it."""
    order = (p - target).abs().sort(descending=True, stable=True).indices
    wrong = target[order].long()
    size = wrong.sum()
    intersection = torch.cat([size[None], size - wrong.cumsum(0)])
    union = torch.cat([size[None], size + (1 - wrong).cumsum(0)])
    steps = intersection[:-1] * union[1:] - intersection[1:] * union[:-1]
    return torch.empty_like(p).index_copy_(0, order, steps.to(p.dtype) / (union[1:] * union[:-1]).to(p.dtype))


def mse(logits, labels, *, class_weights: Sequence[float] | None = None):
    """`torch.nn.functional.mse_loss` of probabilities; PyTorch's takes no weights for classes."""
    logits, target = _pixels(logits, labels)
    if class_weights is None:
        return F.mse_loss(logits.softmax(dim=1), target)
    weights = target @ logits.new_tensor(class_weights)
    return (weights * F.mse_loss(logits.softmax(dim=1), target, reduction="none").mean(1)).sum() / weights.sum()


def hinge(logits, labels, *, class_weights: Sequence[float] | None = None):
    """`torch.nn.functional.multi_margin_loss`."""
    kept = labels != IGNORE_INDEX
    weight = None if class_weights is None else logits.new_tensor(class_weights)
    losses = F.multi_margin_loss(logits.movedim(1, -1)[kept], labels[kept], weight=weight, reduction="none")
    return losses.mean()


def dice_ce(logits, labels, *, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0):
    """The sum of `dice` and `cross_entropy`."""
    smoothed = cross_entropy(logits, labels, class_weights=class_weights, label_smoothing=label_smoothing)
    return dice(logits, labels, class_weights=class_weights) + smoothed


def _pixels(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [n k] and one-hot labels [n k] of the pixels not ignored."""
    kept = labels != IGNORE_INDEX
    logits = logits.movedim(1, -1)[kept]
    return logits, F.one_hot(labels[kept], logits.shape[-1]).to(logits.dtype)


def _mean(losses: torch.Tensor, class_weights: Sequence[float] | None) -> torch.Tensor:
    if class_weights is None:
        return losses.mean()
    weights = losses.new_tensor(class_weights)
    return (weights * losses).sum() / weights.sum()
