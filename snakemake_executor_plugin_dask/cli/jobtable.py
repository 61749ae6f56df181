"""Jobs as a table: chosen, sorted, and as wide as the terminal. Pure; from a `RunModel`."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from snakemake_executor_plugin_dask.cli.finding import last_attempts, state_of
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.units import format_memory
from snakemake_executor_plugin_dask.observe.events import plain
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.picture import snapshot
from snakemake_executor_plugin_dask.observe.records import Attempt, first, ran_s
from snakemake_executor_plugin_dask.observe.report import COLUMNS
from snakemake_executor_plugin_dask.observe.wording import (
    cause,
    clean,
    columns,
    named,
    rough,
    share,
    short_id,
    short_memory,
)

NOTHING = "-"
_GAP = 2
_ALWAYS = 96  # columns that matter less are left out where there is no room for them, or nothing in them
_LEAST_WIDE = 12  # a cell that is shortened keeps so much


@dataclass(frozen=True, slots=True)
class Choice:
    """Which jobs to show; empty: all. Patterns are those of a shell (`*`, `?`)."""

    rules: tuple[str, ...] = ()
    wildcards: tuple[str, ...] = ()  # "sample=A", or a value alone
    states: tuple[str, ...] = ()
    attempts: bool = False  # each attempt, and not only the last one of each job
    slowest: int | None = None
    largest: int | None = None
    wasteful: int | None = None


#: What can be asked for: states, and how attempts ended.
STATES = (
    *("waiting", "running", "succeeded", "failed", "out-of-memory", "out-of-time", "lost", "cancelled", "dropped"),
    "not-started",
)


def chosen(model: RunModel, choice: Choice) -> list[Attempt]:
    """Those that are asked for: as they were queued, or sorted by what was asked."""
    some: Iterable[Attempt] = model.attempts.values() if choice.attempts else last_attempts(model)
    found = [attempt for attempt in some if _fits(attempt, choice)]
    by: Callable[[Attempt], float | None]
    if choice.slowest is not None:
        most, by = choice.slowest, lambda attempt: ran_s(attempt, model.end_time)
    elif choice.largest is not None:
        most, by = choice.largest, lambda attempt: attempt.peak_memory_mb
    elif choice.wasteful is not None:
        most, by = choice.wasteful, _wasted_mb
    else:
        return found
    measured = [(value, attempt) for attempt in found if (value := by(attempt)) is not None]
    return [attempt for _, attempt in sorted(measured, key=lambda item: -item[0])[:most]]


def _wasted_mb(attempt: Attempt) -> float | None:
    """Memory that it held and did not use."""
    if attempt.peak_memory_mb is None or attempt.placed is None:
        return None
    return max(0.0, attempt.memory_total_mb - attempt.peak_memory_mb)


def _fits(attempt: Attempt, choice: Choice) -> bool:
    rules = {attempt.rule, *(member.rule for member in attempt.members)}
    wildcards = [attempt.wildcards, *(member.wildcards for member in attempt.members)]
    word = state_of(attempt)
    # "failed" takes each way to fail; a lost worker's job runs again.
    words = {word} | ({"failed"} if word in ("out-of-memory", "out-of-time", "not-started") else set())
    return (
        (not choice.rules or any(fnmatchcase(rule, pattern) for rule in rules for pattern in choice.rules))
        and all(any(_has(each, pattern) for each in wildcards) for pattern in choice.wildcards)
        and (not choice.states or not words.isdisjoint(choice.states))
    )


def _has(wildcards: Mapping[str, str], pattern: str) -> bool:
    name, equals, value = pattern.partition("=")
    if equals and name in wildcards:
        return fnmatchcase(wildcards[name], value)
    return any(fnmatchcase(each, pattern) for each in wildcards.values())


@dataclass(frozen=True, slots=True)
class Column:
    """``keep``: how much it matters where the terminal is narrow; what matters least goes first."""

    head: str
    keep: int
    right: bool = False
    least: int = 20  # so wide it stays while others that matter less can be left out


Make = Callable[[Attempt], str]


def _table_columns(model: RunModel, jobs: Sequence[Attempt], *, attempts: bool) -> list[tuple[Column, Make]]:
    """The columns in which these jobs have something to say, each with what makes a cell of it."""
    picture = snapshot(model)
    waits = {(each.pool, rule): each.what for each in picture.waiting for rule in each.rules}
    queued = {pool.name: f" (queued: {pool.queue_reason})" for pool in picture.pools if pool.queue_reason}

    def why(attempt: Attempt) -> str:
        if attempt.state == "waiting":
            what = waits.get((attempt.pool, attempt.rule), "room")
            return f"waits for {what} in pool {attempt.pool}{queued.get(attempt.pool, '')}"
        return "" if attempt.status == "succeeded" else cause(attempt)

    tries = Counter(attempt.jobid for attempt in model.attempts.values() if attempt.placed is not None)
    now = model.end_time
    groups = any(job.members for job in jobs)
    found: list[tuple[Column, Make]] = [
        (Column("JOB", 100, right=not groups), lambda a: short_id(a.jobid)),
        (Column("RULE", 99), lambda a: a.rule),
        (Column("WILDCARDS", 98), named),
        (Column("STATE", 97), state_of),
        (
            Column("TRY" if attempts else "TRIES", 50, right=True),
            lambda a: str(a.attempt if attempts else tries[a.jobid]),
        ),
        (Column("RAN", 90, right=True), lambda a: _or_nothing(ran_s(a, now), rough)),
        (Column("WAITED", 55, right=True), lambda a: rough(first(a.placed, a.ended, now) - a.queued)),
        (Column("CORES", 65, right=True), lambda a: str(a.cores)),
        (Column("DASK", 46, right=True), lambda a: str(sum(a.dask_workers.values()))),
        (Column("CPU", 60, right=True), lambda a: _or_nothing(a.cpu_efficiency, lambda part: share(part, 1.0))),
        (Column("MEMORY", 70, right=True), lambda a: _or_nothing(a.asked_memory_mb, format_memory)),
        (Column("PEAK", 80, right=True), lambda a: _or_nothing(a.peak_memory_mb, short_memory)),
        (
            Column("AT WORK", 45, right=True),
            lambda a: "" if a.now is None else _or_nothing(a.now.cores, "{:.1f}".format),
        ),
        (Column("IN USE", 44, right=True), lambda a: "" if a.now is None else short_memory(a.now.memory_mb)),
        (Column("GPUS", 43, right=True), lambda a: str(a.gpus)),
        (Column("WORKER", 30), lambda a: ",".join(a.workers)),
        (Column("HOST", 25), lambda a: a.host),
        (Column("ALLOCATION", 20), lambda a: a.allocation),
        (Column("WHY", _ALWAYS, least=60), why),
    ]
    return [
        (column, make)
        for column, make in found
        if column.keep > _ALWAYS or any(make(job) not in ("", "0", NOTHING) for job in jobs)
    ]


def _or_nothing(value: Any, show: Callable[[Any], str]) -> str:
    return NOTHING if value is None else show(value)


def text_table(model: RunModel, jobs: Sequence[Attempt], *, width: int | None, attempts: bool = False) -> str:
    """Aligned columns, at most ``width`` characters wide (None: as wide as they are): those that matter least go."""
    found = _table_columns(model, jobs, attempts=attempts)
    rows = [[clean(make(job), 200) or NOTHING for _, make in found] for job in jobs]
    return "\n".join(fitted([column for column, _ in found], rows, width))


def fitted(found: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Lines, the head first; none without rows."""
    if not rows:
        return []
    shown = list(range(len(found)))
    heads = [column.head for column in found]
    wholes = [max(map(len, cells)) for cells in zip(heads, *rows, strict=True)]
    sizes = list(wholes)

    def too_wide() -> int:
        return 0 if width is None else sum(sizes[i] + _GAP for i in shown) - _GAP - width

    # The longest texts are shortened first, then columns are left out, then the texts are shortened further.
    for last in (False, True):
        least = [_LEAST_WIDE if last else column.least for column in found]
        while too_wide() > 0:
            texts = [i for i in shown if not found[i].right and sizes[i] > least[i]]
            if not texts:
                break
            longest = max(texts, key=lambda i: sizes[i])
            sizes[longest] = max(least[longest], sizes[longest] - too_wide())
        if last:
            break
        while too_wide() > 0 and len(shown) > 4:
            least_of_all = min(shown, key=lambda i: found[i].keep)
            if found[least_of_all].keep >= _ALWAYS:
                break
            shown.remove(least_of_all)
    for i in shown:  # the room of columns that were left out
        sizes[i] += max(0, min(wholes[i] - sizes[i], -too_wide()))
    cut_rows = [[cut(row[i], sizes[i]) for i in shown] for row in (heads, *rows)]
    return columns(
        [
            [cell.rjust(sizes[i]) if found[i].right else cell for cell, i in zip(row, shown, strict=True)]
            for row in cut_rows
        ]
    )


def cut(text: str, width: int) -> str:
    """At most so many characters of it, with a sign where some are missing."""
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}\N{HORIZONTAL ELLIPSIS}"


def tsv_table(jobs: Iterable[Attempt]) -> str:
    """The columns of a report's table."""
    rows = ["\t".join(COLUMNS)]
    for job in jobs:
        values = (make(job) for make in COLUMNS.values())
        rows.append("\t".join("" if value is None else clean(str(value), 10_000) for value in values))
    return "\n".join(rows)


def json_table(jobs: Iterable[Attempt]) -> str:
    """A list of objects with the columns of a report's table; wildcards and members as objects."""
    data = [
        {name: make(job) for name, make in COLUMNS.items()} | {"wildcards": job.wildcards, "members": job.members}
        for job in jobs
    ]
    return json.dumps(plain(data), indent=1, ensure_ascii=True)
