"""When Python looks for garbage in a process that holds thousands of workers and jobs. Sets the process's collector.

Most of what such a process makes is freed without that, once nothing refers to it. The search looks at all objects that
there are, millions with a thousand workers, and meanwhile no job starts.
"""

import gc
import time
from collections.abc import Callable

_ALL_EVERY_S = 3600.0
_THRESHOLDS = (20_000, 30, 30)  # Python's own are a tenth and less


class Garbage:
    """Has Python look at the youngest objects alone; at all of them once no job is there any more, or after an hour."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """What was imported by now stays."""
        self._clock = clock
        self._jobs_were_there = False
        self._all_at = clock()
        gc.freeze()
        gc.set_threshold(*_THRESHOLDS)

    def look(self, *, jobs: bool) -> None:
        """Once a second. ``jobs``: whether any wait or run."""
        if (self._jobs_were_there and not jobs) or self._clock() - self._all_at >= _ALL_EVERY_S:
            self.collect()
        else:
            gc.freeze()  # what has lived that long is looked at no more
        self._jobs_were_there = jobs

    def collect(self) -> None:
        """Look at all objects now."""
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._all_at = self._clock()
