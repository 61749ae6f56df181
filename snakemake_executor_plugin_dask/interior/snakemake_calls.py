"""A job's own call, as the local executor would make it, in a form that travels.

In Snakemake's process `describe` says which rule runs with which wildcards and on which input files. On the worker the
warm process has read the same workflow, so that a child of it can make the same job. Input files travel, since only the
main process has the DAG that they come from. So do values of resources that come from expressions of the command line
(default resources, mostly), which no author's code has a part in: to evaluate them again takes a quarter of a short
job's preparation. Everything else (resources, parameters, log files, the message) is evaluated on the worker, as in a
cold job.
"""

import functools
import inspect
import pickle
from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private, missing, privates
from snakemake_executor_plugin_dask.interior.snakemake_jobs import PIPE_GROUP, QUEUE_INPUT, STORAGE
from snakemake_executor_plugin_dask.interior.snakemake_settings import caches
from snakemake_executor_plugin_dask.model.warmcall import Call

_LOST = "each job builds a DAG of its own, which makes short jobs several times slower"
_OF_RULE = functools.partial(privates, "snakemake.rules:Rule", _LOST, needed=False)

#: What makes a rule's jobs more than one function with arguments.
SPECIAL = _OF_RULE("norun", "is_notebook", "is_cwl", "is_template_engine", "is_handover")
#: What software deployment provides for.
_DEPLOYED = _OF_RULE("conda_env", "container_img", "env_modules", "is_wrapper")
_CACHE, CHECKPOINT, RESOURCES = _OF_RULE("cache", "is_checkpoint", "resources")
PIPES, _IS_RUN = privates("snakemake.jobs:Job", _LOST, "pipe_or_service_output", "is_run", needed=False)
_NAMES_OF = Private("snakemake.iocontainers:Namedlist", "_get_names", _LOST, needed=False)
_RULES = Private("snakemake.workflow:Workflow", "rules", _LOST, needed=False)
_EVALUATOR = Private("snakemake.resources:Resource", "_evaluator", _LOST, needed=False)

NAMES = (*SPECIAL, *_DEPLOYED, _CACHE, CHECKPOINT, PIPES, _IS_RUN, _NAMES_OF, _RULES, RESOURCES, _EVALUATOR)

_OF_THE_NODE = frozenset({"tmpdir"})

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


@functools.cache
def possible() -> bool:
    """Whether this Snakemake has all that tells which jobs can be described."""
    return not missing(NAMES)


def describe(job: Any, workflow: Any) -> bytes | None:
    """The pickled `Call` of a job; None where it needs a DAG and a scheduler of its own, or may need them."""
    if job.is_group() or _needs_dag(job, workflow):
        return None
    directories = []
    for index, file in enumerate(job.input):
        flags = file.flags
        if flags:
            if not flags.keys() <= _HARMLESS_FLAGS:
                return None
            if "directory" in flags:
                directories.append(index)
    if any(map(STORAGE.of, (*job.output, *job.log))) or (job.benchmark and STORAGE.of(job.benchmark)):
        return None
    call = Call(
        rule=job.rule.name,
        wildcards=dict(job.get_target_spec()[0].wildcards_dict),
        input=[str(file) for file in job.input],
        input_names=list(_NAMES_OF.of(job.input)()),
        directories=directories,
        output=[str(file) for file in job.output],
        jobid=job.jobid,
        resources=_evaluated(job, workflow),
    )
    try:
        return pickle.dumps(tuple(call), protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError):
        return None  # e.g. a wildcard that is no plain text


def _evaluated(job: Any, workflow: Any) -> dict[str, int | float | str]:
    """What expressions of the command line give for this job, but for what depends on the node.

    A limit of the run's (`--resources`) is none of a job's own Snakemake.
    """
    left_alone = {*_OF_THE_NODE, *workflow.resource_settings.resources}
    values = {
        name: job.resources.get(name)
        for name, resource in RESOURCES.of(job.rule).items()
        if name not in left_alone and not name.startswith("_") and is_expression(resource)
    }
    # "<TBD>" is a text of a class of its own.
    return {name: value for name, value in values.items() if type(value) in (int, float, str)}


def is_expression(resource: Any) -> bool:
    """Whether a rule's resource is an expression of the command line, the default ones among them."""
    if not resource.is_evaluable():
        return False
    evaluator = inspect.unwrap(_EVALUATOR.of(resource))
    return getattr(evaluator, "__qualname__", "").startswith("Resource.from_cli_expression.")


def _needs_dag(job: Any, workflow: Any) -> bool:
    rule = job.rule
    if any(name.of(rule) for name in SPECIAL):
        return True
    if QUEUE_INPUT.of(job)() or PIPES.of(job) or PIPE_GROUP.of(job) is not None:
        return True
    if caches(workflow) and (cache := _CACHE.of(rule)) and cache.output:
        return True
    if workflow.deployment_settings.deployment_method and any(name.of(rule) for name in _DEPLOYED):
        return True
    # The body of a `run:` may ask for a checkpoint's output, which only a DAG can answer.
    return bool(_IS_RUN.of(job) and any(map(CHECKPOINT.of, _RULES.of(workflow))))
