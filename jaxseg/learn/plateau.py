"""Lower learning rates when a metric stops getting better: the part of a schedule that is no function of the step."""

import math
from collections.abc import Mapping


class Plateau:
    """torch's ReduceLROnPlateau(mode="max"), on the host: the number that the schedule's rate is multiplied with.

    After more than `patience` updates in a row whose metric was not better than the best by a factor of 1 + 1e-4, the
    rate is multiplied by `gamma`, down to `final_lr`, and counting begins anew; changes of 1e-8 and less are not made.
    NaN is never better. `state` is for JSON, and `Plateau(..., state=state)` goes on from it. Raises ValueError.
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
        """The rate as a part of `base_lr`."""
        return self.state["learning_rate"] / self._base_lr if self._base_lr else 1.0

    def update(self, metric: float) -> float:
        """The scale after an epoch with this `metric`, of which more is better."""
        lr, best, bad = self.state["learning_rate"], self.state["best"], self.state["bad_updates"] + 1
        if metric > (-math.inf if best is None else best * (1 + self.THRESHOLD)):
            best, bad = metric, 0
        if bad > self._patience:
            lower, bad = max(lr * self._gamma, self._final_lr), 0
            lr = lower if lr - lower > self.NO_CHANGE else lr
        self.state = {"learning_rate": lr, "best": best, "bad_updates": bad}
        return self.scale
