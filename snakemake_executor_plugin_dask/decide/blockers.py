"""What waiting jobs wait for, as data for the status and the report. Pure."""

import functools
import math
from bisect import insort
from collections.abc import Container, Sequence
from dataclasses import replace

from snakemake_executor_plugin_dask.decide import gangs
from snakemake_executor_plugin_dask.decide.ledger import Ledger, WorkerState
from snakemake_executor_plugin_dask.decide.needs import Need
from snakemake_executor_plugin_dask.decide.reservations import Ends, lets_pass
from snakemake_executor_plugin_dask.decide.waiting import JobClass, Queue, Reservation, Waiting, described
from snakemake_executor_plugin_dask.model.amounts import NOTHING, Amounts
from snakemake_executor_plugin_dask.model.messages import Blocker

_MOST = 50  # classes of a pool that are looked at
#: Amounts that have other names here.
_WORDS = {"memory_mb": "memory"}


def blockers(waiting: Waiting, ledger: Ledger, now: float, among: Container[str] | None = None) -> list[Blocker]:
    """What the waiting jobs wait for: the first classes of each pool, in order.

    ``among``: the keys of the jobs that are meant; None: all. Others wait in the same order, and are not counted.
    """
    found: list[Blocker] = []
    for queue in waiting.queues():
        states = [state for state in ledger.states(queue.pool.name).values() if not state.draining]
        workers = _Workers(states, now)
        for _, cls in queue.heads[:_MOST]:
            blocker = _blocker(queue, cls, workers, now)
            if among is not None:
                jobs = [entry.job for _, entry in cls.heap if entry.waits and entry.job.key in among]
                blocker = replace(blocker, count=len(jobs), names=tuple(dict.fromkeys(job.name for job in jobs[:20])))
            if blocker.count:
                found.append(blocker)
    return found


class _Workers:
    """What is asked for each of many classes, and the same for all."""

    def __init__(self, states: Sequence[WorkerState], now: float) -> None:
        self.states = states
        self.totals = {state.total for state in states}
        self._ends = sorted((Ends(state, now) for state in states), key=lambda ends: ends.first)
        self._now = now
        self._most = functools.reduce(Amounts.most, {state.free for state in states}, NOTHING)

    def none_has_room(self, need: Need) -> bool:
        """A quick answer, and no other means nothing."""
        return not need.takes <= self._most

    def start(self, cls: JobClass, *, none_fits: bool) -> float:
        """When the class's first job will have as many workers as it needs; infinite: not known, or never."""
        starts: list[float] = []
        for ends in self._ends:
            last = starts[cls.need.workers - 1] if len(starts) >= cls.need.workers else math.inf
            if last <= self._now or (none_fits and ends.first >= last):
                break  # none of the others has room any sooner
            if ends.first >= last and not ends.state.has_room(cls.need):
                continue
            if not math.isinf(start := ends.start(cls)):
                insort(starts, start)
        return starts[cls.need.workers - 1] if len(starts) >= cls.need.workers else math.inf


def _blocker(queue: Queue, cls: JobClass, workers: _Workers, now: float) -> Blocker:
    told = described(cls)
    need, states = cls.need, workers.states
    if need.gang is not None:
        return _gang_blocker(cls, states, now)
    best: tuple[tuple[str, ...], WorkerState] | None = None
    fitting = 0
    kept: Reservation | None = None
    head = cls.head()
    none_fits = workers.none_has_room(need)
    for state in states:
        if not none_fits and state.has_room(need):
            short = _short_life(state, cls, now)
        elif best is None or len(best[0]) > 1:
            short = _short_on(state, cls, now)
        elif none_fits:
            break
        else:
            continue  # it lacks something, and no less
        if not short:
            reservation = queue.reserved.get(state.name)
            keeps = reservation is not None and reservation.cls is not cls and head is not None
            if keeps and reservation and not lets_pass(reservation, state, cls, now):
                short, kept = ("reserved",), reservation
            else:
                fitting += 1
        if best is None or len(short) < len(best[0]):
            best = short, state
    if best is None:
        short, free = ("worker",), {}
    else:
        short, state = best
        if not short and fitting < need.workers:
            short = ("workers",)
        free = {  # where room is left for other runs' jobs, it may be less than none
            "cores": state.total.cores * state.free.nodes if state.wide else state.free.cores,
            "memory": state.free.memory_mb,
            "gpus": state.free.gpus,
            "nodes": state.free.nodes,
            "companions": len(state.free_nodes),
            "coreless": state.free.coreless,
            "workers": fitting,
            **dict(state.free.extra),
        }
        free = {name: max(0, amount) for name, amount in free.items()}
    needed = {
        "cores": need.node.cores,
        "memory": need.node.memory_mb,
        "gpus": need.node.gpus,
        "coreless": 1,
        "nodes": need.nodes,
        "companions": len(need.dask_workers),
        "workers": need.workers,
        **dict(need.takes.extra),
    }
    if need.shares_memory and states:
        needed["memory"] = max(total.memory_share_mb(need.node.cores) for total in workers.totals)
    start = workers.start(cls, none_fits=none_fits)
    if short == ("companions",):
        start = math.inf  # there is room, and when they are up is not known
    reserved_for = described(kept.cls).names if kept is not None and short == ("reserved",) else ()
    return Blocker(
        pool=cls.pool.name,
        names=told.names,
        count=cls.count,
        short=short,
        need=needed,
        free=free,
        frees_at=None if math.isinf(start) else start,
        reserved_for=reserved_for[0] if reserved_for else None,
    )


def _gang_blocker(cls: JobClass, states: Sequence[WorkerState], now: float) -> Blocker:
    """As `_blocker`, for a job whose Dask cluster may lie on several workers."""
    told, gang = described(cls), cls.need.gang
    assert gang is not None
    living = [state for state in states if state.lives(cls.request, now, fresh=cls.fresh)]
    rooms = [(state, state.free) for state in living]
    fitting = sum(place.workers for place in gangs.more(cls.need, gang.workers, rooms))
    if not states:
        short: tuple[str, ...] = ("worker",)
    elif not living:
        short = ("fresh" if cls.needs_fresh else "life",)
    else:
        short = ("reserved",) if gangs.plan(cls.need, rooms) else ("dask_workers",)
    found = gangs.start(cls, states, now)
    return Blocker(
        pool=cls.pool.name,
        names=told.names,
        count=cls.count,
        short=short,
        need={"dask_workers": gang.workers},
        free={"dask_workers": fitting},
        frees_at=None if found is None or math.isinf(found[0]) else found[0],
    )


def _short_on(state: WorkerState, cls: JobClass, now: float) -> tuple[str, ...]:
    lacking = state.part(cls.need).short_of(state.free)
    if state.wide:  # whose nodes are held whole
        lacking += cls.need.node.short_of(state.total)
    short = [_WORDS.get(name, name) for name in lacking]
    if cls.need.shares_memory and "cores" in short and "memory" in short:
        short.remove("memory")  # the cores' share of the memory is short whenever the cores are
    if not short and len(cls.need.dask_workers) > len(state.free_nodes):
        short.append("companions")
    return tuple(short) or _short_life(state, cls, now)


def _short_life(state: WorkerState, cls: JobClass, now: float) -> tuple[str, ...]:
    """What is lacking where there is room."""
    if state.lives(cls.request, now, fresh=cls.fresh):
        return ()
    return ("fresh" if cls.needs_fresh else "life",)
