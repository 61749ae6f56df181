"""Coroutines that run beside the driver's main ones, and whose failure ends the run instead of being forgotten."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Tasks:
    """Spawns coroutines and holds them until they are done."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        """``failed`` gets the error of each that raises."""
        self._failed = failed
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run it beside; it is kept until it is over."""
        running = asyncio.ensure_future(coroutine)
        self._running.add(running)
        running.add_done_callback(self._done)
        return running

    def cancel(self) -> None:
        """Cancel all that still run."""
        for running in list(self._running):
            running.cancel()

    def _done(self, finished: "asyncio.Task[Any]") -> None:
        self._running.discard(finished)
        if not finished.cancelled() and (error := finished.exception()) is not None:
            self._failed(error)
