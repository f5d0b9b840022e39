"""Training in PyTorch: the step, the evaluation, and the counterpart of each setting of a jaxseg recipe."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from jaxseg.base.config import Config, Optimization
from jaxseg.base.errors import UserError
from parity.reference import losses
from parity.reference.losses import IGNORE_INDEX
from parity.reference.scheduler import SCHEDULERS, WarmupCosineScheduler, textbook_warmup_cosine, torch_rates
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
"""Optimizers by their names in `jaxseg.base.config`; the learning rate is set before each step."""

LOSSES: dict[str, Callable[[Optimization], Loss]] = {
    "cross_entropy": lambda o: partial(losses.cross_entropy, label_smoothing=o.label_smoothing, ohem=o.ohem),
    "dice_ce": lambda o: partial(losses.dice_ce, label_smoothing=o.label_smoothing),
    "dice": lambda o: losses.dice,
    "jaccard": lambda o: losses.jaccard,
    "tversky": lambda o: partial(losses.tversky, alpha=o.tversky_alpha, beta=o.tversky_beta),
    "focal": lambda o: partial(losses.focal, gamma=o.focal_gamma),
    "lovasz": lambda o: losses.lovasz,
    "mse": lambda o: losses.mse,
    "hinge": lambda o: losses.hinge,
}

SCHEDULES = ("article", "warmup_cosine", *SCHEDULERS)
"""Schedules whose rates are known before the run. With `plateau` each side's rates follow from its own scores."""


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    masks: torch.Tensor,
    loss: Loss = F.cross_entropy,
    clip_norm: float | None = None,
    part: int | None = None,
    kept: Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Takes one update; returns the loss before it.

    images, masks: float [b c h w] and int64 [b h w].
    loss: of (logits, masks).
    clip_norm: largest norm of the gradient; None does not clip.
    part: samples in a micro-batch, for gradient accumulation; None takes the batch at once.
    kept: for each micro-batch the factors of dropout, see the reference U-Net; None drops nothing.

    A micro-batch is weighted by its share of the counted pixels: `(loss / k).backward()` for k full ones.
    """
    optimizer.zero_grad()
    total, counted = 0.0, int((masks != IGNORE_INDEX).sum())
    cut = zip(images.split(part or len(images)), masks.split(part or len(masks)))
    for number, (some, their_masks) in enumerate(cut):
        value = loss(model(some) if kept is None else model(some, kept[number]), their_masks)
        if part is not None:
            value = value * (int((their_masks != IGNORE_INDEX).sum()) / counted)
        value.backward()
        total = total + value.detach()
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return total


@torch.no_grad()
def evaluation_step(
    model: nn.Module, images: torch.Tensor, masks: torch.Tensor, loss: Loss = F.cross_entropy
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and most probable classes int64 [b h w] of a batch; `model` is in evaluation mode."""
    logits = model(images)
    return loss(logits, masks), logits.argmax(dim=1)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Writes `lr` into every parameter group, as the article does; times the group's factor if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1)


def groups(model: nn.Module, o: Optimization) -> list[dict]:
    """Parameter groups: the encoder's, with the factor of its learning rate, and the others'."""
    mine = [p for name, p in model.named_parameters() if name.startswith("encoder.")]
    others = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    found = [{"params": mine, "factor": o.encoder_lr_factor}, {"params": others}]
    return [group for group in found if group["params"]]


