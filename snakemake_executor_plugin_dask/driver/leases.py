"""Leases: the TLS server to which the supervisors of the run's own workers connect.

A supervisor that hears no renewal for the lease's length ends its jobs, so a job whose lease has run out is dead,
wherever it ran. A supervisor whose worker went says over the same connection that the jobs are dead, which is seconds
earlier.
JSON lines; see docs/design.md for the messages.
"""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

RENEW_EVERY_S = 5.0
_UNHEARD_S = 15.0  # three words of a supervisor that did not come
_CUT_MS = 20_000  # so long sent data may be without the other host's receipt, before the network counts as cut


@dataclass
class Connection:
    """One supervisor, while it is connected and after."""

    worker: str
    writer: asyncio.StreamWriter
    heard: float  # monotonic: when it last said anything
    renewed: float  # monotonic: when it was last sent a renewal
    open: bool = True
    dead: set[str] = field(default_factory=set)  # attempts that it said are dead
    ended: bool = False  # it said that it leaves, and that nothing of its jobs is left
    why: str = ""


class LeaseServer:
    """Renews the leases of all connected supervisors until it is closed."""

    def __init__(self, context: ssl.SSLContext, on_dead: Callable[[str, set[str], str, bool], None]) -> None:
        """``on_dead(worker, keys, why, last)`` is called on the event loop."""
        self._context = context
        self._on_dead = on_dead
        self._server: asyncio.Server | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._stopped: set[str] = set()
        self.connections: dict[str, Connection] = {}
        self.port = 0

    async def start(self, host: str | None) -> None:
        """Listen on ``host`` (None: all interfaces), on a free port."""
        # One socket: for each address family asyncio would take another free port.
        family = socket.AF_INET if host is None else socket.AF_UNSPEC
        self._server = await asyncio.start_server(self._serve, host, 0, family=family, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        self._renewing = asyncio.create_task(self._renew())

    async def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
        for connection in self.connections.values():
            connection.writer.close()
        if self._server is not None:
            self._server.close()

    def stop(self, worker: str) -> bool:
        """Ask a supervisor to end all its jobs and leave; its lease is renewed no more. False: it is not connected.

        One that connects again later, after a cut network, is told then.
        """
        self._stopped.add(worker)
        return self._send(worker, {"stop": True})

    def kill(self, worker: str, key: str) -> bool:
        """Ask a supervisor to end one attempt. False: it is not connected."""
        return self._send(worker, {"kill": key})

    def silent_s(self, worker: str) -> float | None:
        """Seconds since the supervisor said anything; None: it never connected."""
        connection = self.connections.get(worker)
        return None if connection is None else time.monotonic() - connection.heard

    def last_renewal(self, worker: str) -> float | None:
        """Monotonic time at which a renewal was last sent that may have arrived."""
        connection = self.connections.get(worker)
        return None if connection is None else connection.renewed

    def _send(self, worker: str, message: dict[str, Any]) -> bool:
        connection = self.connections.get(worker)
        if connection is None or not connection.open:
            return False
        connection.writer.write(json.dumps(message).encode() + b"\n")
        return True

    async def _renew(self) -> None:
        number = 0
        while True:
            number += 1
            now = time.monotonic()
            for connection in self.connections.values():
                # To one that is not heard none is sent: renewals that wait on their way are worth nothing there, and
                # would only put off the time from which its jobs are known to be dead.
                heard = now - connection.heard < _UNHEARD_S and connection.writer.transport.get_write_buffer_size() == 0
                if connection.open and heard and connection.worker not in self._stopped:
                    self._send(connection.worker, {"renew": number})
                    connection.renewed = now
            await asyncio.sleep(RENEW_EVERY_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: Connection | None = None
        # A frozen supervisor's host goes on sending receipts, and only a cut network or a dead host does not.
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _CUT_MS)
        try:
            while line := await reader.readline():
                message = json.loads(line)
                now = time.monotonic()
                if connection is None:
                    connection = Connection(message["hello"], writer, now, now)
                    self.connections[connection.worker] = connection
                    self._send(
                        connection.worker, {"stop": True} if connection.worker in self._stopped else {"renew": 0}
                    )
                connection.heard = now
                if "dead" in message:
                    keys, why = set(message["dead"]), message.get("why", "")
                    connection.dead |= keys
                    connection.ended = bool(message.get("last"))
                    connection.why = why
                    self._on_dead(connection.worker, keys, why, connection.ended)
        except (OSError, ValueError, KeyError):  # TLS's errors and the kernel's time-out among them
            pass  # what it had to say is said; its silence is what counts
        finally:
            if connection is not None:
                connection.open = False
            writer.close()
