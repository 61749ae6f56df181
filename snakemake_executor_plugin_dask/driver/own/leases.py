"""Leases: the TLS server to which the supervisors of the run's own workers connect.

A supervisor that hears no renewal for the lease's length ends its jobs, so a job whose lease has run out is dead,
wherever it ran. A supervisor whose worker went says over the same connection that the jobs are dead, which is seconds
earlier. What they say to each other is in `lease_messages`.
"""

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.lease_messages import RENEW_EVERY_S, encoded
from snakemake_executor_plugin_dask.node.door import Door, by_tls

_UNHEARD_S = 15.0  # three words of a supervisor that did not come
_CUT_MS = 20_000  # so long sent data may be without the other host's receipt, before the network counts as cut
_BACKLOG = 1024  # all workers may come at once
_LINE_MAX_BYTES = 1 << 24  # the last one names every job of a worker

_Result = TypeVar("_Result")


@dataclass
class Connection:
    """One supervisor, while it is connected and after. A worker has one for each run whose jobs it runs."""

    worker: str
    run: str
    writer: asyncio.StreamWriter
    heard: float  # monotonic: when it last said anything
    renewed: float  # monotonic: when it was last sent a renewal
    open: bool = True
    dead: set[str] = field(default_factory=set)  # attempts that it said are dead
    ended: bool = False  # it said that it leaves, and that nothing of its jobs is left
    #: What each job used when it last said so: CPU time in seconds, memory in 10^6 bytes; and when that was (epoch).
    uses: Mapping[str, Sequence[float]] = field(default_factory=dict)
    used: float = 0.0

    def takes(self, now: float) -> bool:
        """Whether a word would get there soon."""
        transport = self.writer.transport
        if not self.open or transport.is_closing():  # such a one has no buffer any more
            return False
        return now - self.heard < _UNHEARD_S and transport.get_write_buffer_size() == 0


