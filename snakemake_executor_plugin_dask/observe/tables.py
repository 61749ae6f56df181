"""What is in the tables of the report page: failures, rules, workers, what was said. Pure; nothing is escaped yet."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from snakemake_executor_plugin_dask.model.jobs import members_text, wildcard_text
from snakemake_executor_plugin_dask.model.printed import clean_block
from snakemake_executor_plugin_dask.observe.advice import RuleUse, Spread, set_resources
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.records import Allocation, Attempt, Worker, first, ran_s
from snakemake_executor_plugin_dask.observe.use import worker_use
from snakemake_executor_plugin_dask.observe.wording import (
    cause,
    clean,
    core_time,
    named,
    rough,
    share,
    short_id,
    short_memory,
)

NOTHING = "\N{EN DASH}"
FAILURES_SHOWN = 200
ALLOCATIONS_SHOWN = 500
RULES_SHOWN = 400
SAID_SHOWN = 500
JOBS_SHOWN = 30_000  # of more the page would grow beyond ten megabytes

STATES = {
    "failed": "failed",
    "out-of-time": "out of time",
    "out-of-memory": "out of memory",
    "lost": "lost its worker",
    "cancelled": "cancelled",
    "not-started": "not started",
}


class Cell(NamedTuple):
    """A number in a table. ``part``: shown as a meter, where it is given; more than 1 is too much."""

    text: str
    part: float | None = None
    bad: bool = False


def failures(model: RunModel) -> dict[str, Any]:
    """Pools that were given up, and attempts that failed, in groups."""
    failed = [a for a in model.attempts.values() if a.state == "ended" and a.status not in ("succeeded", "cancelled")]
    groups: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    for attempt in failed:
        groups[attempt.status, attempt.rule].append(attempt)
    parts, left = [], FAILURES_SHOWN
    # Lost workers last: their jobs ran again.
    for (status, rule), attempts in sorted(groups.items(), key=lambda item: (item[0][0] == "lost", -len(item[1]))):
        shown = attempts[: max(1, min(left, 20))]
        left -= len(shown)
        reason = cause(attempts[0])
        parts.append(
            {
                "state": STATES.get(status, status),
                "rule": rule,
                "open": len(failed) <= 3 and status != "lost",
                "attempts": len(attempts),
                "why": f"; {'first: ' * (len(attempts) > 1)}{clean(reason, 160)}" if reason else "",
                "shown": [_failure(attempt) for attempt in shown],
                "more": len(attempts) - len(shown),
            }
        )
    gone = [(pool.name, pool.given_up) for pool in model.pools.values() if pool.given_up]
    return {"failures": parts, "given_up": gone}


def _failure(attempt: Attempt) -> dict[str, Any]:
    run = f", run {attempt.run}" if attempt.run > 1 else ""
    facts = [f"job {clean(short_id(attempt.jobid))}, attempt {attempt.attempt}{run}"]
    if attempt.members:
        facts.append(f"of {clean(members_text(attempt.members, 10), 1000)}")
    if attempt.worker:
        where = f", allocation {clean(attempt.allocation)}" if attempt.allocation else ""
        facts.append(f"on {clean(attempt.host or '?')} (worker {clean(attempt.worker)}{where})")
    if attempt.ran_s is not None:
        facts.append(f"after {rough(attempt.ran_s)}")
    if attempt.exit_code and not attempt.message:  # which names that of the command, and not of its Snakemake
        facts.append(f"exit code {attempt.exit_code}")
    if attempt.signal:
        facts.append(f"signal {attempt.signal}")
    if attempt.peak_memory_mb:
        facts.append(f"peak memory {short_memory(attempt.peak_memory_mb)}")
    return {
        "named": wildcard_text(attempt.wildcards) if attempt.wildcards else "",
        "facts": facts,
        "message": attempt.message,
        "log_path": attempt.log_path,
        "rule_logs": [(path, tail) for path, tail in attempt.rule_logs if tail.strip()],
        "tail": attempt.log_tail if attempt.log_tail.strip() else "",
    }


def block(value: str) -> str:
    """Text of several lines; as much as a log's tail may hold."""
    return clean_block(value).rstrip()[-4096:]


def rules(uses: Sequence[RuleUse]) -> dict[str, Any]:
    """What each rule asked for and used, and what is to be asked for."""
    rows = []
    for use in uses[:RULES_SHOWN]:
        efficiency = use.cpu_efficiency
        cells = [
            Cell(f"{use.jobs:,}"),
            Cell(f"{use.failed:,}", bad=use.failed > 0),
            Cell(f"{_range(use.cores, str)}{f', {use.gpus} GPU' if use.gpus else ''}"),
            Cell(NOTHING if efficiency is None else share(efficiency, 1.0), efficiency),
            Cell(_range(use.asked_memory_mb, short_memory)),
            Cell(_used(use.memory_mb, short_memory), _part(use.memory_mb, use.asked_memory_mb)),
            Cell(_range(use.asked_runtime_s, rough)),
            Cell(_used(use.runtime_s, rough), _part(use.runtime_s, use.asked_runtime_s)),
            Cell(core_time(use.core_s)),
        ]
        rows.append((use.rule, cells))
    return {"rules": rows, "more_rules": max(0, len(uses) - RULES_SHOWN), "advice": clean_block(set_resources(uses))}


def _range(values: Spread | None, show: Any) -> str:
    if values is None:
        return NOTHING
    least, most = show(values.least), show(values.most)
    return str(least) if least == most else f"{least} to {most}"


def _used(values: Spread | None, show: Any) -> str:
    return NOTHING if values is None else ", ".join(map(show, (values.middle, values.high, values.most)))


def _part(used: Spread | None, asked: Spread | None) -> float | None:
    return None if used is None or asked is None or not asked.most else used.most / asked.most


def workers(model: RunModel) -> dict[str, Any]:
    """Workers and the allocations that they were asked for in."""
    # What is started on this machine, or by a launcher, has waited in no queue.
    batch = any(model.pools[allocation.pool].batch for allocation in model.allocations)
    rows = list(_worker_rows(model, batch=batch))
    return {"batch": batch, "workers": rows[:ALLOCATIONS_SHOWN], "more_workers": len(rows) - ALLOCATIONS_SHOWN}


def _worker_rows(model: RunModel, *, batch: bool) -> Iterable[dict[str, Any]]:
    start, now = model.started or 0.0, model.end_time
    workers: dict[str, Worker] = {worker.name: worker for worker in model.workers}
    used = worker_use(model)
    for allocation in model.allocations:
        worker = workers.pop(allocation.worker, None)
        queues = model.pools[allocation.pool].batch
        until = allocation.gone if allocation.gone is not None else now
        ran = None if allocation.running is None else until - allocation.running
        begun = allocation.running if queues else allocation.submitted
        row = [rough(allocation.submitted - start)]
        if batch:
            row.append(rough(allocation.queue_s(now)) if queues else NOTHING)
        row.append(rough(max(0.0, worker.joined - begun)) if worker is not None and begun is not None else NOTHING)
        row.append(NOTHING if ran is None else rough(ran))
        names = [allocation.worker, allocation.pool, *[allocation.id if queues else NOTHING] * batch]
        end, bad = _end_of(allocation, worker, over=model.ended is not None)
        yield _worker_row(names, row, worker, ran, used.get(allocation.worker, 0.0), end=end, bad=bad)
    for worker in workers.values():
        held_s = (worker.gone or now) - worker.joined
        row = [rough(worker.joined - start), *[NOTHING] * batch, NOTHING, rough(held_s)]
        names = [worker.name, worker.pool, *[NOTHING] * batch]
        lost = worker.state == "lost" and not worker.planned
        yield _worker_row(names, row, worker, held_s, used.get(worker.name, 0.0), end=worker.why, bad=lost)


def _end_of(allocation: Allocation, worker: Worker | None, *, over: bool) -> tuple[str, bool]:
    """How it ended, and whether that was a failure. ``over``: the run has ended."""
    if worker is not None:
        if worker.state == "lost" and not worker.planned:
            reasons = dict.fromkeys(part for part in (worker.why, allocation.reason) if part and part != "lost")
            return "lost: " + "; ".join(reasons), True
        return worker.why or (allocation.reason if allocation.gone is not None else ""), False
    if allocation.called_back:
        return f"called back: {allocation.called_back}", False
    if allocation.gone is not None:
        return allocation.reason or "ended before its worker had joined", True
    if over:
        return "called back at the end of the run", False
    return allocation.reason, False


