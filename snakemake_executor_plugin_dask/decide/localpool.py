"""How the single local pool takes requests that were made for a cluster, as Snakemake's local executor does. Pure."""

from dataclasses import replace

from snakemake_executor_plugin_dask.decide.routing import of_cluster, who
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.pools import Shape
from snakemake_executor_plugin_dask.model.requests import Request, with_cluster
from snakemake_executor_plugin_dask.model.units import count


def adapt_to_local(request: Request, shape: Shape, at_once: int = 0) -> tuple[Request, tuple[str, ...]]:
    """The request as the single local pool takes it, and the kinds of warning that this is worth.

    So a workflow written for a cluster runs as it does with Snakemake's local executor. Memory is never adapted.
    ``at_once`` are the cores of a group's members that must run at once, of which none is capped.
    """
    kinds: list[str] = []
    adapted = request
    if request.cluster is not None:
        adapted, kind = _cluster_here(request, request.cluster, shape)
        kinds += [kind] if kind else []
    if request.pool is not None:
        kinds.append("dask_pool")
        adapted = replace(adapted, pool=None)
    if request.nodes > 1:
        kinds.append("nodes")
        adapted = replace(adapted, nodes=1)
    if shape.cores is not None and adapted.cores > shape.cores and adapted.cluster is None:
        kinds.append("at once" if at_once > shape.cores else "threads")
        adapted = replace(adapted, cores=shape.cores)
    if request.gpus and not shape.gpus:
        kinds.append("gpu")
        adapted = replace(adapted, gpus=0, gpu_model=None)
    return adapted, tuple(kinds)


def _cluster_here(request: Request, cluster: JobCluster, shape: Shape) -> tuple[Request, str]:
    """Capped to the workers that fit beside the script; where none does, one shares the script's cores."""
    cluster = replace(cluster, gpus=cluster.gpus if shape.gpus else 0)  # GPUs that are not counted are no limit
    number = cluster.fitting(shape.amounts)
    if number:
        adapted = with_cluster(request, replace(cluster, workers=number))
        return adapted, "" if number == cluster.workers else "dask_workers"
    if shape.cores is None:
        return request, ""
    shared = replace(cluster, workers=1, cores=min(cluster.cores, shape.cores))
    adapted = with_cluster(request, shared)
    if adapted.cores <= shape.cores:  # it is memory that lacks, which is told as such
        return adapted, "dask_workers" if cluster.workers > 1 else ""
    return replace(adapted, cores=shape.cores), "dask_workers shared"


def local_warning(kind: str, name: str, request: Request, shape: Shape) -> str:
    """The sentence for one kind of `adapt_to_local`, with the rule where it was met first."""
    rule = who(name, request)
    if request.cluster is not None and kind.startswith("dask_workers"):
        adapted = adapt_to_local(request, shape)[0].cluster
        assert adapted is not None
        text = f"{rule} asks for {of_cluster(request.cluster)}"
        if kind == "dask_workers":
            return f"{text}; on the local worker it gets {count(adapted.workers, 'Dask worker')}."
        return (
            f"{text}; on the local worker it gets 1 Dask worker with {count(adapted.cores, 'thread')}, which shares "
            "the script's cores."
        )
    return {
        "dask_pool": f"{rule} names the pool {request.pool}, which is ignored: the local pool is the only one.",
        "nodes": f"{rule} asks for {request.nodes} nodes, which count as 1 on the local pool.",
        "threads": f"{rule} asks for {count(request.cores, 'core')}; jobs are capped to the local worker's"
        f" {shape.cores}.",
        "at once": f"{rule} joins jobs by pipes or services that must run at once, with"
        f" {count(request.cores, 'core')}; they share the local worker's {shape.cores}.",
        "gpu": f"{rule} asks for {count(request.gpus, 'GPU')}; GPUs are not counted on the local pool, and jobs share"
        " what CUDA_VISIBLE_DEVICES shows, unless --dask-worker-gpus is given.",
    }[kind]
