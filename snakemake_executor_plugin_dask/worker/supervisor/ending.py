"""The end of attempts: signals to whole process trees, orphans, and the waiting for children. Ends processes.

The supervisor is a child subreaper: whatever a job's processes leave behind becomes the supervisor's child. An orphan
is known by its session, by what was seen of it before, or by the key in its environment.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Collection
from dataclasses import dataclass, field

from snakemake_executor_plugin_dask.model.jobs import Status
from snakemake_executor_plugin_dask.node import processes
from snakemake_executor_plugin_dask.node.processes import state_of
from snakemake_executor_plugin_dask.worker.supervisor.attempt import HOST, Attempt, note
from snakemake_executor_plugin_dask.worker.supervisor.usage import Monitor
from snakemake_executor_plugin_dask.worker.supervisor.warmlink import WarmProcess

_RECHECK_S = 0.05
_SILENT_S = 10.0
_CLEANING_S = 1.0  # of a job's own Snakemake, once its command was ended
WARM_ENDED = f"the warm process on {HOST} ended, and the job with it"


@dataclass(slots=True)
class _View:
    """What was seen of the process table at one time (the loop's), for all attempts."""

    at: float
    orphans: dict[str, list[int]] = field(default_factory=dict)  # by attempt
    table: dict[int, processes.Stat] | None = None  # None: not needed so far
    children: dict[int, list[processes.Stat]] = field(default_factory=dict)

    def tree(self, roots: list[int]) -> list[int]:
        """The living ones of ``roots`` and their descendants."""
        if not roots:
            return []
        if self.table is None:
            self.table = processes.process_table()
            self.children = processes.children_in(self.table)
        return [stat.pid for stat in processes.tree(self.table, roots, self.children) if not stat.dead]


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
        #: To be ended, and not gone so far; with whether they were told.
        self._stopped: dict[str, bool] = {}
        self._ending: asyncio.Task[None] | None = None
        self._seen = _View(float("-inf"))
        self._stirred = float("-inf")  # when something ended, or is to end, for the last time

    def wake_stopped(self) -> None:
        """Let those go on who tell of a job's end, where the job stopped them (SIGSTOP): nobody else would."""
        stopped = [pid for pid in self.warms if state_of(pid) == "T"]
        for pid, current in self.leaders.items():
            if current.warm is None or current.leader.done():
                continue
            if current.is_command:
                if self.only_told(current):
                    stopped += self._stopped_tellers(current)
            elif state_of(pid) == "T" and {"", "Z", "X"}.issuperset(map(state_of, processes.children_of(pid))):
                stopped.append(pid)
        processes.send(stopped, signal.SIGCONT)

    def _stopped_tellers(self, current: Attempt) -> list[int]:
        """Who has yet to tell of the end, and is stopped. It is not known where the shell was gone at once."""
        tellers = [current.teller]
        if not current.teller and current.warm is not None:
            tellers = [pid for pid in processes.children_of(current.warm.pid) if pid not in self.leaders]
        return [pid for pid in tellers if state_of(pid) == "T"]

    def only_told(self, current: Attempt) -> bool:
        """The job's command has ended, but who started it has yet to tell: Snakemake looks at the outputs."""
        if not current.is_command or current.leader.done():
            return False
        stat = processes.read_stat(current.pid)
        return stat is None or stat.dead or stat.start != current.start_ticks

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
        self._stopped[current.key] = False
        if self._ending is None or self._ending.done():
            self._ending = asyncio.create_task(self._end())
        else:
            self._stir()
        current.killing = self._ending

    async def _end(self) -> None:
        """End all attempts that are to be ended. One reading of the process table serves them all."""
        while self._stopped:
            began = self._loop.time()
            try:
                self._signal_stopped(began)
            except OSError as error:
                note(f"the process table could not be read: {error}")
            # Not more than half of the time: with thousands of processes a look takes long, and something always ends.
            await asyncio.sleep(min(_RECHECK_S, self._loop.time() - began))
            await self.something_ended()

    def _signal_stopped(self, now: float) -> None:
        view = self._view(now)
        for key, told in list(self._stopped.items()):
            current = self.attempts.get(key)
            if current is None or current.gone.is_set():
                del self._stopped[key]
                continue
            if now >= current.kill_at:
                members = self._tree(current, view)
                processes.send(members, signal.SIGKILL)
                self._look_for_leader(current)
                self._doubt_warm(current, ended=not members)
            elif not told:
                self._stopped[key] = True
                members = self._tree(current, view)
                processes.send(members, signal.SIGTERM)
                processes.send(members, signal.SIGCONT)
            self._end_teller(current)

    def _end_teller(self, current: Attempt) -> None:
        """Who started the shell waits for outputs, may be for long, and no signal to the job's processes reaches it."""
        if current.warm is None or not self.only_told(current):
            return
        now = self._loop.time()
        current.command_over = current.command_over or now
        if now - current.command_over >= _CLEANING_S:
            processes.send(self._stopped_tellers(current), signal.SIGCONT)
            current.warm.end_job(current.key)
            current.command_over = now

    def _doubt_warm(self, current: Attempt, *, ended: bool) -> None:
        """A warm process that says nothing while a job's end is to be told hangs, and is ended with its jobs."""
        warm, now = current.warm, self._loop.time()
        if warm is None:
            return
        # One that the kernel holds waits for a file server.
        if not ended or current.leader.done() or warm.words != current.warm_words or state_of(warm.pid) == "D":
            current.warm_words, current.silent_since = warm.words, now
        elif now - current.silent_since > _SILENT_S:
            warm.kill()

    def _look_for_leader(self, current: Attempt) -> None:
        """The end of a leader that its warm process had waited for before it died is told by nobody."""
        warm = current.warm
        if warm is not None and warm.reaped.is_set() and not current.leader.done():
            stat = processes.read_stat(current.pid)
            if stat is None or stat.start != current.start_ticks:
                current.leader.set_result(None)

    def _tree(self, current: Attempt, view: _View) -> list[int]:
        """All living processes of an attempt."""
        roots = list(view.orphans.get(current.key, ()))
        if current.pid and not current.leader.done():
            stat = processes.read_stat(current.pid)
            if stat is not None and stat.start == current.start_ticks:
                roots.append(current.pid)
        return view.tree(roots)

    async def clear(self, current: Attempt) -> None:
        """Once the leader has ended: end the rest of the tree, and return when nothing is left."""
        since = self._loop.time()
        while orphans := (view := self._view(since)).orphans.get(current.key):
            if self._loop.time() >= current.kill_at:
                processes.send(view.tree(orphans), signal.SIGKILL)
            await self.something_ended()
            # Whoever comes first looks for all. What an ended child leaves is an orphan before its end is noticed.
            since = max(self._stirred, self._loop.time() - _RECHECK_S / 2)

    def _view(self, since: float) -> _View:
        """One that is not older than ``since``."""
        if self._seen.at < since:
            self._seen = _View(self._loop.time(), self._orphans())
        return self._seen

    def _orphans(self) -> dict[str, list[int]]:
        """Processes that lost their parent and came to the supervisor, by the attempts that they belong to."""
        found: dict[str, list[int]] = {}
        for pid in processes.children_of(os.getpid()):
            leader = self.leaders.get(pid)
            # The shell of a runner that died is one: its warm process told of the end, and the shell lives on.
            if pid in self.warms or (leader is not None and not leader.leader.done()):
                continue
            key = self._owner(pid)
            if key is not None and (leader is None or leader.key == key):
                found.setdefault(key, []).append(pid)
        return found

    def left_by_warm(self, unanswered: Collection[str]) -> list[int]:
        """Orphans of a warm process that could not tell of them: of those attempts, or of none that is known."""
        return [
            pid
            for pid in processes.children_of(os.getpid())
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

    def forget_leader(self, current: Attempt) -> None:
        """Its first process has ended. Another attempt's may have got its number by now."""
        if self.leaders.get(current.pid) is current:
            del self.leaders[current.pid]

    async def something_ended(self) -> None:
        """Wait until a child has ended, or for a moment."""
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
            elif self._loop.time() >= current.kill_at and (current.shell is None or current.verdict is not None):
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
        self._stir()

    def _stir(self) -> None:
        self._stirred = self._loop.time()
        self._reaped.set_result(None)
        self._reaped = self._loop.create_future()
