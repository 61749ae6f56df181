"""Which waiting job starts now, and on which worker. Pure: clocks are passed in.

Order: highest priority first, then those that more jobs wait for, then by arrival. A job that does not fit is passed by
others, and is kept from starving by a reservation: a worker (for a job on several workers, as many) that others may use
only where that does not delay it. Only workers with more room than at the last look, and classes with a new first job,
are looked at again.
"""

import heapq
import math
from collections.abc import Iterable

from snakemake_executor_plugin_dask.blockers import Blocker, blockers
from snakemake_executor_plugin_dask.ledger import Lease, Ledger, Need, WorkerState, renewable
from snakemake_executor_plugin_dask.messages import QueuedJob
from snakemake_executor_plugin_dask.reservations import idle_at, lets_pass, lives_from, start_on
from snakemake_executor_plugin_dask.waiting import JobClass, Most, Order, Queue, Reservation, Waiting, WaitingClass

__all__ = ["Blocker", "Waiting", "WaitingClass", "blockers", "place"]

#: A job that waits for others whose end is not known may be passed for so long; then a worker is kept for it.
PATIENCE_S = 60.0
_PLAN_EVERY_S = 1.0
_PLANNED_CLASSES = 16  # so many blocked classes are considered for a reservation, fewer with many workers
_PLANNED_WORKERS = 1000
_MAX_RESERVATIONS = 8  # of a pool, and never more than half its workers but for one job


def place(waiting: Waiting, ledger: Ledger, now: float) -> list[tuple[QueuedJob, Lease]]:
    """The jobs that start now: taken out of ``waiting``, held in the ledger."""
    placed: list[tuple[QueuedJob, Lease]] = []
    for queue in waiting.queues():
        placed += _Round(queue, waiting, ledger, now).run()
    return placed


