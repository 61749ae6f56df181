"""What a job takes of a pool's workers, and how much of an allocation's life. Pure."""

from dataclasses import replace

from snakemake_executor_plugin_dask.decide.routing import nodes_needed, places
from snakemake_executor_plugin_dask.model.amounts import Amounts
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.pools import Pool, Shape
from snakemake_executor_plugin_dask.model.requests import Request, cores_on_node, memory_mb_on_node


@dataclass(frozen=True, slots=True)
class Gang:
    """What a job with a Dask cluster takes, wherever its parts lie. Without mem_mb their memory is a share."""

    workers: int
    each: Amounts
    script: Amounts  # with the scheduler; and what the job holds once


@dataclass(frozen=True, slots=True)
class Need:
    """What a job takes of each worker it runs on.

    Without ``mem_mb`` a job takes its cores' share of a worker's memory, which follows from that worker:
    ``WorkerState.part`` says what it takes there.
    """

    workers: int  # so many at once; more than 1 only in an mpi pool
    nodes: int  # of the worker; more than 1 only in a wide one
    node: Amounts  # on each node
    takes: Amounts  # of the worker: of a wide one whole nodes, whatever the job uses of them
    shares_memory: bool  # no memory is declared
    #: Of a job whose Dask cluster may lie on several workers. ``node`` and ``takes`` are then the least of a part.
    gang: Gang | None = None
    #: Of a job whose Dask cluster has whole nodes of a wide worker: how many Dask workers on each, the script's first.
    dask_workers: tuple[int, ...] = ()


def need_of(request: Request, pool: Pool, shape: Shape) -> Need:
    """What the request takes of the pool's workers, where these have this shape."""
    nodes = nodes_needed(request, pool, shape)
    listed = dict(pool.resources)
    extra = tuple((name, amount) for name, amount in request.extra if name in listed)
    declared_mb = memory_mb_on_node(request, nodes)
    node = Amounts(cores_on_node(request, nodes), declared_mb or 0, -(-request.gpus // nodes))
    if request.cluster is not None and places(pool, request.cluster) > 1:
        script = replace(request.cluster.script, coreless=int(not request.cluster.script_cores), extra=extra)
        gang = Gang(request.cluster.workers, request.cluster.each, script)
        least = gang.each.least(gang.script)
        return Need(1, 1, least, least, declared_mb is None, gang)
    if request.cluster is not None and pool.nodes is not None:
        return _need_of_nodes(request.cluster, pool.nodes, shape, extra)
    wide = pool.nodes is not None
    return Need(
        workers=1 if wide else nodes,
        nodes=nodes if wide else 1,
        node=node,
        takes=Amounts(nodes=nodes, extra=extra) if wide else replace(node, coreless=int(not node.cores), extra=extra),
        shares_memory=declared_mb is None,
    )


def _need_of_nodes(cluster: JobCluster, most: int, node: Shape, extra: tuple[tuple[str, int], ...]) -> Need:
    """Of a job whose Dask cluster has whole nodes, at most so many, of a wide worker."""
    numbers = cluster.over(node.amounts, most) or (cluster.workers,)  # those of a node that no worker has
    on_script, others = cluster.each * numbers[0] + cluster.script, cluster.each * max(numbers[1:], default=0)
    largest = Amounts(
        max(on_script.cores, others.cores),
        max(on_script.memory_mb, others.memory_mb),
        max(on_script.gpus, others.gpus),
    )
    takes = Amounts(nodes=len(numbers), extra=extra)
    return Need(1, len(numbers), largest, takes, cluster.memory_mb is None, dask_workers=numbers)


def planned_runtime_s(request: Request, pool: Pool) -> float | None:
    """How long a job is taken to run: its runtime, else the pool's default, else half the walltime; None: not known."""
    if request.runtime_s is not None:
        return request.runtime_s
    if pool.default_runtime_s is not None:
        return pool.default_runtime_s
    return None if pool.walltime_s is None else pool.walltime_s / 2


def needs_fresh(request: Request, pool: Pool) -> bool:
    """Whether only a new allocation can run this: its runtime is within the walltime but not beside the margin."""
    return (
        pool.kind.queued
        and request.runtime_s is not None
        and pool.walltime_s is not None
        and request.runtime_s > pool.walltime_s - pool.effective_margin_s
    )
