"""The cluster that a run brings up for itself: scheduler, leases, fleet, put together and taken apart again."""

import asyncio
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
from distributed import wait

from snakemake_executor_plugin_dask.backends import backend_for
from snakemake_executor_plugin_dask.backends.base import Link
from snakemake_executor_plugin_dask.batch.allocations import cancel_unanswered
from snakemake_executor_plugin_dask.driver import dasktasks
from snakemake_executor_plugin_dask.driver.cluster import Surroundings
from snakemake_executor_plugin_dask.driver.controller import Controller
from snakemake_executor_plugin_dask.driver.jobs import Attempt
from snakemake_executor_plugin_dask.driver.members import Members
from snakemake_executor_plugin_dask.driver.own.certificate import make_tls, server_context
from snakemake_executor_plugin_dask.driver.own.daskcluster import DaskCluster, Hear
from snakemake_executor_plugin_dask.driver.own.fleet import Fleet
from snakemake_executor_plugin_dask.driver.own.leases import LeaseServer
from snakemake_executor_plugin_dask.driver.own.scaling import Scaling
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.interior import dask_network
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome
from snakemake_executor_plugin_dask.model.messages import Begin
from snakemake_executor_plugin_dask.node.private import write_private
from snakemake_executor_plugin_dask.worker import client as task

_LOOPBACK = "127.0.0.1"
_CLOSE_S = 100.0  # less than Snakemake waits for this process
_RELEASE_AFTER_S = 0.2