def learning_rates(o: Optimization, steps_per_epoch: int) -> list[float]:
    """Learning rate of each step, by the article's class, the textbook curve or PyTorch's own scheduler.

    Raises UserError for "plateau".
    """
    if o.schedule not in SCHEDULES:
        raise UserError(
            f"--schedule {o.schedule} has no rates before the run: each side's follow from its own scores. "
            f"Give one of {', '.join(SCHEDULES)}."
        )
    steps = o.epochs * steps_per_epoch if o.steps is None else o.steps
    steps_per_tick = steps_per_epoch if o.per == "epoch" else 1
    total = math.ceil(steps / steps_per_tick)
    warmup_steps = o.warmup * steps_per_epoch
    if o.warmup_epochs is None:  # a share of the run, whose length --steps may change
        warmup_steps *= steps / (o.epochs * steps_per_epoch)
    warmup = min(round(warmup_steps / steps_per_tick), total - 1)
    if o.schedule == "article":
        scheduler = WarmupCosineScheduler(o.learning_rate, warmup, total, o.begin_lr, o.final_lr)
        rates = [scheduler(tick) for tick in range(total)]
    elif o.schedule == "warmup_cosine":
        spans = (o.learning_rate, warmup, total, o.begin_lr, o.final_lr)
        rates = [textbook_warmup_cosine(tick, *spans) for tick in range(total)]
    else:
        base_lr = o.rates[0] if o.schedule == "piecewise_constant" else o.learning_rate
        spans = {"total": total - warmup, "warmup": warmup, "begin_lr": o.begin_lr, "final_lr": o.final_lr}
        options = schedule_options(o, total - warmup, warmup, steps_per_epoch // steps_per_tick)
        rates = torch_rates(o.schedule, total, base_lr, **spans, **options)
    return [rate for rate in rates for _ in range(steps_per_tick)][:steps]


def schedule_options(o: Optimization, total: int, warmup: int, ticks_per_epoch: int) -> dict:
    """Further arguments of `torch_rates`: milestones and period in ticks after the warm-up, with defaults filled in."""
    milestones = [round(epoch * ticks_per_epoch) - warmup for epoch in o.milestones]
    period = {"factor": 10 * ticks_per_epoch, "exponential": total}.get(o.schedule, max(2.0, total / 4))
    if o.period is not None:
        period = o.period * ticks_per_epoch
    return {
        "piecewise_constant": {"rates": o.rates, "milestones": milestones},
        "factor": {"period": round(period), "gamma": o.gamma},
        "multi_factor": {"milestones": milestones, "gamma": o.gamma},
        "exponential": {"period": period, "gamma": o.gamma},
        "polynomial": {"power": o.power},
        "cosine_restarts": {"period": period, "cycle_factor": o.cycle_factor},
        "cyclic": {"period": period},
    }.get(o.schedule, {})


def confusion_matrix(masks: torch.Tensor, predictions: torch.Tensor, classes: int = CLASSES) -> torch.Tensor:
    """Pixel counts int64 [k k], with the truth in rows; ignored pixels are not counted."""
    counted = masks != IGNORE_INDEX
    pairs = masks[counted] * classes + predictions[counted]
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


class Reference:
    """The reference U-Net under a jaxseg recipe, in float32 and channels_last, trained from given weights.

    Batches are the pipeline's (uint8, NumPy); only their valid samples are used. Each method returns when its result
    is ready.
    """

    def __init__(self, config: Config, steps_per_epoch: int):
        o = config.optimization
        shape = {"widths": config.model.widths, "upsample": config.model.upsample, "conv_bias": config.model.conv_bias}
        self.model = UNet(classes=CLASSES, **shape).to(memory_format=torch.channels_last)
        self._schedule = learning_rates(o, steps_per_epoch)
        self._optimization, self._loss = o, LOSSES[o.loss](o)

    def start(self, weights: Mapping[str, np.ndarray]) -> None:
        """Takes copies of `weights` and a fresh optimizer. Raises ValueError unless the names fit exactly."""
        missing, unexpected = self.model.load_state_dict(
            {name: torch.tensor(array) for name, array in weights.items()}, strict=False
        )
        if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
            raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
        self.optimizer = OPTIMIZERS[self._optimization.optimizer](self.model.parameters(), self._optimization)
        self.rates: list[float] = []

    def step(self, batch: Mapping[str, np.ndarray]) -> float:
        """Takes one update; returns the loss before it."""
        self.model.train()
        self.rates.append(self._schedule[len(self.rates)])
        set_learning_rate(self.optimizer, self.rates[-1])
        clip_norm = self._optimization.clip_norm
        return float(training_step(self.model, self.optimizer, *tensors(batch), self._loss, clip_norm))

    def evaluate(self, batch: Mapping[str, np.ndarray]) -> dict:
        """Loss, confusion matrix int64 [k k] and predictions [b h w] of the valid samples, with running statistics."""
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
