"""Which run and which job a person means. Reads directories and event logs."""

import contextlib
import gc
import glob
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.node.former import Fate
from snakemake_executor_plugin_dask.node.state import EVENTS, RUNS
from snakemake_executor_plugin_dask.observe import live
from snakemake_executor_plugin_dask.observe.events import logs_in, read_events
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.records import Attempt
from snakemake_executor_plugin_dask.observe.wording import full_name, short_id

_MATCHES_SHOWN = 5
_LEAST_OF_A_NAME = 8  # of a group's long one


def find_log(run: str | None) -> Path:
    """The event log of a run, which is a name or its first letters, a log, or a directory. None: the newest here.

    Raises ConfigurationError with a sentence where there is none, or more than one.
    """
    if run is None or Path(run).is_dir():
        where = Path(run or ".")
        if not (logs := logs_in(where)):
            here = "this directory" if where == Path() else os.fspath(where)
            msg = (
                f"There is no event log of a run in {here} ({RUNS}/*{EVENTS}); a run that has just been started "
                "creates it with its first job."
            )
            raise ConfigurationError(msg)
        return logs[-1]
    if run.endswith(".jsonl"):
        return Path(run)
    found = sorted(RUNS.glob(f"{glob.escape(run)}*{EVENTS}"))
    exact = [path for path in found if path.name == f"{run}{EVENTS}"]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        names = ", ".join(path.name.removesuffix(EVENTS) for path in found[:_MATCHES_SHOWN])
        msg = f"Several runs begin with {run} ({names}): give more characters."
    else:
        msg = f"There is no run {run} in this directory; `snakemake-dask runs` lists those that exist."
    raise ConfigurationError(msg)


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """While a log is read: nothing of a model refers to itself, and looking through it again and again takes time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def read_run(log: Path) -> RunModel:
    """Raises OSError; ConfigurationError where the log holds no events."""
    with no_garbage():
        model = RunModel(read_events(log))
    if model.started is None:
        msg = f"{log} holds no events."
        raise ConfigurationError(msg)
    if model.ended is None:
        live.look(log, model)
    return model


def fate(log: Path) -> Fate:
    """Whether the process of a run lives, as far as that can be told from this host. Its log holds no end."""
    directory = log.with_name(log.name.removesuffix(EVENTS))
    if not directory.is_dir():
        return "dead"
    try:
        found = {path.name: what for path, what, _ in state.former_runs(directory.parent)}
    except OSError:  # not this user's own
        return "unknown"
    return found.get(directory.name, "unknown")


def up_to_now(model: RunModel, log: Path) -> RunModel:
    """The same, but a run that goes on has come to this moment, and not only to its last event."""
    if model.ended is None and fate(log) == "alive":
        model.now = max(model.now, time.time())
    return model


def last_attempts(model: RunModel) -> list[Attempt]:
    """One for each job: the last attempt, in the order in which jobs were first seen."""
    last: dict[tuple[str, str], Attempt] = {}
    for attempt in model.attempts.values():
        last[attempt.rule, attempt.jobid] = attempt
    return list(last.values())


def find_job(model: RunModel, name: str) -> list[Attempt]:
    """All attempts of the one job that is meant, in their order.

    ``name`` is its number, an attempt's key, or its rule or a part of its description where that leaves only one.
    Raises ConfigurationError.
    """
    jobs = last_attempts(model)
    found = [job for job in jobs if job.jobid == name]
    found = found or [job for job in jobs if name in model.attempts and model.attempts[name].jobid == job.jobid]
    found = found or [job for job in jobs if any(member.jobid == name for member in job.members)]
    found = found or [job for job in jobs if len(name) >= _LEAST_OF_A_NAME and job.jobid.startswith(name)]
    found = found or [job for job in jobs if name == job.rule or name in job.wildcards.values()]
    found = found or [job for job in jobs if name in full_name(job, len(job.members))]
    if len(found) == 1:
        return [each for each in model.attempts.values() if (each.rule, each.jobid) == (found[0].rule, found[0].jobid)]
    if found:
        msg = f"{len(found)} jobs match {name}: give the number of one of them ({_some(found)})."
    else:
        msg = f"Run {model.run_id} has no job {name}; `snakemake-dask jobs` lists its jobs."
    raise ConfigurationError(msg)


def state_of(attempt: Attempt) -> str:
    """One word: "waiting", "running", or how it ended."""
    if attempt.state == "ended":
        return attempt.status
    return "running" if attempt.state == "placed" else attempt.state


def _some(jobs: Sequence[Attempt]) -> str:
    shown = [f"{short_id(job.jobid)}: {full_name(job)}, {state_of(job)}" for job in jobs[:_MATCHES_SHOWN]]
    return "; ".join([*shown, "…"] if len(jobs) > _MATCHES_SHOWN else shown)
