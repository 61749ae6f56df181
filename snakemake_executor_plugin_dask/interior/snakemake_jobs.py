"""A job of Snakemake's, beyond what its interface declares."""

from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private

_JOB = "snakemake.jobs:Job"

RESTARTS = Private(_JOB, "restart_times", "jobs that wait would be started after an error")
PIPE_GROUP = Private(_JOB, "pipe_group", "jobs that pipes join would get too few cores to run at once")
QUEUE_INPUT = Private(_JOB, "has_queue_input", "a rule that takes its input from a queue would wait for ever")
STORAGE = Private("snakemake.io:_IOFile", "is_storage", "log files in storage would be looked for on this machine")

NAMES = (RESTARTS, PIPE_GROUP, QUEUE_INPUT, STORAGE)


def restarts(job: Any) -> int:
    """How often the job is run again after its first attempt has failed."""
    return int(RESTARTS.of(job))


def joined_by(job: Any) -> Any:
    """What a single job has in common with those that pipes or services join to it; None: nothing."""
    return PIPE_GROUP.of(job)


def reads_a_queue(job: Any) -> bool:
    """Whether a single job takes its input from a queue (`from_queue`)."""
    return bool(QUEUE_INPUT.of(job)())


def is_in_storage(file: Any) -> bool:
    """Whether a job's file is one of a storage provider's."""
    return bool(STORAGE.of(file))
