"""Schedulers that cannot be reached: each reason is told within seconds, in one sentence. Real sockets, real TLS."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed import Scheduler
from distributed.security import Security
from running import slowness

from snakemake_executor_plugin_dask.driver.attached.connecting import connect
from snakemake_executor_plugin_dask.model.errors import ConfigurationError

TLS = "distributed.comm.tls."


def certificates(directory: Path) -> tuple[Security, dict[str, str]]:
    """Keys of one authority, and Dask's configuration that names them."""
    security = Security.temporary()
    directory.mkdir()
    texts = {
        "ca-file": security.tls_ca_file,
        "client.cert": security.tls_client_cert,
        "client.key": security.tls_client_key,
    }
    for name, text in texts.items():
        (directory / name).write_text(text)
    return security, {TLS + name: str(directory / name) for name in texts}


@pytest.fixture
def closed() -> Iterator[int]:
    """A port on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def why(scheduler: str, **limits: float) -> str:
    """What a user is told, within 15 seconds on a machine that is not busy; Dask's own client tries for 30."""

    async def attempt() -> str:
        async with asyncio.timeout(15 * slowness()):
            with pytest.raises(ConfigurationError) as caught:
                await connect(scheduler, **limits)
        return str(caught.value)

    return asyncio.run(attempt())


def test_nobody_listens(tmp_path: Path, closed: int) -> None:
    """A closed port is told at once; one that a file names, with the file, which a dead cluster may have left."""
    address = f"tcp://127.0.0.1:{closed}"
    assert why(address) == (
        f"Nothing listens at {address}: the connection was refused; start the cluster, or correct --dask-scheduler."
    )
    file = tmp_path / "scheduler.json"
    file.write_text(f'{{"address": "{address}"}}')
    assert f"Nothing listens at {address} (named by the scheduler file {file}): " in why(str(file))


def test_no_such_file_or_host(tmp_path: Path) -> None:
    """The name that is wrong is in the message."""
    assert f"--dask-scheduler is '{tmp_path}/none.json', which is neither an address" in why(f"{tmp_path}/none.json")
    assert "The host of tcp://no-such-host.invalid:8786 is not known here" in why("tcp://no-such-host.invalid:8786")


def test_whoever_listens_is_no_scheduler(closed: int) -> None:
    """One that says nothing is given some time, since a scheduler may be busy, and is then told."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        assert f"Something listens at {address}, but does not answer as a Dask scheduler" in why(address, connect_s=1.0)


def test_tls_that_does_not_fit(tmp_path: Path) -> None:
    """Encrypted or not, with which authority, with which certificate: each is told apart."""
    security, right = certificates(tmp_path / "right")
    _, wrong = certificates(tmp_path / "wrong")
    half = wrong | {TLS + "ca-file": right[TLS + "ca-file"]}

    async def attempts() -> dict[str, str]:
        plain = Scheduler(host="127.0.0.1", port=0, dashboard=False)
        encrypted = Scheduler(host="127.0.0.1", port=0, dashboard=False, protocol="tls", security=security)
        told = {}
        async with plain, encrypted:
            for name, scheduler, scheme, configuration in (
                ("plain", plain, "tcp", {}),
                ("encrypted", encrypted, "tls", right),
                ("plain by tls", plain, "tls", right),
                ("encrypted by tcp", encrypted, "tcp", {}),
                ("unconfigured", encrypted, "tls", {}),
                ("wrong authority", encrypted, "tls", wrong),
                ("wrong certificate", encrypted, "tls", half),
            ):
                with dask.config.set(configuration):
                    try:
                        # A scheduler on this loop, on a busy machine, may take longer than one of a user's.
                        address = f"{scheme}://{scheduler.address.partition('://')[2]}"
                        client, _ = await connect(address, greeting_s=8.0)
                    except ConfigurationError as error:
                        told[name] = str(error)
                    else:
                        told[name] = ""
                        await client.close()
        return told

    told = asyncio.run(attempts())
    assert told["plain"] == told["encrypted"] == ""
    assert "does not speak TLS" in told["plain by tls"]
    assert "name it as tcp://" in told["plain by tls"]
    assert "speaks TLS; name it as tls://" in told["encrypted by tcp"]
    assert "needs Dask's TLS configuration, which names no certificates here" in told["unconfigured"]
    assert "failed (certificate verify failed)" in told["wrong authority"]
    assert "failed (tlsv1 alert unknown ca)" in told["wrong certificate"]
