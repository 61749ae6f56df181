"""Which waiting job starts now, and on which worker. Pure: clocks are passed in.

Order: highest priority first, then by arrival. A job that does not fit is passed by others, and is kept from starving
by a reservation: a worker (for a job on several workers, as many) that others may use only where that does not delay
it. Only workers with more room than at the last look, and classes with a new first job, are looked at again.
"""

import heapq
import math
from bisect import insort
from collections.abc import Collection, Iterable, Mapping, Sequence

from snakemake_executor_plugin_dask.decide import gangs
from snakemake_executor_plugin_dask.decide.ledger import Holding, Ledger, Place, WorkerState
from snakemake_executor_plugin_dask.decide.needs import Need
from snakemake_executor_plugin_dask.decide.reservations import (
    Ends,
    idle_at,
    in_time,
    lets_pass,
    lives_from,
    room_beside,
    start_on,
    time_to_pass_s,
)
from snakemake_executor_plugin_dask.decide.waiting import JobClass, Order, Queue, Reservation, Waiting
from snakemake_executor_plugin_dask.model.amounts import NOTHING, Amounts
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request

#: A job that waits for others whose end is not known may be passed for so long; then a worker is kept for it.
PATIENCE_S = 60.0
_PLAN_EVERY_S = 1.0
_PLANNED_CLASSES = 16  # so many blocked classes are considered for a reservation, fewer with many workers
_PLANNED_WORKERS = 1000
_CLOSE_LOOKS = 8  # so many workers with more room are told apart before each class is looked at
_NARROWS = 0.9  # of more workers, the look at all of them is done anew once so many of them are left
_MAX_RESERVATIONS = 8  # of a pool, and never more than half its workers but for one job


def place(waiting: Waiting, ledger: Ledger, now: float, most: int | None = None) -> list[tuple[QueuedJob, Holding]]:
    """The jobs that start now: taken out of ``waiting``, held in the ledger.

    At ``most`` so many; where it gives that many, there may be more, and the next call goes on with them.
    """
    placed: list[tuple[QueuedJob, Holding]] = []
    for queue in waiting.queues():
        placed += _Round(queue, waiting, ledger, now, math.inf if most is None else most - len(placed)).run()
    return placed


@dataclass(frozen=True, slots=True)
class Missing:
    """Dask workers that a running job has lost."""

    key: str  # of its holding
    request: Request
    pool: Pool
    workers: int


def place_missing(
    missing: Missing, waiting: Waiting, ledger: Ledger, now: float
) -> list[tuple[Place, tuple[str, ...]]]:
    """Places for as many of them as have room now, held in the ledger, each with its devices."""
    need = ledger.need(missing.request, missing.pool)
    reserved = waiting.reserved(missing.pool.name)
    if need.dask_workers:
        return _place_on_nodes(missing, reserved, ledger, now)
    rooms = [
        (state, state.free if (kept := reserved.get(state.name)) is None else _beside(kept, state))
        for state in ledger.states(missing.pool.name).values()
        if not state.draining and missing.key not in state.held and state.lives(missing.request, now, fresh=False)
    ]
    places = gangs.more(need, missing.workers, rooms)
    return [(place, ledger.add_place(missing.key, place, now)) for place in places]


def _place_on_nodes(
    missing: Missing, reserved: Mapping[str, Reservation], ledger: Ledger, now: float
) -> list[tuple[Place, tuple[str, ...]]]:
    """As `place_missing`, where the job has whole nodes of a wide worker: on others of the same."""
    ((state, _),) = ledger.parts(missing.key)
    cluster = missing.request.cluster
    assert cluster is not None
    if state.draining:
        return []
    free = state.free if (kept := reserved.get(state.name)) is None else _beside(kept, state)
    places = gangs.more_on_nodes(cluster, missing.workers, state, max(0, free.nodes))
    return [(place, ledger.add_place(missing.key, place, now)) for place in places]


