"""What is said while a run goes on and at its end: few lines, and the whole picture on request. Pure text.

`Narrator` decides what of a picture is worth a line; `table` shows all of it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

from snakemake_executor_plugin_dask.batch.reasons import meaning
from snakemake_executor_plugin_dask.model.units import count, format_memory
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.picture import PoolState, Snapshot, WaitingState, WorkerState
from snakemake_executor_plugin_dask.observe.use import allocation_wait_s, integral
from snakemake_executor_plugin_dask.observe.wording import (
    clean,
    clock,
    columns,
    core_times,
    rough,
    share,
    short_memory,
    starts,
)

SETTLE_S = 2.0  # a change of a pool that lasts so long is said
START_S = 10.0  # workers that start are said after so long: most are there before
CALM_S = 30.0  # between two lines of one pool, unless it went from nothing to something or back
STALL_S = 30.0  # nothing moved for so long while no job runs: say what is waited for
BUSY_STALL_S = 300.0  # the same while jobs run: full workers are no news


class Narrator:
    """Decides which changes are worth a line. Give it a snapshot every second or so."""

    def __init__(self, clock_text: Callable[[float], str] | None = None) -> None:
        self._clock_text = clock_text or clock
        self._pools: dict[str, tuple[PoolState, float]] = {}  # as last said, and when
        self._changed: dict[str, float] = {}  # since when a pool differs from what was said
        self._waiting: dict[tuple[str, str], tuple[WaitingState, str, float]] = {}  # said: state, queue, last seen

    def look(self, picture: Snapshot) -> list[str]:
        """The lines to say now; mostly none."""
        return [*self._pool_lines(picture), *self._waiting_lines(picture)]

    def _pool_lines(self, picture: Snapshot) -> Iterable[str]:
        for pool in picture.pools:
            before, said_at = self._pools.get(pool.name, (PoolState(pool.name), -math.inf))
            if not _differs(before, pool):
                self._changed.pop(pool.name, None)
                if pool.workers >= before.workers and pool.lost > before.lost:
                    # Replaced before it was worth a line; the loss has had a sentence of its own.
                    self._pools[pool.name] = (dataclasses.replace(before, lost=pool.lost), said_at)
                continue
            since = self._changed.setdefault(pool.name, picture.now)
            turned = (before.workers == 0) != (pool.workers == 0) or before == PoolState(pool.name)
            settle = START_S if pool.starting else SETTLE_S
            if picture.now - since < settle or (not turned and picture.now - said_at < CALM_S):
                continue
            self._pools[pool.name] = (pool, picture.now)
            self._changed.pop(pool.name, None)
            yield self._pool_line(before, pool)

    def _pool_line(self, before: PoolState, pool: PoolState) -> str:
        name = clean(pool.name)
        parts = []
        if pool.workers:
            size = [count(pool.cores, "core"), format_memory(pool.memory_mb)]
            size += [count(pool.gpus, "GPU")] if pool.gpus else []
            parts.append(f"{count(pool.workers, 'worker')} there ({', '.join(size)})")
        elif before.workers:
            parts.append("no worker there")
        if pool.starting:
            parts.append(f"{count(pool.starting, 'worker')} starting")
        if pool.queued:
            parts.append(queue_clause(pool, self._clock_text))
        if pool.lost:
            parts.append(f"{pool.lost} lost so far")
        verb = "is coming up" if not before.workers and not pool.workers else ""
        return f"Pool {name}{' ' + verb if verb else ''}: {', '.join(parts)}."

    def _waiting_lines(self, picture: Snapshot) -> Iterable[str]:
        for state in picture.waiting:  # what is still so is not news when it shows again
            if (key := (state.pool, state.what)) in self._waiting:
                self._waiting[key] = (*self._waiting[key][:2], picture.now)
        for key in [key for key, (_, _, seen) in self._waiting.items() if picture.now - seen > BUSY_STALL_S]:
            del self._waiting[key]
        quiet = picture.now - picture.last_progress
        if not picture.waits or quiet < (BUSY_STALL_S if picture.running else STALL_S):
            return
        for state in picture.waiting:
            pool = next((pool for pool in picture.pools if pool.name == state.pool), PoolState(state.pool))
            reason = pool.queue_reason if pool.queued else ""
            key = (state.pool, state.what)
            if key in self._waiting:
                said, said_reason, _ = self._waiting[key]
                if reason == said_reason and said.jobs / 2 < state.jobs < max(2, said.jobs * 2):
                    continue
            self._waiting[key] = (state, reason, picture.now)
            yield waiting_line(state, pool, self._clock_text)


def _differs(before: PoolState, pool: PoolState) -> bool:
    """Whether a pool changed so much that a user wants to know."""
    if pool.workers > before.workers:
        return before.workers == 0 or pool.workers >= before.workers * 1.25 or not pool.queued + pool.starting
    if pool.workers < before.workers:
        # Given back when idle: no news unless jobs need them.
        return pool.lost > before.lost or (pool.waiting > 0 and pool.workers <= before.workers * 0.75)
    return not before.workers and not before.queued + before.starting and pool.queued + pool.starting > 0


def waiting_line(state: WaitingState, pool: PoolState, clock_text: Callable[[float], str] | None = None) -> str:
    """One sentence about jobs that wait for the same thing, with what is queued for their pool."""
    verb = "waits" if state.jobs == 1 else "wait"
    where = f" in pool {clean(state.pool)}" if state.pool else ""
    rules = f" ({', '.join(clean(rule) for rule in state.rules[:3])}{', ...' * (len(state.rules) > 3)})" * bool(
        state.rules
    )
    line = f"{count(state.jobs, 'job')}{rules} {verb} for {clean(state.what)}{where}"
    details = [clean(state.detail)] if state.detail else []
    if pool.queued:
        means = meaning(pool.queue_reason)
        details.append(queue_clause(pool, clock_text or clock) + (f" ({means})" if means else ""))
    elif pool.starting:
        details.append(f"{count(pool.starting, 'worker')} of it {'is' if pool.starting == 1 else 'are'} starting")
    return f"{line}{': ' if details else ''}{'; '.join(details)}."


def queue_clause(pool: PoolState, clock_text: Callable[[float], str]) -> str:
    """As "2 allocations are queued since 14:02, reason Priority, the first is expected to start at 15:10"."""
    verb = "is" if pool.queued == 1 else "are"
    since = f" since {clock_text(pool.queued_since)}" if pool.queued_since is not None else ""
    reason = f", reason {clean(pool.queue_reason, 200)}" if pool.queue_reason else ""
    first = "the first" if pool.queued > 1 else "it"
    start = f", {first} is expected to start at {clock_text(pool.expected)}" if pool.expected is not None else ""
    return f"{count(pool.queued, 'allocation')} {verb} queued{since}{reason}{start}"


def table(picture: Snapshot, clock_text: Callable[[float], str] | None = None) -> str:
    """The whole picture: pools, workers with what they run and have free, waiting jobs with reasons."""
    clock_text = clock_text or clock
    age = rough(picture.now - picture.started)
    parts = [f"{picture.succeeded:,} done", *([f"{picture.failed:,} failed"] if picture.failed else [])]
    parts += [f"{picture.running:,} running", f"{picture.waits:,} waiting"]
    lost = f"; {count(picture.lost_workers, 'worker')} lost so far" if picture.lost_workers else ""
    head = f"Run {clean(picture.run_id)}" + (
        ", ended after" if picture.ended else f" at {clock_text(picture.now)}, for"
    )
    lines = [f"{head} {age}: {count(picture.jobs, 'job')} so far: {', '.join(parts)}{lost}."]
    lines += starts(picture.starts)
    if picture.ended:  # everything was given back
        picture = dataclasses.replace(
            picture,
            workers=(),
            pools=tuple(dataclasses.replace(pool, workers=0, queued=0, starting=0) for pool in picture.pools),
        )
    if picture.pools:
        heads = ("POOL", "CLUSTER", "WORKERS", "RUNNING", "WAITING", "STATE")
        lines += ["", *columns([heads, *(pool_row(pool, clock_text) for pool in picture.pools)])]
    if picture.workers:
        gpus = any(worker.gpus for worker in picture.workers)
        used = any(worker.memory_used_mb is not None for worker in picture.workers)
        allocations = any(worker.allocation for worker in picture.workers)
        head_row = [
            "WORKER",
            "HOST",
            "CORES FREE",
            "MEMORY FREE",
            *(["GPUS FREE"] if gpus else []),
            *(["CORES AT WORK", "MEMORY IN USE"] if used else []),
            "ENDS IN",
            *(["ALLOCATION"] if allocations else []),
            "RUNNING",
        ]
        rows = (_worker_row(worker, gpus=gpus, used=used, allocations=allocations) for worker in picture.workers)
        lines += ["", *columns([tuple(head_row), *rows])]
    if picture.waiting:
        pools = {pool.name: pool for pool in picture.pools}
        lines += ["", "WAITING"]
        lines += [waiting_line(w, pools.get(w.pool, PoolState(w.pool)), clock_text) for w in picture.waiting]
    return "\n".join(lines)


def pool_row(pool: PoolState, clock_text: Callable[[float], str]) -> tuple[str, ...]:
    """Name, cluster, workers, running jobs, waiting jobs, state."""
    workers = f"{pool.workers} of {pool.workers_max}" if pool.workers_max is not None else str(pool.workers)
    state = _pool_state(pool, clock_text)
    return pool.name, pool.cluster, workers, f"{pool.running:,}", f"{pool.waiting:,}", state


def _pool_state(pool: PoolState, clock_text: Callable[[float], str]) -> str:
    """As "up", "2 allocations are queued since 14:02", "given up: …"."""
    if pool.given_up:
        return f"given up: {clean(pool.given_up, 300)}"
    parts = [f"{pool.starting} starting"] if pool.starting else []
    parts += [queue_clause(pool, clock_text)] if pool.queued else []
    parts += [f"{pool.lost} lost"] if pool.lost else []
    return ", ".join(parts) or ("up" if pool.workers else "given back" if pool.came else "not started")


def _worker_row(worker: WorkerState, *, gpus: bool, used: bool, allocations: bool) -> tuple[str, ...]:
    running = running_text(worker) or "-"
    name = worker.name if worker.state == "up" else f"{worker.name} ({worker.state})"
    return (
        name,
        worker.host,
        f"{worker.cores_free} of {worker.cores}",
        f"{format_memory(worker.memory_free_mb)} of {format_memory(worker.memory_mb)}",
        *([f"{worker.gpus_free} of {worker.gpus}" if worker.gpus else "-"] if gpus else []),
        *(used_cells(worker) if used else ()),
        "-" if worker.ends_in_s is None else rough(worker.ends_in_s),
        *([worker.allocation or "-"] if allocations else []),
        running,
    )


def running_text(worker: WorkerState) -> str:
    """Rules with their jobs, and how many jobs of other runs are there."""
    parts = [f"{clean(rule, 60)} x{jobs}" if jobs > 1 else clean(rule, 60) for rule, jobs in worker.running]
    parts += [f"{count(worker.others, 'job')} of other runs"] if worker.others else []
    return ", ".join(parts)


def used_cells(worker: WorkerState) -> tuple[str, str]:
    """Cores at work, and memory in use."""
    cores, memory_mb = worker.cores_used, worker.memory_used_mb
    return "-" if cores is None else f"{cores:.1f}", "-" if memory_mb is None else short_memory(memory_mb)


def end_line(model: RunModel) -> str:
    """One line about the whole run."""
    counts = model.counts()
    fates = [
        f"{counts[name]:,} {name.replace('dropped', 'not started')}"
        for name in ("failed", "stopped", "dropped", "unfinished")
        if counts[name]
    ]
    extra = f" ({', '.join(fates)})" if fates else ""
    parts = [f"{count(counts['jobs'], 'job')}{extra} in {count(counts['attempts'], 'attempt')}"]
    if counts["lost_workers"]:
        parts.append(f"{count(counts['lost_workers'], 'worker')} lost")
    held = integral(model)
    if held.cores:
        parts.append(
            f"jobs used {core_times(held.job_cores, held.cores)} held "
            f"({held.job_cores / held.cores:.0%}, with their CPUs at work in {share(held.job_cpu, held.job_cores)})"
        )
    waited = allocation_wait_s(model)
    if waited >= 1:
        parts.append(f"{rough(waited)} waited for allocations")
    return f"Dask: {', '.join(parts)}."
