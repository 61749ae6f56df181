"""What Snakemake's process says to its driver, which hears of the end of a run at any time. Imports nothing of Dask."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from snakemake_executor_plugin_dask.model.either import either
from snakemake_executor_plugin_dask.model.messages import Stop
from snakemake_executor_plugin_dask.model.wire import receive


class Inbox:
    """Reads on while the driver waits for something else. A process that is gone has said `Stop(kill=True)`."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        self._stopped = asyncio.Event()
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        message: Any = None
        while not isinstance(message, Stop):
            try:
                message = await receive(reader)
            except EOFError:
                message = Stop(kill=True)
            self._messages.put_nowait(message)
        self._stopped.set()

    async def next(self) -> Any:
        """The next message; the last one is a `Stop`. Raises what kept the messages from being read."""
        if self._messages.empty():
            waiting = asyncio.ensure_future(self._messages.get())
            try:
                await either(waiting, self._reading)
                if not waiting.done() and self._messages.empty():
                    self._reading.result()
                return await waiting
            finally:
                waiting.cancel()
        return self._messages.get_nowait()

    async def unless_stopped(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What ``work`` gives; it is cancelled, and None comes instead, where the run is to end meanwhile."""
        working = asyncio.ensure_future(work)
        try:
            await either(working, self._stopped.wait())
        finally:
            working.cancel()  # unless it is done
        with contextlib.suppress(asyncio.CancelledError):
            return await working
        return None
