"""In which order the jobs of several runs start, so that the runs share a cluster evenly over time. Pure.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): each job gets a turn, a time on a clock that counts work. The
turn is the clock's time, or that at which the work of the run's jobs before it ends, whichever is later. Jobs start in
the order of their turns. So runs with many jobs take turns, and the first job of a new run comes next.

Work is what a run holds: the largest of its shares of a worker's cores, memory and GPUs, times seconds. How long a job
will hold it is only guessed when it gets its turn; once that shows, all turns of its run that are still to come move.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from snakemake_executor_plugin_dask.decide.needs import need_of, planned_runtime_s
from snakemake_executor_plugin_dask.decide.routing import shape_of
from snakemake_executor_plugin_dask.model.pools import Pool, Shape
from snakemake_executor_plugin_dask.model.requests import Request

_UNKNOWN_S = 60.0  # what a job without a runtime is taken to run


def _share(request: Request, pool: Pool, shape: Shape) -> float:
    """The largest of a job's shares of a worker's cores, memory and GPUs."""
    need = need_of(request, pool, shape_of(pool))
    if need.gang is not None:
        return (need.gang.each * need.gang.workers + need.gang.script).share_of(shape.amounts)
    return need.workers * max(need.node.share_of(shape.amounts), need.takes.share_of(shape.amounts))


@dataclass(slots=True)
class _Charge:
    """A job, and for how long its run has been charged with what it holds."""

    run: str
    share: float
    seconds: float
    since: float = 0.0  # when it started


class Turns:
    """The clock, how far each run's jobs reach on it, and what runs were charged with that run now."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[str, dict[float, float]] = {}  # by run and priority: when the work handed over so far ends
        self._waits: dict[str, _Charge] = {}  # by the keys of jobs
        self._runs: dict[str, _Charge] = {}
        self._owed: dict[str, float] = {}  # by run: what turned out to be more work, or less, and has moved no turn yet

    def of(self, key: str, run: str, request: Request, pool: Pool, shape: Shape, priority: float) -> float:
        """The turn of a job that comes now. Of one run's jobs those with a lower priority do not count before it."""
        seconds = planned_runtime_s(request, pool)
        charge = _Charge(run, _share(request, pool, shape), _UNKNOWN_S if seconds is None else seconds)
        self._waits[key] = charge
        ends = self._ends.setdefault(run, {})
        turn = max([self._now, *(end for other, end in ends.items() if other >= priority)])
        ends[priority] = turn + charge.share * charge.seconds
        return turn

    def left(self, key: str) -> None:
        """A job waits no longer, and does not start."""
        self._waits.pop(key, None)

    def started(self, key: str, now: float) -> None:
        """A job has started; ``now`` is in seconds, as everywhere."""
        if (charge := self._waits.pop(key, None)) is not None:
            charge.since = now
            self._runs[key] = charge

    def ended(self, key: str, now: float) -> None:
        """A job holds nothing any more. Nothing happens for one that never started."""
        if (charge := self._runs.pop(key, None)) is not None:
            self._owe(charge, now - charge.since)

    def _owe(self, charge: _Charge, seconds: float) -> None:
        self._owed[charge.run] = self._owed.get(charge.run, 0.0) + charge.share * (seconds - charge.seconds)
        charge.seconds = seconds

    def settle(self, now: float, firsts: Mapping[str, float]) -> dict[str, float]:
        """By how much each run's turns move, of jobs that wait. ``firsts``: by run, the first turn of those.

        To be called every second or so.
        """
        unearned: dict[str, float] = {}
        for charge in self._runs.values():
            left_s = charge.seconds - (now - charge.since)
            if left_s < 0:
                self._owe(charge, now - charge.since)
            else:
                unearned[charge.run] = unearned.get(charge.run, 0.0) + charge.share * left_s
        owed = {run: by for run, by in self._owed.items() if by and run in self._ends}
        # A run that comes now stands where those are that want more: at what they have really held.
        held = {run: owed.get(run, 0.0) - unearned.get(run, 0.0) for run in self._ends}
        if firsts:
            self._now = min(first + held[run] for run, first in firsts.items())
        elif unearned:
            self._now = max(max(self._ends[run].values()) + held[run] for run in unearned)
        if len(self._ends) < 2:
            return {}  # there is nobody to be in order with
        self._owed.clear()
        for run, by in owed.items():
            self._ends[run] = {priority: end + by for priority, end in self._ends[run].items()}
        return owed

    def end(self, run: str) -> None:
        """A run is over; nothing of it waits or is held."""
        self._ends.pop(run, None)
        self._owed.pop(run, None)
