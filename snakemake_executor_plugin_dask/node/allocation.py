"""What the environment says of the allocation that a process runs in, by any batch system. Reads host files.

Also whether Snakemake was started as one of several ranks: settings are made before Snakemake locks the workflow, so a
rank that notices leaves no lock behind.
"""

import os
from collections.abc import Mapping

from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS, BatchSystem, named, slurm_steps

#: Where launchers say how many ranks they started; MPICH's and Intel's say it in PMI_SIZE.
_SIZES = (
    ("OMPI_COMM_WORLD_SIZE", "Open MPI's launcher"),
    ("MV2_COMM_WORLD_SIZE", "MVAPICH's launcher"),
    ("PMI_SIZE", "an MPI launcher"),
)
#: Of managers that can start no workers here.
_OTHER_ALLOCATIONS = ("FLUX_JOB_ID", "COBALT_JOBID")

_VARIABLES = tuple(system.variables for system in SYSTEMS.values())
_NODE_LISTS = {each.node_list: each.parse_node_list for each in _VARIABLES if each.node_list}
#: What says which allocation it is.
IDS = tuple(each.id for each in _VARIABLES if each.id)
#: This node, as the batch system's commands call it.
NODE_NAMES = tuple(each.node for each in _VARIABLES if each.node)


def started_as_rank(environment: Mapping[str, str]) -> str | None:
    """The complaint where this process is one of several ranks of an MPI launcher or of `srun`, else None.

    A batch script is no rank, whatever `SLURM_NTASKS` says: that is what the allocation holds.
    """
    for variable, launcher in _SIZES:
        if (size := slurm_steps.number(environment, variable, 0)) > 1:
            return _complaint(size, launcher)
    task = slurm_steps.task(environment)
    return _complaint(task[1], "srun") if task is not None and task[1] > 1 else None


def batch_system(environment: Mapping[str, str]) -> BatchSystem | None:
    """The batch system in whose allocation a process with this environment runs."""
    return next((system for system in SYSTEMS.values() if system.variables.inside(environment)), None)


def allocation_id(environment: Mapping[str, str]) -> str | None:
    """As the batch system's commands take it."""
    return next((found for each in _VARIABLES if (found := environment.get(each.id))), None)


def end_time(environment: Mapping[str, str]) -> float | None:
    """When the allocation ends, in seconds since the epoch; None where nothing says it."""
    told = (environment.get(each.end, "") for each in _VARIABLES if each.end)
    return next((float(text) for text in told if text.isdecimal()), None)


def remaining_s(environment: Mapping[str, str], now: float, otherwise_s: float | None) -> float | None:
    """How long the allocation lasts from a time since the epoch, or ``otherwise_s`` where nothing says when it ends.

    An end that is over is that of another allocation, in which a shell was started that outlived it.
    """
    end = end_time(environment)
    return end - now if end is not None and end > now else otherwise_s


def host_name(environment: Mapping[str, str]) -> str:
    """This host, as the batch system's commands call it."""
    return next(filter(None, map(environment.get, NODE_NAMES)), os.uname().nodename)


def allocation_hosts(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The hosts of the allocation, each once, in the batch system's own order; empty where nothing names them."""
    for name in named("node_files"):
        if path := environment.get(name):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    text = file.read()
            except OSError:
                continue
            if hosts := tuple(dict.fromkeys(line.split()[0] for line in text.splitlines() if line.strip())):
                return hosts
    return next((parse(told) for name, parse in _NODE_LISTS.items() if (told := environment.get(name))), ())


def allocation_nodes(environment: Mapping[str, str]) -> int:
    """How many nodes the allocation holds that this process runs in; 1 outside one, or where nothing says it."""
    counts = (slurm_steps.number(environment, name, 0) for name in named("node_counts"))
    return next(filter(None, counts), None) or max(1, len(allocation_hosts(environment)))


def in_allocation(environment: Mapping[str, str]) -> bool:
    """Whether a batch system says anything of an allocation that this process runs in, and that may have many nodes."""
    names = (*named("node_counts"), *named("node_files"), *_NODE_LISTS, *_OTHER_ALLOCATIONS)
    ids = (name for system in SYSTEMS.values() if system.several_nodes for name in system.variables.ids)
    return any(environment.get(name) for name in (*names, *ids))


def _complaint(size: int, launcher: str) -> str:
    return (
        f"Snakemake was started as one of {size} ranks by {launcher}, and each would run the whole workflow: "
        "start it once, without a launcher, as in `snakemake --executor dask --dask-cluster mpi --jobs 5000`; "
        "it then starts one worker on each node of the allocation by itself."
    )
