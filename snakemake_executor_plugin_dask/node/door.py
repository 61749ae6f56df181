"""Whom a listening port lets in: strangers are few, slow to come, and gone after a while. Standard library only.

`Strangers` decides and is pure. `Door` accepts connections, and hands each to a coroutine that finds out who it is.
"""

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass  # jobs have a copy of this module, and may lack the rest of the package
from typing import Any

_log = logging.getLogger(__name__)

_AT_ONCE = 16  # accepted before others on the event loop have their turn
_FULL_PAUSE_S = 1.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class Limits:
    """For connections of which nobody knows yet whose they are."""

    most: int = 256  # at once; a further one takes the place of one that has waited for long
    seconds: float = 20.0  # to say who it is; a worker on a machine that is very busy needs some of them
    per_second: float = 200.0  # accepted, on the average
    burst: float = 1000.0  # accepted at once after a quiet time: many workers come together


class Strangers:
    """Counts them. Times are monotonic seconds passed in."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._allowed = limits.burst
        self._counted = now
        self._waiting: dict[str, dict[Hashable, None]] = {}  # by host, the oldest first
        self._host: dict[Hashable, str] = {}

    def pause_s(self, now: float) -> float:
        """For how long nobody is to be accepted; 0: now."""
        limits = self._limits
        self._allowed = min(limits.burst, self._allowed + (now - self._counted) * limits.per_second)
        self._counted = now
        return 0.0 if self._allowed >= 1 else max(0.01, (_AT_ONCE - self._allowed) / limits.per_second)

    def came(self, one: Hashable, host: str) -> Hashable | None:
        """Note a connection. Returns the one that has to go for it: the oldest of the host that has the most."""
        self._allowed -= 1
        self._waiting.setdefault(host, {})[one] = None
        self._host[one] = host
        return self.oldest() if len(self._host) > self._limits.most else None

    def oldest(self) -> Hashable | None:
        """The one that can best be spared: so one host's connections press nobody else's out."""
        fullest = max(self._waiting, key=lambda host: len(self._waiting[host]), default=None)
        return None if fullest is None else next(iter(self._waiting[fullest]))

    def known(self, one: Hashable) -> None:
        """It has said who it is, or is gone."""
        host = self._host.pop(one, None)
        if host is not None:
            del self._waiting[host][one]
            if not self._waiting[host]:
                del self._waiting[host]

    def __len__(self) -> int:
        return len(self._host)


#: Gets a connection (not blocking) and its address. It returns once it is known whose it is, and raises or is cancelled
#: where that does not come to be; it then has closed the connection.
Meet = Callable[[socket.socket, Any], Awaitable[None]]

#: As `asyncio.start_server` has it.
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


def by_tls(context: ssl.SSLContext, limit_bytes: int, serve: Serve) -> Meet:
    """Whom a `Door` lets in by the TLS handshake, in which a certificate is shown; ``serve`` gets the streams.

    ``limit_bytes``: so much is read ahead, and no line may be longer.
    """

    async def meet(connection: socket.socket, _: Any) -> None:
        def protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=limit_bytes), serve)

        try:
            await asyncio.get_running_loop().connect_accepted_socket(protocol, connection, ssl=context)
        except BaseException:
            connection.close()
            raise

    return meet


class Door:
    """Accepts on one listening socket, on the running event loop, until it is closed. The socket is not closed."""

    def __init__(self, listening: socket.socket, meet: Meet, limits: Limits | None = None) -> None:
        self._listening = listening
        self._meet = meet
        self._limits = limits or Limits()
        self._loop = asyncio.get_running_loop()
        self._strangers = Strangers(self._limits, time.monotonic())
        self._again: asyncio.TimerHandle | None = None
        self._closed = False
        listening.setblocking(False)
        self._open()

    def close(self) -> None:
        """Accept nobody any more. Those who are met are seen off by themselves."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._listening)

    def _open(self) -> None:
        self._again = None
        if not self._closed:
            self._loop.add_reader(self._listening, self._accept)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listening)
        self._again = self._loop.call_later(seconds, self._open)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            if pause := self._strangers.pause_s(time.monotonic()):
                self._pause(pause)
                return
            try:
                connection, address = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._exhausted(error)
                    return
                continue  # it was given up before it was accepted
            connection.setblocking(False)
            with suppress(OSError):  # asyncio does so by itself only where it has made the listening socket
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = asyncio.ensure_future(self._met(connection, address))
            # One that was cancelled before its first step has closed nothing.
            task.add_done_callback(lambda done, taken=connection: taken.close() if done.cancelled() else None)  # type: ignore[misc]
            if (spared := self._strangers.came(task, str(address[0]))) is not None:
                self._turn_away(spared)

    def _exhausted(self, error: OSError) -> None:
        """The connection stays where it is, and would be offered again at once, for ever."""
        _log.error("No connection can be accepted for now: %s", error.strerror)
        if (spared := self._strangers.oldest()) is not None:
            self._turn_away(spared)
        self._pause(_FULL_PAUSE_S)

    def _turn_away(self, one: Hashable) -> None:
        self._strangers.known(one)
        assert isinstance(one, asyncio.Task)
        one.cancel()

    async def _met(self, connection: socket.socket, address: Any) -> None:
        task = asyncio.current_task()
        try:
            with suppress(OSError, EOFError):  # TLS's errors and the time-out among them
                async with asyncio.timeout(self._limits.seconds):
                    await self._meet(connection, address)
        finally:
            self._strangers.known(task)
