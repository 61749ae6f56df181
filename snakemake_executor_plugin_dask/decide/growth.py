"""Which running jobs get Dask workers beyond those they started with, and which of these are given back. Pure.

A job with `dask_workers_max` gets more of them while there is room that no waiting job can use: such a Dask worker is
lent. A job that waits for the room gets it back. A lent one has a holding of its own, which counts as over at any
moment (`Holding.until`), so reservations and demand see its room as free.
"""

import heapq
from collections.abc import Container, Iterator, Mapping, Sequence

from snakemake_executor_plugin_dask.decide import gangs
from snakemake_executor_plugin_dask.decide.ledger import Ledger, WorkerState
from snakemake_executor_plugin_dask.decide.needs import Need
from snakemake_executor_plugin_dask.decide.waiting import WaitingClass
from snakemake_executor_plugin_dask.model.amounts import Amounts
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request

#: Room is lent once nothing has started or ended on its worker for so long: between two jobs it is not.
SETTLED_S = 2.0
_CLASSES = 64  # so many waiting classes are looked at
_JOBS = 100  # and so many jobs of each
_AT_ONCE = 100  # Dask workers are lent; more of them a moment later


@dataclass(frozen=True, slots=True)
class Growing:
    """A running job that may have more Dask workers."""

    key: str
    request: Request  # one Dask worker, as a job would ask for it
    more: int  # so many at most
    has: int  # so many lent ones it has


def to_lend(
    growing: Sequence[Growing],
    wanted: Sequence[WaitingClass],
    pool: Pool,
    ledger: Ledger,
    reserved: Container[str],
    now: float,
) -> list[tuple[str, WorkerState, Need]]:
    """Who gets one more Dask worker, and where: the job with the fewest first, as long as there is room for any.

    ``wanted``: what waits for the pool; ``reserved``: workers that are kept for a job of these.
    """
    rooms = {
        state: state.free
        for state in ledger.states(pool.name).values()
        if not state.draining and state.name not in reserved and now - state.changed >= SETTLED_S
    }
    needs = [(cls, cls.need or ledger.need(cls.request, pool)) for cls in wanted[:_CLASSES]]
    for state in list(rooms):
        there = rooms[state] + _lent_on(state)
        if any(_could_use(cls, need, state, there, now) for cls, need in needs):
            del rooms[state]
    lent: list[tuple[str, WorkerState, Need]] = []
    queue = [[one.has, position, one.more] for position, one in enumerate(growing) if one.more > 0]
    needs_of = {position: ledger.need(growing[position].request, pool) for _, position, _ in queue}
    places = {
        position: [state for state in rooms if state.lives(growing[position].request, now, fresh=False)]
        for _, position, _ in queue
    }
    while queue and len(lent) < _AT_ONCE:
        turn = min(queue)
        _, position, more = turn
        need = needs_of[position]
        # Room only shrinks here: what does not fit any more is not looked at again.
        places[position] = fitting = [state for state in places[position] if state.part(need) <= rooms[state]]
        if not fitting:
            queue.remove(turn)
            continue
        chosen = min(
            fitting,
            key=lambda state: (state.idle_since is not None, rooms[state].gpus, rooms[state].cores, state.name),
        )
        rooms[chosen] -= chosen.part(need)
        lent.append((growing[position].key, chosen, need))
        turn[0], turn[2] = turn[0] + 1, more - 1
        if not turn[2]:
            queue.remove(turn)
    return lent


def to_give_back(
    wanted: Sequence[WaitingClass], pool: Pool, ledger: Ledger, leaving: Container[str], now: float
) -> list[str]:
    """The keys of lent Dask workers whose room waiting jobs can use, these in their order; the youngest first.

    ``leaving``: those that are on their way already.
    """
    states = [state for state in ledger.states(pool.name).values() if not state.draining]
    lent = {state: [key for key in _lent_keys(state) if key not in leaving] for state in states}
    left = sum(map(len, lent.values()))
    if not left:
        return []
    rooms = {state: state.free + _lent_on(state, leaving) for state in states}
    whole = {state: rooms[state] + _sum(state, lent[state]) for state in states}  # if what is lent were free
    given: list[str] = []
    for cls in wanted[:_CLASSES]:
        need = cls.need or ledger.need(cls.request, pool)
        for parts in _each_start(cls, need, rooms, lent, whole, now):
            for state, part in parts:
                while not part <= rooms[state]:
                    key = lent[state].pop()
                    rooms[state] += state.held[key].amounts
                    given.append(key)
                rooms[state] -= part
                whole[state] -= part
            if len(given) == left:
                return given
    return given


def _each_start(
    cls: WaitingClass,
    need: Need,
    rooms: Mapping[WorkerState, Amounts],
    lent: Mapping[WorkerState, Sequence[str]],
    whole: Mapping[WorkerState, Amounts],
    now: float,
) -> Iterator[list[tuple[WorkerState, Amounts]]]:
    """Where each job of a class would start, if what is lent were free: where the least has to be given back.

    The caller takes these places before it asks for the next job's.
    """
    number = min(cls.count, _JOBS)
    if need.gang is not None:
        living = [state for state in whole if state.lives(cls.request, now, fresh=cls.fresh)]
        for _ in range(number):
            places = gangs.plan(need, [(state, whole[state]) for state in living])
            if not places:
                return
            yield [(place.state, place.amounts) for place in places]
        return
    parts = {
        state: part
        for state in whole
        if (part := state.part(need)) <= whole[state]
        and state.could_hold(need)
        and state.lives(cls.request, now, fresh=cls.fresh)
    }
    position = {state: index for index, state in enumerate(parts)}

    def entry(state: WorkerState) -> tuple[int, int, WorkerState]:
        return _number_to_give(state, parts[state], rooms[state], lent[state]), position[state], state

    fitting = [entry(state) for state in parts]
    heapq.heapify(fitting)
    for _ in range(number):
        if len(fitting) < need.workers:
            return
        chosen = [heapq.heappop(fitting)[2] for _ in range(need.workers)]
        yield [(state, parts[state]) for state in chosen]
        for state in chosen:
            if parts[state] <= whole[state]:
                heapq.heappush(fitting, entry(state))


def _number_to_give(state: WorkerState, part: Amounts, room: Amounts, lent: Sequence[str]) -> int:
    for number, key in enumerate(reversed(lent)):
        if part <= room:
            return number
        room += state.held[key].amounts
    return len(lent)


def _could_use(cls: WaitingClass, need: Need, state: WorkerState, room: Amounts, now: float) -> bool:
    """Whether a waiting job, or a part of one, fits into this room."""
    part = need.takes if need.gang is not None else state.part(need)
    return part <= room and state.lives(cls.request, now, fresh=cls.fresh)


def _lent_keys(state: WorkerState) -> Iterator[str]:
    """The oldest first."""
    return (key for key, held in state.held.items() if held.holding.lent)


def _lent_on(state: WorkerState, among: Container[str] | None = None) -> Amounts:
    return _sum(state, [key for key in _lent_keys(state) if among is None or key in among])


def _sum(state: WorkerState, keys: Sequence[str]) -> Amounts:
    return sum((state.held[key].amounts for key in keys), Amounts())
