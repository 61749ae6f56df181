"""What a batch script must say beyond what Dask-Jobqueue's classes write: nodes, GPUs, no requeueing, units. Pure."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS, BatchSystem
from snakemake_executor_plugin_dask.model.batch_systems.scripts import Setting, given, gpus, option_given, texts, words
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.pools import Pool

#: Lets the worker tell what the prologue changed. Backquotes, since HTCondor reads `$(…)` itself; and it starts a shell
#: without a PATH, whose own one is to count as what was there before.
BEFORE_PROLOGUE = "export PATH; export SNAKEMAKE_DASK_BEFORE_PROLOGUE=`env -0 | base64 -w0`"


def plain(path: str) -> bool:
    """Whether a path means itself in every batch script."""
    return re.fullmatch(r"[\w./+,:@=-]+", path, re.ASCII) is not None


#: What turns a path into something else in the places where batch systems are told of output, be it only the directory
#: of submission: Slurm and LSF replace `%j` and the like, Slurm reads a backslash, Grid Engine and HTCondor a dollar.
_CHANGED = re.compile(r"[%\\$\x00-\x1f\x7f]")


def unfit_output(path: str) -> str | None:
    """The character for which no batch system could be told to write output in this directory; None: it can."""
    found = _CHANGED.search(path)
    return found.group() if found else None


def owned(system: BatchSystem, extra: object) -> str | None:
    """The first of a user's own directives that the plugin has to give itself; None where there is none."""
    own = system.own_directives
    if isinstance(extra, dict):
        return next((str(key) for key in extra if str(key).lower() in own), None)
    for word in (word for text in texts(extra) for word in words(text)):
        name = word.partition("=")[0]
        if name in own or (system.values_attached and word[:2] in own and not word.startswith("--")):
            return name
        # The first letters of a long option are enough for it.
        if len(name) > 4 and name.startswith("--") and any(known.startswith(name) for known in own):
            return name
    return None


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

#: Settings that are shell text by what they mean, and may have several lines.
_SHELL = frozenset({"job_script_prologue", "env_extra", "python"})


def with_control_character(settings: Mapping[str, object]) -> str | None:
    """The first setting that would end its line of a batch script and begin one of its own; None: there is none."""
    for name, value in settings.items():
        if name not in _SHELL and any(_CONTROL.search(text) for text in _strings(value)):
            return name
    return None


def _strings(value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [text for pair in value.items() for item in pair for text in _strings(item)]
    if isinstance(value, list | tuple | set | frozenset):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def can_leave_out(system: BatchSystem, setting: Setting) -> bool:
    """Whether a script can say which nodes an allocation is not to get, beside those that the user leaves out."""
    option = system.option_exclude
    return option is not None and "/" not in (option_given(setting, option) or "")


def as_arguments(script: str, mark: str) -> list[str]:
    """The words of a script's directives, as the submit command would read them; none where it could not."""
    lines = [line.removeprefix(mark) for line in script.splitlines() if line.startswith(f"{mark} ")]
    try:
        return [word for line in lines for word in shlex.split(line)]
    except ValueError:
        return []


def for_pool(system: BatchSystem, pool: Pool, setting: Setting, name: str, logs: str) -> dict[str, Any]:
    """Arguments of the Job class for this pool; ``logs`` is the directory for output. ConfigurationError."""
    if pool.nodes is not None and not system.several_nodes:
        *others, last = (other.name for other in SYSTEMS.values() if other.several_nodes)
        msg = (
            f"Pool {pool.name} asks for nodes: {pool.nodes}, and an allocation of several nodes is not possible with "
            f"{system.title}; remove `nodes`, or use {', '.join(others)} or {last}."
        )
        raise ConfigurationError(msg)
    if system.gpu_example and gpus(pool, setting):
        msg = (
            f"Pool {pool.name} has gpus: {pool.gpus}, and each site of {system.title} names GPUs its own way; ask for "
            f"them in options, as in {system.gpu_example}."
        )
        raise ConfigurationError(msg)
    own, arguments = system.directives(pool, setting, name, logs)
    if isinstance(own, dict):
        extra = {key: value for key, value in (given(setting) or {}).items() if str(key).lower() not in own}
        return {**arguments, "job_extra_directives": {**extra, **own}}
    # The plugin's own ones last, so that they win over a directive of the user's that says otherwise.
    arguments["job_extra_directives"] = [*texts(given(setting)), *own, *system.no_requeue]
    if pool.walltime_s is not None:
        arguments["walltime"] = system.format_walltime(pool.walltime_s)
    return arguments
