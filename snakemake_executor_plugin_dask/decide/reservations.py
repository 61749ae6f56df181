"""Workers that are kept for a job which does not fit yet, so that others do not starve it. Pure."""

import math

from snakemake_executor_plugin_dask.decide.ledger import Held, Need, WorkerState, planned_runtime_s
from snakemake_executor_plugin_dask.decide.waiting import JobClass, Reservation


def lets_pass(reservation: Reservation, state: WorkerState, cls: JobClass, now: float) -> bool:
    """Whether a job of another class may start on this worker without delaying the one it is kept for."""
    if cls.request.runtime_s is not None and cls.request.runtime_s <= time_to_pass_s(reservation, now):
        return True
    if reservation.whole:
        return False
    lacks = lacks_beside(reservation, state)
    lacks.add(state, cls.need)
    return not lacks.any()


def time_to_pass_s(reservation: Reservation, now: float) -> float:
    """Jobs that are known to end within so many seconds delay nothing. An unknown start leaves no time to pass."""
    return -1.0 if math.isinf(reservation.start) else reservation.start - now


def lacks_beside(reservation: Reservation, state: WorkerState) -> "Lacks":
    """What the worker lacks for the job that it is kept for, once the awaited leases are over."""
    lacks = Lacks(state, reservation.cls.need)
    for key in reservation.awaited & state.held.keys():
        lacks.end(state.held[key])
    return lacks


def lives_from(state: WorkerState, cls: JobClass, start: float) -> bool:
    """Whether the allocation's life would cover a job that starts then."""
    if state.end is None:
        return True
    planned = planned_runtime_s(cls.request, cls.pool) or 0.0
    return start + planned + cls.pool.margin <= state.end


def start_on(state: WorkerState, cls: JobClass, now: float) -> tuple[float, list[str]] | None:
    """When a job of this class will fit on the worker, and the leases that end before.

    Infinite: one of them has no known end. None: it will not fit in the worker's life.
    """
    need = cls.need
    if not state.could_hold(need) or not lives_from(state, cls, now):
        return None
    lacks = Lacks(state, need)
    awaited: list[str] = []
    start = now
    if lacks.any():
        known = sorted((_end(held), key) for key, held in state.held.items())
        for until, key in known:
            lacks.end(state.held[key])
            awaited.append(key)
            start = max(start, until)
            if not lacks.any():
                break
        else:
            return None
    if not math.isinf(start) and not lives_from(state, cls, start):
        return None
    return start, awaited


class Lacks:
    """What a worker lacks for a need (negative: has left beside it), while leases end one by one."""

    def __init__(self, state: WorkerState, need: Need) -> None:
        self.nodes = need.nodes - len(state.free_hosts) if state.wide else 0
        self.cores = 0 if state.wide else need.cores - state.free_cores
        self.memory_mb = 0 if state.wide else state.memory_for(need) - state.free_memory_mb
        self.gpus = 0 if state.wide else need.gpus - len(state.free_devices)
        self.coreless = 0 if state.wide else int(not need.cores) - state.free_coreless
        self._extra = {name: amount - state.free_extra[name] for name, amount in need.extra}

    def end(self, held: Held) -> None:
        self.nodes -= len(held.hosts)
        self.cores -= held.cores
        self.memory_mb -= held.memory_mb
        self.gpus -= len(held.devices)
        self.coreless -= held.coreless
        if self._extra:
            for name, amount in held.extra:
                if name in self._extra:
                    self._extra[name] -= amount

    def add(self, state: WorkerState, other: Need) -> None:
        """Another job takes its part beside it."""
        if state.wide:
            self.nodes += other.nodes
        else:
            self.cores += other.cores
            self.coreless += int(not other.cores)
            self.memory_mb += state.memory_for(other)
            self.gpus += other.gpus
        for name, amount in other.extra:
            self._extra[name] = self._extra.get(name, -state.free_extra[name]) + amount

    def any(self) -> bool:
        return (
            self.cores > 0
            or self.memory_mb > 0
            or self.gpus > 0
            or self.coreless > 0
            or self.nodes > 0
            or any(amount > 0 for amount in self._extra.values())
        )


def _end(held: Held) -> float:
    return math.inf if held.lease.until is None else held.lease.until


def idle_at(state: WorkerState) -> float:
    """When the worker's last job ends at the latest; infinite: not known."""
    return max((_end(held) for held in state.held.values()), default=0.0)
