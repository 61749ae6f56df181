"""What `snakemake-dask watch` shows, as lines of a terminal's width and height. Pure; from a `RunModel`."""

import textwrap
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Literal

from snakemake_executor_plugin_dask.cli.jobtable import NOTHING, Column, cut, fitted
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.units import count, format_memory
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.picture import Snapshot, WorkerState, snapshot
from snakemake_executor_plugin_dask.observe.records import Attempt
from snakemake_executor_plugin_dask.observe.status import pool_row, running_text, used_cells, waiting_line
from snakemake_executor_plugin_dask.observe.wording import (
    cause,
    clean,
    clock,
    full_name,
    named,
    rough,
    short_id,
    short_memory,
)

Style = Literal["plain", "bold", "dim", "bad"]

_RATE_OVER_S = 120.0  # the expected end follows from what ended in this time,
_RATE_LEAST = 5  # and from so many jobs at least
_WAITING_LINES, _FAILED_LINES, _WORKER_LINES = 4, 3, 8
_LEAST_RUNNING = 3
_BAR = 30

_POOLS = (
    Column("POOL", 100),
    Column("CLUSTER", 50),
    Column("WORKERS", 90, right=True),
    Column("RUNNING", 80, right=True),
    Column("WAITING", 85, right=True),
    Column("STATE", 95),
)
_WORKERS = (
    Column("WORKER", 100),
    Column("HOST", 60),
    Column("CORES HELD", 90, right=True),
    Column("AT WORK", 80, right=True),
    Column("MEMORY HELD", 70, right=True),
    Column("IN USE", 75, right=True),
    Column("ENDS IN", 65, right=True),
    Column("RUNNING", 50),
    Column("ALLOCATION", 45),
)
_RUNNING = (
    Column("JOB", 100, right=True),
    Column("RULE", 99),
    Column("WILDCARDS", 98),
    Column("FOR", 90, right=True),
    Column("CORES", 85, right=True),
    Column("MEMORY", 88, right=True),
    Column("WORKER", 50),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the screen."""

    text: str = ""
    style: Style = "plain"


class Pace:
    """How fast jobs end, from the counts that it is shown. Times in seconds since the epoch."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, ended: int) -> None:
        """``ended``: jobs that need no more time, so far."""
        self._seen.append((now, ended))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _RATE_OVER_S:
            self._seen.popleft()

    def end(self, left: int) -> float | None:
        """When so many more jobs will have ended at this pace; None: too few have ended to say."""
        (since, before), (now, ended) = self._seen[0], self._seen[-1]
        if left <= 0 or ended - before < _RATE_LEAST or now <= since:
            return None
        return now + left * (now - since) / (ended - before)


def screen(model: RunModel, now: float, pace: Pace, width: int, height: int, first: int = 0) -> list[Line]:
    """At most ``height`` lines of at most ``width`` characters. ``first``: the running job that is shown first."""
    picture = snapshot(model, now)
    pace.note(now, picture.succeeded + picture.failed)
    head = [*_head(picture, pace, width), *_section("", _pools(picture, width))]
    foot = [*_waiting(picture, width), *(_failed(model, width) if picture.failed else [])]
    room = height - len(head) - len(foot)
    workers = _workers(picture, width, min(_WORKER_LINES, max(1, (room - _LEAST_RUNNING - 4) // 3)))
    running = _running(model, now, width, max(1, room - len(workers) - 2), first)
    lines = [*head, *workers, *running, *foot]
    return [Line(line.text[:width], line.style) for line in lines[:height]]


def _head(picture: Snapshot, pace: Pace, width: int) -> list[Line]:
    title = f"Run {clean(picture.run_id, 60)}, for {rough(picture.now - picture.started)}"
    hint = f"{clock(picture.now)}  q: leave"
    done = picture.succeeded + picture.failed
    part = done / picture.known if picture.known else 0.0
    full = round(part * _BAR)
    bar = [f"[{'#' * full}{'.' * (_BAR - full)}]"] if width >= 70 else []
    parts = [f"{done:,} of {count(picture.known, 'job')} done"]
    parts += [f"{picture.failed:,} failed"] if picture.failed else []
    parts += [f"{picture.running:,} running", f"{picture.waits:,} waiting"]
    parts += [f"{count(picture.lost_workers, 'worker')} lost"] if picture.lost_workers else []
    end = pace.end(picture.known - done)
    parts += [f"at this pace done by {clock(end)}"] if end is not None else []
    style: Style = "bad" if picture.failed else "plain"
    return [
        Line(title + hint.rjust(max(0, width - len(title))) if len(title) + len(hint) < width else title, "bold"),
        *(Line(line, style) for line in _wrapped(" ".join([*bar, ", ".join(parts)]), width)),
    ]


def _section(noun: str, rows: Sequence[str], more: int = 0, hint: str = "") -> list[Line]:
    """A table behind an empty line; its head is dim."""
    if not rows:
        return []
    lines = [Line(), Line(rows[0], "dim"), *map(Line, rows[1:])]
    if more > 0:
        lines.append(Line(f"… and {count(more, f'more {noun}')}{hint}", "dim"))
    return lines


def _pools(picture: Snapshot, width: int) -> list[str]:
    return fitted(_POOLS, [[clean(cell) for cell in pool_row(pool)] for pool in picture.pools], width)


def _workers(picture: Snapshot, width: int, most: int) -> list[Line]:
    shown = sorted(picture.workers, key=lambda worker: (-len(worker.running), worker.name))[:most]
    columns = _WORKERS if any(worker.allocation for worker in shown) else _WORKERS[:-1]
    rows = [_worker(worker)[: len(columns)] for worker in shown]
    return _section("worker", fitted(columns, rows, width), len(picture.workers) - len(shown))


def _worker(worker: WorkerState) -> tuple[str, ...]:
    at_work, in_use = used_cells(worker)
    return (
        clean(worker.name, 60),
        clean(worker.host, 60),
        f"{worker.cores - worker.cores_free} of {worker.cores}",
        at_work,
        f"{format_memory(worker.memory_mb - worker.memory_free_mb)} of {format_memory(worker.memory_mb)}",
        in_use,
        NOTHING if worker.ends_in_s is None else rough(worker.ends_in_s),
        running_text(worker) or NOTHING,
        clean(worker.allocation, 60) or NOTHING,
    )


def _running(model: RunModel, now: float, width: int, most: int, first: int) -> list[Line]:
    """Jobs that run, the one that has run longest first."""
    jobs = sorted(model.running.values(), key=lambda job: (job.started or job.placed or now, job.key))
    first = max(0, min(first, len(jobs) - most))
    shown = jobs[first : first + most]
    lines = fitted(_RUNNING, [_job(job, now) for job in shown], width)
    return _section("running job", lines, len(jobs) - first - len(shown), " (arrow keys)")


def _job(job: Attempt, now: float) -> tuple[str, ...]:
    use = job.now if job.now is not None and job.now.is_of(now) else None
    cores = NOTHING if use is None or use.cores is None else f"{use.cores:.1f}"
    memory = NOTHING if use is None else short_memory(use.memory_mb)
    asked = "" if job.memory_mb is None else f" of {format_memory(job.memory_total_mb)}"
    return (
        clean(short_id(job.jobid), 20),
        clean(job.rule, 100),
        clean(named(job), 200) or NOTHING,
        rough(max(0.0, now - job.started)) if job.started is not None else "starts",
        f"{cores} of {job.cores}",
        memory + asked,
        clean(",".join(job.workers), 60),
    )


def _waiting(picture: Snapshot, width: int) -> list[Line]:
    said = [waiting_line(state, picture.pool(state.pool)) for state in picture.waiting]
    lines = [part for text in said for part in _wrapped(text, width)]
    if len(lines) > _WAITING_LINES:
        lines[_WAITING_LINES - 1] = cut(f"{lines[_WAITING_LINES - 1]} …", width)
    return [Line(), *map(Line, lines[:_WAITING_LINES])] if lines else []


def _failed(model: RunModel, width: int) -> list[Line]:
    """The jobs that failed last, each with the first words of its reason."""
    last = [*islice(reversed(model.failed.values()), _FAILED_LINES)][::-1]
    lines = [
        Line(cut(f"Failed: job {clean(short_id(a.jobid), 20)}, {clean(full_name(a, 1), 200)}: {_why(a)}", width), "bad")
        for a in last
    ]
    if more := len(model.failed) - len(last):
        lines.append(Line(cut(f"… and {more:,} more before: `snakemake-dask jobs --state failed`", width), "dim"))
    return [Line(), *lines] if lines else []


def _why(attempt: Attempt) -> str:
    return clean(cause(attempt) or attempt.status, 300)


def _wrapped(text: str, width: int) -> list[str]:
    """At spaces alone; a longer word has a line of its own, whatever that is cut to."""
    return textwrap.wrap(text, max(1, width), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
