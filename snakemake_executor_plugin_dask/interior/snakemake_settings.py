"""What the user told Snakemake, beyond what its interface declares of the settings."""

import os
from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private, privates

_WORKFLOW, _TYPES = "snakemake.workflow:Workflow", "snakemake.settings.types:"
_THREADS = "jobs would get other numbers of threads than with the local executor"
_COPIES = "jobs that do not share local copies of storage files would take each other's"

RESOURCE_SETTINGS = Private(_WORKFLOW, "resource_settings", _THREADS)
CORES, MAX_THREADS = privates(f"{_TYPES}ResourceSettings", _THREADS, "cores", "max_threads")
NODES = Private(f"{_TYPES}ResourceSettings", "nodes", "no hint is given where --jobs is too low", needed=False)
KEEP_GOING = Private(f"{_TYPES}ExecutionSettings", "keep_going", "jobs that wait would be started after an error")
LOCK = Private(f"{_TYPES}ExecutionSettings", "lock", "what a dead run left behind would not be given back")
LATENCY_WAIT = Private(
    f"{_TYPES}ExecutionSettings", "latency_wait", "`--latency-wait 0` does not reach jobs", needed=False
)
WORKFLOW_SETTINGS = Private(_WORKFLOW, "workflow_settings", "jobs would not use the cache between workflows")
CACHE = Private(f"{_TYPES}WorkflowSettings", "cache", "jobs would not use the cache between workflows")
JOB_COPIES = Private(f"{_TYPES}StorageSettings", "remote_job_local_storage_prefix", _COPIES)
COPIES = Private(f"{_TYPES}StorageSettings", "local_storage_prefix", _COPIES)
WORKDIR = Private(_WORKFLOW, "overwrite_workdir", "a `workdir:` of the workflow would lead jobs to another directory")
_SLOW = "nobody is told that Snakemake takes long to choose among thousands of jobs"
SCHEDULING_SETTINGS = Private(_WORKFLOW, "scheduling_settings", _SLOW, needed=False)
SCHEDULER, SUBSAMPLE = privates(f"{_TYPES}SchedulingSettings", _SLOW, "scheduler", "subsample", needed=False)
LOCALRULES = Private(
    _WORKFLOW, "localrules", "rules that take their input from a queue must be listed under localrules", needed=False
)

NAMES = (
    *(RESOURCE_SETTINGS, CORES, MAX_THREADS, NODES, KEEP_GOING, LOCK, LATENCY_WAIT, WORKFLOW_SETTINGS, CACHE),
    *(JOB_COPIES, COPIES, WORKDIR, LOCALRULES, SCHEDULING_SETTINGS, SCHEDULER, SUBSAMPLE),
)


def cores(workflow: Any) -> int | None:
    """`--cores`."""
    found: int | None = CORES.of(RESOURCE_SETTINGS.of(workflow))
    return found


def max_threads(workflow: Any) -> int | None:
    """`--max-threads`."""
    found: int | None = MAX_THREADS.of(RESOURCE_SETTINGS.of(workflow))
    return found


def jobs(workflow: Any) -> int | None:
    """`--jobs`, how many are handed over at once; None also where that cannot be told any more."""
    found: int | None = NODES.of(RESOURCE_SETTINGS.of(workflow)) if NODES.there() else None
    return found


def keeps_going(workflow: Any) -> bool:
    """`--keep-going`."""
    return bool(KEEP_GOING.of(workflow.execution_settings))


def locks(workflow: Any) -> bool:
    """Whether the working directory is locked for this run (no `--nolock`)."""
    return bool(LOCK.of(workflow.execution_settings))


def waits_not(workflow: Any) -> bool:
    """Whether `--latency-wait 0` was given, which Snakemake does not hand on, since 0 counts as "nothing" there."""
    return LATENCY_WAIT.there() and LATENCY_WAIT.of(workflow.execution_settings) == 0


def caches_all(workflow: Any) -> bool:
    """Whether `--cache` was given without rules, which means all that are eligible."""
    cached = CACHE.of(WORKFLOW_SETTINGS.of(workflow))
    return cached is not None and not cached


def caches(workflow: Any) -> bool:
    """Whether `--cache` was given."""
    return CACHE.of(WORKFLOW_SETTINGS.of(workflow)) is not None


def places_of_copies(workflow: Any) -> tuple[str, str]:
    """The directories of local copies of storage files: for jobs that do not share them, and here."""
    storage = workflow.storage_settings
    return os.fspath(JOB_COPIES.of(storage)), os.fspath(COPIES.of(storage))


def sets_workdir(workflow: Any) -> bool:
    """Whether `--directory` was given."""
    return WORKDIR.of(workflow) is not None


def scheduler(workflow: Any) -> str | None:
    """`--scheduler`, where it chooses among all jobs that are ready; None also where that cannot be told."""
    if not (SCHEDULING_SETTINGS.there() and SCHEDULER.there() and SUBSAMPLE.there()):
        return None
    settings = SCHEDULING_SETTINGS.of(workflow)
    return None if SUBSAMPLE.of(settings) else str(SCHEDULER.of(settings))


def run_here(workflow: Any, rule: str) -> bool:
    """Let a rule's jobs run in Snakemake's own process, as `localrules:` does. False: there is no way to."""
    if LOCALRULES.there():
        LOCALRULES.of(workflow)(rule)
        return True
    return False
