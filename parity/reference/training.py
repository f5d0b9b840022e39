"""Training in PyTorch: the step and the evaluation, and what each word of a jaxseg recipe means here."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from jaxseg.config import Config, Optimization
from parity.reference import losses
from parity.reference.losses import IGNORE_INDEX
from parity.reference.scheduler import WarmupCosineScheduler, textbook_warmup_cosine
from parity.reference.unet import UNet

CLASSES = 2

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], Optimization], torch.optim.Optimizer]] = {
    "sgd": lambda parameters, o: torch.optim.SGD(
        parameters, lr=0.0, momentum=o.momentum, nesterov=o.nesterov, weight_decay=o.decay
    ),
    "adam": lambda parameters, o: torch.optim.Adam(parameters, lr=0.0, weight_decay=o.decay),
    "adamw": lambda parameters, o: torch.optim.AdamW(parameters, lr=0.0, weight_decay=o.decay),
    "rmsprop": lambda parameters, o: torch.optim.RMSprop(parameters, lr=0.0, momentum=o.momentum, weight_decay=o.decay),
}
"""Names of `jaxseg.config`; the learning rate is set before every step."""

LOSSES: dict[str, Callable[[Optimization], Loss]] = {
    "cross_entropy": lambda o: partial(losses.cross_entropy, label_smoothing=o.label_smoothing),
    "dice_ce": lambda o: partial(losses.dice_ce, label_smoothing=o.label_smoothing),
    "dice": lambda o: losses.dice,
    "jaccard": lambda o: losses.jaccard,
    "focal": lambda o: losses.focal,
}

SCHEDULES = ("article", "warmup_cosine", "constant")


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    masks: torch.Tensor,
    loss: Loss = F.cross_entropy,
    clip_norm: float | None = None,
) -> torch.Tensor:
    """One update on images float [b c h w] and masks int64 [b h w]; returns the loss before it."""
    value = loss(model(images), masks)
    optimizer.zero_grad()
    value.backward()
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return value.detach()


@torch.no_grad()
def evaluation_step(
    model: nn.Module, images: torch.Tensor, masks: torch.Tensor, loss: Loss = F.cross_entropy
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the most probable classes int64 [b h w] of a batch; `model` in evaluation mode."""
    logits = model(images)
    return loss(logits, masks), logits.argmax(dim=1)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Writes `lr` into every parameter group, the article's way of following a schedule."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def learning_rates(o: Optimization, steps_per_epoch: int) -> list[float]:
    """The learning rate of every step: the article's class asked once a tick in order, or the textbook curve."""
    ticks_per_epoch = 1 if o.per == "epoch" else steps_per_epoch
    total = o.epochs * ticks_per_epoch
    warmup = min(round(o.warmup * ticks_per_epoch), total - 1)
    if o.schedule == "article":
        scheduler = WarmupCosineScheduler(o.learning_rate, warmup, total, o.begin_lr, o.final_lr)
        rates = [scheduler(tick) for tick in range(total)]
    elif o.schedule == "warmup_cosine":
        spans = (o.learning_rate, warmup, total, o.begin_lr, o.final_lr)
        rates = [textbook_warmup_cosine(tick, *spans) for tick in range(total)]
    else:
        rates = [o.learning_rate] * total
    return [rate for rate in rates for _ in range(steps_per_epoch // ticks_per_epoch)]


def confusion_matrix(masks: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
    """Counts of pixels int64 [k k], rows: truth; ignored pixels are not counted."""
    counted = masks != IGNORE_INDEX
    pairs = masks[counted] * CLASSES + predictions[counted]
    return torch.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


class Reference:
    """The reference U-Net under a recipe of jaxseg's, float32 and channels_last, to be trained from given weights.

    Batches are the pipeline's (uint8, NumPy); of one that is padded only the valid samples are used. Each method
    returns when its result is there.
    """

    def __init__(self, config: Config, steps_per_epoch: int):
        o = config.optimization
        shape = {"widths": config.model.widths, "upsample": config.model.upsample, "conv_bias": config.model.conv_bias}
        self.model = UNet(classes=CLASSES, **shape).to(memory_format=torch.channels_last)
        self._schedule = learning_rates(o, steps_per_epoch)
        self._optimization, self._loss = o, LOSSES[o.loss](o)

    def start(self, weights: Mapping[str, np.ndarray]) -> None:
        """A fresh optimizer, and copies of `weights`, all of them and no others."""
        missing, unexpected = self.model.load_state_dict(
            {name: torch.tensor(array) for name, array in weights.items()}, strict=False
        )
        if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
            raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
        self.optimizer = OPTIMIZERS[self._optimization.optimizer](self.model.parameters(), self._optimization)
        self.rates: list[float] = []

    def step(self, batch: Mapping[str, np.ndarray]) -> float:
        """One update; the loss before it."""
        self.model.train()
        self.rates.append(self._schedule[len(self.rates)])
        set_learning_rate(self.optimizer, self.rates[-1])
        clip_norm = self._optimization.clip_norm
        return float(training_step(self.model, self.optimizer, *tensors(batch), self._loss, clip_norm))

    def evaluate(self, batch: Mapping[str, np.ndarray]) -> dict:
        """Loss, confusion matrix int64 [k k] and predictions [b h w] of the valid samples, by running statistics."""
        self.model.eval()
        images, masks = tensors(batch)
        loss, predictions = evaluation_step(self.model, images, masks, self._loss)
        confusion = confusion_matrix(masks, predictions)
        return {"loss": float(loss), "confusion": confusion.numpy(), "predictions": predictions.numpy()}


def tensors(batch: Mapping[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 [b c h w] in 0..1 and masks int64 [b h w] of the valid samples."""
    images, masks = (torch.from_numpy(batch[name][batch["valid"]]) for name in ("image", "mask"))
    # a permuted [b h w c] is channels_last already
    return images.permute(0, 3, 1, 2).to(torch.float32).div(255), masks.to(torch.int64)
