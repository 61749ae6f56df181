"""Where each attempt stands in the picture of workers over time. Pure; from a `RunModel`.

A worker is a band as high as it has cores; an attempt takes as much of it as it holds, in one piece if it can.
"""

import heapq
from collections import defaultdict

from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.records import Attempt, Stay, Worker, first


@dataclass(frozen=True, slots=True)
class Box:
    """A piece of an attempt: slots ``low`` to ``low + height`` of worker number ``worker``, from then until then."""

    worker: int
    low: int
    height: int
    attempt: Attempt
    since: float
    until: float


def bands(model: RunModel) -> list[Worker]:
    """The workers from top to bottom: by pool, then in the order in which they came."""
    pools = list(model.pools)
    return sorted(model.workers, key=lambda worker: (pools.index(worker.pool), worker.joined))


def boxes(model: RunModel) -> list[Box]:
    """All pieces, by worker and time. Workers are numbered as `bands` gives them."""
    placed: dict[str, list[tuple[Stay, Attempt]]] = defaultdict(list)
    for attempt in model.attempts.values():
        for stay in attempt.all_stays():
            placed[stay.worker].append((stay, attempt))
    result: list[Box] = []
    for number, worker in enumerate(bands(model)):
        until = worker.gone if worker.gone is not None else model.end_time
        # A name may come again, for a replacement: only what was placed while this one was there.
        mine = [(stay, attempt) for stay, attempt in placed[worker.name] if worker.joined <= stay.since <= until]
        result += _pack(number, worker, mine, model.end_time)
    return result


def _pack(number: int, worker: Worker, stays: list[tuple[Stay, Attempt]], end: float) -> list[Box]:
    slots = max(1, worker.cores)
    free = [True] * slots
    busy: list[tuple[float, int, list[int]]] = []
    result = []
    for order, (stay, attempt) in enumerate(sorted(stays, key=lambda one: one[0].since)):
        until = first(stay.until, attempt.ended, end)
        while busy and busy[0][0] <= stay.since:
            for slot in heapq.heappop(busy)[2]:
                free[slot] = True
        taken = _room(free, max(1, stay.cores))
        for slot in taken:
            free[slot] = False
        heapq.heappush(busy, (until, order, taken))
        result += [Box(number, low, height, attempt, stay.since, until) for low, height in _pieces(taken)]
    return result


def _room(free: list[bool], wanted: int) -> list[int]:
    """The lowest free slots, in one piece if possible. Fewer where the worker holds more jobs than cores."""
    wanted = min(wanted, len(free))
    length = 0
    for slot, is_free in enumerate(free):
        length = length + 1 if is_free else 0
        if length == wanted:
            return list(range(slot - wanted + 1, slot + 1))
    return [slot for slot, is_free in enumerate(free) if is_free][:wanted]


def _pieces(slots: list[int]) -> list[tuple[int, int]]:
    pieces: list[tuple[int, int]] = []
    for slot in slots:
        if pieces and pieces[-1][0] + pieces[-1][1] == slot:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + 1)
        else:
            pieces.append((slot, 1))
    return pieces
