"""How much memory the process trees of jobs hold, looked at often enough for their limits. Reads /proc.

What counts is anonymous and shared memory (and swap): what a job holds for as long as it likes. Pages of mapped files
do not count, since the kernel drops them when memory runs short.

Cost rules. Every look takes the resident size of each known process (`statm`, a few microseconds through a descriptor
that stays open). Only where it changed, `status` gives the exact parts of one process. Memory that several processes
share is counted once, by proportional shares (`smaps_rollup`, milliseconds for large processes): only where the sum
over the processes and the largest of them differ by more than 3 %, and the answer matters.

Baseline. A job's own Snakemake does not count as it stood when the job's work began. For a job forked by the warm
process that runs the job's own function, this is the fork. Otherwise work has begun when Snakemake's process has its
third thread (the one that runs the job) or a child process; the baseline is what it held at the last look before, or
at the first look, where work had begun by then. It is also taken from each copy of that Snakemake, as a fork that has
not become its command yet.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from snakemake_executor_plugin_dask.node import processes
from snakemake_executor_plugin_dask.node.processes import Stat

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

SLOW_S = 0.8  # peaks that are held for a second are seen
FAST_S = 0.02  # shortest time between looks while a job grows
STEADY_S = 0.06  # while it does not, however near to its limit
STARTING_S = 0.05  # while a Snakemake starts, so that its baseline is recent when work begins
GROWTH_BYTES_PER_S = 1e9  # what a process is expected to be able to fill, until it is seen to be faster
_GROWING_BYTES_PER_S = 1e7
_SHARED = 0.03  # sum and maximum differ by less: sharing does not matter
_SMALL_BYTES = 2_000_000  # differences below do not matter
_FORGET_FOREIGN_S = 60.0
_SHARES_COST = 20  # a look at shares is not repeated before so many times its duration
_KEPT_DESCRIPTORS = 4096
_SNAKEMAKE_THREADS = 3  # main, logging, and the one that runs the job
_SEARCH_OFTEN_S = 5.0  # so long the own Snakemake of a job script is looked for often,
_SEARCH_S = 60.0  # and so long at all


@dataclass(slots=True, eq=False)
class Process:
    """A process of a job, and what was last seen of it."""

    pid: int
    descriptor: int | None
    resident_bytes: int = -1  # not seen yet
    held_bytes: int = 0
    copy: bool = False  # of the job's own Snakemake


@dataclass(slots=True, eq=False)
class Watch:
    """One job under watch. `added`, `seen` and `due` are times on the monitor's clock."""

    key: str
    leader: int
    limit_bytes: int | None
    own: int | None  # the process of the job's own Snakemake; None: not found yet
    began: bool
    added: float
    baseline_bytes: int = 0
    current_bytes: int = 0
    peak_bytes: int = 0
    upper_at_shares_bytes: int = 0  # the sum, when shares were last looked at
    seen: float = 0.0
    due: float = 0.0
    interval_s: float = STARTING_S
    members: dict[int, Process] = field(default_factory=dict)


