"""The supervisor's end of the warm process, which `first` starts: hands jobs over, and notices its end.

The warm process is `python -m snakemake_executor_plugin_dask.worker.warm`; see `model.job_messages`.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping

from snakemake_executor_plugin_dask.model.job_messages import EndChild, Said, Setup, Start
from snakemake_executor_plugin_dask.model.jobs import JobSpec, RunSetup
from snakemake_executor_plugin_dask.model.shellcommand import Shell
from snakemake_executor_plugin_dask.model.wire import frame, receive
from snakemake_executor_plugin_dask.worker.supervisor.first import StartedWarm, spawn_warm


class WarmProcess:
    """One warm process."""

    def __init__(
        self,
        setup: RunSetup | None,
        environment: Mapping[str, str],
        hear: Callable[["WarmProcess", object], None],
        directory: str | None = None,
        started: StartedWarm | None = None,
    ) -> None:
        """Start it, with a directory for files of its own, unless it was. Raises OSError where that cannot be done.

        ``setup``: None where `tell` follows, of one that was started. ``hear`` gets each of its messages, and None once
        it has ended, and its jobs with it.
        """
        if started is None:
            assert setup is not None
            started = spawn_warm(setup, environment, directory)
        self._hear = hear
        self.reason = ""  # why it is not deeper, or refuses every job
        self.dag_reason = ""  # why it starts no job that needs a DAG
        self.shell: Shell | None = None  # as it would start shell commands
        self.ready = False
        self.settled = asyncio.Event()  # ready, or gone
        self.gone = False
        self.reaped = asyncio.Event()  # set by whoever waits for child processes
        self.words = 0  # how often it has said something
        #: Jobs that were handed over and of which no process is known yet.
        self.unanswered: set[str] = set()
        self.pid, self._report, self._socket = started.pid, started.report, started.sock
        self._writer: asyncio.StreamWriter | None = None
        self._setup = setup
        self._task = asyncio.create_task(self._serve())

    def tell(self, setup: RunSetup) -> None:
        """Which run it is for."""
        self._setup = setup
        self._send(Setup(setup))

    def start(self, spec: JobSpec) -> None:
        """Hand a job over; `Forked`, `Spawned` or `Cold` follows, or its end."""
        self.unanswered.add(spec.key)
        self._send(Start(spec))

    def end_job(self, key: str) -> None:
        """End its child that has a job, where that still has it; `Exited` follows."""
        self._send(EndChild(key))

    def close(self) -> None:
        """Let it end once it has nothing to do: it sees the end of file."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End it now."""
        if not self.reaped.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _send(self, message: object) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    async def _serve(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        os.close(self._report)  # a failure to start shows as the end of file
        if self._setup is not None:
            self._send(Setup(self._setup))
        try:
            while True:
                message = await receive(reader)
                self.words += 1
                self._hear(self, message)
        except EOFError:
            pass
        except Exception as error:  # noqa: BLE001 - of the ends of its jobs nothing more would be heard
            text = f"A warm process is ended, since a message of it could not be handled: {error!r}"
            self._hear(self, Said(text))
        # Whoever closes this socket without ending is of no use, either.
        self.kill()
        self.gone = True
        self._writer.close()
        self.settled.set()
        self._hear(self, None)


#: What a job's start costs at each depth, beside a shell command's few milliseconds at depth 3; see docs/warm.md.
_COSTS = (
    "each starts a Snakemake of its own, which takes a second or two of CPU time",
    "each reads the workflow itself, which takes a tenth of a second or more of CPU time",
    "each makes a DAG of its own, which takes some 50 ms of CPU time",
)


def shallow(depth: int, reason: str) -> str:
    """How jobs start that do not at depth 3, why, and what that costs: for the end of a sentence."""
    how = f"at depth {depth} instead of 3" if depth else "cold"
    return f"{how}, since: {reason.rstrip('.')}. So {_COSTS[depth]}."


def shallow_command(reason: str) -> str:
    """A sentence: that shell commands do not start at depth 4, why, and what that costs."""
    return f"Shell commands start at depth 3 instead of 4, since: {reason}. So each takes some 5 ms of CPU time more."
