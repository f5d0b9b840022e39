"""Divides images among processes."""

import os
import re

from jaxseg.base.errors import UserError
from jaxseg.devices.launchers import Environment, launched


def shard_of(text: str | None, environment: Environment = os.environ) -> tuple[int, int, str]:
    """Returns the number of this process from 1, the number of processes, and who said so; (1, 1, "") for one alone.

    - `text`: what --shard says, such as "2/8", or None
    - `environment`: variables that launchers set: Slurm's srun and Open MPI's mpirun

    Raises UserError for a `text` that is no shard. In Kubernetes no variable has the number of processes.
    """
    if text is not None:
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"--shard is {text}; expected part/parts, such as 2/8, and parts count from 1")
        return int(found[1]), int(found[2]), "--shard"
    this = launched(environment)
    if this is None or this.count is None:
        return 1, 1, ""
    return this.number + 1, this.count, this.launcher
