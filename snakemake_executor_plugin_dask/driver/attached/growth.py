"""What becomes of jobs that wait on a cluster of others: it may grow for them, or no worker of it can hold them."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from snakemake_executor_plugin_dask.decide import demand
from snakemake_executor_plugin_dask.decide.routing import largest, shape_of_worker
from snakemake_executor_plugin_dask.decide.unfit import Unfit
from snakemake_executor_plugin_dask.decide.waiting import WaitingClass
from snakemake_executor_plugin_dask.driver.controller import Controller
from snakemake_executor_plugin_dask.model.kinds import ATTACHED
from snakemake_executor_plugin_dask.model.messages import Level
from snakemake_executor_plugin_dask.model.pools import Shape

_EVERY_S = 1.0
_PLENTY = 10**9  # of what nothing is known of
_MOST_WORKERS = 10_000  # that are asked for; a cluster that grows has a limit of its own


class Growth:
    """How many workers more the waiting jobs could use."""

    def __init__(self) -> None:
        self.more = 0
        self.adaptive = False  # whether the cluster grows
        self._unfit = Unfit()
        self._shape = Shape()  # of a new worker, as far as one was seen
        self._looked = -math.inf

    def look(self, jobs: Controller, say: Callable[[Level, str], None]) -> bool:
        """Count anew, once a second, and fail what nothing can hold. Returns whether more workers could be used."""
        now = jobs.clock()
        if now - self._looked < _EVERY_S:
            return False
        self._looked = now
        states = [state for state in jobs.ledger.states(ATTACHED).values() if not state.draining]
        verdict = self._unfit.look(jobs.waiting.classes(ATTACHED), states, now, adaptive=self.adaptive)
        for text in verdict.said:
            say("warning", text)
        for request, why in verdict.over:
            for key in jobs.waiting.keys(ATTACHED, request):
                jobs.routes.give_up(key, why)
        if states:
            self._shape = largest([shape_of_worker(state.pool, state.facts) for state in states])
        before, self.more = self.more, self._wanted(jobs, verdict.fitting, len(states), now)
        return self.more > before

    def _wanted(self, jobs: Controller, waiting: Sequence[WaitingClass], there: int, now: float) -> int:
        """How many workers more these jobs could use; one, where nothing is known of a worker."""
        pool = dataclasses.replace(
            jobs.pools[ATTACHED], workers_min=0, workers_max=_MOST_WORKERS, idle_timeout_s=math.inf
        )
        seen, unknown = dict(self._shape.extra), _PLENTY if self._shape.cores is None else 0
        extra = tuple((name, seen.get(name, unknown)) for name, _ in pool.resources)
        shape = dataclasses.replace(self._shape, extra=extra)
        advice = demand.recommend(pool, waiting, jobs.ledger, 0, jobs.ahead.of(ATTACHED), now, shape)
        return max(0, advice.workers - there)
