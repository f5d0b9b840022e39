"""The article's learning rate, which compounds; the textbook curve that it means; and PyTorch's own schedulers."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosineScheduler:
    """Linear warm-up, then the article's cosine. Called once with each epoch; each call changes the later ones.

    From epoch `warmup_epochs` on, a call writes its result back into `base_lr`, where the next call starts. The curve
    is therefore a running product of cosines:

        lr(e) = final_lr + (base_lr - final_lr) * prod_{k=warmup}^{e} (1 + cos(pi (k - warmup) / (max - warmup))) / 2

    It falls below a tenth of the peak at epoch 20 (a cosine at 33), and its sum is 0.605 of the cosine's. After
    `max_epochs` the last value stays. The memory has consequences:

    - Asking twice in an epoch, for instance to log the rate, lowers it for good.
    - Epochs out of order or left out give another curve.
    - A fresh object after an interruption starts from the full `base_lr`, 8.5 times too high at epoch 20.
    """

    def __init__(
        self,
        base_lr: float,
        warmup_epochs: int = 5,
        max_epochs: int = 40,
        warmup_begin_lr: float = 1e-9,
        final_lr: float = 1e-9,
    ):
        self.base_lr = base_lr
        self.warmup_epochs = warmup_epochs
        self.max_epochs = max_epochs
        self.warmup_begin_lr = warmup_begin_lr
        self.final_lr = final_lr

    def __call__(self, epoch: int) -> float:
        """Learning rate of `epoch`; after the warm-up also the start of the next call."""
        # The article's order of operations: float64 results are compared bit for bit.
        if epoch < self.warmup_epochs:
            rise = (self.base_lr - self.warmup_begin_lr) * float(epoch) / float(self.warmup_epochs)
            return self.warmup_begin_lr + rise
        if epoch <= self.max_epochs:
            angle = math.pi * (epoch - self.warmup_epochs) / (self.max_epochs - self.warmup_epochs)
            self.base_lr = self.final_lr + (self.base_lr - self.final_lr) * (1 + math.cos(angle)) / 2
        return self.base_lr


def hazards() -> dict[str, tuple[float, float]]:
    """Rates that the class gives after misuse, and the rates it should give, with the article's numbers."""
    scheduler = WarmupCosineScheduler(1e-2)
    in_order = [scheduler(epoch) for epoch in range(21)]
    twice = WarmupCosineScheduler(1e-2)
    again = [[twice(epoch) for _ in range(1 + (epoch == 9))][-1] for epoch in range(10)][-1]
    return {
        "asked twice in epoch 9": (again, in_order[9]),
        "made anew at epoch 20": (WarmupCosineScheduler(1e-2)(20), in_order[20]),
    }


def textbook_warmup_cosine(
    epoch: float,
    base_lr: float,
    warmup: float = 5,
    total: float = 40,
    begin_lr: float = 1e-9,
    final_lr: float = 1e-9,
) -> float:
    """Learning rate of a linear warm-up, then half a cosine: SGDR without restarts (arXiv 1608.03983, eq. 5).

    epoch, warmup, total: in one unit, such as epochs or steps.
    base_lr: peak, at the end of the warm-up.
    begin_lr: at epoch 0.
    final_lr: at `total`, and after it.
    """
    if epoch < warmup:
        return begin_lr + (base_lr - begin_lr) * epoch / warmup
    progress = min((epoch - warmup) / (total - warmup), 1.0)
    return final_lr + (base_lr - final_lr) * (1 + math.cos(math.pi * progress)) / 2


def torch_warmup_cosine(
    count: int, base_lr: float, warmup: int, total: int, begin_lr: float, final_lr: float
) -> list[float]:
    """Rates of `count` ticks by `SequentialLR` of `LinearLR` and `CosineAnnealingLR`, each read before its update.

    After `total` they rise again: the cosine has the period 2 (total - warmup). PyTorch raises ValueError for a
    `begin_lr` of 0 or above `base_lr`.
    """
    optimizer = _optimizer(base_lr)
    schedulers = [lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - warmup, eta_min=final_lr)]
    if warmup:
        schedulers.insert(0, lr_scheduler.LinearLR(optimizer, begin_lr / base_lr, 1.0, total_iters=warmup))
    return _rates(optimizer, lr_scheduler.SequentialLR(optimizer, schedulers, [warmup] * (warmup > 0)), count)


