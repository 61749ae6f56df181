"""The picture of a run at one moment: pools, workers, and what jobs wait for. Pure; from a `RunModel`."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.messages import Blocker
from snakemake_executor_plugin_dask.model.units import count
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.records import Allocation, Attempt, OthersHeld, Worker
from snakemake_executor_plugin_dask.observe.wording import about, amount


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker that is there. ``running`` are (rule, jobs); a rule's own Dask workers there stand behind its name."""

    name: str
    pool: str
    host: str
    cores: int
    cores_free: int
    memory_mb: int
    memory_free_mb: int
    gpus: int
    gpus_free: int
    allocation: str = ""  # the batch system's identifier
    running: tuple[tuple[str, int], ...] = ()
    others: int = 0  # jobs of other runs that use the cluster
    ends_in_s: float | None = None
    cores_used: float | None = None  # at work now in its jobs; None: nothing was measured
    memory_used_mb: float | None = None  # 10^6 bytes, held by its jobs now


@dataclass(frozen=True, slots=True)
class PoolState:
    """One pool. ``queued`` allocations wait; ``starting`` ones run, and their worker has not joined."""

    name: str
    cluster: str = ""
    workers: int = 0
    workers_max: int | None = None
    cores: int = 0
    memory_mb: int = 0
    gpus: int = 0
    queued: int = 0
    queued_since: float | None = None  # seconds since the epoch
    queue_reason: str = ""
    expected: float | None = None  # when the first of them is likely to start, in seconds since the epoch
    starting: int = 0
    lost: int = 0
    running: int = 0
    waiting: int = 0
    given_up: str = ""
    came: bool = False  # a worker of it was there once