class Monitor:
    """Watches all jobs of a node together, so that the process table is read once for all."""

    def __init__(self, source: "ProcFiles", supervisor: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._supervisor = supervisor
        self._clock = clock
        self._watches: dict[str, Watch] = {}
        self._leaders: dict[int, str] = {}
        self._members: dict[int, str] = {}
        self._foreign: set[int] = set()
        self._forget_foreign = 0.0
        self._newest = b""
        self._open = 0
        self._shares_not_before = 0.0

    def add(self, key: str, leader: int, limit_bytes: int | None, *, direct: bool, began: bool) -> None:
        """Watch a job. ``direct``: the leader is its own Snakemake, else that is a descendant.

        ``began``: its work begins now.
        """
        now = self._clock()
        watch = Watch(key, leader, limit_bytes, leader if direct else None, began, now)
        self._watches[key] = watch
        self._leaders[leader] = key
        self._foreign.discard(leader)
        self._newest = b""
        self._join(watch, leader)
        if began:
            watch.baseline_bytes = self._source.held_bytes(leader) or 0
        watch.due = now + watch.interval_s

    def remove(self, key: str) -> int | None:
        """Stop watching; returns the peak in bytes, or None for a job that ended before anything was seen of it."""
        watch = self._watches.pop(key, None)
        if watch is None:
            return None
        self._leaders.pop(watch.leader, None)
        for process in list(watch.members.values()):
            self._leave(watch, process)
        return watch.peak_bytes if watch.seen else None

    def uses(self) -> dict[str, tuple[float, float]]:
        """What each job uses now: CPU time so far in seconds, and memory in 10^6 bytes as last looked at.

        The CPU time lacks that of processes which ended with no parent left in the job.
        """
        return {
            watch.key: (
                round(sum(self._source.cpu_s(pid) or 0.0 for pid in watch.members), 2),
                round(watch.current_bytes / 1e6, 1),
            )
            for watch in self._watches.values()
            if watch.seen
        }

    def key_of(self, pid: int) -> str | None:
        """The job that a process was last seen to belong to."""
        return self._members.get(pid)

    def due(self) -> float | None:
        """When the next look is needed, on the clock; None: nothing is watched."""
        return min((watch.due for watch in self._watches.values()), default=None)

    def look(self) -> list[Watch]:
        """Look at all jobs that are due; returns those that hold more than their limit."""
        now = self._clock()
        # Those that would be due soon come along, so that one reading of the process table serves many.
        due = [watch for watch in self._watches.values() if watch.due <= now + 0.25 * watch.interval_s]
        if not due:
            return []
        self._find(now)
        return [watch for watch in due if self._measure(watch, now)]

    # Which process belongs to which job

    def _find(self, now: float) -> None:
        newest = self._source.newest()
        if newest == self._newest and newest:
            return
        self._newest = newest
        if now >= self._forget_foreign:
            # A number that was another's may have been given to a job's process in the meantime.
            self._foreign.clear()
            self._forget_foreign = now + _FORGET_FOREIGN_S
        listed = set(self._source.pids())
        for pid in self._members.keys() - listed:
            watch = self._watches[self._members[pid]]
            self._leave(watch, watch.members[pid])
        self._foreign &= listed
        fresh = listed - self._members.keys() - self._foreign
        stats = {pid: stat for pid in fresh if (stat := self._source.stat(pid)) is not None}
        settled: dict[int, str | None] = {}
        for pid in stats:
            self._settle(pid, stats, settled)

    def _settle(self, pid: int, stats: dict[int, Stat], settled: dict[int, str | None]) -> None:
        """Find the job of a new process through its ancestors."""
        chain: list[int] = []
        key: str | None = None
        foreign = True
        while True:
            if pid in self._members:
                key = self._members[pid]
                break
            if pid in settled:
                key, foreign = settled[pid], pid in self._foreign
                break
            if pid == self._supervisor:
                # An orphan (or a leader, or the warm process): its session or its environment may tell.
                foreign = False
                orphan = chain[-1] if chain else None
                key = self._orphan(stats[orphan]) if orphan is not None and orphan in stats else None
                break
            stat = stats.get(pid)
            if stat is None or pid in chain:
                # An ancestor is another's; or it has ended meanwhile, and the next look tells more.
                foreign = pid in self._foreign or pid <= 1
                break
            chain.append(pid)
            pid = stat.ppid
        for member in chain:
            settled[member] = key
            if key is not None:
                self._join(self._watches[key], member)
            elif foreign:
                self._foreign.add(member)

    def _orphan(self, stat: Stat) -> str | None:
        key = self._leaders.get(stat.session) or self._source.key(stat.pid)
        return key if key in self._watches else None

    def _join(self, watch: Watch, pid: int) -> None:
        descriptor = self._source.open(pid) if self._open < _KEPT_DESCRIPTORS else None
        self._open += descriptor is not None
        watch.members[pid] = Process(pid, descriptor)
        self._members[pid] = watch.key

    def _leave(self, watch: Watch, process: Process) -> None:
        if process.descriptor is not None:
            self._open -= 1
            with contextlib.suppress(OSError):
                os.close(process.descriptor)
        watch.members.pop(process.pid, None)
        self._members.pop(process.pid, None)

    # How much a job holds

    def _measure(self, watch: Watch, now: float) -> bool:
        """Bring ``current`` and ``peak`` up to date, and set the next look; whether the limit is exceeded."""
        near = watch.limit_bytes is not None and watch.current_bytes > 0.7 * watch.limit_bytes
        self._refresh(watch, near)
        if not watch.began:
            self._await_work(watch, now)
        sizes = [self._counted(watch, process) for process in watch.members.values()]
        upper, lower = sum(sizes), max(sizes, default=0)
        estimate = upper
        if upper - lower > max(_SMALL_BYTES, _SHARED * upper):
            estimate = self._estimate(watch, upper, lower, now)
        growth = max(0.0, (estimate - watch.current_bytes) / (now - watch.seen)) if watch.seen else 0.0
        watch.seen, watch.current_bytes = now, estimate
        if watch.began or watch.own is None:
            watch.peak_bytes = max(watch.peak_bytes, estimate)
        watch.interval_s = self._interval(watch, growth, now)
        watch.due = now + watch.interval_s
        return watch.limit_bytes is not None and watch.current_bytes > watch.limit_bytes

    def _counted(self, watch: Watch, process: Process) -> int:
        # A child that was forked a moment ago still holds what the own Snakemake holds, until it becomes the command.
        # The same goes for the Snakemake that a group starts for a `run:` block.
        own = process.pid == watch.own or process.copy
        return max(0, process.held_bytes - (watch.baseline_bytes if own else 0))

    def _refresh(self, watch: Watch, near: bool) -> None:
        for process in list(watch.members.values()):
            resident = self._source.resident_bytes(process.pid, process.descriptor)
            if resident is None:
                self._leave(watch, process)
                self._newest = b""  # its number may be another's by now
                continue
            slack = 0 if near or not watch.began else max(500_000, process.resident_bytes // 100)
            if process.resident_bytes < 0 or abs(resident - process.resident_bytes) > slack:
                # Before its size: what became another program in between is looked at again, for its size changes.
                process.copy = watch.own not in (None, process.pid) and self._source.is_copy(process.pid, watch.own)
                held = self._source.held_bytes(process.pid)
                process.resident_bytes, process.held_bytes = resident, resident if held is None else held

    def _await_work(self, watch: Watch, now: float) -> None:
        """Find the job's own Snakemake, and the moment at which the job's work begins."""
        if watch.own is None:
            watch.own = next((pid for pid in watch.members if self._source.is_snakemake(pid)), None)
        if watch.own is None:
            watch.began = now - watch.added > _SEARCH_S
            return
        own = watch.members.get(watch.own)
        stat = self._source.stat(watch.own) if own is not None else None
        if own is None or stat is None:
            watch.began = True
            return
        children = any(
            (other := self._source.stat(pid)) is not None and other.ppid == watch.own
            for pid in watch.members
            if pid not in (watch.own, watch.leader)
        )
        watch.began = stat.threads >= _SNAKEMAKE_THREADS or children
        if not watch.began or not watch.baseline_bytes:  # at the first look work may have begun already
            watch.baseline_bytes = max(watch.baseline_bytes, own.held_bytes)

    def _estimate(self, watch: Watch, upper: int, lower: int, now: float) -> int:
        """What is held with shared pages counted once; between ``lower`` and ``upper``."""
        critical = watch.limit_bytes is not None and upper > watch.limit_bytes >= lower
        telling = upper > 1.02 * watch.upper_at_shares_bytes and upper > watch.peak_bytes
        if not critical and not telling:
            # Sharing is as it was: the same part of the sum.
            known = watch.upper_at_shares_bytes
            return max(lower, min(upper, int(watch.current_bytes * upper / known))) if known and watch.seen else upper
        if now < self._shares_not_before:
            return max(lower, min(upper, watch.current_bytes))
        started = self._clock()
        # Each of these is an upper bound. The first counts what the own Snakemake shares with the warm process and with
        # other jobs, the second counts twice what it shares with its children.
        shares = {process.pid: self._share(process) for process in watch.members.values()}
        every = sum(shares.values())
        others = sum(share for pid, share in shares.items() if pid != watch.own)
        own = watch.members.get(watch.own) if watch.own is not None else None
        apart = others + (self._counted(watch, own) if own is not None else 0)
        took = self._clock() - started
        self._shares_not_before = now + took * (5 if critical else _SHARES_COST)
        watch.upper_at_shares_bytes = upper
        return max(lower, min(upper, every, apart))

    def _share(self, process: Process) -> int:
        share = self._source.share_bytes(process.pid)
        if share is None:
            # Not to be had of another user's process, nor of one that is about to end and holds nothing any more.
            share = self._source.held_bytes(process.pid) or 0
        return min(share, process.held_bytes)

    def _interval(self, watch: Watch, growth: float, now: float) -> float:
        slow = SLOW_S
        if not watch.began:
            slow = STARTING_S
            if watch.own is None:
                slow = 4 * STARTING_S if now - watch.added < _SEARCH_OFTEN_S else SLOW_S
        if watch.limit_bytes is None:
            return slow
        rate = max(GROWTH_BYTES_PER_S, 2 * growth)
        shortest = FAST_S if growth > _GROWING_BYTES_PER_S else STEADY_S
        return min(slow, max(shortest, (watch.limit_bytes - watch.current_bytes) / (2 * rate)))


class ProcFiles:
    """Where figures come from: the process file system."""

    pids, stat = staticmethod(processes.all_pids), staticmethod(processes.read_stat)
    key, cpu_s = staticmethod(processes.job_key), staticmethod(processes.cpu_s)

    def __init__(self) -> None:
        self._loadavg = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)

    def newest(self) -> bytes:
        """Changes whenever a process or thread was made."""
        return os.pread(self._loadavg, 128, 0).rpartition(b" ")[2]

    def open(self, pid: int) -> int | None:
        """A descriptor that makes `resident_bytes` cheap; None: it is gone, or there is none."""
        try:
            return os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None

    def resident_bytes(self, pid: int, descriptor: int | None) -> int | None:
        """Its resident memory; None: it is gone."""
        try:
            data = processes.proc_file(pid, "statm", 128) if descriptor is None else os.pread(descriptor, 128, 0)
            return int(data.split(b" ", 2)[1]) * PAGE_BYTES
        except (OSError, IndexError):
            return None

    def held_bytes(self, pid: int) -> int | None:
        """Its anonymous, shared and swapped memory; None: it is gone, or is not shown."""
        return self._sum(pid, "status", (b"RssAnon:", b"RssShmem:", b"VmSwap:"), b"VmRSS:")

    def share_bytes(self, pid: int) -> int | None:
        """The same, of pages that n processes hold the nth part."""
        return self._sum(pid, "smaps_rollup", (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:"), b"Pss:")

    def is_snakemake(self, pid: int) -> bool:
        """Whether its command line is one of Snakemake's."""
        arguments = processes.command_line(pid)
        modules = (b"snakemake", b"snakemake_executor_plugin_dask.worker.entry")
        return any(one == b"-m" and other in modules for one, other in itertools.pairwise(arguments)) or (
            len(arguments) > 1 and os.path.basename(arguments[1]) == b"snakemake"
        )

    def is_copy(self, pid: int, own: int) -> bool:
        """Whether it was forked from the own Snakemake and is still that, or is another one."""
        return self.is_snakemake(pid) or processes.command_line(pid) == processes.command_line(own)

    @staticmethod
    def _sum(pid: int, file: str, names: Sequence[bytes], instead: bytes) -> int | None:
        """The sum of lines in kB; ``instead`` where a kernel lacks the first of ``names``."""
        data = processes.proc_file(pid, file, 8192)
        if not data:
            return None
        fields = dict(line.split(None, 1) for line in data.splitlines() if line.endswith(b" kB"))
        if names[0] not in fields:
            names = (instead,)
        values = (fields[name] for name in names if name in fields)
        return sum(int(value.split()[0]) for value in values) * 1024
