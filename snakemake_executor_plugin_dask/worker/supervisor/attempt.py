"""One attempt of one job on this worker: its state, the command of a cold start, its outcome. Reads its log."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from snakemake_executor_plugin_dask.model.jobs import JobSpec, JobStart, Outcome, RunSetup, Status
from snakemake_executor_plugin_dask.model.shellcommand import ShellCommand
from snakemake_executor_plugin_dask.node.logs import command_end, failed_members, tail
from snakemake_executor_plugin_dask.node.processes import exit_status, how_ended
from snakemake_executor_plugin_dask.worker.supervisor.jobcluster import ClusterOfJob
from snakemake_executor_plugin_dask.worker.supervisor.warmlink import WarmProcess

HOST = os.uname().nodename

#: Signals with which all processes of an allocation are ended.
_OF_WHO_ENDS_ALL = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP)
_ENDED_BY = re.compile("SIG(?:TERM|KILL|INT|HUP)")
_DOUBT_S = 1.0
_CLOCKS_DIFFER_S = 5.0  # those of this host and of a file server
_RULE_LOGS = 3  # of a group may be many
_LITTLE_DOUBT_S = 0.1  # a program may answer a signal with an exit code of its own


class NotStarted(Exception):
    """The attempt's process could not be started; the text says why."""


@dataclass(frozen=True, slots=True)
class Words:
    """What an attempt wrote that did not succeed, or whose log goes."""

    command_end: str = ""  # what its Snakemake said of the job's own command, if that failed
    members: str = ""  # of a group: the rules that failed
    log_tail: str = ""
    rule_logs: tuple[tuple[str, str], ...] = ()  # path and last lines


