"""How many workers a pool should have, and which idle ones to give back. Pure: returns data, has no effects.

The waiting jobs are packed, largest first, into what will be free by the time a new worker could be up: workers that
are there, workers that start, then new ones. Short jobs share a place one after another: a new worker must be worth its
start, so each place is taken to run jobs for a few start-up times.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from snakemake_executor_plugin_dask.decide.ledger import (
    CORELESS_FOR_EACH_CORE,
    Held,
    Ledger,
    Need,
    WorkerState,
    need_of,
    needs_fresh,
    planned_runtime_s,
)
from snakemake_executor_plugin_dask.decide.routing import Shape
from snakemake_executor_plugin_dask.decide.waiting import WaitingClass
from snakemake_executor_plugin_dask.model.pools import Pool
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

    def __init__(self, pool: Pool, shape: Shape) -> None:
        unknown = math.inf
        self.wide = pool.nodes is not None
        self.total_cores = unknown if shape.cores is None else shape.cores
        self.total_memory_mb = unknown if shape.memory_mb is None else shape.memory_mb
        self.cores: float = self.total_cores
        self.memory_mb: float = self.total_memory_mb
        self.gpus: float = unknown if shape.gpus is None else shape.gpus
        self.coreless: float = CORELESS_FOR_EACH_CORE * max(1.0, self.total_cores)  # jobs without cores
        self.nodes: float = shape.nodes
        self.extra = dict(shape.extra)
        self.life_s = unknown  # what a job may plan with; a new allocation covers whatever the pool can hold
        self.fresh = True
        self.state: WorkerState | None = None
        self.taken = False

    @classmethod
    def of(cls, state: WorkerState, now: float, startup_s: float) -> "_Bin":
        """A worker that is there, with what will have ended by the time a new one could be up."""
        shape = Shape(state.cores, state.memory_mb, len(state.free_devices), nodes=len(state.free_hosts))
        found = cls(state.pool, shape)
        found.state = state
        found.extra = dict(state.free_extra)
        found.fresh = state.fresh(now)
        if state.end is not None and not found.fresh:
            found.life_s = state.end - now - state.pool.margin
        if not state.wide:
            found.cores, found.memory_mb = state.free_cores, state.free_memory_mb
            found.coreless = state.free_coreless
        found.end_leases(lambda held: held.lease.until is not None and held.lease.until <= now + startup_s)
        return found

    def end_leases(self, which: Callable[[Held], bool]) -> None:
        """Add what these leases hold."""
        for held in self.state.held.values() if self.state else ():
            if which(held):
                self.cores += held.cores
                self.memory_mb += held.memory_mb
                self.gpus += len(held.devices)
                self.coreless += held.coreless
                self.nodes += len(held.hosts)
                for name, amount in held.extra:
                    self.extra[name] += amount

    def empty(self, shape: Shape) -> None:
        """Nothing runs there any more."""
        self.cores, self.memory_mb = self.total_cores, self.total_memory_mb
        self.coreless = CORELESS_FOR_EACH_CORE * max(1.0, self.total_cores)
        if self.state is not None:
            self.gpus, self.nodes = len(self.state.devices), len(self.state.hosts)
            self.extra = dict(self.state.extra)
        else:
            self.gpus, self.nodes = math.inf if shape.gpus is None else shape.gpus, shape.nodes
            self.extra = dict(shape.extra)

    def put(self, item: _Item) -> None:
        """Take as many of these places as fit."""
        need = item.need
        if (item.fresh and not self.fresh) or item.planned_s > self.life_s:
            return
        number: float = item.left
        memory_mb = 0.0
        if self.wide:
            number = min(number, self.nodes // need.nodes)
            fits = need.cores <= self.total_cores and (need.memory_mb or 0) <= self.total_memory_mb
            number = number if fits else 0
        else:
            memory_mb = self._share_mb(need) if need.memory_mb is None else need.memory_mb
            amounts = ((self.cores, need.cores), (self.memory_mb, memory_mb), (self.gpus, need.gpus))
            for have, wanted in amounts:
                if wanted and not math.isinf(have):
                    number = min(number, have // wanted)
            if not need.cores:
                number = min(number, self.coreless)
        for name, amount in need.extra:
            number = min(number, self.extra[name] // amount)
        if number < 1:
            return
        self.taken = True
        item.left -= int(number)
        self.coreless -= 0 if need.cores else number
        self.cores -= 0 if self.wide else number * need.cores
        self.memory_mb -= number * memory_mb
        self.gpus -= 0 if self.wide else number * need.gpus
        self.nodes -= number * need.nodes if self.wide else 0
        for name, amount in need.extra:
            self.extra[name] -= int(number) * amount

    def _share_mb(self, need: Need) -> float:
        if math.isinf(self.total_cores) or math.isinf(self.total_memory_mb):
            return 0.0
        return int(self.total_memory_mb * need.cores / max(self.total_cores, 1))


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
    bins = [_Bin.of(state, now, startup_s) for state in sorted(alive, key=_first_choice)]
    coming = [_Bin(pool, shape) for _ in range(starting)]
    room = max(0, pool.workers_max - len(states) - starting)
    new = _pack(wanted, [*bins, *coming], pool, shape, room)
    replaced = _replaced(pool, bins, wanted, shape)
    for found in (*bins, *coming, *new) if later else ():
        found.empty(shape)  # when those jobs are ready, what runs or waits now has ended
    new += _pack(later, [*bins, *coming, *new], pool, shape, room - len(new))
    give_back = replaced + _idle(pool, bins, replaced, now)
    kept = len(alive) - len(give_back)
    expected = sum(found.taken for found in coming)
    needed = kept + expected + len(new) + len(replaced)
    gang = max((item.need.workers for item in wanted), default=0)
    draining = len(states) - len(alive)
    workers = min(max(needed, gang, pool.workers_min), max(0, pool.workers_max - draining))
    return Recommendation(max(workers, kept), tuple(state.name for state in give_back))


def _items(pool: Pool, waiting: Iterable[WaitingClass], shape: Shape, startup_s: float) -> list[_Item]:
    """The places that these jobs take, the largest first."""
    worth_s = _WORTH_STARTS * startup_s
    places: dict[tuple[object, ...], list[float]] = {}
    sample: dict[tuple[object, ...], Need] = {}
    classes = list(waiting)
    coarse = len(classes) > _MANY_CLASSES
    for cls in classes:
        need = cls.need or need_of(cls.request, pool, shape.cores, shape.gpus, shape.memory_mb)
        planned_s = planned_runtime_s(cls.request, pool)
        fresh = cls.fresh or needs_fresh(cls.request, pool)
        # Short jobs follow one another in a place; one without a known end has it for itself.
        share = 1.0 if fresh or planned_s is None else min(1.0, planned_s / worth_s)
        number = (cls.count * share if cls.count > 1 or coarse else 1.0) * need.workers
        memory_mb = need.memory_mb
        size: object = (memory_mb, planned_s)
        if coarse:
            steps = None if memory_mb is None or not shape.memory_mb else memory_mb * _STEPS // shape.memory_mb
            hours = None if planned_s is None else int(planned_s * _STEPS // (pool.walltime_s or 86400.0))
            size = (steps, hours)
        key: tuple[object, ...] = (
            need.workers,
            need.nodes,
            need.cores,
            need.gpus,
            need.extra,
            fresh,
            memory_mb is None,
            size,
        )
        sums = places.setdefault(key, [0.0, 0.0, 0.0, 0.0])
        sample.setdefault(key, need)
        sums[0] += number
        sums[1] += cls.count
        sums[2] += cls.count * (memory_mb or 0)
        sums[3] = max(sums[3], planned_s or 0.0)
    items = []
    for key, (number, count, memory_sum, longest) in places.items():
        need = sample[key]
        if need.memory_mb is not None:
            need = replace(need, memory_mb=int(memory_sum / count))
        items.append(_Item(need, longest, bool(key[5]), math.ceil(number - 1e-9)))
    return sorted(items, key=lambda item: _share(item.need, shape), reverse=True)


def _share(need: Need, shape: Shape) -> float:
    """The largest part of a worker that one place takes."""
    return max(
        need.cores / (shape.cores or 1),
        (need.memory_mb or 0) / (shape.memory_mb or math.inf),
        need.gpus / (shape.gpus or 1),
        need.nodes / shape.nodes,
    )


def _pack(items: list[_Item], bins: list[_Bin], pool: Pool, shape: Shape, room: int) -> list[_Bin]:
    """Put the places where they fit, and into new workers, at most ``room``; returns these."""
    new: list[_Bin] = []
    some_room = list(bins)
    for item in items:
        for found in some_room:
            if not item.left:
                break
            if found.cores >= item.need.cores:
                found.put(item)
        some_room = [found for found in some_room if found.cores > 0]
        if not some_room and len(new) >= room:
            break
        while item.left and len(new) < room:
            fresh_one = _Bin(pool, shape)
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
