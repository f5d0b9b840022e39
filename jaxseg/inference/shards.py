"""Divides images among processes."""

import os
import re
from collections.abc import Mapping

from jaxseg.base.errors import UserError


def shard_of(text: str | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int, str]:
    """Returns the number of this process from 1, the number of processes, and who said so; (1, 1, "") for one alone.

    - `text`: what --shard says, such as "2/8", or None
    - `environment`: variables that launchers set: Slurm's srun and Open MPI's mpirun

    Raises UserError for a `text` that is no shard.
    """
    if text is not None:
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"--shard is {text}; expected part/parts, such as 2/8, and parts count from 1")
        return int(found[1]), int(found[2]), "--shard"
    launchers = [("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")]
    if "SLURM_STEP_ID" in environment:  # a batch script, which srun did not start, has the other variables too
        launchers.append(("SLURM_PROCID", "SLURM_NTASKS"))
    for rank, size in launchers:
        part, parts = environment.get(rank, ""), environment.get(size, "")
        if part.isdecimal() and parts.isdecimal() and int(part) < int(parts) > 1:
            return int(part) + 1, int(parts), f"{rank} and {size}"
    return 1, 1, ""
