"""The lease server: where it listens, and what it takes from supervisors."""

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable

import pytest
import settling

from snakemake_executor_plugin_dask.driver.own.certificate import TLSFiles, make_tls, server_context
from snakemake_executor_plugin_dask.driver.own.leases import Connection, LeaseServer
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.lease_messages import encoded, hello


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLSFiles:
    return make_tls(tmp_path_factory.mktemp("tls"))[1]


def with_server(
    tls: TLSFiles, play: Callable[[LeaseServer], Awaitable[None]], alive: Callable[[str], bool] = lambda _: True
) -> None:
    async def run() -> None:
        server = LeaseServer(server_context(tls), alive)
        try:
            await play(server)
        finally:
            await server.close()

    asyncio.run(asyncio.wait_for(run(), 30))


async def connect(
    server: LeaseServer, tls: TLSFiles, name: str, run: str = "a"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context(cafile=tls.ca)
    context.check_hostname = False
    context.load_cert_chain(tls.cert, tls.key)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    writer.write(encoded(hello(name, run)))
    assert json.loads(await reader.readline()) == {"renew": 0}
    return reader, writer


def line_of(server: LeaseServer) -> Connection:
    connection = server.connection("w-1", "a")
    assert connection is not None
    return connection


def test_a_supervisor_with_many_jobs_is_heard(tls: TLSFiles) -> None:
    """What it says of them at its end stands in one line, however long."""
    keys = [f"a-rule-with-a-long-name-abcd1234-{number}-1.1" for number in range(5000)]

    async def play(server: LeaseServer) -> None:
        await server.start("127.0.0.1")
        _, writer = await connect(server, tls, "w-1")
        writer.write(encoded({"dead": keys, "last": True}))
        await settling.until(lambda: line_of(server).ended)
        assert line_of(server).dead == set(keys)

    with_server(tls, play)


def test_a_supervisor_that_goes_ends_no_renewals_of_others(tls: TLSFiles) -> None:
    """A closed connection has no buffer left to look at."""

    async def play(server: LeaseServer) -> None:
        await server.start("127.0.0.1")
        _, goes = await connect(server, tls, "w-1")
        stays, _ = await connect(server, tls, "w-2")
        goes.close()
        await settling.until(lambda: not line_of(server).open)
        renewing = asyncio.ensure_future(server.renew())
        assert json.loads(await stays.readline()) == {"renew": 1}
        renewing.cancel()

    with_server(tls, play)


def test_a_port_that_is_taken_is_told(tls: TLSFiles) -> None:
    """By its number, as an error of the configuration."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        async def play(server: LeaseServer) -> None:
            with pytest.raises(ConfigurationError, match=str(port)):
                await server.start("127.0.0.1", port)

        with_server(tls, play)


def test_an_error_while_leases_are_renewed_is_told(tls: TLSFiles) -> None:
    """Whoever waits for the renewals gets it."""
    living = [True]

    async def play(server: LeaseServer) -> None:
        await server.start("127.0.0.1")
        _, writer = await connect(server, tls, "w-1")
        living.clear()
        with pytest.raises(IndexError):
            await server.renew()
        writer.close()

    with_server(tls, play, lambda _: living[0])


def test_leases_of_a_run_that_is_gone_are_not_renewed(tls: TLSFiles) -> None:
    """Its supervisor on the same worker ends its jobs; that of another run is renewed."""
    living = {"a", "b"}

    async def play(server: LeaseServer) -> None:
        await server.start("127.0.0.1")
        await connect(server, tls, "w-1", "a")
        stays, _ = await connect(server, tls, "w-1", "b")
        before = line_of(server).renewed
        living.discard("a")
        renewing = asyncio.ensure_future(server.renew())
        assert json.loads(await stays.readline()) == {"renew": 1}
        assert line_of(server).renewed == before
        renewing.cancel()

    with_server(tls, play, living.__contains__)


def test_a_worker_is_dead_once_all_its_supervisors_say_so(tls: TLSFiles) -> None:
    """Each speaks for the jobs of its run; one whose run is over is not asked any more."""

    async def play(server: LeaseServer) -> None:
        await server.start("127.0.0.1")
        _, first = await connect(server, tls, "w-1", "a")
        await connect(server, tls, "w-1", "b")
        first.write(encoded({"dead": ["x-a-1"], "last": True}))
        await settling.until(lambda: line_of(server).ended)
        assert server.dead("w-1", ["x-a-1"])
        assert not server.dead("w-1", ["x-a-1", "x-b-1"])
        server.forget("b")
        assert server.dead("w-1", ["x-a-1", "x-b-1"])

    with_server(tls, play)
