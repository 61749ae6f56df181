"""A job's own call, as the local executor would make it, in a form that travels. Reads Snakemake's interior.

In Snakemake's process `describe` says which rule runs with which wildcards and on which input files. On the worker the
warm process has read the same workflow, so that a child of it can make the same job (`worker/warm_snakemake.py`).
Input files travel, since only the main process has the DAG that they come from. Everything else (resources, parameters,
log files, the message) is evaluated on the worker, as in a cold job.
"""

import pickle
from typing import Any, NamedTuple

#: Flags of input files that mean nothing to a job once its input exists, or that plain values express.
_HARMLESS_FLAGS = frozenset(
    {
        "access_pattern",
        "ancient",
        "directory",
        "ensure",
        "multiext",
        "protected",
        "report",
        "sourcecache_entry",
        "temp",
        "touch",
        "unpack",
    }
)


class Call(NamedTuple):
    """What `describe` pickles. Names are pairs of a name and the slice of the list that it stands for."""

    rule: str
    wildcards: dict[str, str]
    input: list[str]
    input_names: list[tuple[str, tuple[int, int | None]]]
    directories: list[int]  # input files that are flagged as directories, by index
    output: list[str]  # only to be compared with what the worker finds
    jobid: int


def describe(job: Any) -> bytes | None:
    """The pickled `Call` of a job; None where it needs a DAG and a scheduler of its own, or may need them."""
    if job.is_group():
        return None
    rule, workflow = job.rule, job.dag.workflow
    if (
        rule.shadow_depth is not None
        or rule.norun
        or rule.is_notebook
        or rule.is_cwl
        or rule.is_template_engine
        or rule.is_handover
        or (workflow.workflow_settings.cache is not None and rule.cache and rule.cache.output)
        or job.has_queue_input()
        or job.pipe_or_service_output
        or job.pipe_group is not None
    ):
        return None
    if workflow.deployment_settings.deployment_method and (
        rule.conda_env or rule.container_img or rule.env_modules or rule.is_wrapper
    ):
        return None
    # The body of a `run:` may ask for a checkpoint's output, which only a DAG can answer.
    if job.is_run and any(other.is_checkpoint for other in workflow.rules):
        return None
    directories = []
    for index, file in enumerate(job.input):
        flags = file.flags
        if flags:
            if not flags.keys() <= _HARMLESS_FLAGS:
                return None
            if "directory" in flags:
                directories.append(index)
    if any(file.is_storage for file in (*job.output, *job.log)) or (job.benchmark and job.benchmark.is_storage):
        return None
    call = Call(
        rule=rule.name,
        wildcards=dict(job.wildcards_dict),
        input=[str(file) for file in job.input],
        input_names=list(job.input._get_names()),
        directories=directories,
        output=[str(file) for file in job.output],
        jobid=job.jobid,
    )
    try:
        return pickle.dumps(tuple(call), protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError):
        return None  # e.g. a wildcard that is no plain text
