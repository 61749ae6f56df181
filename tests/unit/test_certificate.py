"""The certificate that is made for a run."""

import asyncio
import datetime as dt
import ssl
from pathlib import Path

from cryptography import x509

from snakemake_executor_plugin_dask.driver.own.certificate import make_tls, server_context


def test_a_worker_whose_clock_is_late_can_join(tmp_path: Path) -> None:
    """The certificate was valid for most of the day before."""
    _, files = make_tls(tmp_path)
    made = x509.load_pem_x509_certificate(Path(files.cert).read_bytes())
    late = dt.datetime.now(tz=dt.UTC) - dt.timedelta(hours=23)
    assert made.not_valid_before_utc < late < made.not_valid_after_utc


def test_it_passes_where_each_rule_is_minded_and_an_others_does_not(tmp_path: Path) -> None:
    """Newer Pythons check certificates strictly."""
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    _, ours = make_tls(tmp_path / "ours")
    _, theirs = make_tls(tmp_path / "theirs")

    async def answer(port: int, shown: str, key: str) -> bytes:
        client = ssl.create_default_context(cafile=ours.ca)
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        client.check_hostname = False
        client.load_cert_chain(shown, key)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        try:
            return await reader.read()
        except OSError:
            return b""
        finally:
            writer.close()

    async def play() -> tuple[bytes, bytes]:
        context = server_context(ours)
        context.verify_flags |= ssl.VERIFY_X509_STRICT

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"welcome")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
            port = server.sockets[0].getsockname()[1]
            return await answer(port, ours.cert, ours.key), await answer(port, theirs.cert, theirs.key)

    assert asyncio.run(play()) == (b"welcome", b"")
