"""Starts jobs that are plain shell commands: does what a Snakemake would before it starts them, and then starts them.

`Commands.prepare` looks at files, makes directories and opens the log, and may block as file systems do.
`Commands.launch` starts the shell. Where anything is not as it should be, both leave the job to a Snakemake.
"""

import contextlib
import json
import os
import resource
import subprocess
import threading
import time
from collections.abc import Collection, Iterable, Iterator

from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobs import JobSpec
from snakemake_executor_plugin_dask.model.shellcommand import TEMPORARY, Shell, ShellCommand, arguments, variables
from snakemake_executor_plugin_dask.node import mounts, processes
from snakemake_executor_plugin_dask.node.environment import job_environment
from snakemake_executor_plugin_dask.node.logs import open_log
from snakemake_executor_plugin_dask.node.sources import Sources

#: Soft limits that this process may have for a moment, so that a shell inherits them.
_HARMLESS = frozenset(
    getattr(resource, name)
    for name in ("RLIMIT_NOFILE", "RLIMIT_STACK", "RLIMIT_CORE", "RLIMIT_MEMLOCK", "RLIMIT_SIGPENDING")
    if hasattr(resource, name)
)
_DIRECTORIES = 10_000
_SPARE_FILES = 64  # that other threads may open in that moment


@dataclass(frozen=True, slots=True)
class Prepared:
    """All is there that a job's shell needs."""

    log: int  # a descriptor
    late: bool  # a network file system may show the outputs late


class Commands:
    """Those of a run, on this worker. ``refusal`` says why none can be started here, if that is so."""

    def __init__(self, shell: Shell, soft_limits: Iterable[tuple[int, int]]) -> None:
        """``soft_limits`` (see `RunSetup`) are those that jobs get; their umask is this process's."""
        self.shell = shell
        self._entered = False  # the directory in which the workflow works, for a shell starts where this process is
        self._sources = Sources(shell.sources)
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._own: dict[str, bool] = {}  # whether directories are on a file system of this machine
        self._all_own = False  # what every job takes is
        limits = [(number, soft) for number, soft in soft_limits if _is_other(number, soft)]
        #: Of what this process must have, but for a moment.
        self._limits = [each for each in limits if each[0] in _HARMLESS]
        others = [_limit_name(number) for number, _ in limits if number not in _HARMLESS]
        self.refusal = f"soft limits of the run differ from the worker's ({', '.join(others)})" if others else ""

    def fits(self, spec: JobSpec) -> ShellCommand | None:
        """The job's command, if it can be started here."""
        command = spec.command
        if (
            self.refusal
            or command is None
            or spec.start != "warm"
            or spec.script is not None
            or spec.cluster is not None
            or spec.updates
            or self.shell.digests.get(command.rule) != command.digest
            or any(name in TEMPORARY for name, _ in spec.environment)
        ):
            return None
        return command

    def at_once(self, spec: JobSpec, command: ShellCommand) -> bool:
        """Whether `prepare` is known to touch this machine's own file systems alone, and so needs no thread."""
        return (
            self._all_own
            and all(map(self._own.get, self._directories(spec, command)))
            and not any(os.path.islink(self._path(path)) for path in command.input)
        )

    def prepare(self, spec: JobSpec, command: ShellCommand, given_up: threading.Event) -> Prepared | None:
        """What Snakemake's `Job.prepare` does, for any thread; None where more has to be done.

        May block as files do. Once ``given_up`` is set, nothing more is made: the job has taken another way.
        """
        if self._sources.changed() is not None or not os.path.isdir(self.shell.temporary):
            return None
        if not self._is_own(os.path.dirname(os.path.realpath(self.shell.executable))):
            # To execute it would hold up all jobs where its file server hangs.
            self.refusal = f"{self.shell.executable} is not on a file system of the node's own"
            return None
        made = [self._path(path) for path in (*command.output, *command.logs)]
        if any(map(os.path.lexists, made)) or not all(os.path.exists(self._path(path)) for path in command.input):
            return None  # to be removed, or waited for
        log = -1
        try:
            if not self._entered:
                os.chdir(self.shell.directory)
                self._entered = True
            directories = {os.path.dirname(path) for path in (*made, *command.marks)}
            for directory in (*directories, os.path.dirname(spec.log_path)):
                _go_on(given_up)
                os.makedirs(directory, exist_ok=True)
            log = open_log(spec.log_path)
            _go_on(given_up)
            _write(log, _header(command))
            for mark in command.marks:
                _go_on(given_up)
                _mark(mark, spec.key)
        except (OSError, ValueError):
            if log >= 0:
                os.close(log)
            return None
        if not self._all_own:
            sources = (os.path.dirname(os.path.realpath(path)) for path, _ in self.shell.sources)
            of_all = (self.shell.directory, self.shell.temporary, *sources)
            self._all_own = all(map(self._is_own, of_all))
        for directory in self._directories(spec, command):
            self._is_own(directory)  # for `at_once`
        return Prepared(log, late=not all(map(self._is_own, directories)))

    def launch(self, spec: JobSpec, command: ShellCommand, prepared: Prepared) -> int | None:
        """Start the shell; returns its process id, or None where it cannot be started so.

        Only for the first thread, to which children belong (`node.processes.children_of`).
        """
        soft_files = next((soft for number, soft in self._limits if number == resource.RLIMIT_NOFILE), None)
        if soft_files is not None and 0 <= soft_files < prepared.log + _SPARE_FILES:
            return None
        environment = job_environment(self.shell.environment, spec.key, spec.environment)
        environment.update(variables(command.threads, self.shell.temporary))
        try:
            with _limits(self._limits), _affinity(spec.affinity):
                # Not `os.posix_spawn`, which is a little quicker: with it a program finds two signals ignored.
                shell = subprocess.Popen(
                    arguments(self.shell, command),
                    stdin=self._null,
                    stdout=prepared.log,
                    stderr=prepared.log,
                    env=environment,
                    start_new_session=True,
                )
        except (OSError, ValueError):
            return None
        shell.returncode = 0  # else the next `Popen` would wait for it
        processes.volunteer(shell.pid)
        return shell.pid

    def finish(self, command: ShellCommand, given_up: threading.Event) -> bool:
        """Whether all outputs are there, which are no longer marked as incomplete then. May block as files do.

        Once ``given_up`` is set, no mark is removed: it may be the next attempt's.
        """
        if not all(os.path.lexists(self._path(path)) for path in command.output):
            return False
        for mark in command.marks:
            with contextlib.suppress(OSError):
                _go_on(given_up)
                os.unlink(mark)
        return True

    def _directories(self, spec: JobSpec, command: ShellCommand) -> set[str]:
        """Those in which a job's files are, or are to be."""
        files = map(self._path, (*command.input, *command.output, *command.logs, *command.marks))
        return {os.path.dirname(path) for path in (*files, spec.log_path)}

    def _path(self, path: str) -> str:
        return os.path.join(self.shell.directory, path)

    def _is_own(self, directory: str) -> bool:
        known = self._own.get(directory)
        if known is None:
            if len(self._own) >= _DIRECTORIES:  # each job may have one of its own
                self._own.clear()
            known = self._own[directory] = bool(mounts.own_file_system(os.path.realpath(directory)))
        return known


