"""Length of a run in epochs and steps, and its learning rate at each step."""

import dataclasses

from jaxseg.base.config import Optimization
from jaxseg.learn import schedules
from jaxseg.learn.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class Plan:
    """Length of a run in epochs and steps, and its learning rate at each step."""

    epochs: int
    steps: int
    epoch_steps: int
    schedule: Schedule

    def end(self, epoch: int) -> int:
        """Number of steps done at the end of `epoch`, counted from 0."""
        return min((epoch + 1) * self.epoch_steps, self.steps)


def make_plan(o: Optimization, epoch_steps: int) -> Plan:
    """Plans a run with `epoch_steps` steps per epoch. Raises ArgumentError as `schedules.schedule_from` does.

    >>> plan = make_plan(Optimization(steps=5), 2)
    >>> plan.epochs, plan.steps, plan.end(0), plan.end(2)
    (3, 5, 2, 5)
    """
    steps = o.steps or o.epochs * epoch_steps
    epochs = -(-steps // epoch_steps)
    return Plan(epochs, steps, epoch_steps, schedules.schedule_from(dataclasses.replace(o, epochs=epochs), epoch_steps))
