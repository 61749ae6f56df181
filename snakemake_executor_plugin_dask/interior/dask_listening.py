"""Dask's TLS ports behind a `Door`: a client that says nothing, or the wrong thing, costs little and is soon gone.

Dask accepts whoever comes, for ever, and without end in time: a thousand silent connections take all descriptors of a
scheduler. Imports Dask, and nothing of this package: jobs' own Dask clusters have a copy (`injob`).
"""

import asyncio
import socket
from typing import Any

import dask.config
from distributed import node
from distributed.comm import registry
from distributed.comm.tcp import MAX_BUFFER_SIZE, TLSBackend, TLSListener
from tornado.httpserver import HTTPServer
from tornado.iostream import SSLIOStream
from tornado.netutil import bind_sockets, ssl_wrap_socket
from tornado.tcpserver import TCPServer


class _Server(TCPServer):
    """Where Dask looks for the sockets that are listened on; each has its door."""

    def __init__(self, door: Any, meet: Any, **options: Any) -> None:
        super().__init__(**options)
        self._door, self._meet = door, meet

    def add_sockets(self, sockets: Any) -> None:
        for sock in sockets:
            self._sockets[sock.fileno()] = sock
            self._handlers[sock.fileno()] = self._door(sock, self._meet).close


class GuardedListener(TLSListener):
    """Dask's listener, which hears only of those who hold the run's certificate."""

    door: Any  # the class

    async def start(self) -> None:
        """Listen on the port that Dask chose or was told, behind the door. Raises OSError."""
        backlog = int(dask.config.get("distributed.comm.socket-backlog"))
        sockets = bind_sockets(self.port, address=self.ip, backlog=backlog)
        self._talks: set[asyncio.Task[None]] = set()
        self.tcp_server = _Server(self.door, self._meet, max_buffer_size=MAX_BUFFER_SIZE)
        self.tcp_server.add_sockets(sockets)
        self.get_host_port()  # type: ignore[no-untyped-call]  # sets the address by which Dask knows it

    async def _meet(self, connection: socket.socket, address: Any) -> None:
        """Ends with the TLS handshake, which shows the certificate; the conversation goes on by itself."""
        stream = await _handshaken(connection, self.server_args["ssl_options"])
        talk = asyncio.ensure_future(self._handle_stream(stream, address))  # type: ignore[no-untyped-call]
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)


class GuardedHTTPServer(HTTPServer):
    """Over TLS, to those who show a certificate."""

    door: Any  # the class

    def add_sockets(self, sockets: Any) -> None:
        """Listen on these, behind the door."""
        for sock in sockets:
            self._sockets[sock.fileno()] = sock
            self._handlers[sock.fileno()] = self.door(sock, self._meet).close

    async def _meet(self, connection: socket.socket, address: Any) -> None:
        self.handle_stream(await _handshaken(connection, self.ssl_options), address)


async def _handshaken(connection: socket.socket, context: Any) -> SSLIOStream:
    """The stream, once the other side has shown its certificate; else the connection is closed."""
    try:
        wrapped = ssl_wrap_socket(connection, context, server_side=True, do_handshake_on_connect=False)
    except OSError:
        connection.close()
        raise
    # Without options of its own it would read all certificates of this system, for nothing.
    stream = SSLIOStream(wrapped, ssl_options=context, max_buffer_size=MAX_BUFFER_SIZE)
    try:
        await stream.wait_for_handshake()
    except BaseException:
        stream.close()
        raise
    return stream


class _GuardedTLS(TLSBackend):
    _listener_class = GuardedListener


def guard(door: Any) -> None:
    """Whatever this process listens on by Dask's `tls://` from now on has a door, of the class `node.door.Door`."""
    GuardedListener.door = GuardedHTTPServer.door = door
    registry.backends["tls"] = _GuardedTLS()


def guard_pages() -> None:
    """So have the pages of a scheduler that starts from now on."""
    module: Any = node
    module.HTTPServer = GuardedHTTPServer
