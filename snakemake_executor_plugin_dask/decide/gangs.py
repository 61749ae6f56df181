"""Where the parts of a job's own Dask cluster go: its script and its Dask workers, on few workers of a pool. Pure.

All parts are placed at once or none is, so two such jobs cannot wait for each other's parts.
"""

import math
from collections.abc import Iterable, Sequence

from snakemake_executor_plugin_dask.decide.ledger import Ledger, Place, WorkerState
from snakemake_executor_plugin_dask.decide.needs import Gang, Need
from snakemake_executor_plugin_dask.decide.reservations import end_of, lives_from
from snakemake_executor_plugin_dask.decide.waiting import JobClass, WaitingClass
from snakemake_executor_plugin_dask.model.amounts import NOTHING, Amounts
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.pools import Pool

Rooms = Sequence[tuple[WorkerState, Amounts]]  # what each worker has for the job

_LOOKS = 32  # so many moments at most are looked at for when a job will fit


class _Option:
    """What one worker could take of a gang."""

    def __init__(self, state: WorkerState, room: Amounts, gang: Gang, *, shares_memory: bool) -> None:
        self.state = state
        self.each, self.script = state.gang_parts(gang, shares_memory=shares_memory)
        self.most = min(gang.workers, self.each.times_in(room)) if self.each <= room else 0
        # So many fewer where the script is there, too; None: it does not fit.
        self.lost: int | None = None
        if self.script <= room:
            self.lost = self.most - min(gang.workers, self.each.times_in(room - self.script))
        idle = state.idle_since is not None
        self.order = (idle, not state.used, room.gpus, room.cores, room.memory_mb)  # the smaller, the better

    def place(self, workers: int, *, script: bool = False) -> Place:
        return Place(self.state, workers, self.each * workers + self.script if script else self.each * workers)


def plan(need: Need, rooms: Rooms) -> list[Place]:
    """The places of a job's cluster, the script's first: on as few workers as it can be. None: it does not fit."""
    gang = need.gang
    assert gang is not None
    options = [_Option(state, room, gang, shares_memory=need.shares_memory) for state, room in rooms]
    options = sorted(
        (one for one in options if one.most or one.lost is not None), key=lambda one: (-one.most, one.order)
    )
    best: tuple[int, _Option] | None = None
    for home in _homes(options):
        needed = _others_needed(gang.workers, home, options)
        if needed is not None and (best is None or needed < best[0]):
            best = needed, home
    if best is None:
        return []
    number, home = best
    if number == 0:  # the tightest of those that hold all
        home = min((one for one in options if _beside_script(one) >= gang.workers), key=lambda one: one.order)
    places = [home.place(min(_beside_script(home), gang.workers), script=True)]
    left = gang.workers - places[0].workers
    others = [one for one in options if one is not home]
    for index in range(number):
        # The last one need not be the largest.
        last = index == number - 1
        chosen = min((one for one in others if one.most >= left), key=lambda one: one.order) if last else others[0]
        others.remove(chosen)
        places.append(chosen.place(min(chosen.most, left)))
        left -= places[-1].workers
    return places


def more(need: Need, wanted: int, rooms: Rooms) -> list[Place]:
    """Places for further Dask workers of a job that runs: as many of the wanted as have room."""
    gang = need.gang
    assert gang is not None
    options = [_Option(state, room, gang, shares_memory=need.shares_memory) for state, room in rooms]
    places = []
    for one in sorted(options, key=lambda one: (-min(one.most, wanted), one.order)):
        number = min(one.most, wanted)
        if number:
            places.append(one.place(number))
            wanted -= number
    return places


def more_on_nodes(cluster: JobCluster, wanted: int, state: WorkerState, nodes: int) -> list[Place]:
    """As `more`, on at most so many free nodes of a wide worker."""
    places, holds = [], cluster.fitting_on(state.total, script=False)
    for node in state.free_nodes[:nodes]:
        if number := min(holds, wanted):
            places.append(Place(state, number, Amounts(nodes=1), node, node.devices[: number * cluster.gpus]))
            wanted -= number
    return places


def to_open(waiting: Iterable[WaitingClass], pool: Pool, ledger: Ledger) -> list[str]:
    """The wide workers whose further nodes need companions, so that they can have Dask workers of jobs.

    Of jobs that wait, or that have lost the Dask workers of a node.
    """
    if pool.nodes is None:
        return []
    needs = [ledger.need(cls.request, pool) for cls in waiting if cls.request.cluster is not None]
    return [
        state.name
        for state in ledger.states(pool.name).values()
        if state.closed_hosts
        and not state.draining
        and (any(state.could_hold(need) for need in needs) or any(held.lacks_nodes for held in state.held.values()))
    ]


def start(cls: JobClass, states: Iterable[WorkerState], now: float) -> tuple[float, set[str], list[Place]] | None:
    """When and where such a job will fit at the latest, and the holdings that end before.

    Infinite: not known, since one of these has no known end, or other runs hold the room. None: it will not fit on
    these workers.
    """
    living = [state for state in states if lives_from(state, cls, now)]
    ends = sorted({max(now, end_of(held)) for state in living for held in state.held.values()} | {now})
    if math.isfinite(ends[-1]) and any(state.of_others != NOTHING for state in living):
        ends.append(math.inf)
    step = -(-len(ends) // _LOOKS)
    for moment in sorted({*ends[::step], ends[-1]}):
        rooms = [
            (state, _room_at(state, moment)) for state in living if math.isinf(moment) or lives_from(state, cls, moment)
        ]
        if places := plan(cls.need, rooms):
            states = [place.state for place in places]
            return (
                moment,
                {key for state in states for key, held in state.held.items() if end_of(held) <= moment},
                places,
            )
    return None


def _room_at(state: WorkerState, moment: float) -> Amounts:
    room = state.free
    for held in state.held.values():
        if end_of(held) <= moment:
            room += held.amounts
    return room + state.of_others if math.isinf(moment) else room


def _homes(options: Iterable[_Option]) -> list[_Option]:
    """Where the script could be: of those that lose as many workers by it, the one that holds the most."""
    best: dict[int, _Option] = {}
    for one in options:  # the largest first
        if one.lost is not None:
            best.setdefault(one.lost, one)
    return list(best.values())


def _beside_script(one: _Option) -> int:
    return -1 if one.lost is None else one.most - one.lost


def _others_needed(workers: int, home: _Option, options: Iterable[_Option]) -> int | None:
    """How many workers are needed beside the script's; None: all of them are too few."""
    left, number = workers - _beside_script(home), 0
    for one in options:
        if left <= 0:
            break
        if one is not home:
            left, number = left - one.most, number + 1
    return number if left <= 0 else None
