"""Launchers are told by their variables, as JAX tells them, and each process takes its GPUs."""

import sys
from unittest import mock

import jax
import pytest
from jax._src.clusters import ClusterEnv

from jaxseg.base import extra
from jaxseg.base.config import Machine
from jaxseg.base.errors import UserError
from jaxseg.devices import processes
from jaxseg.devices.launchers import launched, own_gpus

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_PROCID": "6", "SLURM_LOCALID": "2"}
SLURM |= {"SLURM_STEP_NODELIST": "node[01-02]", "SLURM_STEP_NUM_NODES": "2"}
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPI |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
PODS = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SLURM | {"SLURM_NTASKS": "1"},
        {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"},  # a batch script
        MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a pod of its own
    ],
)
def test_a_process_by_itself_is_known(environment):
    assert launched(environment) is None
    assert own_gpus(environment) == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SLURM, ("Slurm", "SLURM_NTASKS", 6, 8, 2)),
        (MPI, ("Open MPI", "OMPI_COMM_WORLD_SIZE", 3, 4, 1)),
        (PODS, ("Kubernetes", "JOB_COMPLETION_INDEX", 1, None, None)),
    ],
)
def test_jax_finds_the_process_that_is_found_here(environment, expected, monkeypatch):
    assert launched(environment) == expected
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "kubernetes", mock.MagicMock())
    (found,) = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method and kind.is_env_present()]
    assert found.get_process_id() == expected[2]
    assert expected[3] is None or expected[3] == found.get_process_count()
    assert expected[4] == found.get_local_process_id()


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        (SLURM, [2]),
        (SLURM | {"SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}, []),  # one process a machine
        (SLURM | {"SLURM_GPUS_PER_TASK": "2"}, []),  # Slurm shows each its own
        (SLURM | {"CUDA_VISIBLE_DEVICES": "5"}, []),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [2]),
        (SLURM | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, [0, 1]),
        (MPI, [1]),
        (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, []),
        (PODS, []),
    ],
)
def test_a_process_takes_its_own_gpu_or_all_of_its_machine(environment, gpus):
    assert own_gpus(environment) == gpus


@pytest.fixture
def untouched(monkeypatch):
    """Settings that JAX would get."""
    given = {}
    monkeypatch.setattr(processes.jax.config, "update", given.__setitem__)
    return given


def test_processes_that_share_no_batch_take_their_own_gpus(untouched):
    processes.start_alone(None, SLURM)
    assert untouched == {"jax_cuda_visible_devices": "2", "jax_rocm_visible_devices": "2"}


def test_processes_that_do_not_find_each_other_say_how_to_run_alone(untouched, monkeypatch):
    asked = {}

    def refuse(*_, **how):
        asked.update(how)
        raise ValueError("no such host")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match=r"no such host\nFor runs of one process each, .* Slurm, unset SLURM_NTASKS"):
        processes.start(Machine(), SLURM | {"SLURM_NTASKS": "2"})
    assert asked["local_device_ids"] == [], "all GPUs of the machine; JAX alone would take the first"
    with pytest.raises(UserError, match=r"do not find each other: no such host$"):
        processes.start(Machine(None, "here:1", 2, 0), {})


def test_pods_need_the_package_that_asks_kubernetes(untouched, monkeypatch):
    monkeypatch.setattr(extra, "is_there", lambda name: False)
    with pytest.raises(UserError, match=r"JOB_COMPLETION_INDEX is set.*needs kubernetes: pip install 'jaxseg\[k8s\]'"):
        processes.start(Machine(), PODS)
