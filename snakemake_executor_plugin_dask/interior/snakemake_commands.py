"""Jobs that are one plain shell command, which can be started without a Snakemake around it.

In Snakemake's process `ShellCommands.of` formats the command. On the worker the warm process has read the same
workflow: `ShellCommands.digests` says of which rules it would make the same commands. What a command is made of is
compared, for a Snakefile may ask the time, the host or the environment while it is read.
"""

import hashlib
import json
import os
import re
import string
from collections.abc import Iterable
from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private, missing, privates
from snakemake_executor_plugin_dask.interior.snakemake_calls import CHECKPOINT, RESOURCES, SPECIAL, is_expression
from snakemake_executor_plugin_dask.model.shellcommand import ShellCommand

_LOST = "shell commands are started by a Snakemake of their own, which takes longer"

_OF_RULE = _IS_SHELL, _SHELLCMD, _PRIORITY, _PARAMS, _BENCHMARK, _LOG, _OUTPUT, _SHADOW = privates(
    *("snakemake.rules:Rule", _LOST, "is_shell", "shellcmd", "priority", "params"),
    *("benchmark", "log", "output", "shadow_depth"),
    needed=False,
)
_TEXT = Private("snakemake.jobs:Job", "shellcmd", _LOST, needed=False)
_OF_SHELL = _PROCESS, _PREFIX, _SUFFIX = privates(
    "snakemake.shell:shell", _LOST, "_process_args", "_get_process_prefix", "_process_suffix", needed=False
)

NAMES = (*_OF_RULE, _TEXT, *_OF_SHELL)

#: Flags of outputs with which a job's own Snakemake does nothing that the main one does not do as well.
_HARMLESS_FLAGS = frozenset({"temp", "report", "multiext"})
#: What a command may name. All else may be another thing in another process.
_NAMES = frozenset({"input", "output", "wildcards", "log", "threads", "rule", "params", "config"})
#: A command that wants its parent is to find one that no other job has.
_PARENT = "PPID"
_LENGTH_MAX = 50_000  # a longer one is written to a file by Snakemake


def is_static(rule: Any) -> bool:
    """Whether a rule's job can be made without calling anything that the workflow's author wrote."""
    if not _IS_SHELL.of(rule) or callable(_PRIORITY.of(rule)) or any(map(callable, _PARAMS.of(rule))):
        return False
    return all(is_expression(value) for value in RESOURCES.of(rule).values() if value.is_evaluable())


class ShellCommands:
    """Those of a workflow."""

    def __init__(self, workflow: Any) -> None:
        self._workflow = workflow
        self._known: dict[str, str | None] = {}  # digests, by rule
        self._possible = not missing(NAMES)

    def of(self, job: Any, max_threads: int) -> ShellCommand | None:
        """What a job runs, which is none of a group; None where it takes a Snakemake.

        ``max_threads``: what its own Snakemake would allow it.
        """
        rule = job.rule
        digest = self._digest(rule) if self._possible else None
        if digest is None or job.threads > max_threads:
            return None
        text = _TEXT.of(job)
        output = tuple(map(str, job.output))
        marks = self._marks(output)
        if text is None or len(text) > _LENGTH_MAX or "\0" in text or marks is None:
            return None
        return ShellCommand(
            rule=rule.name,
            text=text,
            digest=digest,
            threads=job.threads,
            jobid=job.jobid,
            wildcards=tuple(job.wildcards_dict.items()),
            input=tuple(map(str, job.input)),
            output=output,
            logs=tuple(map(str, job.log)),
            marks=marks,
        )

    def digests(self) -> dict[str, str]:
        """Of each rule whose jobs are such commands, what they are made of."""
        if not self._possible:
            return {}
        found = {rule.name: self._digest(rule) for rule in self._workflow.rules}
        return {name: digest for name, digest in found.items() if digest is not None}

    def shell(self) -> tuple[str, str, str]:
        """The shell's path, and what is put before and behind each command. The path is empty where there is none."""
        from snakemake.shell import shell

        executable = _PROCESS.of(shell).get("executable") or ""
        return executable, _PREFIX.of(shell)(executable), _SUFFIX.of(shell)

    def _digest(self, rule: Any) -> str | None:
        if rule.name not in self._known:
            self._known[rule.name] = self._made_of(rule)
        return self._known[rule.name]

    def _made_of(self, rule: Any) -> str | None:
        if not is_static(rule) or _BENCHMARK.of(rule) is not None or _SHADOW.of(rule):
            return None
        if any(name.of(rule) for name in (*SPECIAL, CHECKPOINT)) or any(map(callable, _LOG.of(rule))):
            return None
        if any(not _flags(file) <= _HARMLESS_FLAGS for file in _OUTPUT.of(rule)) or any(map(_flags, _LOG.of(rule))):
            return None
        resources = RESOURCES.of(rule)
        if "shell_exec" in resources or getattr(resources.get("tmpdir"), "raw", None) != "system_tmpdir":
            return None
        template = _SHELLCMD.of(rule)
        if _PARENT in template:
            return None
        names = _named(template)
        executable, prefix, suffix = self.shell()
        if names is None or not names <= _NAMES or not os.path.isabs(executable):
            return None
        made_of: list[Any] = [executable, prefix, suffix, template]
        if "params" in names:
            made_of.append([list(_PARAMS.of(rule)), dict(_PARAMS.of(rule).items())])
        if "config" in names:
            config = self._workflow.globals.get("config")
            if (getattr(rule, "module_globals", None) or {}).get("config", config) is not config:
                return None  # the main process formats with another one than a module's rules have
            made_of.append(config)
        try:
            text = json.dumps(made_of, sort_keys=True)
        except (TypeError, ValueError):  # not plain data, whose text says all of it
            return None
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def _marks(self, output: Iterable[str]) -> tuple[str, ...] | None:
        """Where Snakemake notes that these files are incomplete; None where it does so in another way: a database."""
        persistence = self._workflow.persistence
        directory = getattr(persistence, "_incomplete_path", None)
        place = getattr(persistence, "_record_path", None)
        if directory is None or place is None:
            return None
        return tuple(os.path.abspath(place(directory, path)) for path in output)


def _flags(file: Any) -> set[str]:
    return set(getattr(file, "flags", ()))


def _named(template: str) -> set[str] | None:
    """The variables that a command's text names; None where that cannot be told."""
    try:
        fields = [(name, spec) for _, name, spec, _ in string.Formatter().parse(template) if name is not None]
    except ValueError:
        return None
    if any(spec and "{" in spec for _, spec in fields):
        return None
    return {re.split(r"[.\[]", name, maxsplit=1)[0] for name, _ in fields}
