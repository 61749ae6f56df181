"""Whom a listening port lets in, and for how long it waits for a name."""

import asyncio
import errno
import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from snakemake_executor_plugin_dask.node.door import Door, Limits, Strangers
from snakemake_executor_plugin_dask.node.own_log import Throttle, write_line


def test_one_hosts_connections_press_nobody_elses_out() -> None:
    """The oldest of the host with the most goes; one that has said who it is does not count."""
    strangers = Strangers(Limits(most=3), now=0)
    assert [strangers.came(name, host) for name, host in (("a1", "a"), ("b1", "b"), ("b2", "b"))] == [None] * 3
    assert strangers.came("b3", "b") == "b1"
    strangers.known("b1")
    assert strangers.came("a2", "a") == "a1"  # as many as the others, and older
    strangers.known("a1")
    strangers.known("a2")
    assert strangers.came("a3", "a") is None
    assert len(strangers) == 3


def test_they_come_no_faster_than_so_many_a_second() -> None:
    """After a burst there is a pause, and a long quiet time allows one burst more."""
    strangers = Strangers(Limits(per_second=10, burst=20), now=0)
    for number in range(20):
        assert strangers.pause_s(0) == 0
        strangers.came(number, "a")
    assert strangers.pause_s(0) > 0
    assert strangers.pause_s(0.2) == 0
    assert strangers.pause_s(1000) == 0
    for number in range(20):
        strangers.came(-number - 1, "a")
    assert strangers.pause_s(1000) > 0


def test_a_short_message_is_sent_at_once() -> None:
    """And not held back until the other side has acknowledged the one before, which it may do 40 ms later."""

    async def play() -> int:
        met: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def meet(connection: socket.socket, _: Any) -> None:
            with connection:
                met.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        with socket.create_server(("127.0.0.1", 0)) as listening:
            door = Door(listening, meet)
            with socket.create_connection(listening.getsockname()):
                try:
                    return await met
                finally:
                    door.close()

    assert asyncio.run(play()) == 1


def test_who_says_nothing_goes_and_who_comes_later_is_met() -> None:
    """Far more silent connections than are allowed, and one that speaks."""

    async def play() -> None:
        heard: list[bytes] = []

        async def meet(connection: socket.socket, _: Any) -> None:
            try:
                heard.append(await asyncio.get_running_loop().sock_recv(connection, 10))
            finally:
                connection.close()

        with socket.create_server(("127.0.0.1", 0), backlog=200) as listening:
            door = Door(listening, meet, Limits(most=5, seconds=60))
            silent = [socket.create_connection(listening.getsockname()) for _ in range(50)]
            with socket.create_connection(listening.getsockname()) as speaks:
                speaks.sendall(b"hello")
                while not heard:  # noqa: ASYNC110 - set by another task
                    await asyncio.sleep(0.01)
            open_ones = [one for one in silent if not closed(one)]
            assert 0 < len(open_ones) <= 5
            door.close()
            for one in silent:
                one.close()

    asyncio.run(asyncio.wait_for(play(), 30))


def closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_without_descriptors_it_pauses_and_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    """A connection that cannot be accepted is not tried again at once, for ever."""

    class Exhausted:
        tries = 0

        def __init__(self, real: socket.socket) -> None:
            self.real = real

        def accept(self) -> Any:
            self.tries += 1
            if self.tries in (2, 3):
                raise OSError(errno.EMFILE, "Too many open files")
            return self.real.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    async def play() -> None:
        met: list[socket.socket] = []

        async def meet(connection: socket.socket, _: Any) -> None:
            met.append(connection)
            try:
                await asyncio.sleep(60)
            finally:
                connection.close()

        with socket.create_server(("127.0.0.1", 0)) as real:
            listening = Exhausted(real)
            door = Door(listening, meet)  # type: ignore[arg-type]
            first = socket.create_connection(real.getsockname())
            second = socket.create_connection(real.getsockname())
            while not (closed(first) and met):  # noqa: ASYNC110 - another task's work
                await asyncio.sleep(0.01)
            assert not closed(second)
            assert listening.tries < 10
            door.close()
            first.close()
            second.close()

    asyncio.run(asyncio.wait_for(play(), 30))
    assert caplog.text.count("Too many open files") == 2


def test_what_is_logged_is_bounded() -> None:
    """In a time, and in all; and it is said how much was left out."""
    now = 0.0
    throttle = Throttle(lambda: now)
    records = [logging.LogRecord("dask", logging.ERROR, "", 0, "no %s", ("room",), None) for _ in range(1000)]
    kept = [record for record in records if throttle.filter(record)]
    assert 0 < len(kept) < 500
    now = 10_000.0
    last = records[-1]
    assert throttle.filter(last)
    assert last.getMessage() == f"({1000 - len(kept)} messages before this one were left out) no room"
    throttle.written(1 << 30)
    assert not throttle.filter(records[0])


def test_a_full_log_says_so_and_grows_no_more(tmp_path: Path) -> None:
    """The head of a cluster that stays may say things for months."""
    with open(tmp_path / "head.log", "a", encoding="utf-8") as log:
        for number in range(30):
            write_line(f"line {number}", log, most_bytes=40)
    lines = (tmp_path / "head.log").read_text().splitlines()
    assert lines[-2:] == [f"line {len(lines) - 2}", "The log is full; what follows is left out."]
    assert len(lines) < 10
