"""Whether Snakemake was started as one of several ranks, how many nodes an allocation holds, and for how long."""

from pathlib import Path

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_dask.node.allocation import allocation_nodes, remaining_s, started_as_rank
from snakemake_executor_plugin_dask.settings import ExecutorSettings

BATCH_STEP = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "6", "SLURM_JOB_NUM_NODES": "3"}


@pytest.mark.parametrize(
    "environment",
    [
        {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0"},
        {"PMI_SIZE": "2", "PMI_RANK": "1"},
        {"MV2_COMM_WORLD_SIZE": "4"},
        BATCH_STEP | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "6", "SLURM_PROCID": "5"},
        BATCH_STEP | {"SLURM_STEPID": "3", "SLURM_STEP_NUM_TASKS": "2"},
    ],
)
def test_rank(environment: dict[str, str]) -> None:
    """Launchers and srun say how many ranks they started."""
    complaint = started_as_rank(environment)
    assert complaint is not None
    assert "snakemake --executor dask --dask-cluster mpi" in complaint
    assert "\n" not in complaint


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH_STEP,
        BATCH_STEP | {"SLURM_STEP_ID": "4294967291", "SLURM_STEP_NUM_TASKS": "6"},
        BATCH_STEP | {"SLURM_STEP_ID": "batch", "SLURM_STEP_NUM_TASKS": "6"},
        BATCH_STEP | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"PMI_SIZE": "many"},
    ],
)
def test_no_rank(environment: dict[str, str]) -> None:
    """A plain process, a batch step with several tasks in its allocation, and a single rank are none of several."""
    assert started_as_rank(environment) is None


def test_nodes_of_the_allocation(tmp_path: Path) -> None:
    """Batch systems name the number of nodes, or a file with their names, one line for each slot."""
    hosts = tmp_path / "hosts"
    hosts.write_text("n1\nn1\nn2\n\n")
    slots = tmp_path / "slots"
    slots.write_text("n1 4 all.q@n1 <NULL>\nn2 4 all.q@n2 <NULL>\nn3 2 all.q@n3 <NULL>\n")
    assert allocation_nodes(BATCH_STEP) == 3
    assert allocation_nodes({"PBS_NODEFILE": str(hosts)}) == 2
    assert allocation_nodes({"PE_HOSTFILE": str(slots)}) == 3
    assert allocation_nodes({"LSB_HOSTS": "a a b"}) == 2
    assert allocation_nodes({"PBS_NODEFILE": str(tmp_path / "none")}) == 1
    assert allocation_nodes({}) == 1


@pytest.mark.parametrize("walltime_s", [None, 600.0])
def test_an_end_that_is_over_is_not_this_allocations(walltime_s: float | None) -> None:
    """A shell may outlive the allocation that it was started in, and its variables."""
    for end in ("1000", "", "soon"):
        assert remaining_s({"SLURM_JOB_END_TIME": end}, 2000.0, walltime_s) == walltime_s
    assert remaining_s({"SLURM_JOB_END_TIME": "5600"}, 2000.0, walltime_s) == 3600.0


def test_a_rank_may_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's rank of a runner that brought the cluster up starts Snakemake; other ranks are Dask's."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert ExecutorSettings(scheduler="tcp://host:8786").scheduler == "tcp://host:8786"
    with pytest.raises(WorkflowError, match="one of 4 ranks"):
        ExecutorSettings()