class _Round:
    """One look at one pool."""

    def __init__(self, queue: Queue, waiting: Waiting, ledger: Ledger, now: float) -> None:
        self.queue = queue
        self.waiting = waiting
        self.ledger = ledger
        self.now = now
        self.states = ledger.states(queue.pool.name)
        self.placed: list[tuple[QueuedJob, Lease]] = []
        self.live: list[WorkerState] = []  # workers with more room than at the last look
        self.roomy: list[WorkerState] = []
        self.most = Most([])
        self.candidates: dict[JobClass, list[WorkerState]] = {}  # of the classes looked at: where they may still fit
        self.last: dict[JobClass, WorkerState] = {}  # where the class's last job went

    def run(self) -> list[tuple[QueuedJob, Lease]]:
        queue = self.queue
        self._check_reservations()
        gained = self.ledger.take_gained(queue.pool.name) | queue.unlocked
        queue.unlocked = set()
        self._set_live(state for name in sorted(gained) if (state := self.states.get(name)))
        if self.live or queue.unchecked:
            self._fresh_first()
            self._walk()
        if self.now >= queue.next_plan:
            queue.next_plan = self.now + _PLAN_EVERY_S
            self._plan()
        return self.placed

    def _walk(self) -> None:
        """Start what fits, in order: all classes on the workers that gained, the unchecked ones on every worker."""
        self.roomy = [state for state in self.states.values() if self.queue.any_room(state)]
        while not self._walk_all():
            self._walk_unchecked()
            if not self.live:
                return

    def _walk_all(self) -> bool:
        """Look at each class while a worker that gained has room; returns whether the end was reached."""
        queue, position = self.queue, 0
        while position < len(queue.heads):
            if not self.live:
                return False
            cls = queue.heads[position][1]
            everywhere = cls in queue.unchecked or cls in self.candidates or cls.need.workers > 1
            # After a start this position holds another class, or the same one with its next job.
            if (everywhere or self.most.may_hold(cls)) and self._start(cls):
                continue
            queue.unchecked.discard(cls)
            position += 1
        return True

    def _walk_unchecked(self) -> None:
        """Look at the unchecked classes alone, until a worker gains by the end of a reservation."""
        unchecked = self.queue.unchecked
        heap = [(head.order, cls) for cls in unchecked if (head := cls.head())]
        heapq.heapify(heap)
        while heap and not self.live:
            cls = heapq.heappop(heap)[1]
            if self._start(cls) and (head := cls.head()):
                heapq.heappush(heap, (head.order, cls))
            else:
                unchecked.discard(cls)

    def _fresh_first(self) -> None:
        """New allocations go first to the jobs that need one, once these have waited long enough."""
        fresh = [
            state for state in self.states.values() if state.end is not None and not state.used and not state.draining
        ]
        if not fresh:
            return
        for _, cls in list(self.queue.heads):
            if cls.needs_fresh and self._waited_s(cls) >= PATIENCE_S:
                self.candidates[cls] = list(fresh)
                while cls.count and self._start(cls):
                    pass
                del self.candidates[cls]

    def _start(self, cls: JobClass) -> bool:
        """Start the class's first job, if it fits where it may run."""
        entry = cls.head()
        if entry is None:
            return False
        if cls not in self.candidates:
            everywhere = cls in self.queue.unchecked or cls.need.workers > 1
            self.candidates[cls] = list(self.roomy if everywhere else self.live)
        if cls.spreads:
            cls.need = self.ledger.need(cls.request, cls.pool)
        chosen = self._choose(cls, entry.order)
        if not chosen:
            return False
        self.last[cls] = chosen[0]
        lease = self.ledger.hold_on(entry.job.spec.key, chosen, entry.job.request, cls.need, self.now)
        self.placed.append((entry.job, lease))
        for state in chosen:
            kept = self.queue.reserved.get(state.name)
            if kept is not None and lease.until is not None and lease.until <= kept.start:
                kept.awaited.add(lease.key)
        self._unlock(self.queue.unreserve(cls))
        self.waiting.placed(entry)
        self._set_live(self.live)
        return True

    def _set_live(self, states: Iterable[WorkerState]) -> None:
        self.live = [state for state in states if self.queue.any_room(state)]
        self.most = Most(self.live)

    def _choose(self, cls: JobClass, order: Order) -> list[WorkerState]:
        """The workers for a class's first job; none: it does not fit now."""
        need, wanted = cls.need, cls.need.workers
        last = self.last.get(cls)
        if wanted == 1 and last is not None and self._fits(last, cls) and self._passes(last, cls, order):
            # It was the best choice for the job before and is fuller now.
            return [last]
        candidates = self.candidates[cls]
        candidates[:] = [state for state in candidates if self._fits(state, cls)]
        fitting = [state for state in candidates if self._passes(state, cls, order)]
        if len(fitting) < wanted:
            return []
        if wanted == 1:
            return [min(fitting, key=lambda state: _left_over(state, need))]
        return sorted(fitting, key=lambda state: _left_over(state, need))[:wanted]

    def _fits(self, state: WorkerState, cls: JobClass) -> bool:
        return not state.draining and state.has_room(cls.need) and state.lives(cls.request, self.now, fresh=cls.fresh)

    def _passes(self, state: WorkerState, cls: JobClass, order: Order) -> bool:
        kept = self.queue.reserved.get(state.name)
        if kept is None or kept.cls is cls:
            return True
        head = kept.cls.head()
        return head is None or order < head.order or lets_pass(kept, state, cls, self.now)

    def _unlock(self, names: Iterable[str]) -> None:
        """Workers that are no longer kept are open to the classes further on."""
        for name in names:
            state = self.states.get(name)
            if state is None or not self.queue.any_room(state):
                continue
            for candidates in [self.live, self.roomy, *self.candidates.values()]:
                if state not in candidates:
                    candidates.append(state)
        self.most = Most(self.live)

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
        budget = _PLANNED_WORKERS
        for _, cls in queue.heads[:_PLANNED_CLASSES]:
            if budget < 0:
                break
            newest = max((kept.made for kept in queue.reserved.values() if kept.cls is cls), default=None)
            if newest is not None and self.now - newest < PATIENCE_S:
                continue
            # One that waits on for so long gets a further worker, until the first of them has room.
            most = max(1, min(_MAX_RESERVATIONS, len(self.states) // 2))
            if newest is None and queue.reserved and len(queue.reserved) + cls.need.workers > most:
                continue
            reservation, looked_at = self._reservation(cls)
            budget -= looked_at
            if reservation is not None:
                for name in reservation.workers:
                    queue.reserved[name] = reservation

    def _reservation(self, cls: JobClass) -> tuple[Reservation | None, int]:
        """The workers to keep for a class's first job, and how many were looked at closely."""
        patient = self._waited_s(cls) < PATIENCE_S
        states = [
            state for state in self.states.values() if not state.draining and state.name not in self.queue.reserved
        ]
        if cls.needs_fresh and any(state.end is not None for state in states):
            return (None if patient else self._for_a_new_one(cls, states)), 0
        plans = [(*found, state) for state in states if (found := start_on(state, cls, self.now))]
        if len(plans) < cls.need.workers:
            return None, len(plans)
        chosen = sorted(plans, key=lambda plan: (plan[0], len(plan[1])))[: cls.need.workers]
        start = chosen[-1][0]
        if math.isinf(start) and patient:
            return None, len(plans)
        awaited = {key for _, keys, _ in chosen for key in keys}
        names = tuple(state.name for *_, state in chosen)
        return Reservation(cls, names, start, awaited, whole=False, made=self.now), len(plans)

    def _for_a_new_one(self, cls: JobClass, states: list[WorkerState]) -> Reservation | None:
        """Keep a worker from getting jobs, so that it goes idle and a new one may come, where no further one may."""
        if not renewable(cls.pool) or len(self.states) < cls.pool.workers_max:
            return None
        if not states or any(state.fresh(self.now) or state.idle_since is not None for state in states):
            return None
        state = min(states, key=idle_at)
        return Reservation(cls, (state.name,), idle_at(state), set(), whole=True, made=self.now)


def _left_over(state: WorkerState, need: Need) -> tuple[bool, bool, int, int, int, int]:
    """The smaller, the better the choice: workers that run something, then tight fits, so that others go idle."""
    return (
        state.idle_since is not None,
        not state.used,
        len(state.free_devices) - need.gpus,
        len(state.free_hosts) - need.nodes,
        state.free_cores - need.cores,
        state.free_memory_mb,
    )
