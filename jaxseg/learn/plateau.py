"""Lower learning rates when a metric stops improving: the part of a schedule that depends on more than the step."""

import math
from collections.abc import Mapping


class Plateau:
    """Scale of the learning rate, on the host: `torch.optim.lr_scheduler.ReduceLROnPlateau(mode="max")`.

    - `base_lr`: the schedule's rate, which the scale multiplies
    - `gamma`: factor of a cut, between 0 and 1
    - `patience`: updates in a row without a better metric that are tolerated, 0 or more
    - `final_lr`: lowest rate
    - `state`: the `state` of another Plateau, to continue from it; JSON holds it

    A metric is better if it exceeds the best by a factor of 1 + 1e-4; NaN never is. After more than `patience` updates
    that are not, the rate is multiplied by `gamma` and counting restarts. Changes of 1e-8 and less are not made.
    Raises ValueError for `gamma` or `patience` out of range.

    >>> plateau = Plateau(0.1, gamma=0.5, patience=1)
    >>> [plateau.update(metric) for metric in (0.7, 0.7, 0.7, 0.8)]
    [1.0, 1.0, 0.5, 0.5]
    """

    THRESHOLD = 1e-4
    NO_CHANGE = 1e-8

    def __init__(
        self,
        base_lr: float,
        *,
        gamma: float = 0.1,
        patience: int = 10,
        final_lr: float = 0.0,
        state: Mapping[str, float | int | None] | None = None,
    ):
        if not 0 < gamma < 1:
            raise ValueError(f"`gamma` is {gamma}; expected a number between 0 and 1")
        if patience < 0:
            raise ValueError(f"`patience` is {patience}; expected 0 or more")
        self._base_lr, self._gamma, self._patience, self._final_lr = base_lr, gamma, patience, final_lr
        self.state = dict(state or {"learning_rate": base_lr, "best": None, "bad_updates": 0})

    @property
    def scale(self) -> float:
        """Current rate as a fraction of `base_lr`."""
        return self.state["learning_rate"] / self._base_lr if self._base_lr else 1.0

    def update(self, metric: float) -> float:
        """Takes the metric of an epoch, where more is better, and returns the scale for the next."""
        lr, best, bad = self.state["learning_rate"], self.state["best"], self.state["bad_updates"] + 1
        if metric > (-math.inf if best is None else best * (1 + self.THRESHOLD)):
            best, bad = metric, 0
        if bad > self._patience:
            lower, bad = max(lr * self._gamma, self._final_lr), 0
            lr = lower if lr - lower > self.NO_CHANGE else lr
        self.state = {"learning_rate": lr, "best": best, "bad_updates": bad}
        return self.scale
