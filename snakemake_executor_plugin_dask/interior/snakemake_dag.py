"""Snakemake's graph of jobs: groups, what becomes ready next, and a retry that Snakemake itself would lose.

`needrun_jobs`, `finished` and `job_dependencies` are declared by Snakemake's interface for scheduler plugins, and used
where they are needed.
"""

from collections.abc import Iterable
from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private, privates
from snakemake_executor_plugin_dask.interior.snakemake_calls import PIPES

_DAG = "snakemake.dag:DAG"

GROUP = Private(_DAG, "get_job_group", "jobs in groups would be checked, and shown by --dask-plan, as single ones")
DEPENDING, NEEDRUN = privates(
    _DAG, "no worker is kept or brought up for jobs that become ready next", "depending", "needrun", needed=False
)
READY = Private(
    _DAG, "ready_jobs", "nobody is told that Snakemake takes long to choose among thousands of jobs", needed=False
)
RUNNING = Private(
    _DAG,
    "_running",
    "a failed job whose next attempt waits while a checkpoint ends is lost by Snakemake, and the run fails",
    needed=False,
)
IS_PIPE = Private(
    "snakemake.jobs:Job",
    "is_pipe_or_service_input",
    "a rule with tens of thousands of inputs, such as `all`, takes minutes to begin",
    needed=False,
    arguments=("path",),
)

NAMES = (GROUP, DEPENDING, NEEDRUN, READY, RUNNING, IS_PIPE)


def group_of(dag: Any, job: Any) -> Any:
    """The group job that a single job is in; None: it is in none."""
    return GROUP.of(dag)(job)


def dependents(dag: Any, job: Any) -> Iterable[Any]:
    """The single jobs that wait for a single job's output."""
    return tuple(DEPENDING.of(dag)[job])


def is_to_run(dag: Any, job: Any) -> bool:
    """Whether a single job is to be run in this run, or has been."""
    return bool(NEEDRUN.of(dag)(job))


def number_ready(dag: Any) -> int:
    """How many jobs could be started now, a group's as one; 0 where that cannot be told any more."""
    return len(READY.of(dag)) if READY.there() else 0


def look_up_pipes(dag: Any, job: Any) -> None:
    """Let a single job that runs in Snakemake's process find out at once which of its inputs are pipes.

    For each input Snakemake goes through all jobs that it comes from: time that grows with the square of their number.
    """
    pipes = frozenset(path for other in dag.job_dependencies(job) for path in PIPES.of(other))
    setattr(job, IS_PIPE.name, pipes.__contains__)


def let_run_again(dag: Any, job: Any) -> None:
    """Take a failed job, which becomes ready again, from those that run.

    Snakemake leaves it there. Where a checkpoint ends while it waits, all ready jobs are looked for anew, and those
    that run are passed over: it would never start.
    """
    RUNNING.of(dag).discard(job)
