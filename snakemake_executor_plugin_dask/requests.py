"""What a job needs while it runs, from the resources that its rule declares. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """A job's request. ``cores`` and ``gpus`` are totals over its nodes, ``memory_mb`` is for each node.

    ``None`` for memory or runtime means that the rule did not declare it.
    """

    cores: int
    memory_mb: int | None = None  # 10^6 bytes, as Snakemake means mem_mb
    runtime_s: float | None = None
    gpus: int = 0
    gpu_model: str | None = None
    nodes: int = 1
    mpi: bool = False
    extra: tuple[tuple[str, int], ...] = ()  # every other integer resource, sorted by name
    pool: str | None = None  # dask_pool
    #: slurm_partition, slurm_account, constraint, qos, slurm_extra, gres, clusters, nodes: what a pool made for Slurm
    #: resources is made from; sorted, GPUs taken out. None: the rule declares none of them.
    slurm: tuple[tuple[str, str], ...] | None = None
