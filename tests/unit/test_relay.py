"""A run on a cluster that stays, between its head and Snakemake: what ends it when one of them is not understood."""

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unreadable import OfAnotherVersion

from snakemake_executor_plugin_dask.driver.entering import Entered
from snakemake_executor_plugin_dask.driver.inbox import Inbox
from snakemake_executor_plugin_dask.driver.relay import Relay
from snakemake_executor_plugin_dask.model.jobs import RunSetup
from snakemake_executor_plugin_dask.model.kept import Kept, Welcome
from snakemake_executor_plugin_dask.model.messages import Begin, Fatal, Say
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.wire import frame

SETUP = RunSetup(
    run_id="abc12345", workdir="/w", umask=0o22, soft_limits=(), environment={}, replace_environment=True,
    python="python", snakefile="Snakefile", general_arguments=(), snakemake_version="9", plugin_version="1",
)  # fmt: skip

Feed = Callable[[asyncio.StreamReader, asyncio.StreamReader], None]


def relayed(tmp_path: Path, feed: Feed) -> list[Any]:
    """What Snakemake was told. ``feed`` gets what it says, and what the head says. Raises what ends the run."""
    (tmp_path / "abc12345").mkdir()
    (tmp_path / "kept").mkdir()
    told: list[Any] = []

    async def play() -> None:
        async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            held.append(writer)

        held: list[asyncio.StreamWriter] = []
        server = await asyncio.start_unix_server(hold, tmp_path / "head")
        reader, writer = await asyncio.open_unix_connection(tmp_path / "head")
        options = Options(pools=())
        kept = Kept("kept", str(tmp_path / "kept"), {}, options, 60.0)
        begin = Begin(SETUP, options, str(tmp_path / "abc12345"), str(tmp_path / "events.jsonl"), kept=kept)
        relay, snakemake = Relay(begin, told.append), asyncio.StreamReader()
        feed(snakemake, reader)
        try:
            async with asyncio.timeout(60):
                await relay.run(Entered(reader, writer, Welcome(1, 1, 5.0), [], kept), Inbox(snakemake))
        finally:
            relay.close(failed=True)
            for each in held:
                each.close()
            server.close()

    asyncio.run(play())
    return told


@pytest.mark.parametrize("head", [True, False])
def test_a_message_that_cannot_be_read_ends_the_run(tmp_path: Path, head: bool) -> None:
    """Of another version, say. Nobody waits for the end of a run of which Snakemake, or its head, is not heard."""

    def feed(*readers: asyncio.StreamReader) -> None:
        readers[head].feed_data(frame(OfAnotherVersion()))

    with pytest.raises((AttributeError, ImportError)):
        relayed(tmp_path, feed)


def closed(_: asyncio.StreamReader, head: asyncio.StreamReader) -> None:
    head.feed_eof()


def cut(_: asyncio.StreamReader, head: asyncio.StreamReader) -> None:
    head.set_exception(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))


@pytest.mark.parametrize("how", [closed, cut])
def test_the_loss_of_the_head_is_told(tmp_path: Path, how: Feed) -> None:
    """Its end of the connection is closed before the run's part was given back, or the network is cut."""
    told = relayed(tmp_path, how)
    (fatal,) = (message for message in told if isinstance(message, Fatal))
    assert fatal.text == "The head of cluster kept was lost, and with it all running jobs."
    assert Say("info", "Cluster kept, up for 5s, has 1 worker.") in told
