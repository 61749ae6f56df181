"""What is said while a run goes on and at its end: few lines, and the whole picture on request. Pure text.

`snapshot` takes the picture from the model, `Narrator` decides what of it is worth a line, `table` shows all of it.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.use import allocation_wait_s, integral
from snakemake_executor_plugin_dask.units import format_duration, format_memory

SETTLE_S = 2.0  # a change of a pool that lasts so long is said
CALM_S = 30.0  # between two lines of one pool, unless it went from nothing to something or back
STALL_S = 30.0  # nothing moved for so long while no job runs: say what is waited for
BUSY_STALL_S = 300.0  # the same while jobs run: full workers are no news

#: Control characters, those that turn writing direction, and line separators other than a line feed.
_HARMFUL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker that is there. ``running`` are (rule, jobs)."""

    name: str
    pool: str
    host: str
    state: str
    cores: int
    cores_free: int
    memory_mb: int
    memory_free_mb: int
    gpus: int
    gpus_free: int
    running: tuple[tuple[str, int], ...] = ()
    ends_in_s: float | None = None


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
    starting: int = 0
    lost: int = 0
    running: int = 0
    waiting: int = 0
    given_up: str = ""


@dataclass(frozen=True, slots=True)
class WaitingState:
    """Jobs of one pool that wait for the same thing."""

    pool: str
    jobs: int
    what: str  # memory, cores, gpus, workers, ...: stands behind «wait for»
    detail: str = ""  # a clause: «they need 64 GB, ...»
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
    succeeded: int = 0
    failed: int = 0
    running: int = 0
    waits: int = 0  # waiting jobs
    lost_workers: int = 0
    last_progress: float = 0.0
    ended: bool = False


def snapshot(model: RunModel, now: float | None = None, waiting: Sequence[WaitingState] | None = None) -> Snapshot:
    """The picture from a model. ``waiting`` None: as the log last said it."""
    now = model.now if now is None else now
    if waiting is None:
        waiting = [waiting_state(blocker) for blocker in model.blockers]
    counts = model.counts()
    waits = Counter(attempt.pool for attempt in model.waiting.values())
    return Snapshot(
        now=now,
        started=model.started if model.started is not None else now,
        run_id=model.run_id,
        pools=tuple(_pool_state(model, name, waits[name]) for name in model.pools),
        workers=tuple(_worker_state(model, name, now) for name in model.current),
        waiting=tuple(_with_others(model, waiting, waits)),
        jobs=counts["jobs"],
        succeeded=counts["succeeded"],
        failed=counts["failed"],
        running=len(model.running),
        waits=len(model.waiting),
        lost_workers=model.lost_workers,
        last_progress=model.last_progress or (model.started or now),
        ended=model.ended is not None,
    )


def waiting_state(blocker: dict[str, Any]) -> WaitingState:
    """From the object in a `waiting` event."""
    return WaitingState(
        str(blocker.get("pool", "")),
        int(blocker.get("jobs", 0)),
        str(blocker.get("what", "")),
        str(blocker.get("detail", "")),
        tuple(str(rule) for rule in blocker.get("rules", ())),
    )


def _with_others(model: RunModel, waiting: Sequence[WaitingState], waits: Counter[str]) -> Sequence[WaitingState]:
    """Waiting jobs that no reason was given for wait for workers, or for room on them."""
    if waiting:
        return waiting
    return [WaitingState(pool, jobs, "room" if model.current else "workers") for pool, jobs in waits.items()]


def _pool_state(model: RunModel, name: str, waiting: int) -> PoolState:
    record = model.pools[name]
    workers = [worker for worker in model.current.values() if worker.pool == name]
    pending = [a for a in model.pending.values() if a.pool == name]
    queued = [a for a in pending if a.running is None]
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
        starting=len(pending) - len(queued),
        lost=record.lost,
        running=sum(len(worker.running) for worker in workers),
        waiting=waiting,
        given_up=record.given_up,
    )


