"""What Snakemake's process says to its driver, while that waits for something else."""

import asyncio
from typing import Any

import pytest
from unreadable import OfAnotherVersion

from snakemake_executor_plugin_dask.driver.inbox import Inbox
from snakemake_executor_plugin_dask.model.messages import Enqueue, Stop
from snakemake_executor_plugin_dask.model.wire import frame


async def hang() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("said", [True, False])
def test_a_stop_ends_what_is_waited_for(said: bool) -> None:
    """Said, or by the end of Snakemake's process. What came before is there, in its order."""

    async def play() -> None:
        reader = asyncio.StreamReader()
        inbox = Inbox(reader)
        reader.feed_data(frame(Enqueue(())))
        waiting = asyncio.ensure_future(inbox.unless_stopped(hang()))
        if said:
            reader.feed_data(frame(Stop(kill=False)))
        else:
            reader.feed_eof()
        async with asyncio.timeout(60):
            assert await waiting is None
            assert isinstance(await inbox.next(), Enqueue)
            assert await inbox.next() == Stop(kill=not said)

    asyncio.run(play())


def test_work_is_done_where_nobody_stops_it() -> None:
    """Its result, or what it raises, comes as if it had been awaited alone."""

    async def give(what: Any) -> Any:
        if isinstance(what, Exception):
            raise what
        return what

    async def play() -> None:
        inbox = Inbox(asyncio.StreamReader())
        assert await inbox.unless_stopped(give(3)) == 3
        with pytest.raises(OSError, match="broken"):
            await inbox.unless_stopped(give(OSError("broken")))

    asyncio.run(play())


def test_what_cannot_be_read_is_raised() -> None:
    """A message of another version, say: nobody waits for it for ever."""

    async def play() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(frame(OfAnotherVersion()))
        inbox = Inbox(reader)
        async with asyncio.timeout(60):
            with pytest.raises((AttributeError, ImportError)):
                await inbox.next()

    asyncio.run(play())
