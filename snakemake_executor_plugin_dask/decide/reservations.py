"""Workers that are kept for a job which does not fit yet, so that others do not starve it. Pure."""

import math
from collections.abc import Mapping

from snakemake_executor_plugin_dask.decide.ledger import Part, WorkerState
from snakemake_executor_plugin_dask.decide.needs import planned_runtime_s
from snakemake_executor_plugin_dask.decide.waiting import JobClass, Reservation
from snakemake_executor_plugin_dask.model.amounts import Amounts

_NEAR_S = 60.0  # other runs leave a job room from so long before its start on


def lets_pass(reservation: Reservation, state: WorkerState, cls: JobClass, now: float) -> bool:
    """Whether a job of another class may start on this worker without delaying the one it is kept for."""
    if in_time(reservation, cls, now):
        return True
    if reservation.whole:
        return False
    return state.part(cls.need) <= room_beside(reservation, state)


def in_time(reservation: Reservation, cls: JobClass, now: float) -> bool:
    """Whether a job is known to end before the one for which workers are kept starts."""
    return cls.request.runtime_s is not None and cls.request.runtime_s <= time_to_pass_s(reservation, now)


def time_to_pass_s(reservation: Reservation, now: float) -> float:
    """Jobs that are known to end within so many seconds delay nothing. An unknown start leaves no time to pass."""
    return -1.0 if math.isinf(reservation.start) else reservation.start - now


def room_beside(reservation: Reservation, state: WorkerState) -> Amounts:
    """What the worker has left beside the job that it is kept for, once the awaited holdings are over."""
    part = reservation.parts.get(state.name)
    room = state.free - (state.part(reservation.cls.need) if part is None else part)
    for key in reservation.awaited & state.held.keys():
        room += state.held[key].amounts
    return room


def lives_from(state: WorkerState, cls: JobClass, start: float) -> bool:
    """Whether the allocation's life would cover a job that starts then."""
    if state.end is None:
        return True
    planned_s = planned_runtime_s(cls.request, cls.pool) or 0.0
    return start + planned_s + cls.pool.effective_margin_s <= state.end


def start_on(state: WorkerState, cls: JobClass, now: float) -> tuple[float, list[str]] | None:
    """When a job of this class will fit on the worker, and the holdings that end before.

    Infinite: one of them has no known end, or other runs hold the room. None: it will not fit in the worker's life.
    """
    need = cls.need
    if not state.could_hold(need) or not lives_from(state, cls, now):
        return None
    part, room = state.part(need), state.free
    awaited: list[str] = []
    start = now
    if not part <= room:
        known = sorted((end_of(held), key) for key, held in state.held.items())
        for until, key in known:
            room += state.held[key].amounts
            awaited.append(key)
            start = max(start, until)
            if part <= room:
                break
        else:
            if not part <= room + state.of_others:
                return None
            start = math.inf
    if not math.isinf(start) and not lives_from(state, cls, start):
        return None
    return start, awaited


class Ends:
    """When what runs on a worker ends, as it is now: looked at once for all the classes that ask."""

    def __init__(self, state: WorkerState, now: float) -> None:
        self.state = state
        self.first = min(map(end_of, state.held.values()), default=math.inf)
        self._now = now
        self._rooms: list[tuple[float, Amounts]] | None = None

    def start(self, cls: JobClass) -> float:
        """As `start_on` has it; infinite also where the job will not fit."""
        state, need = self.state, cls.need
        if not state.could_hold(need) or not lives_from(state, cls, self._now):
            return math.inf
        part, start = state.part(need), self._now
        if not part <= state.free:
            start = next((max(start, until) for until, room in self._then() if part <= room), math.inf)
        return start if math.isinf(start) or lives_from(state, cls, start) else math.inf

    def _then(self) -> list[tuple[float, Amounts]]:
        """What will be free, from when on."""
        if self._rooms is None:
            room, self._rooms = self.state.free, []
            for held in sorted(self.state.held.values(), key=end_of):
                if math.isinf(until := end_of(held)):
                    break
                room += held.amounts
                self._rooms.append((until, room))
        return self._rooms


def to_claim(
    reserved: Mapping[str, Reservation], states: Mapping[str, WorkerState], now: float
) -> tuple[str, dict[str, Amounts]] | None:
    """The key of the first job for which workers are kept, and what it will take of each.

    So that other runs on the same workers leave it room, too; not yet where it is known to start much later.
    """
    near = [
        (head.order, kept.made, head.job.key, kept)
        for kept in set(reserved.values())
        if (head := kept.cls.head()) is not None
        and (math.isinf(kept.start) or kept.start - now <= _NEAR_S)
        and not kept.whole
        and all(name in states for name in kept.workers)
    ]
    if not near:
        return None
    *_, key, kept = min(near, key=lambda one: one[:2])
    parts = kept.parts or {name: states[name].part(kept.cls.need) for name in kept.workers}
    return key, dict(parts)


def end_of(held: Part) -> float:
    """When it is over at the latest; infinite: not known."""
    return math.inf if held.holding.until is None else held.holding.until


def idle_at(state: WorkerState) -> float:
    """When the worker's last job ends at the latest; infinite: not known."""
    return max((end_of(held) for held in state.held.values()), default=0.0)
