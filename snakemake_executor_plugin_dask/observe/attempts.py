"""The report page's table of attempts: what is in its head, and its rows as data for `templates/jobs.js`. Pure."""

from typing import Any

from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.records import Attempt, first, ran_s
from snakemake_executor_plugin_dask.observe.tables import STATES
from snakemake_executor_plugin_dask.observe.wording import clean, named, short_id

SHOWN = 30_000  # of more the page would grow beyond ten megabytes

#: Heads, and how numbers are shown: as a duration, memory, a part of one, or as they are. None: a text.
_COLUMNS: tuple[tuple[str, str | None], ...] = (
    *(("job", None), ("rule", None), ("wildcards", None), ("state", None)),
    *(("ran", "span"), ("waited", "span"), ("cores", "plain"), ("CPU at work", "part")),
    *(("memory asked", "memory"), ("peak", "memory"), ("attempt", "plain"), ("worker", None)),
)
_WORDS = {"succeeded": "succeeded", **STATES}


def jobs_table(model: RunModel) -> dict[str, Any]:
    """The table without rows, which the script makes; hidden where there is no script."""
    return {
        "job_states": list(dict.fromkeys(_state(attempt) for attempt in model.attempts.values())),
        "job_columns": _COLUMNS,
        "jobs_shown": SHOWN,
        "more_jobs": len(model.attempts) - SHOWN,
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
        for attempt in list(model.attempts.values())[:SHOWN]
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
        return _WORDS.get(attempt.status, clean(attempt.status, 40))
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