class _Round:
    """One look at one pool."""

    def __init__(self, queue: Queue, waiting: Waiting, ledger: Ledger, now: float, most: float) -> None:
        self.queue = queue
        self.most = most
        self.waiting = waiting
        self.ledger = ledger
        self.now = now
        self.states = ledger.states(queue.pool.name)
        self.placed: list[tuple[QueuedJob, Holding]] = []
        self.live: list[WorkerState] = []  # workers with more room than at the last look
        self._roomy: list[WorkerState] | None = None  # see `roomy`
        self.hope = _Hope([], self.queue, now)
        self.looked: dict[JobClass, bool] = {}  # the classes looked at, and whether on every worker
        self.candidates: dict[JobClass, list[WorkerState]] = {}  # of some of these: where they may still fit
        self._busy: list[WorkerState] | None = None
        self.busy_live: list[WorkerState] = []
        self.last: dict[JobClass, WorkerState] = {}  # where the class's last job went

    def run(self) -> list[tuple[QueuedJob, Holding]]:
        queue = self.queue
        if self._enough():
            return []
        self._check_reservations()
        gained = self.ledger.take_gained(queue.pool.name) | queue.unlocked
        queue.unlocked = set()
        self._set_live(state for name in sorted(gained) if (state := self.states.get(name)))
        if self.live or queue.unchecked:
            self._fresh_first()
            self._walk()
        if self._enough():  # the next round goes on where this one stopped
            queue.unlocked = {state.name for state in self.live}
            return self.placed
        if self.now >= queue.next_plan:
            queue.next_plan = self.now + _PLAN_EVERY_S
            self._plan()
        return self.placed

    @property
    def roomy(self) -> list[WorkerState]:
        """All workers with room. Found when first asked for: of a thousand, each end of a job concerns one."""
        if self._roomy is None:
            self._roomy = [state for state in self.states.values() if self.queue.any_room(state)]
        return self._roomy

    @property
    def busy(self) -> list[WorkerState]:
        """Of the roomy ones, those where something runs."""
        if self._busy is None:
            self._busy = _busy(self.roomy)
        return self._busy

    def _everywhere(self, cls: JobClass) -> bool:
        """Whether it takes more than a look at the workers that gained."""
        return cls in self.queue.unchecked or cls.need.workers > 1 or cls.need.gang is not None

    def _enough(self) -> bool:
        return len(self.placed) >= self.most

    def _walk(self) -> None:
        """Start what fits, in order: all classes on the workers that gained, the unchecked ones on every worker."""
        self.busy_live = _busy(self.live)
        while not self._walk_all():
            if not self._enough():
                self._walk_unchecked()
            if self._enough() or not self.live:
                return

    def _walk_all(self) -> bool:
        """Look at each class while a worker that gained has room; returns whether the end was reached."""
        queue, position = self.queue, 0
        while position < len(queue.heads):
            if self._enough() or not self.live:
                return False
            order, cls = queue.heads[position]
            everywhere = cls in self.looked or self._everywhere(cls)
            # After a start this position holds another class, or the same one with its next job.
            if (everywhere or self.hope.for_class(cls, order)) and self._start(cls):
                continue
            queue.unchecked.discard(cls)
            position += 1
        return True

    def _walk_unchecked(self) -> None:
        """Look at the unchecked classes alone, until a worker gains by the end of a reservation."""
        unchecked = self.queue.unchecked
        heap = [(head.order, cls) for cls in unchecked if (head := cls.head())]
        heapq.heapify(heap)
        while heap and not self.live and not self._enough():
            cls = heapq.heappop(heap)[1]
            if self._start(cls) and (head := cls.head()):
                heapq.heappush(heap, (head.order, cls))
            else:
                unchecked.discard(cls)

    def _fresh_first(self) -> None:
        """New allocations go first to the jobs that need one, once these have waited long enough."""
        if not self.queue.fresh:
            return
        fresh = [
            state
            for state in self.states.values()
            if state.end is not None and state.fresh(self.now) and not state.draining
        ]
        if not fresh:
            return
        self._busy = []  # no others are meant
        for _, cls in list(self.queue.heads):
            if cls.needs_fresh and self._waited_s(cls) >= PATIENCE_S:
                self.looked[cls], self.candidates[cls] = True, list(fresh)
                while cls.count and not self._enough() and self._start(cls):
                    pass
                del self.looked[cls], self.candidates[cls]
        self._busy = None

    def _start(self, cls: JobClass) -> bool:
        """Start the class's first job, if it fits where it may run."""
        entry = cls.head()
        if entry is None:
            return False
        if cls not in self.looked:
            self.looked[cls] = self._everywhere(cls)
        if cls.spreads:
            cls.need = self.ledger.need(cls.request, cls.pool)
        if cls.need.gang is not None:
            places = self._choose_places(cls, entry.order)
            if not places:
                return False
            chosen = [place.state for place in places]
            holding = self.ledger.hold_gang(entry.job.key, places, entry.job.request, self.now)
        else:
            chosen = self._choose(cls, entry.order)
            if not chosen:
                return False
            self.last[cls] = chosen[0]
            holding = self.ledger.hold(entry.job.key, chosen, entry.job.request, cls.need, self.now)
        self.placed.append((entry.job, holding))
        for state in chosen:
            kept = self.queue.reserved.get(state.name)
            if kept is not None and holding.until is not None and holding.until <= kept.start < math.inf:
                kept.awaited.add(holding.key)
        self._unlock(self.queue.unreserve(cls))
        self.waiting.placed(entry)
        self._took(chosen)
        return True

    def _took(self, chosen: Sequence[WorkerState]) -> None:
        """These workers have less room than before. That of a thousand others need not be looked at for each job."""
        full = [state for state in chosen if not self.queue.any_room(state)]
        for state in chosen:
            if self._busy is not None and state not in self._busy:
                self._busy.append(state)
            if state not in self.busy_live and state in self.live:
                self.busy_live.append(state)
        if full:
            self.live, self.busy_live = (
                [state for state in states if state not in full] for states in (self.live, self.busy_live)
            )
            if self._busy is not None:
                self._busy = [state for state in self._busy if state not in full]
        if len(self.live) <= max(_CLOSE_LOOKS, _NARROWS * self.hope.workers):
            self.hope = _Hope(self.live, self.queue, self.now)

    def _set_live(self, states: Iterable[WorkerState]) -> None:
        self.live = [state for state in states if self.queue.any_room(state)]
        self.hope = _Hope(self.live, self.queue, self.now)

    def _choose(self, cls: JobClass, order: Order) -> list[WorkerState]:
        """The workers for a class's first job; none: it does not fit now."""
        need, wanted = cls.need, cls.need.workers
        last = self.last.get(cls)
        if wanted == 1 and last is not None and self._fits(last, cls) and self._passes(last, cls, order):
            # It was the best choice for the job before and is fuller now.
            return [last]
        if wanted == 1:
            # Any of them comes before all that are idle, of which there may be a thousand.
            busy = self.busy if self.looked[cls] else self.busy_live
            fitting = [state for state in busy if self._fits(state, cls) and self._passes(state, cls, order)]
            if fitting:
                return [min(fitting, key=lambda state: _left_over(state, need))]
        fitting = [state for state in self._candidates(cls) if self._passes(state, cls, order)]
        if len(fitting) < wanted:
            return []
        return heapq.nsmallest(wanted, fitting, key=lambda state: _left_over(state, need))

    def _choose_places(self, cls: JobClass, order: Order) -> list[Place]:
        """As `_choose`, for a job whose Dask cluster may lie on several workers."""
        return gangs.plan(cls.need, [(state, self._room(state, cls, order)) for state in self._candidates(cls)])

    def _candidates(self, cls: JobClass) -> list[WorkerState]:
        """Where the class's first job fits."""
        known = self.candidates.get(cls)
        if known is None:
            known = self.roomy if self.looked[cls] else self.live
        found = self.candidates[cls] = [state for state in known if self._fits(state, cls)]
        return found

    def _room(self, state: WorkerState, cls: JobClass, order: Order) -> Amounts:
        """What a class may take of a worker, beside the job that it is kept for."""
        kept = self.queue.reserved.get(state.name)
        if kept is None or not _binds(kept, cls, order) or in_time(kept, cls, self.now):
            return state.free
        return _beside(kept, state)

    def _fits(self, state: WorkerState, cls: JobClass) -> bool:
        return not state.draining and state.has_room(cls.need) and state.lives(cls.request, self.now, fresh=cls.fresh)

    def _passes(self, state: WorkerState, cls: JobClass, order: Order) -> bool:
        kept = self.queue.reserved.get(state.name)
        return kept is None or not _binds(kept, cls, order) or lets_pass(kept, state, cls, self.now)

    def _unlock(self, names: Collection[str]) -> None:
        """Workers that are no longer kept are open to the classes further on."""
        if not names:
            return
        for name in names:
            state = self.states.get(name)
            if state is None or not self.queue.any_room(state):
                continue
            busy = [] if state.idle_since is not None else [self._busy, self.busy_live]
            for candidates in [self.live, self._roomy, *busy, *self.candidates.values()]:
                if candidates is not None and state not in candidates:
                    candidates.append(state)
        self.hope = _Hope(self.live, self.queue, self.now)

    def _waited_s(self, cls: JobClass) -> float:
        """How long the class's first job has waited while there were workers."""
        head = cls.head()
        joined = min((state.joined for state in self.states.values()), default=self.now)
        return 0.0 if head is None else self.now - max(head.since, joined)

    def _check_reservations(self) -> None:
        queue = self.queue
        for kept in set(queue.reserved.values()):
            states = [self.states.get(name) for name in kept.workers]
            if not all(state and not state.draining and self._will_live(state, kept) for state in states):
                queue.unlocked |= {name for name in kept.workers if queue.reserved.pop(name, None)}

    def _will_live(self, state: WorkerState, kept: Reservation) -> bool:
        return kept.whole or lives_from(state, kept.cls, max(self.now, kept.start))

    def _plan(self) -> None:
        """Keep workers for the first of the jobs that do not fit now."""
        queue = self.queue
        budget, full = _PLANNED_WORKERS, False
        ends: list[Ends] = []  # of all workers, once a class needs them
        for _, cls in queue.heads[:_PLANNED_CLASSES]:
            if budget < 0:
                break
            newest = max((kept.made for kept in queue.reserved.values() if kept.cls is cls), default=None)
            if newest is not None and self.now - newest < PATIENCE_S:
                continue
            # One that waits on for so long gets a further worker, until the first of them has room.
            most = max(1, min(_MAX_RESERVATIONS, len(self.states) // 2))
            if newest is None and (full or (queue.reserved and len(queue.reserved) + cls.need.workers > most)):
                continue
            reservation, looked_at = self._reservation(cls, ends)
            budget -= looked_at
            if reservation is None:
                continue
            # Those that come after a job for which there is no room among the reservations get none before it.
            full = newest is None and bool(queue.reserved) and len(queue.reserved) + len(reservation.workers) > most
            if not full:
                for name in reservation.workers:
                    queue.reserved[name] = reservation

    def _reservation(self, cls: JobClass, ends: list[Ends]) -> tuple[Reservation | None, int]:
        """The workers to keep for a class's first job, and how many were looked at closely."""
        patient = self._waited_s(cls) < PATIENCE_S
        states = [
            state for state in self.states.values() if not state.draining and state.name not in self.queue.reserved
        ]
        if cls.needs_fresh and any(state.end is not None for state in states):
            return (None if patient else self._for_a_new_one(cls, states)), 0
        if cls.need.gang is not None:
            return self._of_places(cls, states, patient=patient), len(states)
        chosen, looked_at = self._soonest(cls, states, ends)
        start = chosen[-1][0] if chosen else math.inf
        if not chosen or (math.isinf(start) and patient):
            return None, looked_at
        awaited = {key for *_, keys, _ in chosen for key in keys}
        names = tuple(state.name for *_, state in chosen)
        return Reservation(cls, names, start, awaited, whole=False, made=self.now), looked_at

    def _soonest(
        self, cls: JobClass, states: Sequence[WorkerState], ends: list[Ends]
    ) -> tuple[list[tuple[float, int, int, list[str], WorkerState]], int]:
        """The workers on which the class's first job can start first: when, and which holdings end before.

        None where there are too few. Also how many were looked at closely: of a thousand, few.
        """
        if not ends:
            ends += sorted((Ends(state, self.now) for state in self.states.values()), key=lambda each: each.first)
        need, open_to = cls.need, set(states)
        some_fits = any(state.has_room(need) for state in self.roomy)
        found: list[tuple[float, int, int, list[str], WorkerState]] = []
        looked_at = 0
        for each in ends:
            state = each.state
            if len(found) >= need.workers and each.first > found[need.workers - 1][0]:
                if not some_fits:
                    break  # none of the others has room any sooner
                if not state.has_room(need):
                    continue
            if state in open_to and (plan := start_on(state, cls, self.now)):
                start, awaited = plan
                looked_at += 1
                insort(found, (start, len(awaited), looked_at, awaited, state))
        return (found[: need.workers] if len(found) >= need.workers else []), looked_at

    def _of_places(self, cls: JobClass, states: list[WorkerState], *, patient: bool) -> Reservation | None:
        """As `_reservation`, for a job whose Dask cluster may lie on several workers."""
        found = gangs.start(cls, states, self.now)
        if found is None or (math.isinf(found[0]) and patient):
            return None
        start, awaited, places = found
        parts = {place.state.name: place.amounts for place in places}
        return Reservation(cls, tuple(parts), start, awaited, whole=False, made=self.now, parts=parts)

    def _for_a_new_one(self, cls: JobClass, states: list[WorkerState]) -> Reservation | None:
        """Keep a worker from getting jobs, so that it goes idle and a new one may come, where no further one may."""
        if not cls.pool.kind.queued or len(self.states) < cls.pool.workers_max:
            return None
        if not states or any(state.fresh(self.now) or state.idle_since is not None for state in states):
            return None
        state = min(states, key=idle_at)
        return Reservation(cls, (state.name,), idle_at(state), set(), whole=True, made=self.now)


class _Hope:
    """A quick no for most of the classes that fit on none of these workers; cheap, as thousands of them may wait.

    It stays a true no where the workers have less room later on.
    """

    def __init__(self, states: list[WorkerState], queue: Queue, now: float) -> None:
        firsts: list[Order] = []
        self.workers = len(states)
        self._rows: list[tuple[float, ...]] = []
        for state in states:
            cores, memory_mb, gpus = state.free.cores, state.free.memory_mb, state.free.gpus
            row: tuple[float, ...] = (cores, memory_mb, gpus, -1.0, cores, memory_mb, gpus, _life_s(state, now))
            kept = queue.reserved.get(state.name)
            head = None if kept is None else kept.cls.head()
            if kept is not None and head is not None and not state.wide:
                beside = room_beside(kept, state)
                amounts = (beside.cores, beside.memory_mb, beside.gpus)
                left = (-1, -1, -1) if kept.whole else tuple(max(0, amount) for amount in amounts)
                row = (*left, time_to_pass_s(kept, now), *row[4:])
                firsts.append(head.order)
            self._rows.append(row)
        self._first = max(firsts, default=None)  # classes up to here are not bound by all of the reservations
        if len(self._rows) > _CLOSE_LOOKS:
            self._rows = [tuple(max(column) for column in zip(*self._rows, strict=True))]

    def for_class(self, cls: JobClass, order: Order) -> bool:
        if self._first is not None and order <= self._first:
            return True
        cores, memory_mb, gpus, runtime_s = cls.least.cores, cls.least.memory_mb, cls.least.gpus, cls.request.runtime_s
        for beside_cores, beside_mb, beside_gpus, time_s, free_cores, free_mb, free_gpus, life_s in self._rows:
            if cls.planned_s > life_s:
                continue
            if cores <= beside_cores and memory_mb <= beside_mb and gpus <= beside_gpus:
                return True
            in_time = runtime_s is not None and runtime_s <= time_s
            if in_time and cores <= free_cores and memory_mb <= free_mb and gpus <= free_gpus:
                return True
        return False


def _busy(states: Iterable[WorkerState]) -> list[WorkerState]:
    return [state for state in states if state.idle_since is None]


def _beside(kept: Reservation, state: WorkerState) -> Amounts:
    """What is free for others now."""
    return NOTHING if kept.whole else state.free.least(room_beside(kept, state))


def _binds(kept: Reservation, cls: JobClass, order: Order) -> bool:
    """Whether the class's first job must not delay the one that a worker is kept for."""
    if kept.cls is cls:
        return False
    head = kept.cls.head()
    return head is not None and order > head.order


def _life_s(state: WorkerState, now: float) -> float:
    """The longest that a job may be planned to run there; infinite where that takes a closer look."""
    if state.end is None or state.fresh(now) or not state.pool.kind.queued:
        return math.inf
    return state.end - now - state.pool.effective_margin_s


def _left_over(state: WorkerState, need: Need) -> tuple[bool, bool, int, int, int, int]:
    """The smaller, the better the choice: workers that run something, then tight fits, so that others go idle."""
    return (
        state.idle_since is not None,
        not state.used,
        state.free.gpus - need.takes.gpus,
        state.free.nodes - need.takes.nodes,
        state.free.cores - need.takes.cores,
        state.free.memory_mb,
    )
