"""An event loop for tests that play a script: `settle` waits until everything that can go on has gone on."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class _Selector(selectors.DefaultSelector):
    """A loop that asks it to wait has nothing to do: this wakes those who waited for that."""

    def __init__(self) -> None:
        super().__init__()
        self.settling: list[asyncio.Future[None]] = []

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0 if self.settling else timeout)
        if self.settling and not events and timeout != 0:
            for waiting in self.settling:
                if not waiting.done():
                    waiting.set_result(None)
            self.settling.clear()
        return events


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = _Selector()
        super().__init__(self.selector)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """As `asyncio.run`, on a loop on which `settle` can be awaited."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


async def settle() -> None:
    """Until each task waits for a time, another thread, another process, or what the test has yet to do."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _Loop)
    waiting = loop.create_future()
    loop.selector.settling.append(waiting)
    await waiting


async def until(condition: Callable[[], bool]) -> None:
    """For what takes time, or happens on another loop, thread or process."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
