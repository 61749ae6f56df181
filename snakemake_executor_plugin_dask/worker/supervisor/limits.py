"""Limits of attempts: memory, looked at or enforced by the kernel, and time. Ends what exceeds them."""

import asyncio
import contextlib
import math

from snakemake_executor_plugin_dask.model.jobs import RunSetup
from snakemake_executor_plugin_dask.worker.supervisor import attempt
from snakemake_executor_plugin_dask.worker.supervisor.attempt import Attempt, note
from snakemake_executor_plugin_dask.worker.supervisor.cgroups import JobGroups
from snakemake_executor_plugin_dask.worker.supervisor.ending import Endings
from snakemake_executor_plugin_dask.worker.supervisor.usage import Monitor

MEMORY_GRACE_S = 0.2  # who exceeds its memory may go on doing so


class Limits:
    """Of all attempts of a supervisor."""

    def __init__(self, monitor: Monitor, endings: Endings) -> None:
        self._monitor, self._endings = monitor, endings
        self._loop = asyncio.get_running_loop()
        self._enforce_memory = False
        self._groups: JobGroups | None = None
        self._no_groups = ""  # why there are none, though the run wants them
        self._next_look: asyncio.TimerHandle | None = None
        self.kernel_kills = 0  # as last counted
        self.count_kernel_kills()  # those before this run are nobody's

    def begin(self, setup: RunSetup) -> None:
        """Enforce what the run wants enforced."""
        self._enforce_memory = setup.enforce_memory
        if setup.enforce_cgroup:
            try:
                self._groups = JobGroups()
            except OSError as error:
                self._no_groups = f"no cgroup enforces mem_mb on {attempt.HOST} ({error.strerror or error})"
                note(self._no_groups)

    def started(self, current: Attempt, *, direct: bool, began: bool) -> None:
        """An attempt has a process. ``direct`` and ``began``: see `Monitor.add`."""
        limit = current.spec.memory_limit_mb
        limit_bytes = limit * 10**6 if limit is not None and self._enforce_memory else None
        self._monitor.add(current.key, current.pid, limit_bytes, direct=direct, began=began)
        self._plan_look()
        if limit_bytes is not None and current.spec.ended is None:
            self._enter_group(current, limit_bytes)

    def limit_time(self, current: Attempt) -> None:
        """An attempt may run so long from its start."""
        limit_s = current.spec.runtime_limit_s
        if limit_s is not None:
            current.time_limit = self._loop.call_at(current.began + limit_s, self._out_of_time, current)

    def ended(self, current: Attempt) -> None:
        """Every process of it is gone. Where the kernel ended one for its memory, that is how the attempt ended."""
        if self._groups is not None and self._groups.remove(current.key) and current.verdict is None:
            after = attempt.seconds(self._loop.time() - current.began)
            limit = current.spec.memory_limit_mb
            text = f"memory exceeded the limit of {limit} MB (mem_mb) {after} after the start, as the kernel found"
            current.verdict = ("out-of-memory", text)

    def count_kernel_kills(self) -> int:
        """How many processes of this node the kernel has killed so far since memory was full."""
        with contextlib.suppress(OSError), open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    self.kernel_kills = int(line.split()[1])
        return self.kernel_kills

    def _enter_group(self, current: Attempt, limit_bytes: int) -> None:
        if self._groups is None:
            current.notes.append(self._no_groups)
            return
        try:
            self._groups.add(current.key, current.pid, limit_bytes)
        except OSError as error:
            current.notes.append(f"no cgroup enforces its mem_mb ({error.strerror or error})")

    def _plan_look(self) -> None:
        due = self._monitor.due()
        if due is None:
            return
        # The monitor's clock is the loop's.
        if self._next_look is not None:
            if self._next_look.when() <= due and not self._next_look.cancelled():
                return
            self._next_look.cancel()
        self._next_look = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._next_look = None
        try:
            found = self._monitor.look()
        except OSError as error:
            note(f"the process table could not be read: {error}")
            self._next_look = self._loop.call_later(1.0, self._look)
            return
        self.count_kernel_kills()
        self._endings.wake_stopped()
        for watch in found:
            self._out_of_memory(self._endings.attempts[watch.key], watch.current_bytes)
        self._plan_look()

    def _out_of_memory(self, current: Attempt, held_bytes: int) -> None:
        after = attempt.seconds(self._loop.time() - current.began)
        limit, held_mb = current.spec.memory_limit_mb, math.ceil(held_bytes / 1e6)
        text = f"memory of {held_mb} MB exceeded the limit of {limit} MB (mem_mb) {after} after the start"
        self._endings.stop(current, "out-of-memory", text, grace_s=MEMORY_GRACE_S)

    def _out_of_time(self, current: Attempt) -> None:
        limit = current.spec.runtime_limit_s
        if limit is not None and not current.leader.done():
            after = self._loop.time() - current.began
            text = f"runtime of {attempt.seconds(limit)} exceeded after {attempt.seconds(after)}"
            if self._endings.only_told(current) or (current.shell is not None and not current.pid):
                text += (
                    ", while Snakemake waited for output files (--latency-wait); the job's command had ended by then"
                )
            self._endings.stop(current, "out-of-time", text)
