"""The supervisor's end of the warm process: starts it, hands jobs over, and notices its end. Starts a process.

The warm process is `python -m snakemake_executor_plugin_dask.worker.warm`; messages are in docs/design.md.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Mapping
from typing import Any, Protocol

from snakemake_executor_plugin_dask.model.jobs import JobSpec, RunSetup
from snakemake_executor_plugin_dask.model.wire import frame, receive
from snakemake_executor_plugin_dask.node.processes import Launch, spawn


class WarmEvents(Protocol):
    """What the supervisor does when its warm process says something."""

    def warm_forked(self, warm: "WarmProcess", key: str, pid: int, *, is_command: bool) -> None: ...
    def warm_exited(self, warm: "WarmProcess", key: str, status: int, cpu_s: float) -> None: ...
    def warm_refused(self, warm: "WarmProcess", key: str, reason: str) -> None: ...
    def warm_said(self, text: str) -> None: ...
    def warm_stale(self, warm: "WarmProcess", reason: str) -> None: ...
    def warm_gone(self, warm: "WarmProcess") -> None: ...


class WarmProcess:
    """One warm process."""

    def __init__(self, setup: RunSetup, environment: Mapping[str, str], events: WarmEvents) -> None:
        """Start it. Raises OSError where that cannot be done."""
        self._events = events
        self.depth = 0  # once ready; 0 then, too, if it refuses every job
        self.ready = False
        self.settled = asyncio.Event()  # ready, or gone
        self.gone = False
        self.reaped = asyncio.Event()  # set by whoever waits for child processes
        self.words = 0  # how often it has said something
        #: Jobs that were handed over and of which no process is known yet.
        self.unanswered: set[str] = set()
        self._socket, theirs = socket.socketpair()
        # Not from the workflow's directory, which would shadow modules; without -P, which jobs would see in sys.flags.
        command = [setup.python, "-m", "snakemake_executor_plugin_dask.worker.warm", "--fd", str(theirs.fileno())]
        try:
            launch = Launch(
                command,
                environment,
                "/",
                umask=setup.umask,
                soft_limits=setup.soft_limits,
                keep=(theirs.fileno(),),
            )
            self.pid, self._report = spawn(launch)
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._writer: asyncio.StreamWriter | None = None
        self._setup = setup
        self._task = asyncio.create_task(self._serve())

    def start(self, spec: JobSpec) -> None:
        """Hand a job over; `WarmEvents.warm_forked` or `warm_refused` follows, or `warm_gone`."""
        self.unanswered.add(spec.key)
        self._send(("start", spec))

    def end_job(self, key: str) -> None:
        """End its child that has a job, where that still has it; `WarmEvents.warm_exited` follows."""
        self._send(("end", key))

    def close(self) -> None:
        """Let it end once it has nothing to do: it sees the end of file."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End it now. `WarmEvents.warm_gone` follows."""
        if not self.reaped.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _send(self, message: tuple[Any, ...]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    async def _serve(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        os.close(self._report)  # a failure to start shows as the end of file
        self._send(("setup", self._setup))
        try:
            while True:
                self._received(await receive(reader))
        except EOFError:
            pass
        # Whoever closes this socket without ending is of no use, either.
        self.kill()
        self.gone = True
        self._writer.close()
        self.settled.set()
        self._events.warm_gone(self)

    def _received(self, message: tuple[Any, ...]) -> None:
        self.words += 1
        match message:
            case ("ready", int(depth), str(reason)):
                self.depth, self.ready = depth, True
                self.settled.set()
                if reason:
                    how = f"at depth {depth}" if depth else "cold"
                    self._events.warm_said(f"Jobs start {how}, which takes longer: {reason}.")
            case ("forked" | "spawned" as how, key, pid):
                self.unanswered.discard(key)
                self._events.warm_forked(self, key, pid, is_command=how == "spawned")
            case ("exited", key, status, cpu_s):
                self._events.warm_exited(self, key, status, cpu_s)
            case ("cold", key, reason):
                self.unanswered.discard(key)
                self._events.warm_refused(self, key, reason)
            case ("stale", reason):
                self._events.warm_stale(self, reason)
            case _:
                pass
