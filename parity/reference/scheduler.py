"""The article's learning rate, which compounds, and the textbook curve it sets out to be."""

import math


class WarmupCosineScheduler:
    """Linear warm-up, then the article's cosine; called once per epoch, with the epoch, and it remembers.

    From epoch `warmup_epochs` on, each call writes its result back into `base_lr`, from which the next call starts.
    The curve is therefore no cosine but the running product of cosines

        lr(e) = final_lr + (base_lr - final_lr) * prod_{k=warmup}^{e} (1 + cos(pi (k - warmup) / (max - warmup))) / 2

    which falls below a tenth of the peak at epoch 20, where the cosine does at 33, and adds up to 0.605 of its area.
    What follows from the memory: asking twice in an epoch (to log it, say) lowers the rate for good; epochs asked out
    of order or left out give another curve; a fresh object after an interruption starts again from the full
    `base_lr`, 8.5 times too high at epoch 20. After `max_epochs` the last value stays.
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
        """The learning rate of `epoch`, and from the end of the warm-up on, the start of the next call."""
        # The order of the operations is the article's: float64 results are compared bit for bit.
        if epoch < self.warmup_epochs:
            rise = (self.base_lr - self.warmup_begin_lr) * float(epoch) / float(self.warmup_epochs)
            return self.warmup_begin_lr + rise
        if epoch <= self.max_epochs:
            angle = math.pi * (epoch - self.warmup_epochs) / (self.max_epochs - self.warmup_epochs)
            self.base_lr = self.final_lr + (self.base_lr - self.final_lr) * (1 + math.cos(angle)) / 2
        return self.base_lr


def textbook_warmup_cosine(
    epoch: float,
    base_lr: float,
    warmup: float = 5,
    total: float = 40,
    begin_lr: float = 1e-9,
    final_lr: float = 1e-9,
) -> float:
    """Linear warm-up, then half a cosine from `base_lr` to `final_lr`: SGDR without restarts (arXiv 1608.03983, eq. 5).

    A function of `epoch` alone, in any unit that `warmup` and `total` share (steps, say); constant after `total`.
    """
    if epoch < warmup:
        return begin_lr + (base_lr - begin_lr) * epoch / warmup
    progress = min((epoch - warmup) / (total - warmup), 1.0)
    return final_lr + (base_lr - final_lr) * (1 + math.cos(math.pi * progress)) / 2
