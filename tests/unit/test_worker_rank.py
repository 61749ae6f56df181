"""A worker's rank, by which it is named and shares its node."""

from snakemake_executor_plugin_dask.worker.rank import Rank, rank_of

BATCH_STEP = {
    "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "6",
    "SLURM_NPROCS": "6", "SLURM_TASKS_PER_NODE": "2(x3)",
}  # fmt: skip
STEP = BATCH_STEP | {
    "SLURM_STEP_ID": "1", "SLURM_STEPID": "1", "SLURM_PROCID": "4", "SLURM_NODEID": "2", "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}  # fmt: skip


def test_plain_process_is_no_rank() -> None:
    """Without a launcher's variables there is nothing to say."""
    assert rank_of({"PATH": "/bin"}) is None


def test_open_mpi() -> None:
    """Open MPI tells rank, size and how many share the node."""
    environ = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"}
    assert rank_of(environ) == Rank(2, 3, 3)


def test_hydra() -> None:
    """MPICH and Intel MPI use the variables of their process manager."""
    assert rank_of({"PMI_RANK": "0", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"}) == Rank(0, 4, 2)


def test_batch_step_is_no_rank() -> None:
    """A batch script with several tasks runs once."""
    assert rank_of(BATCH_STEP) is None


def test_step_is_a_rank() -> None:
    """`srun` counts the tasks of each node."""
    assert rank_of(STEP) == Rank(4, 5, 1)
    assert rank_of(STEP | {"SLURM_NODEID": "1"}) == Rank(4, 5, 2)