def torch_rates(
    name: str,
    count: int,
    base_lr: float,
    *,
    total: int,
    warmup: int = 0,
    begin_lr: float = 1e-9,
    final_lr: float = 0.0,
    **options: object,
) -> list[float]:
    """Rates of `count` ticks by PyTorch's scheduler, each read before its update.

    name: of the schedule in jaxseg.
    count: ticks in all, with the warm-up.
    base_lr: peak.
    total: ticks after the warm-up.
    warmup, begin_lr: ticks of a linear warm-up, and its first rate.
    final_lr: last rate. PyTorch has none for some: PolynomialLR is scaled to it, and factors `gamma` stop at it.
    options: of the schedule.

    A warm-up uses `SequentialLR` of `LinearLR`. Where that refuses (a `begin_lr` of 0 or above the first rate), the
    line is computed here.
    """
    optimizer = _optimizer(base_lr)
    scheduler = SCHEDULERS[name](optimizer, base_lr, total, final_lr, **options)
    first, line = optimizer.param_groups[0]["initial_lr"], []
    if warmup and 0 < begin_lr <= first:
        # made second, because some schedulers set the first rate themselves
        rise = lr_scheduler.LinearLR(optimizer, begin_lr / first, 1.0, total_iters=warmup)
        rates = _rates(optimizer, lr_scheduler.SequentialLR(optimizer, [rise, scheduler], [warmup]), count)
        line, rates = rates[:warmup], rates[warmup:]
    else:
        line = [begin_lr + (first - begin_lr) * tick / warmup for tick in range(warmup)]
        rates = _rates(optimizer, scheduler, count - warmup)
    if name == "polynomial":
        rates = [final_lr + (base_lr - final_lr) * (rate / base_lr) for rate in rates]
    if name in ("factor", "multi_factor", "exponential"):
        rates = [max(rate, min(final_lr, base_lr)) for rate in rates]
    return line + rates


def _restarts(
    optimizer: torch.optim.Optimizer, base: float, total: int, final: float, period: float, cycle_factor: float = 1.0
) -> LRScheduler:
    """`CosineAnnealingWarmRestarts`; for cycles of fractional length its formula, each cycle from the nearest tick."""
    if float(period).is_integer() and float(cycle_factor).is_integer():
        return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, int(period), int(cycle_factor), final)
    edges = [0.0]
    while edges[-1] < total:
        edges.append(edges[-1] + period * cycle_factor ** (len(edges) - 1))
    ticks = [math.floor(edge + 0.5) for edge in edges]

    def part(tick: int) -> float:
        cycle = bisect_right(ticks, tick) - 1
        angle = math.pi * (tick - ticks[cycle]) / (ticks[cycle + 1] - ticks[cycle])
        return (final + (base - final) * (1 + math.cos(angle)) / 2) / base

    return lr_scheduler.LambdaLR(optimizer, lambda tick: part(min(tick, ticks[-1] - 1)))


def _piecewise(
    optimizer: torch.optim.Optimizer,
    base: float,
    total: int,
    final: float,
    rates: Sequence[float],
    milestones: Sequence[int],
) -> LRScheduler:
    return lr_scheduler.LambdaLR(optimizer, lambda tick: rates[bisect_right(milestones, tick)] / base)


SCHEDULERS: dict[str, Callable[..., LRScheduler]] = {
    "constant": lambda optimizer, base, total, final: lr_scheduler.ConstantLR(optimizer, 1.0, total // 2),
    "piecewise_constant": _piecewise,
    "factor": lambda optimizer, base, total, final, period, gamma: lr_scheduler.StepLR(optimizer, period, gamma),
    "multi_factor": lambda optimizer, base, total, final, milestones, gamma: lr_scheduler.MultiStepLR(
        optimizer, milestones, gamma
    ),
    "exponential": lambda optimizer, base, total, final, period, gamma: lr_scheduler.ExponentialLR(
        optimizer, gamma ** (1 / period)
    ),
    "linear": lambda optimizer, base, total, final: lr_scheduler.LinearLR(optimizer, 1.0, final / base, total),
    "polynomial": lambda optimizer, base, total, final, power: lr_scheduler.PolynomialLR(optimizer, total, power),
    "cosine": lambda optimizer, base, total, final: lr_scheduler.CosineAnnealingLR(optimizer, total, final),
    "cosine_restarts": _restarts,
    "cyclic": lambda optimizer, base, total, final, period: lr_scheduler.CyclicLR(
        optimizer, final, base, period / 2, cycle_momentum=False
    ),
    "one_cycle": lambda optimizer, base, total, final: lr_scheduler.OneCycleLR(
        optimizer, base, total, final_div_factor=base / 25 / final if final else math.inf, cycle_momentum=False
    ),
}
"""jaxseg's name -> PyTorch's scheduler, made from (optimizer, base_lr, total, final_lr, options)."""


def torch_plateau(
    metrics: Iterable[float], base_lr: float, *, gamma: float, patience: int, final_lr: float
) -> list[float]:
    """Rates after each of `metrics` by `ReduceLROnPlateau(mode="max")`."""
    optimizer = _optimizer(base_lr)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, "max", gamma, patience, min_lr=final_lr)
    rates = []
    for metric in metrics:
        scheduler.step(metric)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def _optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1)], lr=lr)


def _rates(optimizer: torch.optim.Optimizer, scheduler: lr_scheduler.LRScheduler, count: int) -> list[float]:
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates
