"""Why one job waits, pool by pool; or what became of it. Pure; from events."""

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from snakemake_executor_plugin_dask.decide import routing
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.printed import clean_block
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.model.units import count, format_memory
from snakemake_executor_plugin_dask.observe.events import Event
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.picture import PoolState, WorkerState, snapshot
from snakemake_executor_plugin_dask.observe.records import Attempt, ran_s
from snakemake_executor_plugin_dask.observe.status import queue_clause, waiting_line
from snakemake_executor_plugin_dask.observe.wording import (
    clean,
    full_name,
    rough,
    short_id,
    short_memory,
)


def explain(model: RunModel, attempts: Sequence[Attempt], events: Iterable[Event], now: float) -> str:
    """``attempts`` of one job, ``events`` of the whole run. ``now``: seconds since the epoch."""
    last = attempts[-1]
    pools, request = _declared(events, attempts[0].key)
    asked = f", which asks for {routing.describe(request)}" if request is not None else ""
    lines = [f"Job {short_id(last.jobid)}: {clean(full_name(last, len(last.members)), 2000)}{asked}."]
    lines += [_past(attempt) for attempt in attempts[:-1]]
    if last.state == "waiting" and model.ended is None:
        lines += [f"It has waited for {rough(max(0.0, now - last.queued))}.", ""]
        lines += _waits(model, last, pools, request, now)
    elif last.state in ("placed", "running"):
        seconds = ran_s(last, now) or 0.0
        lines.append(f"It runs on worker {clean(last.worker)}{_where(last)}, for {rough(seconds)} so far.")
    elif last.state == "dropped":
        lines.append("It was not started, since the run ended before; its outputs are as they were.")
    elif last.state == "waiting":
        lines.append("It was not started before the run ended.")
    else:
        lines.append(_past(last))
        if last.status != "succeeded":
            lines += _logs(last)
    return "\n".join(lines)


def _logs(attempt: Attempt) -> Iterable[str]:
    """The ends of the rule's own logs, or else of the job's, and where that is."""
    tails = [(path, tail) for path, tail in attempt.rule_logs if tail.strip()] or [("its log", attempt.log_tail)]
    for path, tail in tails:
        if tail.strip():
            yield f"The last lines of {clean(path)}:"
            yield from (f"    {line}" for line in clean_block(tail).rstrip().splitlines())
    if attempt.log_path:
        yield f"Its log: {clean(attempt.log_path)} (`snakemake-dask log {clean(short_id(attempt.jobid))}` prints it)."


def _declared(events: Iterable[Event], key: str) -> tuple[dict[str, Pool], Request | None]:
    """The pools of a run and the request of one job. As in the model, a damaged event is passed over."""
    pools: dict[str, Pool] = {}
    request: Request | None = None
    for event in events:
        try:
            if event["kind"] == "run-started":
                listed = event.get("pools") or (event.get("options") or {}).get("pools") or []
                pools |= {pool.name: pool for each in listed if (pool := _made(Pool, each)) is not None}
            elif event["kind"] == "pool-up" and (pool := _made(Pool, {**event, "name": event.get("pool")})) is not None:
                pools.setdefault(pool.name, pool)
            elif event["kind"] == "job-queued" and event.get("key") == key:
                request = _made(Request, event.get("request") or {})
        except (TypeError, AttributeError):
            continue
    return pools, request


def _made(kind: type[Any], fields: Mapping[str, Any]) -> Any:
    """A dataclass from its form in the event log; None where that lacks something.

    What is not of a field's type is left out: an object, which decides nothing here, or what a damaged log holds.
    """
    hints = typing.get_type_hints(kind)
    values = {name: _frozen(value) for name, value in fields.items()}
    try:
        return kind(**{name: value for name, value in values.items() if name in hints and _fits(value, hints[name])})
    except TypeError:
        return None


def _fits(value: object, hint: Any) -> bool:
    """Whether a value, as JSON gives it, is of a field's type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return len(each) == len(value) and all(map(_fits, value, each))
    return type(value) is hint or (hint is float and type(value) is int)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value


def _where(attempt: Attempt) -> str:
    parts = [f"host {clean(attempt.host)}"] if attempt.host else []
    parts += [f"allocation {clean(attempt.allocation)}"] if attempt.allocation else []
    return f" ({', '.join(parts)})" if parts else ""


def _past(attempt: Attempt) -> str:
    name = f"Attempt {attempt.attempt}" + (f", run {attempt.run}" if attempt.run > 1 else "")
    ran = f" after {rough(attempt.ran_s)}" if attempt.ran_s is not None else ""
    peak = f", peak memory {short_memory(attempt.peak_memory_mb)}" if attempt.peak_memory_mb else ""
    on = f" on worker {clean(attempt.worker)}{_where(attempt)}" if attempt.worker else ""
    why = f": {clean(attempt.message, 2000)}" if attempt.message else "."
    return f"{name}: {attempt.status}{ran}{on}{peak}{why}"


def _waits(model: RunModel, job: Attempt, pools: Mapping[str, Pool], request: Request | None, now: float) -> list[str]:
    picture = snapshot(model, now)
    lines = []
    for name in dict.fromkeys((*pools, *(pool.name for pool in picture.pools))):
        chosen = " (it waits in this one)" if name == job.pool else ""
        why = _pool(pools.get(name), picture.pool(name), request, picture.workers)
        lines.append(f"Pool {clean(name)}{chosen}: {why}")
    same = [
        waiting_line(state, picture.pool(state.pool))
        for state in picture.waiting
        if state.pool == job.pool and (not state.rules or job.rule in state.rules)
    ]
    return [*lines, "", *same] if same else lines


def _pool(pool: Pool | None, state: PoolState, request: Request | None, workers: Sequence[WorkerState]) -> str:
    if state.given_up:
        return f"was given up: {clean(state.given_up, 300)}"
    mine = [worker for worker in workers if worker.pool == state.name]
    if request is not None and request.pool not in (None, state.name):
        return "is not the one that dask_pool names."
    if pool is not None and request is not None:
        short = routing.shortages(request, pool, routing.shape_of(pool))
        if short:
            return f"can never hold it: {'; '.join(part.text for part in short)}."
    parts = []
    if state.queued:
        parts.append(queue_clause(state))
    if state.starting:
        parts.append(f"{count(state.starting, 'worker')} starting")
    if request is not None and mine:
        parts.append(_room(request, mine))
    if not mine:
        parts.append("no worker is there")
    return "; ".join(parts) + "."


def _room(request: Request, workers: Sequence[WorkerState]) -> str:
    """What the worker with most room lacks."""
    best = max(workers, key=lambda w: (w.cores_free >= request.cores, w.memory_free_mb, w.cores_free))
    lacks = []
    if best.cores_free < request.cores:
        lacks.append(f"{best.cores_free} of {count(request.cores, 'core')} free")
    if request.memory_mb is not None and best.memory_free_mb < request.memory_mb:
        lacks.append(f"{format_memory(best.memory_free_mb)} of {format_memory(request.memory_mb)} free")
    if best.gpus_free < request.gpus:
        lacks.append(f"{best.gpus_free} of {count(request.gpus, 'GPU')} free")
    if not lacks:
        return f"worker {clean(best.name)} has room for it now"
    return f"the worker with most room, {clean(best.name)}, has {', '.join(lacks)}"