class LeaseServer:
    """Renews the leases of all connected supervisors until it is closed, each as long as its run lives.

    It has a thread and an event loop of its own: a file system or a batch system that holds up the driver's loop must
    end no job. Its methods are for that other loop.
    """

    def __init__(
        self, context: ssl.SSLContext, alive: Callable[[str], bool], renew_every_s: float = RENEW_EVERY_S
    ) -> None:
        """``alive``: whether a run lives, by its id. Called on the thread of the leases."""
        self._context = context
        self._alive = alive
        self._renew_every_s = renew_every_s
        self._loop = asyncio.new_event_loop()
        self._socket: socket.socket | None = None
        self._door: Door | None = None
        self._stopped: set[str] = set()
        self._connections: dict[str, dict[str, Connection]] = {}  # by worker, and by run
        self.port = 0

    async def start(self, host: str, port: int = 0) -> None:
        """Listen on ``host``; port 0: a free one. ConfigurationError where that cannot be."""
        threading.Thread(target=self._run, name="leases", daemon=True).start()
        try:
            await self._there(self._listen(host, port))
        except OSError as error:
            msg = f"The port after the scheduler's, on which jobs' leases are renewed, cannot be opened: {error}"
            raise ConfigurationError(msg) from error

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    async def _there(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """What a coroutine gives on the thread."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    async def _listen(self, host: str, port: int) -> None:
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        self._socket = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        self.port = self._socket.getsockname()[1]
        self._door = Door(self._socket, by_tls(self._context, _LINE_MAX_BYTES, self._serve))

    async def renew(self) -> None:
        """Until `close`. Raises what went wrong."""
        await self._there(self._renew())

    async def close(self) -> None:
        """Renew no more leases; may be repeated."""
        if not self._loop.is_closed():
            await self._there(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)

    async def _end(self) -> None:
        if self._door is not None and self._socket is not None:
            self._door.close()
            self._socket.close()
        for connection in self._all():
            connection.writer.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def stop(self, worker: str) -> None:
        """Ask a worker's supervisors to end all their jobs and leave; their leases are renewed no more.

        One that is not connected now, and connects again later, after a cut network, is told then.
        """
        self._stopped.add(worker)
        for connection in self._of(worker):
            with contextlib.suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(_send, connection, {"stop": True})

    def forget(self, run: str, worker: str | None = None) -> None:
        """A run is over, and its supervisors have left; or the one on this worker has."""
        for name in list(self._connections) if worker is None else [worker]:
            self._connections.get(name, {}).pop(run, None)

    def listen_anew(self) -> None:
        """Forget for how long nobody was heard: this process stood still itself."""
        for connection in self._all():
            connection.heard = time.monotonic()

    def uses(self, run: str) -> dict[str, tuple[float, ...]]:
        """What a run's jobs used when that was last said, by key: when, CPU time in s, memory in 10^6 bytes."""
        lines = [line for line in self._all() if line.open and line.run == run]
        return {key: (line.used, *use) for line in lines for key, use in line.uses.items()}

    def silent_s(self) -> dict[str, float]:
        """By worker: seconds since the most silent of its supervisors said anything; none where none has connected.

        Of those of runs that live: the others end by themselves, whatever they say.
        """
        alive: dict[str, bool] = {}
        found: dict[str, float] = {}
        now = time.monotonic()
        for line in self._all():
            if (lives := alive.get(line.run)) is None:
                lives = alive[line.run] = self._alive(line.run)
            if lives and (silent_s := now - line.heard) >= found.get(line.worker, 0.0):
                found[line.worker] = silent_s
        return found

    def last_renewal(self, worker: str) -> float | None:
        """Monotonic time at which a renewal was last sent that may have arrived."""
        return max((connection.renewed for connection in self._of(worker)), default=None)

    def dead(self, worker: str, keys: Collection[str]) -> bool:
        """Whether its supervisors have said that these attempts are dead."""
        connections = self._of(worker)
        if connections and all(connection.ended for connection in connections):
            return True
        return set().union(*(connection.dead for connection in connections)).issuperset(keys)

    def answers(self, worker: str) -> bool:
        """Whether a supervisor's host still does: its connection is open."""
        return any(connection.open for connection in self._of(worker))

    def connection(self, worker: str, run: str) -> Connection | None:
        """That of a worker's supervisor for a run, if it ever connected."""
        return self._connections.get(worker, {}).get(run)

    def _of(self, worker: str) -> list[Connection]:
        return list(self._connections.get(worker, {}).values())

    def _all(self) -> list[Connection]:
        return [connection for worker in list(self._connections) for connection in self._of(worker)]

    # On the thread

    def _renews(self, connection: Connection) -> bool:
        return connection.worker not in self._stopped and self._alive(connection.run)

    async def _renew(self) -> None:
        number = 0
        while True:
            number += 1
            now = time.monotonic()
            for connection in self._all():
                # To one that is not heard none is sent: renewals that wait on their way are worth nothing there, and
                # would only put off the time from which its jobs are known to be dead.
                if connection.takes(now) and self._renews(connection):
                    _send(connection, {"renew": number})
                    connection.renewed = now
            await asyncio.sleep(self._renew_every_s)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: Connection | None = None
        # A frozen supervisor's host goes on sending receipts, and only a cut network or a dead host does not.
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _CUT_MS)
        try:
            while line := await reader.readline():
                message = json.loads(line)
                now = time.monotonic()
                if connection is None:
                    connection = Connection(str(message["hello"]), str(message["run"]), writer, now, now)
                    self._connections.setdefault(connection.worker, {})[connection.run] = connection
                    if connection.worker in self._stopped:
                        _send(connection, {"stop": True})
                    elif self._alive(connection.run):
                        _send(connection, {"renew": 0})
                connection.heard = now
                if "uses" in message:
                    connection.uses, connection.used = message["uses"], time.time()
                if "dead" in message:
                    connection.dead |= set(message["dead"])
                    connection.ended = bool(message.get("last"))
        except (OSError, ValueError, KeyError, TypeError):  # TLS's errors and the kernel's time-out among them
            pass  # what it had to say is said; its silence is what counts
        finally:
            if connection is not None:
                connection.open = False
            writer.close()


def _send(connection: Connection, message: dict[str, Any]) -> None:
    if connection.open:
        connection.writer.write(encoded(message))
