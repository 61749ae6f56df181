"""A job of Snakemake's, beyond what its interface declares."""

import os
import stat
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private, privates

_MOST_INPUTS = 1000  # each costs a look at the file system, in the thread that hands jobs over

_JOB = "snakemake.jobs:Job"

RESTARTS = Private(_JOB, "restart_times", "jobs that wait would be started after an error")
PIPE_GROUP = Private(_JOB, "pipe_group", "jobs that pipes join would get too few cores to run at once")
QUEUE_INPUT = Private(_JOB, "has_queue_input", "a rule that takes its input from a queue would wait for ever")
STORAGE = Private("snakemake.io:_IOFile", "is_storage", "log files in storage would be looked for on this machine")

_UPDATED = "a job that fails removes the file that it was to update"
BACKUP_PATH, BACK_UP = privates(
    "snakemake.persistence:FileBackupMixin", _UPDATED, "_get_backup_path", "backup_output", needed=False
)

NAMES = (RESTARTS, PIPE_GROUP, QUEUE_INPUT, STORAGE, BACKUP_PATH, BACK_UP)


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


def input_mb(job: Any) -> float | None:
    """The size of a job's input files in 10^6 bytes.

    None where there are none or very many, one is in storage, is no regular file, or cannot be looked at.
    """
    if not 0 < len(job.input) <= _MOST_INPUTS:
        return None
    size = 0
    for file in job.input:
        if is_in_storage(file):
            return None
        try:
            found = os.stat(file)
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        size += found.st_size
    return size / 1e6


def updated(single: Any, persistence: Any) -> tuple[tuple[str, str], ...]:
    """The outputs that a single job updates (`update`), each with the place of its backup while the job runs."""
    return tuple(
        (str(path), str(BACKUP_PATH.of(persistence)(Path(path))))
        for path in single.output
        if path.is_flagged("update")  # declared by snakemake-interface-common
    )


def back_up(persistence: Any, path: str) -> None:
    """Copy a file to where Snakemake takes it from when it hears that the job that updates it has failed.

    Where it finds none there it removes the file. OSError.
    """
    BACK_UP.of(persistence)(Path(path))
