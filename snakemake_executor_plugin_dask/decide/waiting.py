"""The jobs that wait in the plugin, by pool, in the order in which they start. Pure.

Jobs that ask for the same form a class, so that one look at its first job answers for all of them.
"""

import heapq
import itertools
import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from snakemake_executor_plugin_dask.decide.ledger import WorkerState
from snakemake_executor_plugin_dask.decide.needs import Need, need_of, needs_fresh, planned_runtime_s
from snakemake_executor_plugin_dask.decide.routing import shape_of
from snakemake_executor_plugin_dask.model.amounts import NOTHING, Amounts
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Origin, Request

Order = tuple[float, float, int]  # turn, -priority, arrival


@dataclass(frozen=True, slots=True)
class WaitingClass:
    """Waiting jobs of one pool that ask for the same. ``fresh``: only a new allocation will do."""

    request: Request
    fresh: bool
    count: int
    since: float  # when the first of them came
    names: tuple[str, ...] = ()  # of their rules, a few
    need: Need | None = None  # of each worker; None: it follows from the workers' size


@dataclass(slots=True)
class Entry:
    """A waiting job; where it no longer waits, it is passed over."""

    job: QueuedJob
    within: Order  # among the jobs of its class
    since: float
    cls: "JobClass"
    waits: bool = True

    @property
    def order(self) -> Order:
        """When its turn is, among all jobs."""
        turn, priority, arrival = self.within
        return turn + self.cls.moved, priority, arrival


@dataclass(slots=True, eq=False)
class JobClass:
    """Jobs of one pool that ask for the same, the first one on top of the heap (entries that left stay until then)."""

    pool: Pool
    request: Request
    fresh: bool
    run: str  # whose jobs they are, where runs take turns
    need: Need
    moved: float = 0.0  # what their turns have moved since they came
    heap: list[tuple[Order, Entry]] = field(default_factory=list)
    count: int = 0
    # What a worker must have free at the least. Unlike `need` it never changes, also for a job that spreads.
    least: Amounts = NOTHING
    planned_s: float = 0.0

    def __post_init__(self) -> None:
        self.planned_s = planned_runtime_s(self.request, self.pool) or 0.0
        if not self.spreads:
            self.least = self.need.takes

    def head(self) -> Entry | None:
        """The job whose turn is next."""
        while self.heap and not self.heap[0][1].waits:
            heapq.heappop(self.heap)
        return self.heap[0][1] if self.heap else None

    @property
    def key(self) -> tuple[Request, bool, str]:
        """What its jobs have in common."""
        return self.request, self.fresh, self.run

    @property
    def needs_fresh(self) -> bool:
        """Whether only a new allocation will do."""
        return self.fresh or needs_fresh(self.request, self.pool)

    @property
    def spreads(self) -> bool:
        """Whether the number of nodes follows from the workers' size."""
        return self.request.spreads or (self.request.cluster is not None and self.pool.nodes is not None)


@dataclass(slots=True, eq=False)
class Reservation:
    """Workers kept for a class's first job. ``start``: when it will fit there at the latest; infinite: not known."""

    cls: JobClass
    workers: tuple[str, ...]
    start: float
    awaited: set[str]  # keys of the holdings that end before
    whole: bool  # the worker is to become idle, to be replaced by a new one
    made: float
    parts: Mapping[str, Amounts] = field(default_factory=dict)  # by worker, where these are not all the same


class Queue:
    """The waiting jobs of one pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.classes: dict[tuple[Request, bool, str], JobClass] = {}
        self.heads: list[tuple[Order, JobClass]] = []  # the first job of each class, in order
        self.fresh: set[JobClass] = set()  # those that need a new allocation
        self.unchecked: set[JobClass] = set()  # their first job is new, so every worker is looked at
        self.reserved: dict[str, Reservation] = {}  # by worker
        self.unlocked: set[str] = set()  # workers that are no longer kept
        self.next_plan = -math.inf
        self._cores: Counter[int] = Counter()
        self._memory_mb: list[int] = []

    def add(self, entry: Entry) -> None:
        """A job waits from now on. Once for each."""
        cls = entry.cls
        old = cls.head()
        heapq.heappush(cls.heap, (entry.within, entry))
        cls.count += 1
        if old is None:
            self.classes[cls.key] = cls
            if cls.needs_fresh:
                self.fresh.add(cls)
            self._cores[cls.least.cores] += 1
            insort(self._memory_mb, cls.least.memory_mb)
        elif old.order < entry.order:
            return
        else:
            del self.heads[bisect_left(self.heads, (old.order,))]
        insort(self.heads, (entry.order, cls), key=_order_of)
        self.unchecked.add(cls)

    def remove(self, entry: Entry) -> None:
        """A job waits no longer; it must have been added. Its place in the heap is cleared when its turn comes."""
        cls = entry.cls
        was_head = cls.head() is entry
        entry.waits = False
        cls.count -= 1
        if not was_head:
            return
        del self.heads[bisect_left(self.heads, (entry.order,))]
        following = cls.head()
        if following is not None:
            insort(self.heads, (following.order, cls), key=_order_of)
            return
        del self.classes[cls.key]
        self.unchecked.discard(cls)
        self.fresh.discard(cls)
        self._cores[cls.least.cores] -= 1
        if not self._cores[cls.least.cores]:
            del self._cores[cls.least.cores]
        del self._memory_mb[bisect_left(self._memory_mb, cls.least.memory_mb)]

    def move(self, moves: Mapping[str, float]) -> None:
        """All turns of these runs' jobs move by so much."""
        for cls in self.classes.values():
            cls.moved += moves.get(cls.run, 0.0)
        self.heads = sorted(((cls.head().order, cls) for cls in self.classes.values()), key=_order_of)  # type: ignore[union-attr]

    def unreserve(self, cls: JobClass) -> set[str]:
        """Keep no worker for this class any more; returns those that were kept."""
        names = {name for name, reservation in self.reserved.items() if reservation.cls is cls}
        for name in names:
            del self.reserved[name]
        return names

    def any_room(self, state: WorkerState) -> bool:
        """A quick no: whether the smallest of what is asked could still fit."""
        if state.draining:
            return False
        if state.wide:
            return state.free.nodes > 0
        return state.free.cores >= min(self._cores, default=0) and state.free.memory_mb >= (self._memory_mb or [0])[0]


