"""What a rule can declare instead, so that its job fits: by the resources that its numbers came from. Pure.

Each function gives settings as `--set-resources` takes them behind the rule's name (`mem_mb=1000`), or `threads=4`;
none where no smaller number would help. ``room`` is what a job may have: so many nodes, and on each of them so much.
"""

from snakemake_executor_plugin_dask.model.pools import Shape
from snakemake_executor_plugin_dask.model.requests import Request, cores_on_node

Settings = tuple[str, ...]


def cores(request: Request, room: Shape) -> Settings:
    """Fewer cores, together with fewer GPUs where these are too many."""
    origin, most = request.origin, room.cores
    if most is None:
        return ()
    if (cluster := request.cluster) is not None:
        number = most - cluster.script_cores
        return _dask_workers(request, room) or ((f"{origin.cores}={number}",) if number > 0 else ())
    gpus_left = request.gpus if room.gpus is None else min(request.gpus, room.gpus * room.nodes)
    if origin.cores == "cpus_per_gpu":
        number = most * room.nodes // max(1, gpus_left)
        return (f"cpus_per_gpu={number}",) if number else ()
    if origin.times is None:
        return (f"{origin.cores}={most * room.nodes}",)
    per_task = max(1, request.cores // origin.tasks)
    on_node = -(-origin.tasks // room.nodes)
    if per_task <= most:
        per_node = most // per_task
    elif on_node <= most:
        return (f"{origin.cores}={most // on_node}",)
    else:  # too many tasks, and each of them too large
        per_node = most
    smaller = () if per_task <= most else (f"{origin.cores}=1",)
    if origin.times == "tasks_per_node":
        return (*smaller, f"tasks_per_node={per_node}")
    if origin.times == "tasks_per_gpu":
        number = per_node * room.nodes // max(1, gpus_left)
        return (*smaller, f"tasks_per_gpu={number}") if number else ()
    return (*smaller, f"tasks={per_node * room.nodes}")


def memory(request: Request, room: Shape) -> Settings:
    """Less memory, on each node; where it is declared for each core, beside what `cores` leaves of these."""
    if room.memory_mb is None:
        return ()
    if (cluster := request.cluster) is not None:
        if fewer := _dask_workers(request, room):
            return fewer
        own = cluster.memory_mb == cluster.script_memory_mb
        number = room.memory_mb // 2 if own else room.memory_mb - (cluster.script_memory_mb or 0)
        return (f"mem_mb={number}",) if number > 0 else ()
    if request.mb_per_cpu is None:
        return (f"mem_mb={room.memory_mb}",)
    held = cores_on_node(request, room.nodes)
    if room.cores is not None:
        held = min(held, room.cores)
    number = room.memory_mb // max(1, held)
    return (f"mem_mb_per_cpu={number}",) if number else ()


def gpus(request: Request, room: Shape) -> Settings:
    """Fewer GPUs, in each of the places that say how many."""
    if not room.gpus:
        return ()
    if request.cluster is not None:
        return _dask_workers(request, room)
    most = room.gpus * room.nodes
    declared = request.origin.gpus or (("gpu={}", 1),)
    if any(most < unit for _, unit in declared):
        return ()
    return tuple(template.replace("{}", str(most // unit)) for template, unit in declared)


def _dask_workers(request: Request, room: Shape) -> Settings:
    """As many workers of a job's own Dask cluster as fit; nothing where none does."""
    assert request.cluster is not None
    number = request.cluster.fitting(room.amounts)
    return (f"dask_workers={number}",) if number else ()