def _worker_state(model: RunModel, name: str, now: float) -> WorkerState:
    worker = model.current[name]
    attempts = [model.attempts[key] for key in worker.running]
    cores = sum(attempt.workers.get(name, 0) for attempt in attempts)
    memory_mb = sum(attempt.memory_total_mb // max(1, len(attempt.workers)) for attempt in attempts)
    gpus = sum(attempt.gpus // max(1, len(attempt.workers)) for attempt in attempts)
    ends_in_s = None if worker.remaining_s is None else max(0.0, worker.joined + worker.remaining_s - now)
    return WorkerState(
        name,
        worker.pool,
        worker.host,
        worker.state,
        worker.cores,
        max(0, worker.cores - cores),
        worker.memory_mb,
        max(0, worker.memory_mb - memory_mb),
        worker.gpus,
        max(0, worker.gpus - gpus),
        tuple(Counter(attempt.rule for attempt in attempts).most_common()),
        ends_in_s,
    )


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
                continue
            since = self._changed.setdefault(pool.name, picture.now)
            turned = (before.workers == 0) != (pool.workers == 0) or before == PoolState(pool.name)
            if picture.now - since < SETTLE_S or (not turned and picture.now - said_at < CALM_S):
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
            parts.append(f"{pool.starting} starting")
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
        details.append(queue_clause(pool, clock_text or clock))
    elif pool.starting:
        details.append(f"{count(pool.starting, 'worker')} of it {'is' if pool.starting == 1 else 'are'} starting")
    return f"{line}{': ' if details else ''}{'; '.join(details)}."


def queue_clause(pool: PoolState, clock_text: Callable[[float], str]) -> str:
    """«2 allocations are queued since 14:02, reason Priority»."""
    verb = "is" if pool.queued == 1 else "are"
    since = f" since {clock_text(pool.queued_since)}" if pool.queued_since is not None else ""
    reason = f", reason {clean(pool.queue_reason, 200)}" if pool.queue_reason else ""
    return f"{count(pool.queued, 'allocation')} {verb} queued{since}{reason}"


def table(picture: Snapshot, clock_text: Callable[[float], str] | None = None) -> str:
    """The whole picture: pools, workers with what they run and have free, waiting jobs with reasons."""
    clock_text = clock_text or clock
    age = rough(picture.now - picture.started)
    parts = (
        [f"{picture.succeeded} done", f"{picture.failed} failed"] if picture.failed else [f"{picture.succeeded} done"]
    )
    parts += [f"{picture.running} running", f"{picture.waits} waiting"]
    lost = f"; {count(picture.lost_workers, 'worker')} lost so far" if picture.lost_workers else ""
    head = f"Run {clean(picture.run_id)}" + (
        ", ended after" if picture.ended else f" at {clock_text(picture.now)}, for"
    )
    lines = [f"{head} {age}: {count(picture.jobs, 'job')} so far: {', '.join(parts)}{lost}."]
    if picture.pools:
        heads = ("POOL", "CLUSTER", "WORKERS", "RUNNING", "WAITING", "STATE")
        lines += ["", *columns([heads, *(_pool_row(pool, clock_text) for pool in picture.pools)])]
    if picture.workers:
        gpus = any(worker.gpus for worker in picture.workers)
        head_row = [
            "WORKER",
            "HOST",
            "CORES FREE",
            "MEMORY FREE",
            *(["GPUS FREE"] if gpus else []),
            "ENDS IN",
            "RUNNING",
        ]
        lines += ["", *columns([tuple(head_row), *(_worker_row(worker, gpus=gpus) for worker in picture.workers)])]
    if picture.waiting:
        pools = {pool.name: pool for pool in picture.pools}
        lines += ["", "WAITING"]
        lines += [waiting_line(w, pools.get(w.pool, PoolState(w.pool)), clock_text) for w in picture.waiting]
    return "\n".join(lines)


def _pool_row(pool: PoolState, clock_text: Callable[[float], str]) -> tuple[str, ...]:
    if pool.given_up:
        state = f"given up: {clean(pool.given_up, 300)}"
    else:
        parts = [f"{pool.starting} starting"] if pool.starting else []
        parts += [queue_clause(pool, clock_text)] if pool.queued else []
        parts += [f"{pool.lost} lost"] if pool.lost else []
        state = ", ".join(parts) or ("up" if pool.workers else "not started")
    workers = f"{pool.workers} of {pool.workers_max}" if pool.workers_max is not None else str(pool.workers)
    return pool.name, pool.cluster, workers, str(pool.running), str(pool.waiting), state


def _worker_row(worker: WorkerState, *, gpus: bool) -> tuple[str, ...]:
    running = ", ".join(f"{clean(rule)} x{jobs}" if jobs > 1 else clean(rule) for rule, jobs in worker.running) or "-"
    name = worker.name if worker.state == "up" else f"{worker.name} ({worker.state})"
    return (
        name,
        worker.host,
        f"{worker.cores_free} of {worker.cores}",
        f"{format_memory(worker.memory_free_mb)} of {format_memory(worker.memory_mb)}",
        *([f"{worker.gpus_free} of {worker.gpus}" if worker.gpus else "-"] if gpus else []),
        "-" if worker.ends_in_s is None else rough(worker.ends_in_s),
        running,
    )


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with aligned columns; the last column is not padded."""
    cleaned = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cleaned, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cleaned]


def end_line(model: RunModel) -> str:
    """One line about the whole run."""
    counts = model.counts()
    fates = [
        f"{counts[name]} {name.replace('dropped', 'not started')}" for name in ("failed", "dropped") if counts[name]
    ]
    fates += [f"{counts['unfinished']} unfinished"] if counts["unfinished"] else []
    extra = f" ({', '.join(fates)})" if fates else ""
    parts = [f"{count(counts['jobs'], 'job')}{extra} in {count(counts['attempts'], 'attempt')}"]
    if counts["lost_workers"]:
        parts.append(f"{count(counts['lost_workers'], 'worker')} lost")
    held = integral(model)
    if held.cores:
        parts.append(
            f"jobs used {core_hours(held.job_cores)} of {core_hours(held.cores)} core-hours held "
            f"({held.job_cores / held.cores:.0%}, with their CPUs at work in {share(held.job_cpu, held.job_cores)})"
        )
    waited = allocation_wait_s(model)
    if waited >= 1:
        parts.append(f"{rough(waited)} waited for allocations")
    return f"Dask: {', '.join(parts)}."


def share(part: float, whole: float) -> str:
    """A part of a whole in per cent; a dash where there is no whole."""
    return f"{part / whole:.0%}" if whole else "-"


def core_hours(core_seconds: float) -> str:
    """Core-seconds as a number of core-hours with three significant digits."""
    hours = core_seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}" if hours >= 0.001 else "0"


def count(number: int, noun: str) -> str:
    """«1 job», «2 jobs», «12,000 jobs»."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rough(seconds: float) -> str:
    """A duration in whole seconds below an hour, in whole minutes above."""
    return format_duration(round(seconds) if seconds < 3600 else round(seconds / 60) * 60)


def about(seconds: float) -> str:
    """A time to come, as exact as a guess can be: «about 10 min»."""
    if seconds < 90:
        return f"about {max(10, round(seconds, -1)):.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def clock(when: float) -> str:
    """Time of day on this machine; with the date where it is another day."""
    local = time.localtime(when)
    return time.strftime("%H:%M" if local[:3] == time.localtime()[:3] else "%Y-%m-%d %H:%M", local)


def clean(text: str, limit: int = 1000) -> str:
    """One line without control characters or terminal sequences, and at most ``limit`` characters long."""
    text = clean_block(text).replace("\n", " ")
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def clean_block(text: str) -> str:
    """The same for text of several lines, of any length. What cannot be encoded is shown as an escape."""
    text = _ANSI.sub("", text.replace("\r\n", "\n").replace("\t", "    "))
    text = _HARMFUL.sub("\N{REPLACEMENT CHARACTER}", text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
