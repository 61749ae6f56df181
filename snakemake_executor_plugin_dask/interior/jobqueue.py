"""Dask-Jobqueue's Job classes, used without its clusters: they render an allocation's batch script, and submit it.

Its import is guarded, and the command in the script, the call of the submit command and the id in its answer are the
plugin's own. Documented are the clusters, which never look at the queue.
"""

import importlib
import inspect
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from types import ModuleType
from typing import Any

import dask

from snakemake_executor_plugin_dask.interior.declared import Private, privates, refusal
from snakemake_executor_plugin_dask.model.errors import ConfigurationError

_JOB = "dask_jobqueue.core:Job"
_LOST = "no allocation can be asked for"
CALL = Private(_JOB, "_call", "the submit command's own words about a failure are lost, and allocations run again")
_SUBMITTING = SUBMIT, JOB_ID, SUBMIT_COMMAND, JOB_SCRIPT = privates(
    _JOB, _LOST, "_submit_job", "_job_id_from_submit_output", "submit_command", "job_script"
)
COMMAND = Private(
    _JOB, "_command_template", "an allocation would start Dask's own worker, which knows no jobs of the plugin"
)
PROLOGUE = Private(_JOB, "_job_script_prologue", "jobs would not get what the pool's prologue changes")
ENSURE_FILE = Private("dask.config", "ensure_file", "importing dask_jobqueue writes a file into ~/.config/dask")

NAMES = (CALL, *_SUBMITTING, COMMAND, PROLOGUE, ENSURE_FILE)


def load() -> ModuleType:
    """Import dask_jobqueue without what its import does to others.

    Release 0.9.0 replaces the SIGINT handler with ``sys.exit`` (and so fails off the main thread), and writes a
    commented copy of its defaults into the home directory. Raises ConfigurationError where that cannot be kept from it.
    """
    if "dask_jobqueue" in sys.modules:
        return sys.modules["dask_jobqueue"]
    if not ENSURE_FILE.there():
        raise ConfigurationError(refusal([ENSURE_FILE]))
    keep_signal, keep_file = signal.signal, ENSURE_FILE.of(dask.config)
    signal.signal = lambda *_: None
    dask.config.ensure_file = lambda *_, **__: None
    try:
        return importlib.import_module("dask_jobqueue")
    finally:
        signal.signal, dask.config.ensure_file = keep_signal, keep_file


def arguments(system: str, name: str) -> set[str]:
    """The arguments of a batch system's Job class (``slurm``, ``SLURMJob``), those of its base class among them."""
    found: set[str] = set()
    for cls in (_class(system, name), load().core.Job):
        found |= set(inspect.signature(cls.__init__).parameters)
    return found


def _class(system: str, name: str) -> Any:
    return getattr(getattr(load(), system), name)


def submitting(
    system: str,
    name: str,
    call: Callable[[list[str], str, str | None], Awaitable[str]],
    found: Callable[[str], str | None],
) -> Any:
    """A batch system's Job class, whose submit command is run by ``call(command, directory, standard input's path)``.

    ``found``: the id in the command's output, where the class's own way to find it is not to be taken.
    """

    class Submitting(_class(system, name)):  # type: ignore[misc]  # chosen at run time
        submit_directory = ""

        async def _call(self, command: Sequence[str], *, shell: bool = False, **_: Any) -> str:
            command, stdin = list(command), None
            if shell:  # LSF's class: "bsub< FILE 2> /dev/null", which hides why it failed
                stdin = command[0].partition("< ")[2].removesuffix(" 2> /dev/null")
                command = shlex.split(self.submit_command)
            return await call(command, self.submit_directory, stdin)

        def _job_id_from_submit_output(self, out: str) -> str:
            return found(out) or str(super()._job_id_from_submit_output(out))

    Submitting.__name__ = name
    return Submitting


def set_directory(job: Any, path: str) -> None:
    """Where the submit command is run."""
    job.submit_directory = path


def prologue_of(job: Any) -> list[str]:
    """The lines of shell before the worker's command, from options or from Dask's configuration."""
    return [line for line in (PROLOGUE.of(job) or []) if line]


def set_command(job: Any, prologue: list[str], command: str, *, in_command: bool) -> None:
    """What the allocation runs, instead of Dask's own worker. ``in_command``: a script has no lines for a prologue."""
    setattr(job, PROLOGUE.name, prologue)
    setattr(job, COMMAND.name, "; ".join([*prologue, command]) if in_command else command)


def script_of(job: Any) -> str:
    """The batch script."""
    return str(JOB_SCRIPT.of(job)())


def submit_command(job: Any) -> str:
    """The submit command, with its options."""
    return str(SUBMIT_COMMAND.of(job))


async def submit(job: Any, script: str) -> str:
    """Submit the script at this path; returns the id. Raises what ``call`` raises, and ValueError: there is none."""
    out = await SUBMIT.of(job)(script)
    return str(JOB_ID.of(job)(out))
