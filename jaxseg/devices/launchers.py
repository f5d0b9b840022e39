"""Launchers of several processes, as their variables show them to each: Open MPI, Slurm and Kubernetes.

JAX finds the processes of a run by the same variables. What differs here is which GPUs a process takes.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

Environment = Mapping[str, str]


class Launched(NamedTuple):
    """A launcher and this process's place.

    - `launcher`: name of the launcher
    - `variable`: variable that gave it away
    - `number`: number of this process, from 0
    - `count`: number of processes; None where the environment does not say
    - `local`: number of this process among those of its machine; None where it has a machine, or a pod, to itself
    """

    launcher: str
    variable: str
    number: int
    count: int | None
    local: int | None


def launched(environment: Environment = os.environ) -> Launched | None:
    """Returns who started this process as one of several; None for a process by itself.

    - `environment`: variables that launchers set

    A batch script has Slurm's variables too, but is not started by srun. Pods of an Indexed Job or a JobSet are
    numbered.

    >>> launched({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "2"}).number
    2
    """

    def number(name: str) -> int | None:
        text = environment.get(name, "")
        return int(text) if text.isdecimal() else None

    if (number("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        alone = number("OMPI_COMM_WORLD_LOCAL_SIZE") == 1
        name, place = "Open MPI", ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    elif "SLURM_STEP_ID" in environment and (number("SLURM_NTASKS") or 1) > 1:
        alone = number("SLURM_STEP_NUM_NODES") == number("SLURM_NTASKS")
        name, place = "Slurm", ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    elif "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        alone = True
        name, place = "Kubernetes", ("JOB_COMPLETION_INDEX", "", "")
    else:
        return None
    rank, size, local = place
    return Launched(name, size or rank, number(rank) or 0, number(size), None if alone else number(local))


def own_gpus(environment: Environment = os.environ) -> list[int]:
    """Returns the number of the GPU that this process takes, counted among those that it sees; [] for all of them.

    - `environment`: variables that launchers set; JAX_LOCAL_DEVICE_IDS is respected

    A process that has a machine to itself takes all GPUs. Several on a machine take one each, in their order, as in
    JAX, unless the launcher shows to each its own.

    >>> own_gpus({"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "3"})
    [3]
    """
    if given := environment.get("JAX_LOCAL_DEVICE_IDS"):
        return [int(number) for number in given.split(",")]
    this = launched(environment)
    if this is None or this.local is None or "SLURM_GPUS_PER_TASK" in environment:
        return []
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    return [] if shown is not None and this.local >= len(shown.split(",")) else [this.local]
