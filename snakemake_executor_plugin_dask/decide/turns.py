"""In which order the jobs of several runs start, so that the runs share a cluster evenly. Pure.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): each job gets a turn, a time on a clock that counts work. The
turn is the clock's time, or that at which the work of the run's jobs before it ends, whichever is later. Jobs start in
the order of their turns. So runs with many jobs take turns, and the first job of a new run comes next.
"""

from snakemake_executor_plugin_dask.decide.ledger import need_of, planned_runtime_s
from snakemake_executor_plugin_dask.model.pools import Pool, Shape, usable_memory_mb
from snakemake_executor_plugin_dask.model.requests import Request

_UNKNOWN_S = 60.0  # what a job without a runtime is taken to run


def work(request: Request, pool: Pool, shape: Shape) -> float:
    """A job's work: the largest of its shares of a worker's cores, memory and GPUs, times the seconds it may run."""
    memory_mb = None if pool.memory_mb is None else usable_memory_mb(pool.memory_mb)
    need = need_of(request, pool, pool.cores, pool.gpus, memory_mb)
    if need.gang is not None:
        share = (need.gang.each * need.gang.workers + need.gang.script).share_of(shape.amounts)
    else:
        share = need.workers * max(need.node.share_of(shape.amounts), need.takes.share_of(shape.amounts))
    seconds = planned_runtime_s(request, pool)
    return share * (_UNKNOWN_S if seconds is None else seconds)


class Turns:
    """The clock, and how far each run's jobs reach on it."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[str, dict[float, float]] = {}  # by run and priority: when the work handed over so far ends

    def of(self, run_id: str, request: Request, pool: Pool, shape: Shape, priority: float) -> float:
        """The turn of a job that comes now. Of one run's jobs those with a lower priority do not count before it."""
        ends = self._ends.setdefault(run_id, {})
        turn = max([self._now, *(end for other, end in ends.items() if other >= priority)])
        ends[priority] = turn + work(request, pool, shape)
        return turn

    def started(self, turn: float) -> None:
        """A job with this turn starts: the clock is there."""
        self._now = max(self._now, turn)

    def end(self, run_id: str) -> None:
        """A run is over."""
        self._ends.pop(run_id, None)
