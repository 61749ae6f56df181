"""The end of attempts: signals to whole process trees, orphans, and the waiting for children. Ends processes.

The supervisor is a child subreaper: whatever a job's processes leave behind becomes the supervisor's child. An orphan
is known by its session, by what was seen of it before, or by the key in its environment.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Collection

from snakemake_executor_plugin_dask.jobs import Status
from snakemake_executor_plugin_dask.worker import processes
from snakemake_executor_plugin_dask.worker.attempt import HOST, Attempt
from snakemake_executor_plugin_dask.worker.usage import Monitor
from snakemake_executor_plugin_dask.worker.warmlink import WarmProcess

_RECHECK_S = 0.05
WARM_ENDED = f"the warm process on {HOST} ended, and the job with it"


class Endings:
    """All attempts of a supervisor, and how they end."""

    def __init__(self, monitor: Monitor) -> None:
        self.attempts: dict[str, Attempt] = {}
        self.leaders: dict[int, Attempt] = {}
        self.warms: dict[int, WarmProcess] = {}
        self.stop_grace_s = 0.0
        self._monitor = monitor
        self._adopted: dict[int, str] = {}
        self._loop = asyncio.get_running_loop()
        self._reaped: asyncio.Future[None] = self._loop.create_future()

    def wake_stopped_parents(self) -> None:
        """Let who started a job's shell tell that it has ended, where the job stopped it (SIGSTOP of its parent)."""
        for pid, current in self.leaders.items():
            stat = processes.read_stat(pid) if current.warm is not None and not current.leader.done() else None
            if stat is None:
                continue
            if stat.dead and stat.ppid != os.getpid():
                processes.send([stat.ppid], signal.SIGCONT)
            elif stat.state == "T":  # stopped before it could say which process the shell is
                children = [processes.read_stat(child) for child in processes.children_of(pid)]
                if children and all(child is None or child.dead for child in children):
                    processes.send([pid], signal.SIGCONT)

    def stop(self, current: Attempt, status: Status, why: str, grace_s: float | None = None) -> None:
        """End an attempt; the first reason counts, and the shortest grace. Its task reports once nothing is left."""
        if grace_s is None:
            grace_s = self.stop_grace_s
        kill_at = self._loop.time() + grace_s
        if current.killing is not None:
            current.kill_at = min(current.kill_at, kill_at)
            return
        if current.leader.done():
            return
        current.verdict, current.kill_at = (status, why), kill_at
        current.stopping.set()
        current.killing = asyncio.create_task(self._kill(current))

    async def _kill(self, current: Attempt) -> None:
        if self._loop.time() < current.kill_at:
            members = self._tree(current)
            processes.send(members, signal.SIGTERM)
            processes.send(members, signal.SIGCONT)
        while not current.gone.is_set():
            if self._loop.time() >= current.kill_at:
                members = self._tree(current)
                processes.send(members, signal.SIGKILL)
                self._look_for_leader(current)
            await self.something_ended()

    def _look_for_leader(self, current: Attempt) -> None:
        """The end of a leader that its warm process had waited for before it died is told by nobody."""
        warm = current.warm
        if warm is not None and warm.reaped.is_set() and not current.leader.done():
            stat = processes.read_stat(current.pid)
            if stat is None or stat.start != current.start_ticks:
                current.leader.set_result(None)

    def _tree(self, current: Attempt) -> list[int]:
        """All living processes of an attempt."""
        table = processes.process_table()
        roots = self._orphans(current)
        leader = table.get(current.pid)
        if leader is not None and leader.start == current.start_ticks and not current.leader.done():
            roots.append(current.pid)
        return [stat.pid for stat in processes.tree(table, roots) if not stat.dead]

    async def clear(self, current: Attempt) -> None:
        """Once the leader has ended: end the rest of the tree, and return when nothing is left."""
        while orphans := self._orphans(current):
            if self._loop.time() >= current.kill_at:
                members = processes.tree(processes.process_table(), orphans)
                processes.send((stat.pid for stat in members), signal.SIGKILL)
            await self.something_ended()

    def _orphans(self, current: Attempt) -> list[int]:
        """Processes that lost their parent, came to the supervisor, and belong to the attempt."""
        return [
            pid
            for pid in processes.own_children()
            if self._may_be_orphan(pid, current) and pid not in self.warms and self._owner(pid) == current.key
        ]

    def _may_be_orphan(self, pid: int, current: Attempt) -> bool:
        """The shell of a runner that died is one: its warm process told of the end, and the shell lives on."""
        leader = self.leaders.get(pid)
        return leader is None or (leader is current and current.leader.done())

    def left_by_warm(self, unanswered: Collection[str]) -> list[int]:
        """Orphans of a warm process that could not tell of them: of those attempts, or of none that is known."""
        return [
            pid
            for pid in processes.own_children()
            if pid not in self.leaders
            and pid not in self.warms
            and ((key := self._known_owner(pid)) is None or key in unanswered)
        ]

    def _owner(self, pid: int) -> str | None:
        """The attempt of an orphan."""
        key = self._known_owner(pid)
        stat = processes.read_stat(pid) if key is None else None
        if stat is not None:
            # It has left its session and cleared its environment. Whoever else could have made it?
            possible = [other.key for other in self.attempts.values() if 0 < other.start_ticks <= stat.start]
            return possible[0] if len(possible) == 1 else None
        return key

    def _known_owner(self, pid: int) -> str | None:
        """The attempt of an orphan, if that can be seen. Its number is its own until this process has waited for it."""
        if pid in self._adopted:
            return self._adopted[pid]
        stat = processes.read_stat(pid)
        if stat is None:
            return None
        leader = self.leaders.get(stat.session)
        key = leader.key if leader is not None else self._monitor.key_of(pid) or processes.job_key(pid)
        if key is not None:
            self._adopted[pid] = key
        return key

    async def something_ended(self) -> None:
        await asyncio.wait({self._reaped}, timeout=_RECHECK_S)

    def reap(self) -> None:
        """Wait for every child that has ended, its own or adopted."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if ended is None:
                break
            pid = ended.si_pid
            current = self.leaders.get(pid)
            if current is None:
                key = self._owner(pid)
                current = self.attempts.get(key) if key is not None else None
            elif self._loop.time() >= current.kill_at:
                # Now, while the zombie holds its number: nobody else can have this process group.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
            _, status, used = os.wait4(pid, 0)
            self._adopted.pop(pid, None)
            if pid in self.warms:
                self.warms.pop(pid).reaped.set()
            if current is not None:
                current.cpu_s += used.ru_utime + used.ru_stime
                if current.pid == pid and not current.leader.done():
                    if current.warm is not None and current.verdict is None and status == signal.SIGKILL:
                        # Its warm process would have waited for it, so that one is gone, and took the job along.
                        current.verdict = ("lost", WARM_ENDED)
                    current.leader.set_result(status)
        self._reaped.set_result(None)
        self._reaped = self._loop.create_future()