@dataclass(frozen=True, slots=True)
class WaitingState:
    """Jobs of one pool that wait for the same thing."""

    pool: str
    jobs: int
    what: str  # memory, cores, gpus, workers, ...: stands behind "wait for"
    detail: str = ""  # a clause: "they need 64 GB, ..."
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The picture at one moment, in seconds since the epoch."""

    now: float
    started: float
    run_id: str = ""
    pools: tuple[PoolState, ...] = ()
    workers: tuple[WorkerState, ...] = ()
    waiting: tuple[WaitingState, ...] = ()
    jobs: int = 0
    known: int = 0  # jobs that the run has, as far as is known; those behind checkpoints are not
    succeeded: int = 0
    failed: int = 0
    running: int = 0
    waits: int = 0  # waiting jobs
    lost_workers: int = 0
    last_progress: float = 0.0
    ended: bool = False
    starts: Mapping[tuple[int, str], int] = field(default_factory=dict)  # attempts by depth, and why it was not deeper

    def pool(self, name: str) -> PoolState:
        """The pool of this name; an empty one where nothing is known of it."""
        return next((pool for pool in self.pools if pool.name == name), PoolState(name))


def snapshot(
    model: RunModel,
    now: float | None = None,
    waiting: Sequence[WaitingState] | None = None,
    *,
    workers: bool = True,
) -> Snapshot:
    """The picture from a model; of thousands of ``workers`` and their jobs only where that is wanted.

    ``waiting`` None: as the log last said it.
    """
    now = model.now if now is None else now
    waits = model.waits
    if waiting is None:
        # The log says it only now and then: some may have started since, or the run be over.
        logged = [_waiting_state(blocker) for blocker in model.blockers]
        left = [min(state.jobs, waits[state.pool] + waits[""]) for state in logged]
        waiting = [dataclasses.replace(state, jobs=jobs) for state, jobs in zip(logged, left, strict=True) if jobs]
    counts = model.counts()
    return Snapshot(
        now=now,
        started=model.started if model.started is not None else now,
        run_id=model.run_id,
        pools=_pool_states(model),
        workers=tuple(_worker_state(model, name, now) for name in model.current) if workers else (),
        # Those that no reason was given for wait for workers, or for room on them.
        waiting=tuple(waiting)
        or tuple(WaitingState(pool, jobs, "room" if model.current else "a worker") for pool, jobs in waits.items()),
        jobs=counts["jobs"],
        known=max(model.known_jobs, counts["jobs"]),
        succeeded=counts["succeeded"],
        failed=counts["failed"],
        running=len(model.running),
        waits=len(model.waiting),
        lost_workers=model.lost_workers,
        last_progress=model.last_progress or (model.started or now),
        ended=model.ended is not None,
        starts=dict(model.starts),
    )


def _waiting_state(blocker: dict[str, Any]) -> WaitingState:
    """From the object in a `waiting` event."""
    return WaitingState(
        str(blocker.get("pool", "")),
        int(blocker.get("jobs", 0)),
        str(blocker.get("what", "")),
        str(blocker.get("detail", "")),
        tuple(str(rule) for rule in blocker.get("rules", ())),
    )


#: What stands behind "wait for".
_WHAT = {
    "worker": "a worker",
    "cores": "cores",
    "memory": "memory",
    "gpus": "GPUs",
    "coreless": "a place among the jobs with threads: 0, of which a worker runs ten for each of its cores",
    "nodes": "nodes",
    "life": "an allocation that lasts long enough",
    "fresh": "a fresh allocation",
    "workers": "several workers at once",
    "dask_workers": "room for all their Dask workers",
    "companions": "nodes of a worker to be made ready for Dask workers",
    "reserved": "a worker that is kept",
}


def waiting_states(blockers: Iterable[Blocker], now: float) -> tuple[WaitingState, ...]:
    """Classes of jobs that wait for the same in the same pool, as one each, the largest need standing for all.

    ``now`` is on the clock of ``frees_at``. Classes that start at the next look are left out.
    """
    alike: dict[tuple[str, tuple[str, ...]], list[Blocker]] = defaultdict(list)
    for blocker in blockers:
        if blocker.short:
            alike[blocker.pool, tuple(blocker.short)].append(blocker)
    return tuple(_waiting_of(pool, short, several, now) for (pool, short), several in alike.items())


def _waiting_of(pool: str, short: tuple[str, ...], several: Sequence[Blocker], now: float) -> WaitingState:
    worst = max(several, key=lambda blocker: tuple(blocker.need.get(what, 0) for what in short))
    needs = " and ".join(amount(what, worst.need[what]) for what in short if what in worst.need)
    details = []
    if short == ("dask_workers",):
        wanted, there = worst.need["dask_workers"], worst.free["dask_workers"]
        details.append(f"a job needs {count(wanted, 'Dask worker')}, and there is room for {there}")
    elif short == ("companions",):
        wanted, ready = worst.need["companions"], worst.free["companions"]
        are = "is" if ready == 1 else "are"
        details.append(f"a job needs {count(wanted, 'node')}, and of the free ones {ready} {are} ready")
    elif needs:
        most = "" if len(several) == 1 else "up to "
        free = " and ".join(amount(what, worst.free.get(what, 0)) for what in short if what in worst.need)
        details.append(f"they need {most}{needs}, the worker with most room has {free} free")
    if worst.reserved_for is not None:
        details.append(f"it is kept for a job of rule {worst.reserved_for}")
    if worst.frees_at is not None:
        details.append(f"there is room in {about(worst.frees_at - now)} at the latest")
    names = tuple(dict.fromkeys(name for blocker in several for name in blocker.names))
    what = " and ".join(_WHAT.get(what, what) for what in short)
    return WaitingState(pool, sum(blocker.count for blocker in several), what, ", ".join(details), names)


def _pool_states(model: RunModel) -> tuple[PoolState, ...]:
    workers: dict[str, list[Worker]] = defaultdict(list)
    pending: dict[str, list[Allocation]] = defaultdict(list)
    for worker in model.current.values():
        workers[worker.pool].append(worker)
    for allocation in model.pending.values():
        pending[allocation.pool].append(allocation)
    return tuple(_pool_state(model, name, workers[name], pending[name]) for name in model.pools)


def _pool_state(model: RunModel, name: str, workers: Sequence[Worker], pending: Sequence[Allocation]) -> PoolState:
    record = model.pools[name]
    in_a_queue = record.batch  # what is started here waits for nobody
    queued = [a for a in pending if a.running is None and in_a_queue]
    reasons = Counter(a.reason for a in queued if a.reason)
    return PoolState(
        name,
        cluster=record.cluster,
        workers=len(workers),
        workers_max=record.workers_max,
        cores=sum(worker.cores for worker in workers),
        memory_mb=sum(worker.memory_mb for worker in workers),
        gpus=sum(worker.gpus for worker in workers),
        queued=len(queued),
        queued_since=min((a.submitted for a in queued), default=None),
        queue_reason=reasons.most_common(1)[0][0] if reasons else "",
        expected=min((a.expected for a in queued if a.expected is not None), default=None),
        starting=len(pending) - len(queued),
        lost=record.lost,
        running=sum(len(worker.running) for worker in workers),
        waiting=model.waits[name],
        given_up=record.given_up,
        came=record.came,
    )


def _worker_state(model: RunModel, name: str, now: float) -> WorkerState:
    worker = model.current[name]
    attempts = [model.attempts[key] for key in worker.running]
    cores = sum(attempt.workers.get(name, 0) for attempt in attempts)
    memory_mb = sum(attempt.memory_total_mb // max(1, len(attempt.workers)) for attempt in attempts)
    gpus = sum(attempt.gpus // max(1, len(attempt.workers)) for attempt in attempts)
    others = model.others.get(name, OthersHeld())
    ends_in_s = None if worker.remaining_s is None else max(0.0, worker.joined + worker.remaining_s - now)
    return WorkerState(
        name,
        worker.pool,
        worker.host,
        worker.cores,
        max(0, worker.cores - cores - others.cores),
        worker.memory_mb,
        max(0, worker.memory_mb - memory_mb - others.memory_mb),
        worker.gpus,
        max(0, worker.gpus - gpus - others.gpus),
        model.allocation_id(name),
        tuple(sorted(Counter(_runs(attempt, name) for attempt in attempts).items(), key=lambda one: (-one[1], one[0]))),
        others.jobs,
        ends_in_s,
        *_used(attempts, now),
    )


def _runs(attempt: Attempt, worker: str) -> str:
    """What a job has on a worker: its rule, and how many Dask workers of its own."""
    number = attempt.dask_workers.get(worker, 0)
    return f"{attempt.rule} ({count(number, 'Dask worker')})" if number else attempt.rule


def _used(attempts: Iterable[Attempt], now: float) -> tuple[float | None, float | None]:
    """Cores at work and memory (10^6 bytes) of several jobs; None where none was measured."""
    measured = [attempt.now for attempt in attempts if attempt.now is not None and attempt.now.is_of(now)]
    cores = [use.cores for use in measured if use.cores is not None]
    return (sum(cores) if cores else None, sum(use.memory_mb for use in measured) if measured else None)
