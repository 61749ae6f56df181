"""How many workers a pool should have, and which idle ones to give back. Pure: returns data, has no effects.

The waiting jobs are packed, largest first, into what will be free by the time a new worker could be up: workers that
are there, workers that start, then new ones. Short jobs share a place one after another: a new worker must be worth its
start, so each place is taken to run jobs for a few start-up times.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from snakemake_executor_plugin_dask.decide.ledger import Ledger, WorkerState
from snakemake_executor_plugin_dask.decide.needs import Gang, Need, need_of, needs_fresh, planned_runtime_s
from snakemake_executor_plugin_dask.decide.waiting import WaitingClass
from snakemake_executor_plugin_dask.model.amounts import Amounts
from snakemake_executor_plugin_dask.model.pools import Pool, Shape
from snakemake_executor_plugin_dask.model.requests import Request

_WORTH_STARTS = 3.0  # a place runs jobs for so many start-up times
#: Above so many different requests, memory and runtime are told apart in steps only, so that packing stays quick.
_MANY_CLASSES = 200
_STEPS = 32


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What should be. The caller starts workers up to the number, and gives the named ones back.

    ``workers`` counts those that start and are needed, and neither draining ones nor those to be given back. The caller
    is patient with those that start and are not needed: a place in a queue is not given up between two jobs.
    """

    workers: int
    give_back: tuple[str, ...] = ()


@dataclass(slots=True)
class _Item:
    """Places of one size. ``left``: how many still need a worker."""

    need: Need
    planned_s: float
    fresh: bool
    left: int


class _Bin:
    """What one worker will have free; a new one has the pool's shape."""

    def __init__(self, pool: Pool, total: Amounts) -> None:
        self.wide = pool.nodes is not None
        self.total = self.free = total
        self.life_s = math.inf  # what a job may plan with; a new allocation covers whatever the pool can hold
        self.fresh = True
        self.state: WorkerState | None = None
        self.taken = False

    @classmethod
    def of(cls, state: WorkerState, now: float, startup_s: float) -> "_Bin":
        """A worker that is there, with what will have ended by the time a new one could be up."""
        found = cls(state.pool, state.total)
        found.state, found.free = state, state.free
        found.fresh = state.fresh(now)
        if state.end is not None and not found.fresh:
            found.life_s = state.end - now - state.pool.effective_margin_s
        for held in state.held.values():
            if held.holding.until is not None and held.holding.until <= now + startup_s:
                found.free += held.amounts
        return found

    def empty(self) -> None:
        """Nothing runs there any more."""
        self.free = self.total

    def put(self, item: _Item) -> None:
        """Take as many of these places as fit."""
        need = item.need
        if (item.fresh and not self.fresh) or item.planned_s > self.life_s or not need.node <= self.total:
            return
        shared = need.shares_memory and not self.wide
        shared_mb = self.total.memory_share_mb(need.node.cores) if shared else need.takes.memory_mb
        part = need.takes.with_memory_mb(shared_mb)
        if not part <= self.free:
            return
        number = min(item.left, part.times_in(self.free))
        self.taken = True
        item.left -= number
        self.free -= part * number


def recommend(
    pool: Pool,
    waiting: Sequence[WaitingClass],
    ledger: Ledger,
    starting: int,
    soon: Sequence[tuple[Request, int]],
    now: float,
    shape: Shape,
    startup_s: float = 30.0,
) -> Recommendation:
    """How many workers the pool should have, within its bounds, and which idle ones it should not.

    ``waiting`` and ``soon`` are those of this pool. ``starting``: workers that were asked for and have not joined.
    ``soon``: requests of jobs that become ready when others end, with their number. ``shape``: a new worker.
    ``startup_s``: from asking for a worker to its joining.
    """
    states = ledger.states(pool.name).values()
    alive = [state for state in states if not state.draining]
    wanted = _items(pool, waiting, shape, startup_s)
    later = _items(pool, [WaitingClass(request, False, number, now) for request, number in soon], shape, startup_s)
    full = len(states) >= pool.workers_max
    if not starting and _nothing_to_change(pool, alive, now, full=full, asked=bool(wanted or later)):
        workers = min(max(len(alive), pool.workers_min), max(0, pool.workers_max - len(states) + len(alive)))
        return Recommendation(max(workers, len(alive)))
    bins = [_Bin.of(state, now, startup_s) for state in sorted(alive, key=_first_choice)]
    coming = [_Bin(pool, shape.amounts) for _ in range(starting)]
    room = max(0, pool.workers_max - len(states) - starting)
    new = _pack(wanted, [*bins, *coming], pool, shape, room)
    replaced = _replaced(pool, bins, wanted, shape)
    for found in (*bins, *coming, *new) if later else ():
        found.empty()  # when those jobs are ready, what runs or waits now has ended
    new += _pack(later, [*bins, *coming, *new], pool, shape, room - len(new))
    give_back = replaced + _idle(pool, bins, replaced, now)
    kept = len(alive) - len(give_back)
    expected = sum(found.taken for found in coming)
    needed = kept + expected + len(new) + len(replaced)
    gang = max((item.need.workers for item in wanted), default=0)
    draining = len(states) - len(alive)
    workers = min(max(needed, gang, pool.workers_min), max(0, pool.workers_max - draining))
    return Recommendation(max(workers, kept), tuple(state.name for state in give_back))


