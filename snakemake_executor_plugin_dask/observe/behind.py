"""Files that are written on a thread of their own. Starts a thread; what it writes is others' business."""

import queue
import threading
from collections.abc import Callable

_END_S = 60.0
_GATHERED_S = 0.02  # what comes meanwhile is done in one go: to wake takes the interpreter from another thread


class Behind:
    """Does one thing after the other, so that a file server that hangs holds up nobody who has it written to."""

    def __init__(self) -> None:
        self._closing = threading.Event()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._go_on, name="files", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], None]) -> None:
        """Soon, and after what was given before. ``work`` raises nothing."""
        self._work.put(work)

    def close(self, within_s: float = _END_S) -> bool:
        """Wait until all is done. False: it was not within that time, and goes on for as long as the process lives."""
        self._work.put(None)
        self._closing.set()
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def _go_on(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            if self._work.empty():
                self._closing.wait(_GATHERED_S)
