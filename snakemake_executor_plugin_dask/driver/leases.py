"""Leases: the TLS server to which the supervisors of the run's own workers connect.

A supervisor that hears no renewal for the lease's length ends its jobs, so a job whose lease has run out is dead, wherever it ran. A
supervisor whose worker went says over the same connection that the jobs are dead, which is seconds earlier.
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
        """Ask a supervisor to end all its jobs and leave. False: it is not connected."""
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
            for connection in self.connections.values():
                # A buffer that is not taken grows no further: renewals that arrive late would be worth nothing.
                if connection.open and connection.writer.transport.get_write_buffer_size() == 0:
                    self._send(connection.worker, {"renew": number})
                    connection.renewed = time.monotonic()
            await asyncio.sleep(RENEW_EVERY_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: Connection | None = None
        try:
            while line := await reader.readline():
                message = json.loads(line)
                now = time.monotonic()
                if connection is None:
                    connection = Connection(message["hello"], writer, now, now)
                    self.connections[connection.worker] = connection
                    self._send(connection.worker, {"renew": 0})
                connection.heard = now
                if "dead" in message:
                    keys, why = set(message["dead"]), message.get("why", "")
                    connection.dead |= keys
                    connection.ended = bool(message.get("last"))
                    connection.why = why
                    self._on_dead(connection.worker, keys, why, connection.ended)
        except (ConnectionError, ssl.SSLError, ValueError, KeyError):
            pass  # what it had to say is said; its silence is what counts
        finally:
            if connection is not None:
                connection.open = False
            writer.close()
