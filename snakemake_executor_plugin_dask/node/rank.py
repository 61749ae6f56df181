"""This worker's rank where a launcher started it with others, by its environment alone. Pure, standard library only."""

from collections.abc import Mapping

from snakemake_executor_plugin_dask.model.batch_systems import slurm_steps
from snakemake_executor_plugin_dask.model.batch_systems.slurm_steps import number
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.node.allocation import batch_system

#: Set by the keeper of a worker that a launcher started (see backends/mpi.py): how often it was started again.
RESTARTS = "SNAKEMAKE_DASK_RESTARTS"


@dataclass(frozen=True, slots=True)
class Rank:
    """One of ``size`` processes, ``on_node`` of them on this node."""

    number: int
    size: int
    on_node: int


def rank_of(environ: Mapping[str, str]) -> Rank | None:
    """This process's rank; None where no launcher started it. The innermost launcher that can be told apart wins."""
    for rank, size, on_node in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
    ):
        if rank in environ:
            return Rank(number(environ, rank, 0), number(environ, size, 1), number(environ, on_node, 1))
    if (task := slurm_steps.task(environ)) is not None:
        return Rank(*task)
    return Rank(number(environ, "PMIX_RANK", 0), 1, 1) if "PMIX_RANK" in environ else None


def worker_name(name: str, environ: Mapping[str, str]) -> str:
    """``<name>-<rank>`` of a worker that a launcher started, with ``-again1`` and so on when it was started again.

    Other workers have their name in full: a batch script may run inside of a launcher's environment too.
    """
    if RESTARTS not in environ:
        return name
    rank = rank_of(environ)
    again = environ[RESTARTS]
    return f"{name}-{0 if rank is None else rank.number}" + ("" if again == "0" else f"-again{again}")


def share_of_node(environ: Mapping[str, str], cores: int, memory_mb: int) -> tuple[int, int]:
    """What a worker has of a node with so many cores and so much memory (10^6 bytes).

    It has what the allocation holds there, where the batch system says it; nothing enforces that on a cluster without
    cgroups. Workers that a launcher put on the same node share it evenly.
    """
    system = batch_system(environ)
    if system is not None and system.granted is not None:
        granted, mebibytes = system.granted(environ, cores)
        cores = min(cores, granted)
        if mebibytes:
            memory_mb = min(memory_mb, mebibytes * 2**20 // 10**6)
    rank = rank_of(environ) if RESTARTS in environ else None
    sharers = 1 if rank is None else rank.on_node
    return max(1, cores // sharers), memory_mb // sharers
