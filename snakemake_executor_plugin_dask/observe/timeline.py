"""Where each attempt stands in the picture of workers over time. Pure; from a `RunModel`.

A worker is a band as high as it has cores; an attempt takes as much of it as it holds, in one piece if it can.
"""

import heapq
from collections import defaultdict
from dataclasses import dataclass

from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.records import Attempt, Worker


@dataclass(frozen=True, slots=True)
class Box:
    """A piece of an attempt: slots ``low`` to ``low + height`` of worker number ``worker``."""

    worker: int
    low: int
    height: int
    attempt: Attempt


def bands(model: RunModel) -> list[Worker]:
    """The workers from top to bottom: by pool, then in the order in which they came."""
    pools = list(model.pools)
    return sorted(model.workers, key=lambda worker: (pools.index(worker.pool), worker.joined))


def boxes(model: RunModel) -> list[Box]:
    """All pieces, by worker and time. Workers are numbered as `bands` gives them."""
    placed: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in model.attempts.values():
        if attempt.placed is not None:
            for name in attempt.workers:
                placed[name].append(attempt)
    result: list[Box] = []
    for number, worker in enumerate(bands(model)):
        until = worker.gone if worker.gone is not None else model.end_time
        # A name may come again, for a replacement: only what was placed while this one was there.
        mine = [a for a in placed[worker.name] if a.placed is not None and worker.joined <= a.placed <= until]
        result += _pack(number, worker, mine, model.end_time)
    return result


def _pack(number: int, worker: Worker, attempts: list[Attempt], end: float) -> list[Box]:
    slots = max(1, worker.cores)
    free = [True] * slots
    busy: list[tuple[float, int, list[int]]] = []
    result = []
    for order, attempt in enumerate(sorted(attempts, key=lambda a: a.placed or 0.0)):
        start = attempt.placed or 0.0
        while busy and busy[0][0] <= start:
            for slot in heapq.heappop(busy)[2]:
                free[slot] = True
        taken = _room(free, max(1, attempt.workers.get(worker.name, 1)))
        for slot in taken:
            free[slot] = False
        heapq.heappush(busy, (attempt.ended if attempt.ended is not None else end, order, taken))
        result += [Box(number, low, height, attempt) for low, height in _pieces(taken)]
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
