"""This worker's rank where a launcher started it with others, by its environment alone. Pure, standard library only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from snakemake_executor_plugin_dask.node.allocation import SLURM_SPECIAL_STEPS

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
    for number, size, on_node in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
    ):
        if number in environ:
            return Rank(_int(environ, number, 0), _int(environ, size, 1), _int(environ, on_node, 1))
    step = _int(environ, "SLURM_STEP_ID", SLURM_SPECIAL_STEPS)
    # A batch step has SLURM_PROCID and SLURM_NTASKS too, and is one process.
    if "SLURM_PROCID" in environ and step < SLURM_SPECIAL_STEPS:
        tasks = _int(environ, "SLURM_STEP_NUM_TASKS", 1)
        return Rank(_int(environ, "SLURM_PROCID", 0), tasks, _slurm_tasks_here(environ))
    if "PMIX_RANK" in environ:
        return Rank(_int(environ, "PMIX_RANK", 0), 1, 1)
    return None


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

    A step of Slurm has what the allocation holds there, which nothing enforces on a cluster without cgroups. Workers
    that a launcher put on the same node share it evenly.
    """
    if "SLURM_JOB_ID" in environ:
        granted = _int(environ, "SLURM_CPUS_ON_NODE", cores)
        per_cpu, per_node = _int(environ, "SLURM_MEM_PER_CPU", 0), _int(environ, "SLURM_MEM_PER_NODE", 0)
        mebibytes = per_node or per_cpu * granted
        cores = min(cores, granted)
        if mebibytes:
            memory_mb = min(memory_mb, mebibytes * 2**20 // 10**6)
    rank = rank_of(environ) if RESTARTS in environ else None
    sharers = 1 if rank is None else rank.on_node
    return max(1, cores // sharers), memory_mb // sharers


def _slurm_tasks_here(environ: Mapping[str, str]) -> int:
    """This node's entry in ``SLURM_STEP_TASKS_PER_NODE``, as in ``2(x3),1``."""
    counts: list[int] = []
    for count, repeated in re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(repeated or 1)
    node = _int(environ, "SLURM_NODEID", 0)
    return counts[node] if node < len(counts) else 1


def _int(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else default
