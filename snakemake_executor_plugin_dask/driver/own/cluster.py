"""The cluster that a run brings up for itself alone."""

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.driver.cluster import Cluster, Surroundings
from snakemake_executor_plugin_dask.driver.controller import Controller
from snakemake_executor_plugin_dask.driver.jobs import Attempt
from snakemake_executor_plugin_dask.driver.members import Members
from snakemake_executor_plugin_dask.driver.own.core import CLOSE_S, Core
from snakemake_executor_plugin_dask.driver.own.jobpages import JobPages
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome
from snakemake_executor_plugin_dask.model.messages import Begin
from snakemake_executor_plugin_dask.node.private import write_private


class OwnCluster(Cluster):
    """A `Core` for one run."""

    workers: Members  # the fleet, from `start` on

    def __init__(self, begin: Begin, around: Surroundings, close_s: float = CLOSE_S) -> None:
        self._setup, self._state_dir = begin.setup, Path(begin.state_dir)
        self._run_id = begin.setup.run_id
        self.core = Core(self._run_id, begin.options, begin.state_dir, around.say, around.failed, close_s)

    async def start(self, jobs: Controller) -> None:
        setup = self._state_dir / "setup.pickle"
        write_private(setup, pickle.dumps(self._setup))
        snakemake = os.getppid()
        self.core.hear(self._run_id, jobs.received)
        # Even where this process's loop stands still, and cannot end the jobs, no lease outlives Snakemake by much.
        await self.core.start(
            jobs.dispatch, jobs, lambda _: os.getppid() == snakemake, self._setup.lease_s, setup=setup
        )
        self.workers = self.core.fleet

    async def submit(self, attempt: Attempt, spec: JobSpec) -> Outcome | None:
        return await self.core.submit(self._run_id, attempt, spec)

    async def kill(self, attempt: Attempt, reason: str) -> None:
        await self.core.kill(self._run_id, attempt, reason)

    @property
    def pages(self) -> JobPages | None:
        return self.core.pages

    async def tell_cluster(self, attempt: Attempt, message: Mapping[str, Any]) -> None:
        await self.core.tell_cluster(self._run_id, attempt, message)

    def scale(self) -> None:
        self.core.scale()

    async def watch(self) -> None:
        await self.core.watch()

    def uses(self) -> Mapping[str, Sequence[float]]:
        return self.core.uses(self._run_id)

    async def close(self) -> tuple[str, ...]:
        return await self.core.close()
