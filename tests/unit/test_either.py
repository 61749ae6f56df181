"""Waiting for whichever comes first: who else is waited for is left alone, or ends with the wait."""

import asyncio
from typing import Any

import pytest
import settling
from settling import settle

from snakemake_executor_plugin_dask.model.either import either


async def never(ended: list[bool]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(True)


def test_coroutines_end_with_the_wait_and_futures_go_on() -> None:
    """Also where the wait itself is cancelled. What the first one raises is for its owner."""

    async def play() -> None:
        ended, broken = list[bool](), asyncio.get_running_loop().create_future()
        going: asyncio.Future[Any] = asyncio.ensure_future(never([]))
        waiting = asyncio.ensure_future(either(broken, going, never(ended)))
        await settle()
        broken.set_exception(OSError("broken"))
        await waiting
        with pytest.raises(OSError, match="broken"):
            broken.result()
        waiting = asyncio.ensure_future(either(going, never(ended)))
        await settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await settle()
        assert ended == [True, True]
        assert not going.done()
        going.cancel()

    settling.run(play())
