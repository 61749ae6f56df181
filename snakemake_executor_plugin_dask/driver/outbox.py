"""What the driver tells Snakemake's process, in order: at once, or gathered while nobody waits for it.

Each message wakes that process, and each wake-up of Snakemake's scheduler costs time that grows with the jobs that it
knows. While jobs wait here for room, Snakemake's next step is in no hurry.
"""

import asyncio
from collections.abc import Callable

from snakemake_executor_plugin_dask.model.messages import Finished, Started, Together

GATHER_S = 0.05


class Outbox:
    """Runs on the driver's event loop."""

    def __init__(self, write: Callable[[object], None], jobs_wait: Callable[[], bool]) -> None:
        """``jobs_wait``: whether there are jobs that will start without any word of Snakemake."""
        self._write = write
        self._jobs_wait = jobs_wait
        self._gathered: list[Started | Finished] = []
        self._flushing: asyncio.TimerHandle | None = None

    def send(self, message: object) -> None:
        """Starts and successes may wait for 50 ms; all else, a failure for one, is told at once."""
        if isinstance(message, Started) or (isinstance(message, Finished) and message.outcome.status == "succeeded"):
            self._gathered.append(message)
            if not self._jobs_wait():
                self.flush()
            elif self._flushing is None:
                self._flushing = asyncio.get_running_loop().call_later(GATHER_S, self.flush)
        else:
            self.flush()
            self._write(message)

    def flush(self) -> None:
        """Tell now what was gathered."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._write(gathered[0] if len(gathered) == 1 else Together(tuple(gathered)))
