"""Where each job of a run waits: in the first pool that can hold it, or until a pool is made for it, or not at all.

Which pool that is decides `decide/routing`. Runs on the driver's event loop.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from snakemake_executor_plugin_dask.decide.needs import needs_fresh
from snakemake_executor_plugin_dask.driver.cluster import Surroundings
from snakemake_executor_plugin_dask.driver.dispatch import Dispatch
from snakemake_executor_plugin_dask.driver.jobs import Job
from snakemake_executor_plugin_dask.driver.pools import Resources
from snakemake_executor_plugin_dask.driver.sentences import Teller
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.model.errors import RequestError
from snakemake_executor_plugin_dask.model.messages import Later
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request


class Routes:
    """The way of a run's jobs into the queue that all runs of a cluster share."""

    def __init__(
        self,
        run_id: str,
        dispatch: Dispatch,
        jobs: Mapping[str, Job],
        around: Surroundings,
        tell: Teller,
        nowhere: Callable[[Job, str], None],
    ) -> None:
        """``jobs``: those of the run that are not finished. ``nowhere``: no pool can take a job, and this is why."""
        self._run_id = run_id
        self._dispatch, self._pools = dispatch, dispatch.pools
        self._jobs = jobs
        self._event, self._tell, self._nowhere = around.event, tell, nowhere
        self._unmade: dict[Resources, list[Job]] = {}  # jobs for whose resources Slurm is being asked
        self._tasks = Tasks(around.failed)

    def enter(self, job: Job, told: Mapping[str, object]) -> None:
        """A job is ready. ``told``: see `QueuedJob`."""
        unmade = self._pools.unmade(job.queued.request)
        name, why_none = self._choose(job) if unmade is None else (None, "")
        self._event("job-queued", **told, request=job.queued.request, pool=name or "")
        if name is not None:
            self._wait_in(job, name)
        elif unmade is not None:
            self._ask_for_pool(unmade, job)
        else:
            self._nowhere(job, why_none)

    def look_ahead(self, later: Later) -> None:
        """A job becomes ready when others end; nothing where all of these have ended meanwhile."""
        after = tuple(key for key in later.after if key in self._jobs)
        if after:
            with contextlib.suppress(RequestError):  # it is told when the job itself is ready
                self._dispatch.ahead.add(self._pools.route(later.request), Later(later.request, after))

    def route(self, job: Job) -> None:
        """It waits, once more."""
        name, why_none = self._choose(job)
        if name is None:
            self._nowhere(job, why_none)
        else:
            self._wait_in(job, name)

    def route_again(self, pool: Pool) -> None:
        """What is known of the pool has changed: all that wait in it."""
        for job in self._waiting_in(pool):
            self._dispatch.discard(job.queued.key)
            self.route(job)

    def fit_elsewhere(self, pool: Pool) -> bool:
        """Whether all jobs that wait in this pool could run in another one."""
        return self._pools.fit_without(pool, {job.queued.request for job in self._waiting_in(pool)})

    def give_up(self, key: str, why: str) -> None:
        """A waiting job that nothing can hold any more fails with the reason."""
        job, waited = self._jobs.get(key), self._dispatch.discard(key)
        if job is None or waited is None:
            return
        if job.alone and self._cores_alone(job.queued.request, job.pool) < waited.request.cores:
            self._wait_in(job, job.pool)  # the largest worker is a smaller one by now
        else:
            self._nowhere(job, why)

    def close(self) -> None:
        """The run is over."""
        self._tasks.cancel()

    def _waiting_in(self, pool: Pool) -> list[Job]:
        return [job for job in self._jobs.values() if job.waits and job.pool == pool.name]

    def _choose(self, job: Job) -> tuple[str | None, str]:
        """The pool's name; None and the reason where no pool can take it."""
        try:
            return self._pools.route(job.queued.request, job.queued.name), ""
        except RequestError as error:
            return None, str(error)

    def _wait_in(self, job: Job, name: str) -> None:
        queued, pool = job.queued, self._pools[name]
        job.pool = name
        if queued.request.runtime_s is not None and needs_fresh(queued.request, pool):
            self._tell.waived_margin(queued.name, queued.request.runtime_s, pool)
        if job.alone:
            cores = self._cores_alone(queued.request, name)
            queued = dataclasses.replace(queued, request=dataclasses.replace(queued.request, cores=cores))
        self._dispatch.wait(self._run_id, queued, pool, fresh=job.outlived)

    def _cores_alone(self, request: Request, name: str) -> int:
        """So many that the job has a worker for itself. On an attached cluster workers differ."""
        states = self._dispatch.ledger.states(name).values()
        largest = max((state.total.cores for state in states), default=0)
        return max(request.cores, self._pools.shapes[name].cores or largest)

    def _ask_for_pool(self, resources: Resources, job: Job) -> None:
        """The batch system may take its time to answer, and jobs of the same kind share the answer."""
        if resources not in self._unmade:
            self._tasks.spawn(self._make_pool(resources))
        self._unmade.setdefault(resources, []).append(job)

    async def _make_pool(self, resources: Resources) -> None:
        requests = dict.fromkeys(job.queued.request for job in self._unmade[resources])
        added, refused, made = await self._pools.make(list(requests))
        for pool in added:
            self._event("pool-up", pool=pool.name, **_shape_fields(pool))
        for job in self._unmade.pop(resources):
            request = job.queued.request
            if self._jobs.get(job.queued.key) is not job:
                continue  # dropped meanwhile
            unmade = self._pools.unmade(request)
            if request in refused:
                self._nowhere(job, refused[request])
            elif unmade is None:
                self.route(job)
            elif request in requests:
                self._nowhere(job, self._pools.why_not(request, made, job.queued.name))
            else:
                self._ask_for_pool(unmade, job)  # it came while another question was on its way
        self._dispatch.place_soon()


def _shape_fields(pool: Pool) -> dict[str, Any]:
    return {name: getattr(pool, name) for name in ("cluster", "workers_max", "cores", "memory_mb", "gpus", "nodes")}
