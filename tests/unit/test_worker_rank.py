"""A worker's rank, by which it is named and shares its node."""

from snakemake_executor_plugin_dask.node.rank import Rank, rank_of, share_of_node, worker_name

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


def test_workers_are_named_after_their_rank() -> None:
    """A worker that was started again has another name; one that no launcher started keeps its own."""
    environ = {"OMPI_COMM_WORLD_RANK": "2", "SNAKEMAKE_DASK_RESTARTS": "0"}
    assert worker_name("mpi-0", environ) == "mpi-0-2"
    assert worker_name("mpi-0", environ | {"SNAKEMAKE_DASK_RESTARTS": "1"}) == "mpi-0-2-again1"
    assert worker_name("cpu-4", STEP) == "cpu-4"


def test_a_node_is_shared() -> None:
    """Three ranks on a laptop have a third each; Slurm's grant is in mebibytes."""
    ranks = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"}
    assert share_of_node(ranks | {"SNAKEMAKE_DASK_RESTARTS": "0"}, 8, 24000) == (2, 8000)
    assert share_of_node(ranks | {"SNAKEMAKE_DASK_RESTARTS": "0"}, 2, 24000) == (1, 8000)
    assert share_of_node({}, 8, 24000) == (8, 24000)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_CPU": "500"}
    assert share_of_node(slurm, 64, 256000) == (4, 2097)
    assert share_of_node(slurm | {"SLURM_MEM_PER_NODE": "1000"}, 2, 256000) == (2, 1048)
