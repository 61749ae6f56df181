"""Snakemake's command line as a job's process uses it: its parser, its main function, what it says of an error.

Read in Snakemake 9.27.1. Without `parse_args` or `args_to_api` a warm process starts its jobs cold, and a job whose
arguments a command line cannot express fails with a sentence that names them.
"""

import contextlib
import functools
import importlib.util
import logging
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from snakemake_executor_plugin_dask.interior import quick_imports
from snakemake_executor_plugin_dask.model.jobs import JobSpec, RunSetup


def full_arguments(setup: RunSetup, own: Sequence[str]) -> list[str]:
    """The arguments that a cold job's Snakemake gets."""
    arguments = [*own, *setup.general_arguments]
    if "--mode" not in arguments:
        arguments += ["--mode", "remote"]
    return arguments


def import_snakemake() -> None:
    """What `Parser` imports. What is missing it will miss itself."""
    with contextlib.suppress(Exception, SystemExit):
        quick_imports.import_snakemake()
        _import_ahead()


class Parser:
    """Snakemake with its plugins, and a parser that has parsed once."""

    def __init__(self, setup: RunSetup) -> None:
        """May raise whatever Snakemake raises for arguments, SystemExit included."""
        import snakemake.cli

        self.setup = setup
        own = ["--snakefile", setup.snakefile, "--cores", str(setup.cores or "all"), "--attempt", "1"]
        arguments = full_arguments(setup, [*own, "--force-use-threads"])
        sys.argv = [_main_path(), *arguments]
        main_spec()
        # Most of what parsing costs is reading plugins and other modules for the first time.
        with quick_imports.no_collection(), quick_imports.listed_once(), quick_imports.no_reporters():
            self.parser, self.arguments = snakemake.cli.parse_args(arguments)
        self._run = snakemake.cli.args_to_api  # what is missing is to be missed now
        _import_ahead()

    def run(self, spec: JobSpec, begin: Callable[[], None]) -> bool:
        """What a cold job's Snakemake does after its imports.

        ``begin`` is called when all is there that this takes, and nothing of the workflow's author has run.
        """
        arguments = self.parser.parse_args(full_arguments(self.setup, spec.arguments))
        if spec.overrides:
            override(arguments, pickle.loads(spec.overrides))
        begin()
        return bool(self._run(arguments, self.parser))


def run_cold(arguments: Sequence[str], overrides: Mapping[str, Any]) -> bool:
    """What `snakemake.cli.main` does, with some values put over what the arguments say."""
    from snakemake.cli import args_to_api, parse_args

    parser, namespace = parse_args(arguments)
    override(namespace, overrides)
    return bool(args_to_api(namespace, parser))


def override(namespace: Any, overrides: Mapping[str, Any]) -> None:
    """Put values over those that the arguments gave. A name that Snakemake does not know raises AttributeError."""
    for name, value in overrides.items():
        if not hasattr(namespace, name):
            msg = (
                f"Snakemake's command line has no argument with the destination `{name}`: what the plugin sends "
                "with a job does not fit the version of Snakemake on this worker; install that of the main process."
            )
            raise AttributeError(msg)
        setattr(namespace, name, value)


def print_error(error: Exception) -> None:
    """In Snakemake's words, as its main function does; in Python's where Snakemake has no function for it."""
    try:
        from snakemake.exceptions import print_exception
    except ImportError:
        sys.excepthook(type(error), error, error.__traceback__)
    else:
        print_exception(error)


@functools.cache
def _main_path() -> str:
    import snakemake

    return os.path.join(os.path.dirname(os.path.abspath(snakemake.__file__)), "__main__.py")


@functools.cache
def main_spec() -> Any:
    """``__main__.__spec__`` of a cold job."""
    return importlib.util.find_spec("snakemake.__main__")


def job_argv(arguments: Sequence[str]) -> list[str]:
    """``sys.argv`` of a cold job with these arguments."""
    return [_main_path(), *arguments]


def _import_ahead() -> None:
    """Modules that are imported only while a job runs. Those of Snakemake that are gone will be missed by a trial."""
    for name in (
        *("asyncio.runners", "asyncio.selector_events", "concurrent.futures.thread", "json", "shutil", "subprocess"),
        *("uuid", "snakemake.benchmark", "snakemake.executors.local", "snakemake.script", "snakemake.storage"),
    ):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    logging.getLogger("asyncio")