@dataclass(slots=True, eq=False)
class Attempt:
    """What the supervisor knows of an attempt. ``started`` and ``ended`` are epoch times, others are the loop's."""

    spec: JobSpec
    leader: "asyncio.Future[int | None]"  # what `wait` said of the first process; None: nobody knows
    answer: "asyncio.Future[str | None]"  # of the warm process: None, it was forked; else why not
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # no process of it is left
    pid: int = 0
    start_ticks: int = 0  # of the leader, which with its number names it
    start: JobStart = "cold"
    start_depth: int | None = 0  # of a warm start, 0: cold; None: not known
    start_reason: str = ""  # why not deeper, though it could be
    warm: WarmProcess | None = None
    is_command: bool = False  # the leader is a shell that a child of the warm process has started
    teller: int = 0  # that child, which tells of the job's end
    warm_words: int = 0  # how often its warm process had said something,
    silent_since: float = 0.0  # and since when it has not said more
    command_over: float = 0.0  # since then the shell has been gone, and the job is to end
    log: str = ""
    directory: str | None = None  # of its own, removed after it
    cluster: ClusterOfJob | None = None  # of its own, with dask_workers
    command: list[str] = field(default_factory=list)  # of what is no job but a part of one's Dask cluster
    shell: ShellCommand | None = None  # that the supervisor has started itself, without a Snakemake
    late: bool = True  # a network file system may show its outputs late
    copies: str | None = None  # directory of its local copies of storage files, removed after it, too
    started: float = 0.0
    began: float = 0.0
    ended: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int | None = None
    words: Words = Words()
    time_limit: asyncio.TimerHandle | None = None
    kernel_kills: int = 0  # of the kernel's out-of-memory killer, on this node before the start
    #: Set once the attempt is to end: the status and the reason that it will have.
    verdict: tuple[Status, str] | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)  # somebody wants it to end
    kill_at: float = 0.0  # from then on SIGKILL; before, SIGTERM was sent and processes may still finish
    killing: "asyncio.Task[None] | None" = None
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The job's and the attempt's name."""
        return self.spec.key

    def check_verdict(self) -> None:
        """Raises NotStarted where it is to end before it was started."""
        if self.verdict is not None:
            raise NotStarted(self.verdict[1])

    def log_elsewhere(self) -> bool:
        """Whether its log is on this node alone, since it could not be written where Snakemake's process looks for it.

        Of what is a part of a job's Dask cluster it is not known here how the job ends.
        """
        return self.log not in (self.spec.log_path, os.devnull, "") and not self.command

    def doubt_s(self) -> float:
        """How long it may show only now that not this job was ended, but its worker. 0: that makes no difference."""
        status = self.leader.result()
        if self.verdict is not None:
            return _DOUBT_S if self.verdict[0] == "lost" else 0.0
        if not status:
            return 0.0
        code, number = exit_status(status)
        if code is not None:
            found = _ENDED_BY.search(self.words.command_end)
            number = signal.Signals[found[0]] if found else code - 128
        return _DOUBT_S if number in _OF_WHO_ENDS_ALL else _LITTLE_DOUBT_S

    def read_log(self, files_dir: str) -> Words:
        """What was written, of an attempt that did not succeed, or whose log goes. May block as files do.

        Relative paths of its rule's logs count from ``files_dir``. Raises FileNotFoundError where the log is no longer
        there.
        """
        if self.log:
            os.stat(self.log)
        status = self.leader.result() if self.leader.done() else None
        failed = status is not None and exit_status(status)[0] == 1 and self.spec.script is None
        return Words(
            command_end(self.log) if failed else "",
            failed_members(self.log) if failed and self.spec.is_group else "",
            tail(self.log),
            self._rule_logs(files_dir),
        )

    def _rule_logs(self, files_dir: str) -> tuple[tuple[str, str], ...]:
        """The end of those that it has written to, the newest first."""
        written = []
        for name in self.spec.rule_logs:
            with contextlib.suppress(OSError):
                path = os.path.join(files_dir, name)
                changed = os.stat(path).st_mtime
                if changed >= self.started - _CLOCKS_DIFFER_S:  # else of an earlier attempt
                    written.append((changed, path))
        newest = (path for _, path in sorted(written, reverse=True)[:_RULE_LOGS])
        return tuple((path, text) for path in newest if (text := tail(path)))

    def outcome(self, not_started: str | None, kernel_kills: Callable[[], int]) -> Outcome:
        """How it ended. ``not_started``: why it could not be started; ``kernel_kills``: counts those of this node."""
        status = self.leader.result() if self.leader.done() else None
        code, number = (None, None) if status is None else exit_status(status)
        notes = list(self.notes)
        verdict: Status
        if not_started is not None:
            verdict = "not-started"
            notes.insert(0, not_started)
        elif self.verdict is not None:
            verdict = self.verdict[0]
            notes.insert(0, self.verdict[1])
        elif status is None:
            verdict = "lost"
        else:
            verdict = "succeeded" if status == 0 else "failed"
            if verdict == "failed":
                notes.insert(0, " ".join(filter(None, (self.words.command_end, self.words.members))))
        killed = signal.SIGKILL.name in " ".join(notes) or number == signal.SIGKILL
        if verdict == "failed" and killed and kernel_kills() > self.kernel_kills:
            notes.append(f"meanwhile the kernel killed processes on {HOST}, since memory was full")
        return Outcome(
            key=self.key,
            status=verdict,
            host=HOST,
            pid=self.pid,
            start=self.start,
            exit_code=code,
            signal=number,
            started=self.started,
            ended=self.ended or time.time(),
            peak_memory_mb=None if self.peak_bytes is None else round(self.peak_bytes / 1e6, 1),
            cpu_s=round(self.cpu_s, 3) if self.started else None,
            log_path=self.log or self.spec.log_path,
            log_tail=self.words.log_tail,
            rule_logs=self.words.rule_logs,
            detail="; ".join(note for note in notes if note),
        )


def cold_command(setup: RunSetup, spec: JobSpec, overrides: int | None) -> list[str]:
    """The command of a cold start. ``overrides``: a descriptor with the pickled `JobSpec.overrides`."""
    if spec.script is not None:
        return [spec.script] if os.access(spec.script, os.X_OK) else ["/bin/sh", spec.script]
    module = ["snakemake"]
    if overrides is not None:
        module = ["snakemake_executor_plugin_dask.worker.entry", str(overrides)]
    python = setup.python or sys.executable
    command = [python, "-m", *module, *spec.arguments, *setup.general_arguments]
    if setup.precommand.strip():
        # The arguments reach the shell as its own, which it does not read as text.
        return ["/bin/sh", "-c", f'{{ {setup.precommand}\n}} && exec "$@"', "sh", *command]
    return command


def status_words(status: int) -> str:
    """How a command ended, by what ``wait`` said; see `node.logs.command_end`."""
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return "its command left no output"
    return f"its command {'failed with' if code > 0 else 'was ended by'} {how_ended(code)}"


def seconds(value: float) -> str:
    """For people: "45 s", "1 min", "90 min", "2 h"."""
    if value >= 60 and value % 3600 == 0:
        return f"{value / 3600:g} h"
    if value >= 60 and value % 60 == 0:
        return f"{value / 60:g} min"
    return f"{value:.0f} s" if value >= 10 else f"{value:.3g} s"


def note(text: str) -> None:
    """A line in the worker's own log."""
    print(f"supervisor: {text}", file=sys.stderr, flush=True)  # noqa: T201 - stderr is that log
