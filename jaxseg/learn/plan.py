"""How long a run is, in epochs and steps, and its learning rate at each of them."""

import dataclasses

from jaxseg.base.config import Optimization
from jaxseg.learn import schedules
from jaxseg.learn.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a run is, in epochs and steps, and the learning rate at each step."""

    epochs: int
    steps: int
    epoch_steps: int
    schedule: Schedule

    def end(self, epoch: int) -> int:
        """Steps that are done when `epoch` (from 0) is over."""
        return min((epoch + 1) * self.epoch_steps, self.steps)


def make_plan(o: Optimization, epoch_steps: int) -> Plan:
    """The plan for so many steps an epoch."""
    steps = o.steps or o.epochs * epoch_steps
    epochs = -(-steps // epoch_steps)
    return Plan(epochs, steps, epoch_steps, schedules.schedule_from(dataclasses.replace(o, epochs=epochs), epoch_steps))
