"""Messages between processes of a run: pickled dataclasses, each behind its length (4 bytes, network order).

Both ends run this package and hold the only two ends of a socket pair, so that unpickling is safe. What is said is in
`messages` (Snakemake's process and the driver) and `job_messages` (a worker and what runs its jobs).
"""

import contextlib
import pickle
import socket
import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio  # which takes longer to import than all else here

_LENGTH = struct.Struct("!I")


def frame(message: object) -> bytes:
    """The message as it travels."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


def unframed(data: bytes) -> Any:
    """The message of which this is the `frame`."""
    return pickle.loads(memoryview(data)[_LENGTH.size :])


def sender(writer: "asyncio.StreamWriter") -> Callable[[object], None]:
    """What sends messages there, without waiting; nothing happens once the stream is closed."""

    def send(message: object) -> None:
        if not writer.is_closing():
            writer.write(frame(message))

    return send


async def receive(reader: "asyncio.StreamReader") -> Any:
    """The next message; EOFError once the other end is gone."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return pickle.loads(await reader.readexactly(length))
    # Half a message, too. TCP's time limits and errors of TLS are no ConnectionError.
    except (EOFError, OSError) as error:
        raise EOFError from error


class Channel:
    """One end of the socket pair, for threads: `send` from any of them, `receive` from one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def send(self, message: object) -> None:
        """Raises OSError (BrokenPipeError) where the other side is gone."""
        data = frame(message)
        with self._lock:
            try:
                self._sock.sendall(data)
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
        """Close the socket; the other side reads the end."""
        self._sock.close()
