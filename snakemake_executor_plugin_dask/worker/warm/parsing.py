"""The warm process's Snakemake before it reads a workflow: what it must have, its parser, a job's arguments.

`check_interior` names the inner parts of Snakemake that this module and `warm_workflow` rely on, so that an unknown
version is noticed at once.
"""

import functools
import importlib.util
import inspect
import logging
import os
import pickle
import sys
from collections.abc import Sequence
from typing import Any

from snakemake_executor_plugin_dask.model.jobs import JobSpec, RunSetup

#: `run_wrapper` of the Snakemake versions that depth 3 was written for.
_RUN_WRAPPER = (
    "job_rule input output params wildcards threads resources log benchmark benchmark_repeats benchmark_extended"
    " conda_env container_img singularity_args env_modules use_singularity linemaps debug cleanup_scripts shadow_dir"
    " jobid edit_notebook conda_base_path basedir sourcecache_path runtime_sourcecache_path runtime_paths"
).split()
_JOB_MEMBERS = ("prepare", "postprocess", "log_info", "log_error", "resources", "params", "jobid")
_WORKFLOW_MEMBERS = (
    "async_run",
    "execute",
    "_prepare_dag",
    "tear_down",
    "included",
    "get_rule",
    "_cores",
)


def check_interior() -> str:
    """Why the workflow of this Snakemake cannot be kept warm; empty if it can."""
    import snakemake.api
    import snakemake.cli
    import snakemake.dag
    import snakemake.executors.local
    import snakemake.jobs
    import snakemake.workflow

    missing = [
        f"{owner.__name__}.{name}"
        for owner, names in (
            (snakemake.jobs.Job, _JOB_MEMBERS),
            (snakemake.workflow.Workflow, _WORKFLOW_MEMBERS),
            (snakemake.cli, ("SnakemakeApi", "args_to_api", "parse_args")),
            (snakemake.api.SnakemakeApi, ("workflow", "_cleanup", "print_exception")),
            (snakemake.executors.local.Executor, ("job_args_and_prepare",)),
        )
        for name in names
        if not hasattr(owner, name)
    ]
    if list(inspect.signature(snakemake.executors.local.run_wrapper).parameters) != _RUN_WRAPPER:
        missing.append("the known arguments of run_wrapper")
    return f"this Snakemake lacks {', '.join(missing)}" if missing else ""


def full_arguments(setup: RunSetup, own: Sequence[str]) -> list[str]:
    """The arguments that a cold job's Snakemake gets."""
    arguments = [*own, *setup.general_arguments]
    if "--mode" not in arguments:
        arguments += ["--mode", "remote"]
    return arguments


class Parser:
    """Depth 1: Snakemake with its plugins, and a parser that has parsed once."""

    def __init__(self, setup: RunSetup) -> None:
        import snakemake.cli

        self.setup = setup
        own = [
            "--snakefile",
            setup.snakefile,
            "--cores",
            str(setup.cores or "all"),
            "--attempt",
            "1",
            "--force-use-threads",
        ]
        arguments = full_arguments(setup, own)
        sys.argv = [_main_path(), *arguments]
        main_spec()
        # Half of what parsing costs is reading plugins and other modules for the first time.
        self.parser, self.arguments = snakemake.cli.parse_args(arguments)
        _import_ahead()

    def parse(self, spec: JobSpec) -> Any:
        arguments = self.parser.parse_args(full_arguments(self.setup, spec.arguments))
        for destination, value in _overrides(spec).items():
            setattr(arguments, destination, value)
        return arguments

    def run(self, spec: JobSpec) -> bool:
        """What a cold job's Snakemake does after its imports."""
        import snakemake.cli

        return bool(snakemake.cli.args_to_api(self.parse(spec), self.parser))


def _overrides(spec: JobSpec) -> dict[str, Any]:
    return dict(pickle.loads(spec.overrides)) if spec.overrides else {}


@functools.cache
def _main_path() -> str:
    import snakemake

    return os.path.join(os.path.dirname(os.path.abspath(snakemake.__file__)), "__main__.py")


@functools.cache
def main_spec() -> Any:
    """``__main__.__spec__`` of a cold job."""
    return importlib.util.find_spec("snakemake.__main__")


def job_argv(setup: RunSetup, spec: JobSpec) -> list[str]:
    """``sys.argv`` of a cold job."""
    return [_main_path(), *full_arguments(setup, spec.arguments)]


def _import_ahead() -> None:
    """Modules that Snakemake imports only while a job runs."""
    import asyncio.runners
    import asyncio.selector_events
    import concurrent.futures.thread
    import json
    import shutil
    import subprocess
    import uuid

    import snakemake.benchmark
    import snakemake.executors.local
    import snakemake.script
    import snakemake.storage

    del asyncio, concurrent, json, shutil, subprocess, uuid, snakemake
    logging.getLogger("asyncio")