def _is_other(number: int, soft: int) -> bool:
    with contextlib.suppress(ValueError, OSError):
        return processes.possible_soft_limit(number, soft) != resource.getrlimit(number)[0]
    return False


def _limit_name(number: int) -> str:
    return next(name for name in dir(resource) if name.startswith("RLIMIT_") and getattr(resource, name) == number)


def _go_on(given_up: threading.Event) -> None:
    """Raises OSError where nobody waits any more for what is done."""
    if given_up.is_set():
        raise TimeoutError


def _write(descriptor: int, data: bytes) -> None:
    """Raises OSError where not all of it is taken: a full file system lets one make a file that takes nothing."""
    while data:
        data = data[os.write(descriptor, data) :]


def _header(command: ShellCommand) -> bytes:
    """What Snakemake writes before a job's own output."""
    lines = [f"[{time.ctime()}]", f"rule {command.rule}:"]
    for name, values in (("input", command.input), ("output", command.output), ("log", command.logs)):
        lines += [f"    {name}: {', '.join(values)}"] if values else []
    lines.append(f"    jobid: {command.jobid}")
    if command.wildcards:
        lines.append(f"    wildcards: {', '.join(f'{name}={value}' for name, value in command.wildcards)}")
    lines += [f"    threads: {command.threads}"] if command.threads > 1 else []
    return os.fsencode("\n".join((*lines, "", "")))


def _mark(path: str, key: str) -> None:
    """Note that an output is incomplete, as Snakemake does."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o660)
    try:
        os.fchmod(descriptor, 0o660)
        _write(descriptor, json.dumps({"external_jobid": key}).encode())
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _limits(soft_limits: Collection[tuple[int, int]]) -> Iterator[None]:
    """Soft limits of this process, for a moment."""
    before = [(number, resource.getrlimit(number)[0]) for number, _ in soft_limits]
    try:
        for number, soft in soft_limits:
            processes.set_soft_limit(number, soft)
        yield
    finally:
        for number, soft in before:
            processes.set_soft_limit(number, soft)


@contextlib.contextmanager
def _affinity(cores: Collection[int]) -> Iterator[None]:
    """The cores of this thread, for a moment."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
