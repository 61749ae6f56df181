"""Snakemake's job scheduler: whether it still starts jobs, what it counts as running, and a job that it never started.

Executors are told of none of this; the interface declares `executor_error_callback` alone.
"""

import threading
from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private, privates

_SCHEDULER = "snakemake.scheduling.job_scheduler:JobScheduler"

ERRORS = Private(_SCHEDULER, "_errors", "jobs that wait would be started after an error")
USER_KILL = Private(_SCHEDULER, "_user_kill", "jobs that wait would be started after SIGTERM")
RUNNING = Private(_SCHEDULER, "running", "a run that was stopped would wait for jobs that are never started")
_ALL_END = "a job that no pool can hold ends the run, also with --keep-going"
LOCK, OPEN_JOBS = privates(_SCHEDULER, _ALL_END, "_lock", "_open_jobs", needed=False)
HANDLE_ERROR = Private(_SCHEDULER, "_handle_error", _ALL_END, needed=False, arguments=("job", "postprocess_job"))
REEVALUATION = Private(
    _SCHEDULER, "_schedule_reevalutation", "the end of a run comes up to a second later", needed=False
)

NAMES = (ERRORS, USER_KILL, RUNNING, LOCK, HANDLE_ERROR, OPEN_JOBS, REEVALUATION)


def has_failed(scheduler: Any) -> bool:
    """Whether a job has failed for good. Without --keep-going Snakemake then starts no more."""
    return bool(ERRORS.of(scheduler))


def told_to_stop(scheduler: Any) -> bool:
    """Whether SIGTERM was heard: Snakemake starts no more jobs, and waits for those that run."""
    return bool(USER_KILL.of(scheduler))


def running(scheduler: Any) -> set[Any]:
    """The jobs that Snakemake has handed to an executor, and of whose end it has not heard."""
    return set(RUNNING.of(scheduler))


def fail_unstarted(scheduler: Any, job: Any) -> None:
    """Let a job fail that was never started: with its retries, and its old outputs stay.

    It is what `error_callback` leads to, but for the post-processing, which removes outputs and records them as new.
    """
    with LOCK.of(scheduler):
        HANDLE_ERROR.of(scheduler)(job, postprocess_job=False)
    OPEN_JOBS.of(scheduler).release()


def wake_once(scheduler: Any) -> None:
    """Leave one of the wake-ups that its loop has yet to follow: each looks at all jobs, whatever was told since."""
    wakes = OPEN_JOBS.of(scheduler)
    due = False
    while wakes.acquire(blocking=False):
        due = True
    if due:
        wakes.release()


def forget_reevaluations(scheduler: Any) -> None:
    """End the timers that would wake its loop, once that is over: Python waits for each before it exits.

    There is one after each selection of jobs, which lasts as long as the time span of --max-jobs-per-timespan.
    """
    if REEVALUATION.there():
        made_by = f"{REEVALUATION.of(type(scheduler)).__qualname__}."
        for timer in threading.enumerate():
            if isinstance(timer, threading.Timer) and getattr(timer.function, "__qualname__", "").startswith(made_by):
                timer.cancel()
