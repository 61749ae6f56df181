"""Jobs, pools and workers for the tests of pure decisions; no process, no clock."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from snakemake_executor_plugin_dask.decide.ledger import Holding, Ledger, WorkerState
from snakemake_executor_plugin_dask.decide.waiting import Waiting
from snakemake_executor_plugin_dask.model.jobs import JobSpec, WorkerFacts
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request

UUIDS = tuple(f"GPU-0{number}ab12cd-1111-2222-3333-444455556666" for number in range(4))
MIG = tuple(f"MIG-{number}e3c5d1a-aaaa-bbbb-cccc-ddddeeeeffff" for number in range(4))

_numbers = itertools.count()


def a_job(key: str = "", *, rule: str = "rule", priority: int = 0, **request: Any) -> QueuedJob:
    """A job with one core, unless ``request`` says otherwise."""
    spec = JobSpec(key or f"job-{next(_numbers)}", rule, "1", 1, (), 1, "/log")
    return QueuedJob.of(spec, Request(**({"cores": 1} | request)), priority)


def a_pool(name: str = "pool", cluster: str = "slurm", **values: Any) -> Pool:
    """An elastic pool of up to four two-core workers, unless ``values`` say otherwise."""
    defaults: dict[str, Any] = {"workers_min": 0, "workers_max": 4, "cores": 2, "memory_mb": 8000}
    return Pool(name, cluster, **(defaults | values))


def facts_of(pool: Pool, name: str = "w", **values: Any) -> WorkerFacts:
    """What a worker of this pool's declared size tells when it joins."""
    defaults: dict[str, Any] = {
        "host": f"host-{name}",
        "pid": 1,
        "supervisor_pid": 2,
        "cores": pool.cores,
        "memory_mb": pool.memory_mb,
        "devices": UUIDS[: pool.gpus or 0],
        "remaining_s": pool.walltime_s,
        "hosts": tuple(f"{name}-n{number}" for number in range(pool.nodes)) if pool.nodes else (),
    }
    return WorkerFacts(name, **(defaults | values))


def a_ledger(pool: Pool, *names: str, now: float = 0.0, **values: Any) -> Ledger:
    """A ledger with workers of this pool."""
    ledger = Ledger()
    for name in names:
        ledger.add_worker(name, pool, facts_of(pool, name, **values), now)
    return ledger


def worker(ledger: Ledger, name: str) -> WorkerState:
    """What a worker has, and what is free of it."""
    return ledger.state(name)


def fits(ledger: Ledger, name: str, request: Request, now: float, *, fresh: bool = False) -> bool:
    """Whether this worker can take the request (of a job on several workers: its part) now."""
    state = worker(ledger, name)
    need = ledger.need(request, state.pool)
    return not state.draining and state.has_room(need) and state.lives(request, now, fresh=fresh)


def hold(
    ledger: Ledger, key: str, names: Sequence[str], request: Request, now: float, *, fresh: bool = False
) -> Holding:
    """Hold what the request needs on these workers, where it fits."""
    assert all(fits(ledger, name, request, now, fresh=fresh) for name in names)
    states = [worker(ledger, name) for name in names]
    need = ledger.need(request, states[0].pool)
    assert len(names) == need.workers
    return ledger.hold(key, states, request, need, now)


def waiting_for(pool: Pool, jobs: Iterable[QueuedJob], now: float = 0.0, *, fresh: bool = False) -> Waiting:
    """These jobs, waiting for this pool."""
    waiting = Waiting()
    for job in jobs:
        waiting.add(job, pool, now, fresh=fresh)
    return waiting
