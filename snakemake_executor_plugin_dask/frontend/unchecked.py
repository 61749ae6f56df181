"""Jobs that ended well, and whose outputs Snakemake has yet to check: their logs are kept until then."""

import contextlib
import glob
import os
import threading
from typing import Any

from snakemake_executor_plugin_dask.model.jobs import Outcome


class Unchecked:
    """For any thread."""

    def __init__(self, *, keep_logs: bool) -> None:
        """``keep_logs``: also of jobs whose outputs were accepted."""
        self._keep_logs = keep_logs
        self._lock = threading.Lock()
        self._jobs: dict[Any, tuple[Outcome, int, bool]] = {}

    def add(self, job: Any, outcome: Outcome, runs: int, *, parts: bool = False) -> None:
        """``runs``: how often it was run; each one has a log, and others beside it if it had ``parts``."""
        with self._lock:
            self._jobs[job] = outcome, runs, parts

    def accepted(self, job: Any) -> None:
        """Snakemake has found its outputs, so nobody needs its logs."""
        with self._lock:
            found = self._jobs.pop(job, None)
        if found is None or self._keep_logs or not found[0].log_path:
            return
        path, runs, parts = found[0].log_path, *found[1:]
        first = path.removesuffix(f".{runs}") if runs > 1 else path
        logs = [first, *(f"{first}.{run}" for run in range(2, runs + 1))]
        if parts:
            logs += [path for log in logs for path in glob.glob(f"{glob.escape(log)}.dask-*")]
        for log in logs:
            with contextlib.suppress(OSError):
                os.unlink(log)

    def refused(self, job: Any) -> Outcome | None:
        """Snakemake counts the job as failed. Returns how it ended, where its outputs are the reason."""
        with self._lock:
            return self._jobs.pop(job, (None,))[0]
