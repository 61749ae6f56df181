"""How processes of a job's own Dask cluster reach each other within a node: by sockets in a directory, without TLS.

Who can enter the directory could read the cluster's key there as well, so TLS keeps nobody out; it would cost a good
part of what workers send to each other. Whoever does not know the directory connects by TLS. Imports Dask, and nothing
of this package: jobs' own Dask clusters have a copy (`injob`).
"""

import asyncio
import contextlib
import os
import socket
from typing import Any

import dask.config
from distributed.comm import registry
from distributed.comm.addressing import parse_host_port
from distributed.comm.core import CommClosedError
from distributed.comm.tcp import MAX_BUFFER_SIZE, TCP, TLSBackend, TLSConnector
from tornado.iostream import IOStream
from tornado.netutil import add_accept_handler


class _LocalSocket(socket.socket):
    """Dask sets time limits of TCP, which this one neither has nor needs: the kernel tells at once who is gone."""

    def setsockopt(self, level: int, *option: Any) -> None:
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, *option)

    def stream(self) -> IOStream:
        return IOStream(self, max_buffer_size=MAX_BUFFER_SIZE)


def connect_beside(guarded: Any, directory: str, host: str) -> None:
    """Processes that listen on ``host`` and call this with one directory reach each other by sockets in it.

    ``guarded``: the class `dask_listening.GuardedListener`. Raises OSError where the directory cannot be opened.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def socket_at(port: int) -> str:
        """It takes the place of this port. A socket's path may not be long."""
        return f"/proc/self/fd/{descriptor}/{port}.sock"

    class _Listener(guarded):  # type: ignore[misc]
        """Listens at its port, and at a socket beside it."""

        async def start(self) -> None:
            await super().start()
            self._path = socket_at(self.get_host_port()[1])
            self._talks_beside: set[asyncio.Task[None]] = set()
            self._beside = socket.socket(socket.AF_UNIX)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)  # of a process that had this port before
            self._beside.bind(self._path)
            self._beside.setblocking(False)
            self._beside.listen(int(dask.config.get("distributed.comm.socket-backlog")))
            self._ignore = add_accept_handler(self._beside, self._accepted)

        def stop(self) -> None:
            super().stop()
            self._ignore()
            self._beside.close()
            with contextlib.suppress(OSError):
                os.unlink(self._path)

        def _accepted(self, connection: socket.socket, _: Any) -> None:
            talk = asyncio.ensure_future(self._talk(_LocalSocket(fileno=connection.detach()).stream()))
            self._talks_beside.add(talk)
            talk.add_done_callback(self._talks_beside.discard)

        async def _talk(self, stream: IOStream) -> None:
            """As `TLSListener._handle_stream` does it."""
            comm: Any = TCP(stream, self.contact_address, f"{self.prefix}{host}:0", self.deserialize)
            comm.allow_offload = self.allow_offload
            try:
                await self.on_connection(comm)
            except CommClosedError:
                return
            await self.comm_handler(comm)

    class _Connector(TLSConnector):
        """Takes the socket where there is one."""

        async def connect(self, address: str, deserialize: bool = True, **arguments: Any) -> Any:
            there, port = parse_host_port(address)
            if there == host:
                connection = _LocalSocket(socket.AF_UNIX)
                connection.setblocking(False)
                try:
                    connection.connect(socket_at(port))
                except OSError:  # another one listens there, or nobody
                    connection.close()
                else:
                    return TCP(connection.stream(), f"{self.prefix}{host}:0", self.prefix + address, deserialize)
            return await super().connect(address, deserialize, **arguments)  # type: ignore[no-untyped-call]

    class _Backend(TLSBackend):
        _listener_class = _Listener
        _connector_class = _Connector

    registry.backends["tls"] = _Backend()
