"""What the plugin's own processes log, Dask's parts of them included: never more than so much. Standard library only.

Whoever can make a process complain must not fill a disk by it.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import IO

_BURST = 200  # records at once
_PER_SECOND = 1.0  # on the average, after that
_BYTES = 10_000_000  # in all


class Throttle(logging.Filter):
    """Lets records through while there is room for them, and says how many there was none for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._counted = clock()
        self._allowed = float(_BURST)
        self._left_bytes = _BYTES
        self._dropped = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        now = self._clock()
        self._allowed = min(_BURST, self._allowed + (now - self._counted) * _PER_SECOND)
        self._counted = now
        if self._allowed < 1 or self._left_bytes <= 0:
            self._dropped += 1
            return False
        self._allowed -= 1
        if self._dropped:
            record.msg = f"({self._dropped} messages before this one were left out) {record.getMessage()}"
            record.args, self._dropped = (), 0
        return True

    def written(self, count: int) -> None:
        """So many bytes were."""
        self._left_bytes -= count


class _Bounded(logging.StreamHandler):  # type: ignore[type-arg]
    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._throttle = Throttle()
        self.addFilter(self._throttle)
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        self._throttle.written(len(text))
        return text


def bound_log() -> None:
    """From now on all loggers of this process write, errors alone, to its standard error, which is its log.

    Importing `distributed` gives its loggers handlers of their own: call this after it, too.
    """
    root = logging.getLogger()
    if not any(isinstance(handler, _Bounded) for handler in root.handlers):
        root.handlers[:] = [_Bounded()]
    root.setLevel(logging.ERROR)
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and logger.handlers:
            logger.handlers.clear()
            logger.propagate = True


def write_line(text: str, file: IO[str], most_bytes: int = _BYTES) -> None:
    """Add a line to a process's own log, unless that holds so much already. Raises OSError."""
    size = os.fstat(file.fileno()).st_size
    if size < most_bytes:
        file.write(f"{text}\n")
        if size + len(text.encode()) >= most_bytes:
            file.write("The log is full; what follows is left out.\n")
        file.flush()
