"""What other runs hold of a cluster's workers, as one run is told of it. Pure."""

import math
from collections.abc import Callable, Iterable

from snakemake_executor_plugin_dask.decide.ledger import Ledger, WorkerState

_COMPARE_EVERY_S = 5.0
_NOTHING_HELD = {"cores": 0, "memory_mb": 0, "gpus": 0, "jobs": 0}

#: Cores, memory in MB, GPUs and jobs, by worker.
Held = dict[str, dict[str, int]]


class HeldByOthers:
    """What one run was told last, and what is new since."""

    def __init__(self, ledger: Ledger, pools: Iterable[str], owns: Callable[[str], bool]) -> None:
        """``owns`` tells the run's own keys in the ledger; ``pools`` are their names now, whenever it is asked."""
        self._ledger, self._pools, self._owns = ledger, pools, owns
        self._told: Held = {}
        self._compared = -math.inf

    def news(self, now: float) -> Held:
        """The workers of which others hold something else than the run knows; empty, too, where it is not time yet.

        Called once a second. Compared every few seconds, but for a run that knows of nothing held: a short one is told
        as soon as there is anything.
        """
        if now - self._compared < _COMPARE_EVERY_S:
            return {}
        held = {
            state.name: _held_by_others(state, self._owns)
            for pool in self._pools
            for state in self._ledger.states(pool).values()
        }
        news = {name: each for name, each in held.items() if each != self._told.get(name, _NOTHING_HELD)}
        if news or self._told:
            self._compared = now
        if news:
            self._told = held
        return news


def _held_by_others(state: WorkerState, owns: Callable[[str], bool]) -> dict[str, int]:
    """What is held of a worker under keys that are not a run's own. Of wide workers whole nodes are held."""
    held = dict(_NOTHING_HELD)
    for key, part in state.held.items():
        if not owns(key):
            each = state.total if state.wide else part.amounts
            nodes = part.amounts.nodes if state.wide else 1
            held["cores"] += each.cores * nodes
            held["memory_mb"] += each.memory_mb * nodes
            held["gpus"] += each.gpus * nodes
            held["jobs"] += 1
    return held
