"""Waits for whichever of several things comes first. Pure."""

import asyncio
from collections.abc import Awaitable
from typing import Any


async def either(*waited: Awaitable[Any]) -> list[asyncio.Future[Any]]:
    """Until one of them is done, whatever it gives or raises. Returns those that are.

    Coroutines are for this wait alone, and are cancelled after it; futures and tasks go on, and are their owners'.
    """
    futures = [asyncio.ensure_future(each) for each in waited]
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        return [future for future in futures if future.done()]
    finally:
        for each, future in zip(waited, futures, strict=True):
            if future is not each:
                future.cancel()
