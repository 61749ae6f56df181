"""A cluster that is brought up here: scheduler, leases, fleet, put together and taken apart again. Serves its runs.

One run's own, or one that stays for several (`head`).
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask

from snakemake_executor_plugin_dask.backends import backend_for
from snakemake_executor_plugin_dask.backends.base import Link
from snakemake_executor_plugin_dask.batch.allocations import cancel_unanswered
from snakemake_executor_plugin_dask.driver.cluster import Say
from snakemake_executor_plugin_dask.driver.dispatch import Dispatch
from snakemake_executor_plugin_dask.driver.jobs import Attempt
from snakemake_executor_plugin_dask.driver.members import Listener
from snakemake_executor_plugin_dask.driver.own.certificate import TLSFiles, make_tls, server_context
from snakemake_executor_plugin_dask.driver.own.daskcluster import DaskCluster, Ears
from snakemake_executor_plugin_dask.driver.own.fleet import Fleet
from snakemake_executor_plugin_dask.driver.own.jobpages import JobPages
from snakemake_executor_plugin_dask.driver.own.leases import LeaseServer
from snakemake_executor_plugin_dask.driver.own.scaling import Scaling
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.interior import dask_network
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.node.private import write_private
from snakemake_executor_plugin_dask.worker import client as task

_LOOPBACK = "127.0.0.1"
CLOSE_S = 100.0  # less than Snakemake waits for this process
_RELEASE_AFTER_S = 0.2
_LOOK_S, _LOOK_MOST_S = 0.25, 5.0
_LOOKING_SHARE = 0.005  # of the time, at most, where thousands of jobs run


class Core:
    """The cluster. Workers come with the first jobs."""

    fleet: Fleet  # from `start` on
    leases: LeaseServer
    host: str  # where the scheduler listens
    files: TLSFiles

    def __init__(
        self,
        cluster_id: str,
        options: Options,
        state_dir: str,
        say: Say,
        failed: Callable[[BaseException], None],
        close_s: float = CLOSE_S,
    ) -> None:
        self.id, self._close_s = cluster_id, close_s
        self._options = options
        self._state_dir = Path(state_dir)
        self._say = say
        self._tasks = Tasks(failed)
        self.dask = DaskCluster()
        self._started = False
        self._leases_started = False
        self._hearing: dict[str, Callable[[Mapping[str, Any]], None]] = {}  # by run
        self._unreached_told = False
        self.pages: JobPages | None = None  # where there is a dashboard
        self._ended: list[Any] = []  # tasks of which nothing more is wanted
        #: Attempts whose end is waited for, by their keys, with their tasks.
        self._followed: dict[str, tuple[Attempt, Any, asyncio.Future[None]]] = {}
        self._looking: asyncio.TimerHandle | None = None

    async def start(
        self,
        dispatch: Dispatch,
        listener: Listener,
        alive: Callable[[str], bool],
        lease_s: float,
        setup: Path | None = None,
        bounds: Callable[[Pool], Pool] = lambda pool: pool,
        refusal: Callable[[], str] | None = None,
        code: str = "",
    ) -> None:
        """Listen; ConfigurationError where that cannot be. ``close`` follows all the same.

        ``alive``: whether a run lives, see `LeaseServer`. ``setup``: the pickled one of the only run. None: several
        come and go, and ``link.runs`` has the ids of those whose jobs workers may have. ``bounds``: see `Scaling`.
        ``refusal``: see `Fleet`. ``code``: see `Link`.
        """
        options = self._options
        self._lease_s = lease_s
        security, self.files = make_tls(self._state_dir)
        pools = options.pools if options.slurm_template is None else (*options.pools, options.slurm_template)
        backends = {pool.cluster: backend_for(pool.cluster) for pool in pools}
        here = all(getattr(backends[pool.cluster], "on_this_machine", False) for pool in pools)
        interface = options.scheduler_interface or next(
            (found for pool in pools if (found := backends[pool.cluster].interface(pool))), None
        )
        # One address, and no other: a port on all of them is open to more people than have anything to do with it.
        host = _LOOPBACK if here else options.scheduler_host or (None if interface else dask_network.own_address())
        where = {"host": host, "interface": None if host else interface, "port": options.scheduler_port}
        ears = Ears(
            self._topics(None if setup is None else self.id),
            worker_added=lambda address, name: self._tasks.spawn(self._joined(address, name)),
            worker_removed=self._removed,
        )
        cluster = self.dask
        dask.config.set({"temporary-directory": os.fspath(self._state_dir)})  # and not one that all users share
        for note in await cluster.start(security, where, options.dashboard, ears):
            self._say("warning", note)
        self.host = cluster.scheduler_address.rpartition("://")[2].rpartition(":")[0].strip("[]")  # of IPv6
        self.leases = LeaseServer(server_context(self.files), alive)
        self._leases_started = True
        # What a firewall lets through to the scheduler it lets through here, too.
        port = options.scheduler_port
        await self.leases.start(self.host, port + 1 if port else 0)
        self._tasks.spawn(self.leases.renew())
        self.link = Link(
            run_id=self.id,
            scheduler=cluster.scheduler_address,
            lease=(self.host, self.leases.port),
            tls=self.files,
            state_dir=os.fspath(self._state_dir),
            setup=None if setup is None else os.fspath(setup),
            runs=set() if setup is None else {self.id},
            code=code,
        )
        self.fleet = Fleet(cluster, self.leases, backends, self.link, lease_s, listener, refusal=refusal)
        self._scaling, self._dispatch = Scaling(dispatch, self.fleet, bounds), dispatch
        self._started = True
        if options.dashboard is not None:
            self.pages = cluster.serve_job_pages()
            self._tell_dashboard(cluster)

    def _tell_dashboard(self, cluster: DaskCluster) -> None:
        path = self._state_dir / "dashboard"
        write_private(path, f"{cluster.dashboard_link}\n".encode())
        told = "It shows running jobs; those that wait or have ended are in `snakemake-dask status`."
        self._say("info", f"Dask's dashboard: the link is in {path}. {told}")

    def _removed(self, address: str) -> None:
        if self._started:
            self.fleet.removed(address)

    async def _joined(self, address: str, name: str) -> None:
        await self.fleet.joined(address, name, self.id)
        self.scale()

    def _topics(self, only: str | None) -> dict[str, Callable[[Mapping[str, Any]], None]]:
        """Of Dask's events, with who gets them; ``only``: the only run."""

        def heard(message: Mapping[str, Any]) -> None:
            if (received := self._hearing.get(only or message["run"])) is not None:
                received(task.of_event(message))

        return {task.EVERY_RUN if only is None else task.event_topic(only): heard}

    def hear(self, run_id: str, received: Callable[[Mapping[str, Any]], None]) -> None:
        """``received`` gets what workers say of a run's jobs, until `forget`."""
        self._hearing[run_id] = received

    def forget(self, run_id: str) -> None:
        """A run is over, and its supervisors have left."""
        self._hearing.pop(run_id, None)
        self.leases.forget(run_id)

    async def submit(self, run_id: str, attempt: Attempt, spec: JobSpec) -> Outcome | None:
        """As `cluster.Cluster` has it."""
        submitted = self.dask.submit(run_id, attempt, spec)
        try:
            await self._over(attempt, submitted)
            if attempt.state.final:
                return None  # the result need not be fetched
            outcome: Outcome = await submitted.result()
            return outcome
        finally:
            self._release_later(submitted)

    async def _over(self, attempt: Attempt, submitted: Any) -> None:
        """The attempt or its task has ended: as a rule the former, which an event tells.

        To look at all tasks now and then costs less than to have Dask tell of each.
        """
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._followed[attempt.key] = attempt, submitted, over
        self._look_later()
        try:
            await over
        finally:
            del self._followed[attempt.key]

    def _look_later(self, after_s: float = _LOOK_S) -> None:
        if self._looking is None and self._followed:
            self._looking = asyncio.get_running_loop().call_later(after_s, self._look)

    def _look(self) -> None:
        self._looking = None
        began = time.thread_time()
        try:
            for attempt, submitted, over in self._followed.values():
                if not over.done() and (attempt.state.final or submitted.status != "pending"):
                    over.set_result(None)
        finally:
            self._look_later(min(_LOOK_MOST_S, max(_LOOK_S, (time.thread_time() - began) / _LOOKING_SHARE)))

    def _release_later(self, submitted: Any) -> None:
        """Many at once: each would be a message to its worker, and the next job's would wait for it."""
        self._ended.append(submitted)
        if len(self._ended) == 1:
            asyncio.get_running_loop().call_later(_RELEASE_AFTER_S, self._release)

    def _release(self) -> None:
        ended, self._ended = self._ended, []
        self.dask.release(ended)

    def scale(self) -> None:
        """As `cluster.Cluster` has it; nothing before `start` and after a failed one."""
        if self._started:
            self._scaling.scale()

    async def watch(self) -> None:
        """As `cluster.Cluster` has it."""
        self._dispatch.lend()
        await self.fleet.check()
        self._tell_unreached()
        self.dask.garbage.look(jobs=any(run.jobs for run in self._dispatch.runs.values()))

    def forget_all(self) -> None:
        """Keep nothing in memory that nothing refers to."""
        self.dask.garbage.collect()

    def _tell_unreached(self) -> None:
        member = None if self._unreached_told else self.fleet.unreached()
        if member is not None and member.facts is not None and member.facts.supervisor_pid:
            self._unreached_told = True
            where = f"port {self.leases.port} of this machine"
            text = (
                f"Worker {member.name} on {member.facts.host} reaches the scheduler but not {where}, over which its "
                f"jobs' leases are renewed: it ends after {self._lease_s:.0f} s. If a firewall is in between, set "
                "`port` under `scheduler` in the pools file to one that it lets through together with the next."
            )
            self._say("warning", text)

    def uses(self, run_id: str) -> Mapping[str, Sequence[float]]:
        """As `cluster.Cluster` has it, of one run's attempts."""
        return self.leases.uses(run_id) if self._leases_started else {}

    async def close(self) -> tuple[str, ...]:
        """As `cluster.Cluster` has it."""
        left: tuple[str, ...] = ()
        if self._started:
            names = {member.process.name for member in self.fleet.members.values()}
            try:
                left = await asyncio.wait_for(self._give_back(), self._close_s)
            except TimeoutError:  # a batch system that does not answer must not keep this process for ever
                left = tuple(sorted(names))
        else:
            await self.dask.close()
        if self._leases_started:
            await self.leases.close()
        return left

    async def _give_back(self) -> tuple[str, ...]:
        left = await self.fleet.close()
        await asyncio.to_thread(cancel_unanswered, self._state_dir)
        return left
