"""What is said while a run goes on and at its end: few lines, and the whole picture on request. Pure text.

`Narrator` decides what of a picture is worth a line; `table` shows all of it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from snakemake_executor_plugin_dask.batch.meanings import meaning
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

    def __init__(self) -> None:
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
            yield _pool_line(before, pool)

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
            pool = picture.pool(state.pool)
            reason = pool.queue_reason if pool.queued else ""
            key = (state.pool, state.what)
            if key in self._waiting:
                said, said_reason, _ = self._waiting[key]
                if reason == said_reason and said.jobs / 2 < state.jobs < max(2, said.jobs * 2):
                    continue
            self._waiting[key] = (state, reason, picture.now)
            yield waiting_line(state, pool)


def _pool_line(before: PoolState, pool: PoolState) -> str:
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
        parts.append(queue_clause(pool))
    if pool.lost:
        parts.append(f"{pool.lost} lost so far")
    verb = " is coming up" if not before.workers and not pool.workers else ""
    return f"Pool {clean(pool.name)}{verb}: {', '.join(parts)}."


def _differs(before: PoolState, pool: PoolState) -> bool:
    """Whether a pool changed so much that a user wants to know."""
    if pool.workers > before.workers:
        return before.workers == 0 or pool.workers >= before.workers * 1.25 or not pool.queued + pool.starting
    if pool.workers < before.workers:
        # Given back when idle: no news unless jobs need them.
        return pool.lost > before.lost or (pool.waiting > 0 and pool.workers <= before.workers * 0.75)
    return not before.workers and not before.queued + before.starting and pool.queued + pool.starting > 0


def waiting_line(state: WaitingState, pool: PoolState) -> str:
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
        details.append(queue_clause(pool) + (f" ({means})" if means else ""))
    elif pool.starting:
        details.append(f"{count(pool.starting, 'worker')} of it {'is' if pool.starting == 1 else 'are'} starting")
    return f"{line}{': ' if details else ''}{'; '.join(details)}."


def queue_clause(pool: PoolState) -> str:
    """As "2 allocations are queued since 14:02, reason Priority, the first is expected to start at 15:10"."""
    verb = "is" if pool.queued == 1 else "are"
    since = f" since {clock(pool.queued_since)}" if pool.queued_since is not None else ""
    reason = f", reason {clean(pool.queue_reason, 200)}" if pool.queue_reason else ""
    first = "the first" if pool.queued > 1 else "it"
    start = f", {first} is expected to start at {clock(pool.expected)}" if pool.expected is not None else ""
    return f"{count(pool.queued, 'allocation')} {verb} queued{since}{reason}{start}"


def table(picture: Snapshot) -> str:
    """The whole picture: pools, workers with what they run and have free, waiting jobs with reasons."""
    age = rough(picture.now - picture.started)
    parts = [f"{picture.succeeded:,} done", *([f"{picture.failed:,} failed"] if picture.failed else [])]
    parts += [f"{picture.running:,} running", f"{picture.waits:,} waiting"]
    lost = f"; {count(picture.lost_workers, 'worker')} lost so far" if picture.lost_workers else ""
    head = f"Run {clean(picture.run_id)}" + (", ended after" if picture.ended else f" at {clock(picture.now)}, for")
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
        lines += ["", *columns([heads, *map(pool_row, picture.pools)])]
    if picture.workers:
        shown = _worker_columns(picture.workers)
        rows = [[make(worker) for make in shown.values()] for worker in picture.workers]
        lines += ["", *columns([list(shown), *rows])]
    if picture.waiting:
        lines += ["", "WAITING", *(waiting_line(state, picture.pool(state.pool)) for state in picture.waiting)]
    return "\n".join(lines)


def pool_row(pool: PoolState) -> tuple[str, ...]:
    """Name, cluster, workers, running jobs, waiting jobs, state."""
    workers = f"{pool.workers} of {pool.workers_max}" if pool.workers_max is not None else str(pool.workers)
    return pool.name, pool.cluster, workers, f"{pool.running:,}", f"{pool.waiting:,}", _pool_state(pool)


def _pool_state(pool: PoolState) -> str:
    """As "up", "2 allocations are queued since 14:02", "given up: …"."""
    if pool.given_up:
        return f"given up: {clean(pool.given_up, 300)}"
    parts = [f"{pool.starting} starting"] if pool.starting else []
    parts += [queue_clause(pool)] if pool.queued else []
    parts += [f"{pool.lost} lost"] if pool.lost else []
    return ", ".join(parts) or ("up" if pool.workers else "given back" if pool.came else "not started")


def _worker_columns(workers: Sequence[WorkerState]) -> dict[str, Callable[[WorkerState], str]]:
    """Heads, each with what makes a cell, of the columns in which these workers have something to say."""
    used = any(worker.memory_used_mb is not None for worker in workers)
    columns: tuple[tuple[bool, str, Callable[[WorkerState], str]], ...] = (
        (True, "WORKER", lambda w: w.name),
        (True, "HOST", lambda w: w.host),
        (True, "CORES FREE", lambda w: f"{w.cores_free} of {w.cores}"),
        (True, "MEMORY FREE", lambda w: f"{format_memory(w.memory_free_mb)} of {format_memory(w.memory_mb)}"),
        (any(w.gpus for w in workers), "GPUS FREE", lambda w: f"{w.gpus_free} of {w.gpus}" if w.gpus else "-"),
        (used, "CORES AT WORK", lambda w: used_cells(w)[0]),
        (used, "MEMORY IN USE", lambda w: used_cells(w)[1]),
        (True, "ENDS IN", lambda w: "-" if w.ends_in_s is None else rough(w.ends_in_s)),
        (any(w.allocation for w in workers), "ALLOCATION", lambda w: w.allocation or "-"),
        (True, "RUNNING", lambda w: running_text(w) or "-"),
    )
    return {head: make for shown, head, make in columns if shown}


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
