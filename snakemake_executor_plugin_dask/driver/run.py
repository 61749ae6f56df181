"""One run's parts, put together and taken apart again: scheduler, leases, fleet, controller, event log."""

import asyncio
import dataclasses
import functools
import os
import pickle
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask
from distributed import wait

from snakemake_executor_plugin_dask.backends import backend_for
from snakemake_executor_plugin_dask.backends.base import Link
from snakemake_executor_plugin_dask.batch.allocations import Ran, cancel_unanswered, run_here
from snakemake_executor_plugin_dask.config.dashboard import dashboard_options
from snakemake_executor_plugin_dask.decide.blockers import Blocker, blockers
from snakemake_executor_plugin_dask.driver.cluster import Hear, RunCluster, make_tls, server_context
from snakemake_executor_plugin_dask.driver.controller import Controller, Surroundings
from snakemake_executor_plugin_dask.driver.fleet import Fleet
from snakemake_executor_plugin_dask.driver.leases import LeaseServer
from snakemake_executor_plugin_dask.driver.members import Member
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.interior import dask_network
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome
from snakemake_executor_plugin_dask.model.messages import Begin, Say
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.node.private import write_private
from snakemake_executor_plugin_dask.observe.observer import Observer
from snakemake_executor_plugin_dask.worker import client as task

_LOOPBACK = "127.0.0.1"
_CLOSE_S = 100.0  # less than Snakemake waits for this process
_RELEASE_AFTER_S = 0.2


