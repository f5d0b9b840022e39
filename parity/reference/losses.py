"""Losses in PyTorch of logits float [b k h w] and labels int64 [b h w], each with its name in jaxseg.

`cross_entropy` is PyTorch's own. The others are the formulas of segmentation_models.pytorch 0.6.0 in mode
"multiclass", computed over the counted pixels instead of with masks. The package's own classes differ from these by at
most 6e-16 in the value and 9e-16 in the gradient, relative. That was measured in float64 with an ignored label, absent
classes, weights and logits of +-200. The package is not a dependency, because it imports timm and torchvision.

Oddities of the package:

- Class weights are float32 whatever the dtype of the logits, which moves a float64 loss by up to 3e-8.
- The intersection is (sum p + sum t - |p - t|_1) / 2. Its derivative at p = t is 1/2, and that of p t is t. Logits do
  not show it: a softmax of 0 or 1 has no gradient.
- The focal loss subtracts numbers near 1 from 1, so a pixel has 0 instead of 1e-48 (here too).
- With every pixel ignored, Dice, Jaccard and Tversky return 0, and focal NaN (here too).
- `TverskyLoss(gamma)` raises the mean over the classes to gamma; the paper raises each class's index (here: the mean).
- `SoftCrossEntropyLoss(ignore_index)` divides by the number of all pixels, ignored ones included; PyTorch's does not.
- The Lovasz loss fails in float64, because it mixes dtypes. It subtracts losses near 1, so digits cancel: the float32
  gradient is off by 1e-4 for 10,000 pixels and by 5e-3 for 262,144 (in float64 it would be 1e-12 and 1e-11). Here the
  difference of the two fractions is computed in integers.
- The Lovasz loss sorts unstably, so the gradient of tied pixels is one of many (here: the stable sort's). With every
  pixel ignored it returns an empty tensor (here 0). It takes no class weights.

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
    """`torch.nn.functional.cross_entropy`; with `ohem` over the share of pixels that `torch.topk` finds hardest."""
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
    share = (losses > limit).to(losses.dtype)  # topk takes any of the pixels tied at the limit; this is the mean
    share[losses == limit] = (chosen - share.sum()) / (losses == limit).sum()
    return (share * losses).sum() / (share if weight is None else share * weight[labels[kept]]).sum()


def dice(logits, labels, **options):
    """`DiceLoss`: Tversky's with alpha and beta 1/2."""
    return tversky(logits, labels, alpha=0.5, beta=0.5, **options)


def jaccard(logits, labels, **options):
    """`JaccardLoss`: Tversky's with alpha and beta 1."""
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
    """`TverskyLoss`, where each class is a column of `p` and `target` over all pixels of the batch."""
    logits, target = _pixels(logits, labels)
    p = logits.softmax(dim=1)
    tp, fp, fn = (p * target).sum(0), (p * (1 - target)).sum(0), ((1 - p) * target).sum(0)
    index = (tp + smooth) / (tp + alpha * fp + beta * fn + smooth).clamp_min(eps)
    present = target.sum(0) > 0
    return _mean((1 - index) * present, class_weights) ** gamma


def focal(
    logits, labels, *, alpha: float | None = None, gamma: float = 2.0, class_weights: Sequence[float] | None = None
):
    """`FocalLoss`: a binary focal loss for each class against the rest."""
    logits, target = _pixels(logits, labels)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = (1 - (-loss).exp()) ** gamma * loss
    if alpha is not None:
        loss = (alpha * target + (1 - alpha) * (1 - target)) * loss
    return _mean(loss.mean(0), class_weights)


def lovasz(logits, labels, *, class_weights: Sequence[float] | None = None):
    """`LovaszLoss`: for each class, the errors in falling order times the steps of the Jaccard loss."""
    logits, target = _pixels(logits, labels)
    p, present = logits.softmax(dim=1), target.any(0).nonzero()[:, 0].tolist()
    losses = [(p[:, i] - target[:, i]).abs() @ _jaccard_steps(p.detach()[:, i], target[:, i]) for i in present]
    if not losses:
        return p.sum()
    return _mean(torch.stack(losses), None if class_weights is None else [class_weights[i] for i in present])


def _jaccard_steps(p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Step of the Jaccard loss at each pixel [n], with pixels in falling order of their errors."""
    order = (p - target).abs().sort(descending=True, stable=True).indices
    wrong = target[order].long()
    size = wrong.sum()
    intersection = torch.cat([size[None], size - wrong.cumsum(0)])
    union = torch.cat([size[None], size + (1 - wrong).cumsum(0)])
    steps = intersection[:-1] * union[1:] - intersection[1:] * union[:-1]
    return torch.empty_like(p).index_copy_(0, order, steps.to(p.dtype) / (union[1:] * union[:-1]).to(p.dtype))


def mse(logits, labels, *, class_weights: Sequence[float] | None = None):
    """`torch.nn.functional.mse_loss` of probabilities; the class weights are added here."""
    logits, target = _pixels(logits, labels)
    if class_weights is None:
        return F.mse_loss(logits.softmax(dim=1), target)
    weights = target @ logits.new_tensor(class_weights)
    return (weights * F.mse_loss(logits.softmax(dim=1), target, reduction="none").mean(1)).sum() / weights.sum()


def hinge(logits, labels, *, class_weights: Sequence[float] | None = None):
    """`torch.nn.functional.multi_margin_loss` of the counted pixels."""
    kept = labels != IGNORE_INDEX
    weight = None if class_weights is None else logits.new_tensor(class_weights)
    losses = F.multi_margin_loss(logits.movedim(1, -1)[kept], labels[kept], weight=weight, reduction="none")
    return losses.mean()


def dice_ce(logits, labels, *, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0):
    """Sum of `dice` and `cross_entropy`."""
    smoothed = cross_entropy(logits, labels, class_weights=class_weights, label_smoothing=label_smoothing)
    return dice(logits, labels, class_weights=class_weights) + smoothed


def _pixels(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [n k] and one-hot labels [n k] of the counted pixels."""
    kept = labels != IGNORE_INDEX
    logits = logits.movedim(1, -1)[kept]
    return logits, F.one_hot(labels[kept], logits.shape[-1]).to(logits.dtype)


def _mean(losses: torch.Tensor, class_weights: Sequence[float] | None) -> torch.Tensor:
    if class_weights is None:
        return losses.mean()
    weights = losses.new_tensor(class_weights)
    return (weights * losses).sum() / weights.sum()
