"""Which running jobs get Dask workers beyond those they started with, and which of these are given back. Pure.

A job with `dask_workers_max` gets more of them while there is room that no waiting job can use: such a Dask worker is
lent. A job that waits for the room gets it back. A lent one has a holding of its own, which counts as over at any
moment (`Holding.until`), so reservations and demand see its room as free.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from snakemake_executor_plugin_dask.decide import gangs
from snakemake_executor_plugin_dask.decide.ledger import Ledger, Need, WorkerState
from snakemake_executor_plugin_dask.decide.waiting import WaitingClass
from snakemake_executor_plugin_dask.model.amounts import Amounts
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request

#: Room is lent once nothing has started or ended on its worker for so long: between two jobs it is not.
SETTLED_S = 2.0
_CLASSES = 64  # so many waiting classes are looked at
_JOBS = 100  # and so many jobs of each


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
    while queue:
        turn = min(queue)
        one = growing[turn[1]]
        need = ledger.need(one.request, pool)
        fitting = [
            state
            for state, room in rooms.items()
            if state.part(need) <= room and state.lives(one.request, now, fresh=False)
        ]
        if not fitting:
            queue.remove(turn)
            continue
        chosen = min(
            fitting,
            key=lambda state: (state.idle_since is not None, rooms[state].gpus, rooms[state].cores, state.name),
        )
        rooms[chosen] -= chosen.part(need)
        lent.append((one.key, chosen, need))
        turn[0], turn[2] = turn[0] + 1, turn[2] - 1
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
    rooms = {state: state.free + _lent_on(state, leaving) for state in states}
    lent = {state: [key for key in _lent_keys(state) if key not in leaving] for state in states}
    given: list[str] = []
    for cls in wanted[:_CLASSES] if any(lent.values()) else ():
        need = cls.need or ledger.need(cls.request, pool)
        for _ in range(min(cls.count, _JOBS)):
            parts = _parts(cls, need, rooms, lent, now)
            if not parts:
                break
            for state, part in parts:
                while not part <= rooms[state]:
                    key = lent[state].pop()
                    rooms[state] += state.held[key].amounts
                    given.append(key)
                rooms[state] -= part
    return given


def _parts(
    cls: WaitingClass, need: Need, rooms: dict[WorkerState, Amounts], lent: dict[WorkerState, list[str]], now: float
) -> list[tuple[WorkerState, Amounts]]:
    """Where a job would start, if what is lent were free: there where the least has to be given back; or nowhere."""
    living = [state for state in rooms if state.lives(cls.request, now, fresh=cls.fresh)]
    whole = {state: rooms[state] + _sum(state, lent[state]) for state in living}
    if need.gang is not None:
        return [(place.state, place.amounts) for place in gangs.plan(need, list(whole.items()))]
    fitting = [state for state in living if state.could_hold(need) and state.part(need) <= whole[state]]
    if len(fitting) < need.workers:
        return []
    fitting.sort(key=lambda state: _number_to_give(state, state.part(need), rooms[state], lent[state]))
    return [(state, state.part(need)) for state in fitting[: need.workers]]


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