def _nothing_to_change(pool: Pool, alive: Sequence[WorkerState], now: float, *, full: bool, asked: bool) -> bool:
    """A quick yes, as a thousand workers may be looked at five times a second."""
    if asked:
        return full and all(state.idle_since is None for state in alive)
    return not any(state.idle_since is not None and now - state.idle_since >= pool.idle_timeout_s for state in alive)


def _items(pool: Pool, waiting: Iterable[WaitingClass], shape: Shape, startup_s: float) -> list[_Item]:
    """The places that these jobs take, the largest first."""
    worth_s = _WORTH_STARTS * startup_s
    places: dict[tuple[object, ...], list[float]] = {}
    sample: dict[tuple[object, ...], Need] = {}
    classes = list(waiting)
    coarse = len(classes) > _MANY_CLASSES
    for cls in classes:
        need = cls.need or need_of(cls.request, pool, shape)
        planned_s = planned_runtime_s(cls.request, pool)
        fresh = cls.fresh or needs_fresh(cls.request, pool)
        # Short jobs follow one another in a place; one without a known end has it for itself.
        share = 1.0 if fresh or planned_s is None else min(1.0, planned_s / worth_s)
        jobs = cls.count * share if cls.count > 1 or coarse else 1.0
        for part, times in ((need, need.workers),) if need.gang is None else _parts(need, need.gang):
            memory_mb = None if part.shares_memory else part.node.memory_mb
            size: object = (memory_mb, planned_s)
            if coarse:
                steps = None if memory_mb is None or not shape.memory_mb else memory_mb * _STEPS // shape.memory_mb
                hours = None if planned_s is None else int(planned_s * _STEPS // (pool.walltime_s or 86400.0))
                size = (steps, hours)
            alike = (part.workers, part.nodes, part.node.cores, part.node.gpus, part.takes.extra)
            key: tuple[object, ...] = (fresh, alike, memory_mb is None, size)
            sample.setdefault(key, part)
            sums = places.setdefault(key, [0.0, 0.0, 0.0, 0.0])
            sums[0] += (jobs if need.gang is None else max(1.0, jobs)) * times  # all parts of a job at once
            sums[1] += cls.count
            sums[2] += cls.count * (memory_mb or 0)
            sums[3] = max(sums[3], planned_s or 0.0)
    items = []
    for key, (number, count, memory_sum, longest) in places.items():
        need, fresh = sample[key], bool(key[0])
        memory_mb = int(memory_sum / count)
        takes = need.takes if pool.nodes is not None else need.takes.with_memory_mb(memory_mb)
        average = replace(need, node=need.node.with_memory_mb(memory_mb), takes=takes)
        items.append(_Item(average, longest, fresh, math.ceil(number - 1e-9)))
    empty = shape.amounts
    return sorted(
        items, key=lambda item: max(item.need.node.share_of(empty), item.need.takes.share_of(empty)), reverse=True
    )


def _parts(need: Need, gang: Gang) -> Iterator[tuple[Need, int]]:
    """Of a job whose Dask cluster may lie on several workers: its parts, and how many of each there are."""
    for amounts, times in ((gang.each, gang.workers), (gang.script, 1)):
        yield replace(need, node=amounts, takes=amounts, gang=None), times


def _pack(items: list[_Item], bins: list[_Bin], pool: Pool, shape: Shape, room: int) -> list[_Bin]:
    """Put the places where they fit, and into new workers, at most ``room``; returns these."""
    new: list[_Bin] = []
    some_room = list(bins)
    for item in items:
        for found in some_room:
            if not item.left:
                break
            if item.need.takes.cores <= found.free.cores:  # a quick no
                found.put(item)
        some_room = [found for found in some_room if found.free.cores > 0]
        if not some_room and len(new) >= room:
            break
        while item.left and len(new) < room:
            fresh_one = _Bin(pool, shape.amounts)
            fresh_one.put(item)
            if not fresh_one.taken:
                break  # no worker of this shape can hold it, and routing says so
            new.append(fresh_one)
            some_room.append(fresh_one)
    return new


def _replaced(pool: Pool, bins: Iterable[_Bin], wanted: Iterable[_Item], shape: Shape) -> list[WorkerState]:
    """Idle workers that give way to new ones.

    Jobs wait that the worker's remaining life does not cover, and no further worker may come.
    """
    if not pool.kind.queued:
        return []
    left = [item for item in wanted if item.left]
    in_the_way = [
        found.state
        for found in bins
        if found.state
        and found.state.idle_since is not None
        and not found.fresh
        and any(item.fresh or (not found.taken and item.planned_s > found.life_s) for item in left)
    ]
    return in_the_way[: len(_pack(left, [], pool, shape, len(in_the_way)))]


def _idle(pool: Pool, bins: Sequence[_Bin], gone: Sequence[WorkerState], now: float) -> list[WorkerState]:
    """Workers that nothing needs and that were idle for the pool's timeout, as long as the least number is left."""
    staying = [found for found in bins if found.state not in gone]
    idle = [
        found.state
        for found in reversed(staying)
        if found.state
        and not found.taken
        and found.state.idle_since is not None
        and now - found.state.idle_since >= pool.idle_timeout_s
    ]
    return idle[: max(0, len(staying) - pool.workers_min)] if pool.elastic else []


def _first_choice(state: WorkerState) -> tuple[bool, float]:
    """The order in which workers get work: busy ones first, so that idle ones can go; the shortest-lived go first."""
    return state.idle_since is not None, -(math.inf if state.end is None else state.end)
