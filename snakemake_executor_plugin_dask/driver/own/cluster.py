"""A run on a cluster that was brought up here: on one for itself alone, or with others (`head`)."""

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.driver import dasktasks
from snakemake_executor_plugin_dask.driver.cluster import Cluster, Surroundings
from snakemake_executor_plugin_dask.driver.controller import Controller
from snakemake_executor_plugin_dask.driver.jobs import Attempt
from snakemake_executor_plugin_dask.driver.members import Members
from snakemake_executor_plugin_dask.driver.own.core import CLOSE_S, Core
from snakemake_executor_plugin_dask.driver.own.jobpages import JobPages
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome
from snakemake_executor_plugin_dask.model.messages import Begin
from snakemake_executor_plugin_dask.node.private import write_private


class OnCore(Cluster):
    """What a run asks of a `Core`, which has no other run, or several."""

    def __init__(self, core: Core, run_id: str) -> None:
        self._core, self._run_id = core, run_id

    async def submit(self, attempt: Attempt, spec: JobSpec) -> Outcome | None:
        return await self._core.submit(self._run_id, attempt, spec)

    async def kill(self, attempt: Attempt, reason: str) -> None:
        await dasktasks.kill(self._core.dask.client, self._run_id, attempt, reason)

    @property
    def pages(self) -> JobPages | None:
        return self._core.pages

    async def tell_cluster(self, attempt: Attempt, message: Mapping[str, Any]) -> None:
        await dasktasks.tell_cluster(self._core.dask.client, self._run_id, attempt, message)

    def scale(self) -> None:
        self._core.scale()

    def uses(self) -> Mapping[str, Sequence[float]]:
        return self._core.uses(self._run_id)


class OwnCluster(OnCore):
    """A `Core` for one run."""

    workers: Members  # the fleet, from `start` on

    def __init__(self, begin: Begin, around: Surroundings, close_s: float = CLOSE_S) -> None:
        self._setup, self._state_dir = begin.setup, Path(begin.state_dir)
        run_id = begin.setup.run_id
        super().__init__(Core(run_id, begin.options, begin.state_dir, around.say, around.failed, close_s), run_id)

    async def start(self, jobs: Controller) -> None:
        setup = self._state_dir / "setup.pickle"
        write_private(setup, pickle.dumps(self._setup))
        snakemake = os.getppid()
        self._core.hear(self._run_id, jobs.received)
        # Even where this process's loop stands still, and cannot end the jobs, no lease outlives Snakemake by much.
        await self._core.start(
            jobs.dispatch, jobs, lambda _: os.getppid() == snakemake, self._setup.lease_s, setup=setup
        )
        self.workers = self._core.fleet

    async def watch(self) -> None:
        await self._core.watch()

    async def close(self) -> tuple[str, ...]:
        return await self._core.close()