class OwnCluster:
    """A `cluster.Cluster`. Workers come with the first jobs."""

    workers: Members  # the fleet, from `start` on

    def __init__(self, begin: Begin, around: Surroundings) -> None:
        self._setup, self._options = begin.setup, begin.options
        self._around = around
        self._state_dir = Path(begin.state_dir)
        self._tasks = Tasks(around.failed)
        self._dask: DaskCluster | None = None
        self._leases: LeaseServer | None = None
        self._fleet: Fleet | None = None
        self._scaling: Scaling | None = None
        self._unreached_told = False
        self._ended: list[Any] = []  # futures of which nothing more is wanted

    async def start(self, jobs: Controller) -> None:
        setup, options = self._setup, self._options
        security, files = make_tls(self._state_dir)
        setup_path = self._state_dir / "setup.pickle"
        write_private(setup_path, pickle.dumps(setup))
        backends = {pool.cluster: backend_for(pool.cluster) for pool in options.pools}
        here = all(getattr(backends[pool.cluster], "on_this_machine", False) for pool in options.pools)
        interface = options.scheduler_interface or next(
            (found for pool in options.pools if (found := backends[pool.cluster].interface(pool))), None
        )
        # One address, and no other: a port on all of them is open to more people than have anything to do with it.
        host = _LOOPBACK if here else options.scheduler_host or (None if interface else dask_network.own_address())
        cluster = self._dask = DaskCluster(security, host, None if host else interface, options.scheduler_port)
        hear = Hear(
            topic=task.event_topic(setup.run_id),
            worker_added=lambda address, name: self._tasks.spawn(self._joined(address, name)),
            worker_removed=self._removed,
            event=jobs.received,
        )
        dask.config.set({"temporary-directory": os.fspath(self._state_dir)})  # and not one that all users share
        for note in await cluster.start(options.dashboard, hear):
            self._around.say("warning", note)
        reach = cluster.scheduler_address.rpartition("://")[2].rpartition(":")[0].strip("[]")  # of IPv6
        snakemake = os.getppid()
        # Even where this process's loop stands still, and cannot end the jobs, no lease outlives Snakemake by much.
        leases = self._leases = LeaseServer(server_context(files), lambda _: os.getppid() == snakemake)
        # What a firewall lets through to the scheduler it lets through here, too.
        port = options.scheduler_port
        await leases.start(reach, port + 1 if port else 0)
        self._tasks.spawn(leases.renew())
        link = Link(
            run_id=setup.run_id,
            scheduler=cluster.scheduler_address,
            lease=(reach, leases.port),
            tls=(files.ca, files.cert, files.key),
            state_dir=os.fspath(self._state_dir),
            setup=os.fspath(setup_path),
        )
        self.workers = self._fleet = Fleet(cluster, leases, backends, link, setup.lease_s, jobs)
        self._scaling = Scaling(jobs.dispatch, self._fleet)
        if options.dashboard is not None:
            self._tell_dashboard(cluster)

    def _tell_dashboard(self, cluster: DaskCluster) -> None:
        path = self._state_dir / "dashboard"
        write_private(path, f"{cluster.dashboard_link}\n".encode())
        told = "It shows running jobs; those that wait or have ended are in `snakemake-dask status`."
        self._around.say("info", f"Dask's dashboard: the link is in {path}. {told}")

    def _removed(self, address: str) -> None:
        if self._fleet is not None:
            self._fleet.removed(address)

    async def _joined(self, address: str, name: str) -> None:
        assert self._fleet is not None
        await self._fleet.joined(address, name, self._setup.run_id)
        self.scale()

    async def submit(self, attempt: Attempt, spec: JobSpec) -> Outcome | None:
        assert self._dask is not None
        future = dasktasks.submit(self._dask.client, self._setup.run_id, attempt, spec)
        try:
            with self._dask.client.as_current():
                ended = wait(future)
            await ended
            if future.status == "finished" and attempt.state.final:
                return None  # the result need not be fetched
            outcome: Outcome = await future.result()
            return outcome
        finally:
            self._release_later(future)

    def _release_later(self, future: Any) -> None:
        """Many at once: each would be a message to its worker, and the next job's would wait for it."""
        self._ended.append(future)
        if len(self._ended) == 1:
            asyncio.get_running_loop().call_later(_RELEASE_AFTER_S, self._release)

    def _release(self) -> None:
        ended, self._ended = self._ended, []
        for future in ended:
            future.release()

    async def kill(self, attempt: Attempt, reason: str) -> None:
        assert self._dask is not None
        await dasktasks.kill(self._dask.client, self._setup.run_id, attempt, reason)

    async def tell_cluster(self, attempt: Attempt, message: Mapping[str, Any]) -> None:
        assert self._dask is not None
        await dasktasks.tell_cluster(self._dask.client, self._setup.run_id, attempt, message)

    def scale(self) -> None:
        if self._scaling is not None:
            self._scaling.scale()

    async def watch(self) -> None:
        assert self._fleet is not None
        await self._fleet.check()
        self._tell_unreached(self._fleet)

    def _tell_unreached(self, fleet: Fleet) -> None:
        if self._leases is None or self._unreached_told:
            return
        member = fleet.unreached()
        if member is not None and member.facts is not None:
            self._unreached_told = True
            where = f"port {self._leases.port} of this machine"
            text = (
                f"Worker {member.name} on {member.facts.host} reaches the scheduler, and not {where}, over which its "
                f"jobs' leases are renewed: it ends after {self._setup.lease_s:.0f} s. Where a firewall is in "
                "between, say in the pools file under `scheduler` a `port` that it lets through, and the next one."
            )
            self._around.say("warning", text)

    def uses(self) -> Mapping[str, Sequence[float]]:
        return {} if self._leases is None else self._leases.uses()

    async def close(self) -> tuple[str, ...]:
        left: tuple[str, ...] = ()
        if self._fleet is not None:
            names = {member.process.name for member in self._fleet.members.values()}
            try:
                left = await asyncio.wait_for(self._give_back(self._fleet), _CLOSE_S)
            except TimeoutError:  # a batch system that does not answer must not keep this process for ever
                left = tuple(sorted(names))
        elif self._dask is not None:
            await self._dask.close()
        if self._leases is not None:
            await self._leases.close()
        return left

    async def _give_back(self, fleet: Fleet) -> tuple[str, ...]:
        left = await fleet.close()
        await asyncio.to_thread(cancel_unanswered, self._state_dir)
        return left
