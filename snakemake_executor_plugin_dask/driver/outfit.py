"""What an attempt takes along: its job as it travels, with all that placement decided. Writes host files."""

import dataclasses

from snakemake_executor_plugin_dask.decide.ledger import END_BEFORE_S, Holding
from snakemake_executor_plugin_dask.driver.members import Member
from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobs import JobSpec, RunSetup, Size
from snakemake_executor_plugin_dask.model.requests import Request


@dataclass(frozen=True, slots=True)
class Limit:
    """How long an attempt may run."""

    limit_s: float | None
    by_allocation: bool = False  # it is the worker's end, and not what the rule asks for
    #: Seconds until then, where a rule asks for more and its worker can have no longer one.
    own_end_s: float | None = None


def runtime_limit(request: Request, holding: Holding, member: Member, now: float, *, enforce: bool) -> Limit:
    """The limit of an attempt that starts now. ``enforce``: whether the rule's own runtime ends it."""
    runtime_s = request.runtime_s if enforce else None
    limits = [limit for limit in (runtime_s, holding.limit_s) if limit is not None]
    pool, own_end_s = member.pool, None
    life_s = None if member.facts is None else member.facts.remaining_s
    if life_s is not None and (runtime_s is None or pool.kind.beside_snakemake):
        # Nothing else ends it: do so while its end can still be told apart from a lost worker.
        remaining_s = life_s - (now - member.since)
        # Less than the margin, which placement left beside the job: of a short allocation not its last 30 s.
        limits.append(max(1.0, remaining_s - min(END_BEFORE_S, pool.effective_margin_s / 2)))
        if runtime_s is not None and limits[-1] < runtime_s:
            own_end_s = remaining_s
    limit_s = min(limits, default=None)
    return Limit(limit_s, limit_s is not None and limit_s != runtime_s, own_end_s)


def outfit(
    spec: JobSpec, number: int, request: Request, holding: Holding, member: Member, setup: RunSetup, state_dir: str
) -> JobSpec:
    """The ``number``-th attempt at a job as its worker gets it, but for the limit of its runtime. Raises OSError."""
    environment: list[tuple[str, str | None]] = []
    affinity: tuple[int, ...] = ()
    if member.name in holding.devices:
        from snakemake_executor_plugin_dask.node.devices import cores_for, device_environment

        devices = holding.devices[member.name]
        environment += device_environment(devices, member.pool.gpu_vendor)
        if member.facts is not None and devices:
            near = dict(zip(member.facts.devices, member.facts.near, strict=False))
            affinity = cores_for(devices, near, holding.cores_by_worker.get(member.name, 0))
    # Without a shared file system a host file would not be found, and launchers use the node they are called on.
    if (len(holding.hosts) > 1 or request.mpi or request.nodes > 1) and setup.scratch is None:
        from snakemake_executor_plugin_dask.backends.mpi import job_environment

        found = member.facts if member.pool.kind.found else None
        system = SYSTEMS.get(found.batch_system or "") if found is not None else None
        environment += job_environment(holding, member.pool, request.tasks, state_dir, system=system)
    return dataclasses.replace(
        spec,
        key=f"{spec.key.rpartition('.')[0]}.{number}",
        log_path=spec.log_path if number == 1 else f"{spec.log_path}.{number}",
        # Of a job that spreads, its part on a node.
        memory_limit_mb=holding.memory_mb if setup.enforce_memory and request.memory_mb is not None else None,
        environment=tuple(environment),
        size=None if member.pool.kind.here else _size(holding, request, member.name),
        affinity=affinity,
    )


def _size(holding: Holding, request: Request, worker: str) -> Size:
    """What a job holds, as seen from its first worker. An MPI job without `tasks` has a rank for each core."""
    cores = sum(holding.cores_by_worker[name] for name in holding.workers)
    mpi = request.mpi or request.nodes > 1 or len(holding.hosts) > 1
    tasks = request.tasks or (cores if mpi else None)
    here = holding.cores_by_worker[worker] if len(holding.workers) > 1 else cores // max(1, len(holding.hosts))
    return Size(
        cores=max(1, here),
        tasks=tasks,
        cores_per_task=max(1, cores // (tasks or 1)),
        memory_mb=holding.memory_mb,
        devices=len(holding.devices[worker]) if worker in holding.devices else None,
    )