def _origin(request: Request) -> Origin:
    """Of where the numbers came from only what decides."""
    return Origin(times=request.origin.times) if request.mpi else Origin()


def _order_of(item: tuple[Order, JobClass]) -> Order:
    return item[0]


class Waiting:
    """The jobs that wait in the plugin, each for its pool."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._queues: dict[str, Queue] = {}
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def add(
        self, job: QueuedJob, pool: Pool, now: float, *, fresh: bool = False, run: str = "", turn: float = 0.0
    ) -> None:
        """A job waits for this pool; ``fresh``: for a new allocation. Raises ValueError where its key waits already.

        ``turn``: jobs start in the order of their turns (`turns`), and those of the same turn by priority; ``run``:
        with which jobs the turn moves.
        """
        key = job.key
        if key in self._entries:
            msg = f"{key} waits already"
            raise ValueError(msg)
        queue = self._queues.setdefault(pool.name, Queue(pool))
        # What the pool does not count must not split classes.
        listed = {name for name, _ in pool.resources}
        extra = tuple(pair for pair in job.request.extra if pair[0] in listed)
        request = replace(job.request, extra=extra, pool=None, slurm=None, origin=_origin(job.request))
        cls = queue.classes.get((request, fresh, run))
        if cls is None:
            cls = JobClass(pool, request, fresh, run, need_of(request, pool, shape_of(pool)))
        entry = Entry(job, (turn - cls.moved, -job.priority, next(self._arrivals)), now, cls)
        self._entries[key] = entry
        queue.add(entry)

    def discard(self, key: str) -> QueuedJob | None:
        """Take a job out; None where it does not wait."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        queue = self._queues[entry.cls.pool.name]
        queue.remove(entry)
        queue.unlocked |= queue.unreserve(entry.cls)
        return entry.job

    def classes(self, pool: str) -> list[WaitingClass]:
        """What waits for a pool, in order."""
        queue = self._queues.get(pool)
        return [] if queue is None else [described(cls) for _, cls in queue.heads]

    def keys(self, pool: str, request: Request) -> list[str]:
        """The jobs of the classes that `classes` gives with this request, in no order."""
        queue = self._queues.get(pool)
        classes = [] if queue is None else [cls for (wanted, *_), cls in queue.classes.items() if wanted == request]
        return [entry.job.key for cls in classes for _, entry in cls.heap if entry.waits]

    def queues(self) -> Iterable[Queue]:
        """For `place` and `blockers`."""
        return [queue for queue in self._queues.values() if queue.heads]

    def firsts(self) -> dict[str, float]:
        """By run: the first turn of its jobs."""
        found: dict[str, float] = {}
        for queue in self._queues.values():
            for (turn, *_), cls in queue.heads:
                found[cls.run] = min(turn, found.get(cls.run, turn))
        return found

    def move(self, moves: Mapping[str, float]) -> None:
        """As `Queue.move`, in all pools."""
        for queue in self.queues() if moves else ():
            queue.move(moves)

    def reserved(self, pool: str) -> Mapping[str, Reservation]:
        """The workers of a pool that are kept for waiting jobs."""
        queue = self._queues.get(pool)
        return {} if queue is None else queue.reserved

    def placed(self, entry: Entry) -> None:
        """For `place`: the job has left."""
        del self._entries[entry.job.key]
        self._queues[entry.cls.pool.name].remove(entry)


def described(cls: JobClass) -> WaitingClass:
    """The class as others see it."""
    head = cls.head()
    names = tuple(dict.fromkeys(entry.job.name for _, entry in cls.heap[:20] if entry.waits))
    need = None if cls.spreads else cls.need
    return WaitingClass(cls.request, cls.fresh, cls.count, 0.0 if head is None else head.since, names, need)
