"""What the executor in Snakemake's process and the driver process say to each other.

Both run the same code on the same machine, joined by a socket pair that only they hold, so messages are pickled
dataclasses, each behind its length (4 bytes, network order).
"""

import contextlib
import pickle
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Any, Literal

from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome, RunSetup
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.requests import Request

_LENGTH = struct.Struct("!I")


# Executor to driver


#: Of Snakemake's logger.
Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Begin:
    """The first message: everything about the run."""

    setup: RunSetup
    options: Options
    state_dir: str  # .snakemake/dask/<run id>, mode 0700
    event_log: str
    jobs: int = 0  # that are known before the first one, a group's as one


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job that Snakemake handed over. Thousands may wait, so what placement does not ask for stays packed."""

    key: str
    name: str  # of its rule or group
    packed: bytes
    request: Request
    priority: float = 0.0
    last: bool = False  # once it has failed, Snakemake starts no more jobs

    @classmethod
    def of(cls, spec: JobSpec, request: Request, priority: float = 0.0, *, last: bool = False) -> "QueuedJob":
        return cls(spec.key, spec.name, pickle.dumps(spec, protocol=pickle.HIGHEST_PROTOCOL), request, priority, last)

    def spec(self) -> JobSpec:
        """Unpacked anew; it lacks what placement decides (devices, hosts)."""
        spec: JobSpec = pickle.loads(self.packed)
        return spec


@dataclass(frozen=True, slots=True)
class Later:
    """A job that becomes ready when jobs end which were handed over."""

    request: Request
    after: tuple[str, ...]  # their keys


@dataclass(frozen=True, slots=True)
class Enqueue:
    jobs: tuple[QueuedJob, ...]
    soon: tuple[Later, ...] = ()


@dataclass(frozen=True, slots=True)
class DropWaiting:
    """Start no more of the waiting jobs; those with a process finish."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End: with ``kill`` running jobs are ended first; every worker and allocation is given back."""

    kill: bool


@dataclass(frozen=True, slots=True)
class ShowStatus:
    """Print the whole picture (SIGUSR1)."""


# Driver to executor


@dataclass(frozen=True, slots=True)
class Started:
    key: str


@dataclass(frozen=True, slots=True)
class Finished:
    key: str
    outcome: Outcome
    runs: int = 1  # how often it was run, lost workers included
    message: str = ""  # the driver's own sentence, where the outcome alone does not explain the failure


@dataclass(frozen=True, slots=True)
class Dropped:
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Say:
    """A line between Snakemake's own. From the executor: it was shown, and belongs into the event log."""

    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Fatal:
    """The run cannot go on; every job that is not finished is lost. The text is for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The last message: everything was given back, but for what ``left`` names."""

    left: tuple[str, ...] = ()


class Channel:
    """One end of the socket pair, for threads: `send` from any of them, `receive` from one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def send(self, message: object) -> None:
        """Raises OSError (BrokenPipeError) where the other side is gone."""
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        with self._lock:
            try:
                self._sock.sendall(_LENGTH.pack(len(data)) + data)
            except BaseException:  # Ctrl-C too: what follows half a message cannot be read as one
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_WR)
                raise

    def receive(self) -> Any:
        """The next message; raises EOFError once the other side is gone."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return pickle.loads(self._read(length))

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = self._sock.recv(min(size, 1 << 20))
            except ConnectionError as error:
                raise EOFError from error
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        self._sock.close()