class Run:
    """Everything that lives as long as a run."""

    def __init__(self, begin: Begin, send: Callable[[object], None]) -> None:
        self._begin = begin
        self._send = send
        self._state_dir = Path(begin.state_dir)
        self._observer = Observer(begin.event_log, begin.options.report, lambda level, text: send(Say(level, text)))
        self.say, self.note = self._observer.say, self._observer.note
        self.controller = Controller(
            begin.setup,
            begin.options,
            Surroundings(
                send=send,
                say=self.say,
                event=self._observer.event,
                submit=self._submit,
                kill=self._kill,
                state_dir=begin.state_dir,
                failed=self._failed,
                make_pools=self._make_pools,
                released=self._released,
            ),
        )
        self._held = state.Held(self._state_dir)
        self._cluster: RunCluster | None = None
        self._leases: LeaseServer | None = None
        self._fleet: Fleet | None = None
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks = Tasks(self._failed)
        self._unreached_told = False
        self._ended: list[Any] = []  # futures of which nothing more is wanted

    async def start(self) -> None:
        """Bring the scheduler up; workers come with the first jobs."""
        setup, options = self._begin.setup, self._begin.options
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
        dashboard = dashboard_options(options.dashboard)
        cluster = self._cluster = RunCluster(security, host, None if host else interface, options.scheduler_port)
        hear = Hear(
            topic=task.event_topic(setup.run_id),
            worker_added=lambda address, name: self._spawn(self._joined(address, name)),
            worker_removed=self._removed,
            event=self.controller.received,
        )
        dask.config.set({"temporary-directory": os.fspath(self._state_dir)})  # and not one that all users share
        for note in await cluster.start(dashboard, hear):
            self.say("warning", note)
        reach = cluster.scheduler_address.rpartition("://")[2].rpartition(":")[0].strip("[]")  # of IPv6
        leases = self._leases = LeaseServer(server_context(files))
        # What a firewall lets through to the scheduler it lets through here, too.
        port = options.scheduler_port
        await leases.start(reach, port + 1 if port else 0)
        self._spawn(leases.renew())
        link = Link(
            run_id=setup.run_id,
            scheduler=cluster.scheduler_address,
            lease=(reach, leases.port),
            tls=(files.ca, files.cert, files.key),
            state_dir=os.fspath(self._state_dir),
            setup=os.fspath(setup_path),
        )
        self._fleet = Fleet(cluster, leases, backends, link, setup.lease_s, self.controller)
        self.controller.fleet = self._fleet
        self._observer.event(
            "run-started",
            run_id=setup.run_id,
            host=platform.node(),
            workdir=setup.workdir,
            options=options,
            jobs=self._begin.jobs,
            versions={"snakemake": setup.snakemake_version, "plugin": setup.plugin_version},
        )
        if dashboard.host is not None:
            self._tell_dashboard(cluster)

    def _tell_dashboard(self, cluster: RunCluster) -> None:
        path = self._state_dir / "dashboard"
        write_private(path, f"{cluster.dashboard_link}\n".encode())
        told = "It shows running jobs; those that wait or have ended are in `snakemake-dask status`."
        self.say("info", f"Dask's dashboard: the link is in {path}. {told}")

    async def watch(self) -> None:
        """Once a second."""
        assert self._fleet is not None
        await self._fleet.check()
        self._tell_unreached()
        if not self.controller.stopping:
            self._observer.look(self._blockers(), time.monotonic(), self._leases.uses() if self._leases else {})

    def _tell_unreached(self) -> None:
        if self._leases is None or self._fleet is None or self._unreached_told:
            return
        member = self._fleet.unreached()
        if member is not None and member.facts is not None:
            self._unreached_told = True
            where = f"port {self._leases.port} of this machine"
            text = (
                f"Worker {member.name} on {member.facts.host} reaches the scheduler, and not {where}, over which its "
                f"jobs' leases are renewed: it ends after {self._begin.setup.lease_s:.0f} s. Where a firewall is in "
                "between, say in the pools file under `scheduler` a `port` that it lets through, and the next one."
            )
            self.say("warning", text)

    def show_status(self) -> None:
        """Print the whole picture."""
        self._send(Say("info", self._observer.show(self._blockers(), time.monotonic())))

    def _blockers(self) -> list[Blocker]:
        return blockers(self.controller.waiting, self.controller.ledger, time.monotonic())

    def stopping(self) -> None:
        """Nothing new is started from here on."""
        self.controller.stopping = True

    async def close(self, *, failed: bool = False) -> tuple[str, ...]:
        """Give everything back. Returns what could not be seen to be gone."""
        left: tuple[str, ...] = ()
        if self._fleet is not None:
            members = {member.process.name for member in self._fleet.members.values()}
            try:
                left = await asyncio.wait_for(self._give_back(self._fleet), _CLOSE_S)
            except TimeoutError:  # a batch system that does not answer must not keep this process for ever
                left = tuple(sorted(members))
        elif self._cluster is not None:
            await self._cluster.close()
        if self._leases is not None:
            await self._leases.close()
        counts = self.controller.counts
        summary = {"jobs": counts.jobs, "attempts": counts.attempts, "lost_workers": counts.lost_workers}
        line = self._observer.finish(summary=summary, left=left)
        if counts.attempts:
            self._send(Say("info", line))
        self._held.clear(keep_logs=failed or bool(left))
        self._held.release()
        return left

    async def _give_back(self, fleet: Fleet) -> tuple[str, ...]:
        left = await fleet.close()
        await asyncio.to_thread(cancel_unanswered, self._state_dir)
        return left

    async def _submit(self, address: str, spec: JobSpec) -> Outcome | None:
        """The attempt as a Dask task, pinned. Returns its outcome; None where its end was told as an event already."""
        assert self._cluster is not None
        future = self._pinned(self._cluster.client, address, spec)
        try:
            with self._cluster.client.as_current():
                ended = wait(future)
            await ended
            if future.status == "finished" and self.controller.sent(spec.key) is None:
                return None  # the result need not be fetched
            outcome: Outcome = await future.result()
            return outcome
        finally:
            self._release_later(future)

    def _pinned(self, client: Any, address: str, spec: JobSpec) -> Any:
        """The attempt's future: on this worker or not at all, and never a second time."""
        return client.submit(
            task.run_job,
            self._begin.setup.run_id,
            spec,
            key=spec.key,
            workers=[address],
            allow_other_workers=False,
            pure=False,
            retries=0,
        )

    def _release_later(self, future: Any) -> None:
        """Many at once: each would be a message to its worker, and the next job's would wait for it."""
        self._ended.append(future)
        if len(self._ended) == 1:
            asyncio.get_running_loop().call_later(_RELEASE_AFTER_S, self._release)

    def _release(self) -> None:
        ended, self._ended = self._ended, []
        for future in ended:
            future.release()

    async def _kill(self, member: Member, key: str, reason: str) -> None:
        assert self._cluster is not None
        await self._cluster.client.run(
            task.kill_job, self._begin.setup.run_id, key, reason, workers=[member.address], on_error="ignore"
        )

    async def _make_pools(self, requests: Sequence[Request], further: bool) -> tuple[list[Pool], dict[Request, str]]:
        """Checked and complete, with a name of their own; and why some of the requests can have none."""
        template = self._begin.options.slurm_template
        assert template is not None
        # Slurm's commands may hang for longer than leases last without the loop that renews them.
        pools, refused = await asyncio.to_thread(pools_for, template, requests, further=further)
        named: list[Pool] = []
        for pool in pools:
            name, number = pool.name, 2
            while name in self.controller.pools or any(other.name == name for other in named):
                name, number = f"{pool.name}-{number}", number + 1
            named.append(dataclasses.replace(pool, name=name))
        return named, refused

    def _released(self, key: str) -> None:
        """Every process of an attempt is gone."""

    def _removed(self, address: str) -> None:
        if self._fleet is not None:
            self._fleet.removed(address)

    async def _joined(self, address: str, name: str) -> None:
        assert self._fleet is not None
        await self._fleet.joined(address, name, self._begin.setup.run_id)
        self.controller.scale()

    def _spawn(self, coroutine: Any) -> None:
        self._tasks.spawn(coroutine)

    def _failed(self, error: BaseException) -> None:
        """An error of the driver's own, where nobody waits for a result: the run ends with it."""
        if not self.broken.done():
            self.broken.set_exception(error)


def pools_for(
    template: Pool,
    requests: Sequence[Request],
    run: Callable[[Sequence[str]], Ran] = run_here,
    *,
    further: bool = False,
) -> tuple[list[Pool], dict[Request, str]]:
    """Pools for these requests, and why some can have none. Asks Slurm each question once."""
    from snakemake_executor_plugin_dask.backends.slurm_pools import make_pools

    backend = backend_for(template.cluster)
    ask = functools.cache(lambda *command: run(command))
    refused: dict[Request, str] = {}

    def make(part: Sequence[Request]) -> list[Pool]:
        # Without names of rules: the job that fails by it has one.
        named = [("", request) for request in part]
        return make_pools(template, named, run=lambda command: ask(*command), further=further)

    for request in requests:  # one that no node holds must not keep the others from a pool
        try:
            make([request])
        except ConfigurationError as error:
            refused[request] = str(error)
    fitting = [request for request in requests if request not in refused]
    if not fitting:
        return [], refused
    try:
        pools = make(fitting)
        for pool in pools:
            backend.check(pool)
        return [backend.complete(pool) for pool in pools], refused
    except ConfigurationError as error:
        return [], refused | dict.fromkeys(fitting, str(error))
