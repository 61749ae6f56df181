"""Processes of a job's own Dask cluster reach each other within a node by sockets in a directory, without TLS."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters.daemons import free_ports
from distributed import Client, Scheduler, Worker
from distributed.comm import connect, listen, registry
from distributed.security import Security

from snakemake_executor_plugin_dask.interior.dask_beside import connect_beside
from snakemake_executor_plugin_dask.interior.dask_listening import GuardedListener, guard
from snakemake_executor_plugin_dask.node.door import Door

HOST = "127.0.0.1"


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[Path]:
    """The directory, with a path that is too long for a socket."""
    before = registry.backends["tls"]
    directory = tmp_path / ("long" * 30)
    directory.mkdir()
    guard(Door)
    connect_beside(GuardedListener, os.fspath(directory), HOST)
    yield directory
    registry.backends["tls"] = before


async def exchanged(security: Security, host: str, between: Path | None = None) -> socket.AddressFamily:
    """The kind of socket by which two sides have spoken. ``between`` is removed once one of them listens."""

    async def answer(comm: Any) -> None:
        await comm.write([await comm.read(), comm.peer_address, comm.local_address])
        await comm.close()

    async with listen(f"tls://{host}:0", answer, **security.get_listen_args("worker")) as listener:
        if between is not None:
            (between / f"{listener.get_host_port()[1]}.sock").unlink()
        comm: Any = await connect(listener.contact_address, **security.get_connection_args("worker"))
        family: socket.AddressFamily = comm.stream.socket.family
        data = bytes(range(256)) * 100_000
        await comm.write(data)
        echoed, peer, local = await comm.read()
        assert echoed == data
        assert peer.startswith("tls://127.0.0.")
        assert local == comm.peer_address == listener.contact_address
        assert comm.same_host is (host == HOST)  # by its own address, which is 127.0.0.1
        await comm.close()
    return family


def test_those_of_a_node_need_no_tls(sockets: Path) -> None:
    """Addresses stay what they are. Whoever finds no socket, or has another host, connects by TLS."""
    security = Security.temporary()
    assert asyncio.run(exchanged(security, HOST)) == socket.AF_UNIX
    assert asyncio.run(exchanged(security, HOST, between=sockets)) == socket.AF_INET
    assert asyncio.run(exchanged(security, "127.0.0.2")) == socket.AF_INET
    assert not list(sockets.iterdir())


def test_a_socket_that_was_left(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was killed leaves it; the next that has its port takes its place."""
    number = free_ports(1)
    with socket.socket(socket.AF_UNIX) as left:
        monkeypatch.chdir(sockets)
        left.bind(f"{number}.sock")

    async def listening() -> None:
        security = Security.temporary()
        async with listen(f"tls://{HOST}:{number}", lambda comm: comm.close(), **security.get_listen_args("worker")):
            comm: Any = await connect(f"tls://{HOST}:{number}", **security.get_connection_args("worker"))
            assert comm.stream.socket.family == socket.AF_UNIX
            await comm.close()

    asyncio.run(listening())


def test_a_cluster_computes(sockets: Path) -> None:
    """Two workers exchange what they need; nothing is left in the directory."""

    async def compute() -> Any:
        security = Security.temporary()
        async with Scheduler(host=HOST, security=security, dashboard=False) as scheduler:
            workers = [Worker(scheduler.address, host=HOST, security=security, name=str(n)) for n in range(2)]
            async with workers[0], workers[1]:
                assert len(os.listdir(sockets)) == 3
                async with Client(scheduler.address, security=security, asynchronous=True) as client:
                    parts = [
                        client.submit(bytes, 10_000_000, workers=str(n), allow_other_workers=False) for n in range(2)
                    ]
                    return await client.submit(lambda *found: sum(map(len, found)), *parts)

    assert asyncio.run(compute()) == 20_000_000
    assert not list(sockets.iterdir())