def _worker_row(
    names: Sequence[str],
    times: Sequence[str],
    worker: Worker | None,
    held_s: float | None,
    used_s: float,
    *,
    end: str,
    bad: bool,
) -> dict[str, Any]:
    """``names`` of worker, pool, allocation; ``used_s`` core-seconds that jobs held; ``end`` says how it ended."""
    held = (worker.cores if worker else 0) * (held_s or 0.0)
    part = used_s / held if held else None
    cells = [
        *map(Cell, times),
        Cell(core_time(held) if held else NOTHING),
        Cell(NOTHING if part is None else share(part, 1.0), part),
        Cell(f"{worker.attempts:,}" if worker else "0"),
    ]
    return {"names": names, "cells": cells, "end": end, "bad": bad}


def said(model: RunModel) -> dict[str, Any]:
    """The last lines of what was said."""
    start = model.started or 0.0
    lines = [f"{rough(when - start):>8}  {clean(line, 2000)}" for when, _, line in model.said[-SAID_SHOWN:]]
    return {"said": "\n".join(lines), "lines_said": len(model.said)}


# Jobs, in rows that `templates/jobs.js` makes

#: Heads, and how numbers are shown: as a duration, memory, a part of one, or as they are. None: a text.
_COLUMNS: tuple[tuple[str, str | None], ...] = (
    *(("job", None), ("rule", None), ("wildcards", None), ("state", None)),
    *(("ran", "span"), ("waited", "span"), ("cores", "plain"), ("CPU at work", "part")),
    *(("memory asked", "memory"), ("peak", "memory"), ("attempt", "plain"), ("worker", None)),
)


def jobs_table(model: RunModel) -> dict[str, Any]:
    """The table without rows, which the script makes; hidden where there is no script."""
    return {
        "job_states": list(dict.fromkeys(_state(attempt) for attempt in model.attempts.values())),
        "job_columns": _COLUMNS,
        "jobs_shown": JOBS_SHOWN,
        "more_jobs": len(model.attempts) - JOBS_SHOWN,
    }


def jobs_data(model: RunModel) -> dict[str, Any]:
    """Each attempt as a row: job, rule, wildcards, state, numbers, worker; repeated texts by their index.

    Durations in seconds, memory in 10^6 bytes, -1 for what is not known.
    """
    rules: dict[str, int] = {}
    states: dict[str, int] = {}
    workers: dict[str, int] = {}
    rows = [
        [
            clean(short_id(attempt.jobid), 40),
            rules.setdefault(clean(attempt.rule, 120), len(rules)),
            clean(named(attempt), 200),
            states.setdefault(_state(attempt), len(states)),
            *_numbers(attempt, model.end_time),
            workers.setdefault(clean(attempt.worker, 60), len(workers)) if attempt.worker else -1,
        ]
        for attempt in list(model.attempts.values())[:JOBS_SHOWN]
    ]
    good = ("succeeded", "running", "waiting", "not started before the run ended")
    return {
        "rows": rows,
        "rules": list(rules),
        "states": list(states),
        "bad": [number for state, number in states.items() if state not in good],
        "workers": list(workers),
        "numbers": sum(kind is not None for _, kind in _COLUMNS),
    }


def _state(attempt: Attempt) -> str:
    if attempt.state == "ended":
        return STATES.get(attempt.status, clean(attempt.status, 40))
    return {"placed": "running", "dropped": "not started before the run ended"}.get(attempt.state, attempt.state)


def _numbers(attempt: Attempt, end: float) -> list[float]:
    ran, efficiency = ran_s(attempt, end), attempt.cpu_efficiency
    return [
        -1 if ran is None else round(ran, 2),
        round(max(0.0, first(attempt.placed, attempt.ended, end) - attempt.queued), 2),
        attempt.cores,
        -1 if efficiency is None else round(efficiency, 3),
        -1 if attempt.asked_memory_mb is None else attempt.asked_memory_mb,
        -1 if attempt.peak_memory_mb is None else attempt.peak_memory_mb,
        attempt.attempt,
    ]
