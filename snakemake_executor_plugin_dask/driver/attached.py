"""A run on a Dask cluster that others brought up: its workers are followed and used, and nothing of it is changed.

What jobs hold is reserved in that cluster's scheduler (see `shared.py`), so that several runs do not overbook it.
Leases are renewed through the workers, which have no connection of ours.
"""

import asyncio
import dataclasses
import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from distributed import Client

from snakemake_executor_plugin_dask.backends.attached import (
    Seen,
    address_of,
    check,
    look_expression,
    pool_of_worker,
    resource_names,
    shortcomings,
)
from snakemake_executor_plugin_dask.backends.base import WorkerProcess
from snakemake_executor_plugin_dask.driver.controller import NotNow
from snakemake_executor_plugin_dask.driver.fleet import LEASE_MARGIN_S, SILENT_S
from snakemake_executor_plugin_dask.driver.members import Listener, Member, Members
from snakemake_executor_plugin_dask.driver.run import Run
from snakemake_executor_plugin_dask.driver.shared import OUTLIVES_S, PLUGIN_NAME, PROTOCOL, TOPIC, SharedLeasesPlugin
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.errors import ConfigurationError, PoolError
from snakemake_executor_plugin_dask.jobs import JobSpec, Outcome, RunSetup, WorkerFacts
from snakemake_executor_plugin_dask.ledger import Lease, Others
from snakemake_executor_plugin_dask.messages import Begin, Say
from snakemake_executor_plugin_dask.pools import ATTACHED, Pool
from snakemake_executor_plugin_dask.requests import Request
from snakemake_executor_plugin_dask.worker import attach, task
from snakemake_executor_plugin_dask.worker.processes import job_key

RENEW_EVERY_S = 5.0
_CALL_S = 20.0
_CONNECT_S = 30.0


class AttachedFleet(Members):
    """The workers of the cluster, as the controller knows them. Brings none up and gives none back."""

    _HOW_LOST = "it left the cluster"

    def __init__(self, client: Client, setup: RunSetup, listener: Listener, clock: Callable[[], float]) -> None:
        super().__init__(listener, clock)
        self._client: Any = client
        self._setup = setup
        self._renewed: dict[str, float] = {}
        # A renewal that fails is no error of this run: the worker's silence is counted.
        self._tasks = Tasks(lambda error: listener.event("renewal-failed", error=repr(error)))
        self._last_round = clock()
        self.names: tuple[str, ...] = ()  # of the resources that workers declare

    def add(self, pool: Pool, count: int) -> None:
        """Others decide how many workers there are."""

    def give_back(self, name: str, why: str) -> None:
        """They are not ours."""

    async def look(self, addresses: Sequence[str]) -> dict[str, Seen]:
        """What the workers' environments have; those that do not answer are left out."""
        found = await self._client.run(
            eval, look_expression(self._setup.workdir), workers=list(addresses), on_error="return"
        )
        return {address: Seen(**seen) for address, seen in found.items() if isinstance(seen, dict)}

    async def join(self, address: str, name: str, resources: Mapping[str, Any]) -> Member | None:
        """Put this package's part on a worker that was looked at. None: it went meanwhile."""
        if self.by_address(address) is not None:
            return None
        short = name.rpartition("://")[2]
        unique = short if short not in self.members else f"{short}-{address.rpartition(':')[2]}"
        found = await self._client.run(
            attach.attach, self._setup, unique, workers=[address], on_error="return", wait=True
        )
        facts = found.get(address)
        if not isinstance(facts, WorkerFacts):
            self._listener.event("worker-not-attached", worker=unique, reason=repr(facts))
            return None
        taken = {
            device
            for m in self.members.values()
            if m.facts and m.facts.host == facts.host
            for device in m.facts.devices
        }
        facts = dataclasses.replace(facts, devices=tuple(device for device in facts.devices if device not in taken))
        pool = pool_of_worker(resources, self.names, len(facts.devices))
        now = self._clock()
        member = Member(unique, pool, WorkerProcess(pool, unique, None), "up", now, address, facts)  # type: ignore[arg-type]
        self.members[unique] = member
        self._renewed[unique] = now
        self._listener.event("worker-joined", worker=unique, pool=pool.name, waited_s=0.0, facts=facts)
        self._listener.worker_joined(member)
        return member

    async def confirm_dead(self, member: Member, keys: Sequence[str]) -> str | None:
        """Its supervisor ends the jobs once the worker is gone, or no renewal comes. On this machine one can look."""
        if keys:
            run_out = self._renewed.get(member.name, self._clock()) + self._setup.lease_s + LEASE_MARGIN_S
            here = member.facts is not None and member.facts.host == platform.node()
            while self._clock() < run_out:
                if here and not await asyncio.to_thread(_alive, self._setup.run_id, set(keys)):
                    break
                await asyncio.sleep(0.5)
        self.members.pop(member.name, None)
        return None

    async def check(self) -> None:
        """Renew leases, every five seconds; workers that do not answer for long are lost."""
        now = self._clock()
        asleep = now - self._last_round > 2 * RENEW_EVERY_S  # this process itself: nobody could answer meanwhile
        if now - self._last_round < RENEW_EVERY_S:
            return
        self._last_round = now
        for member in list(self.members.values()):
            if member.state != "up":
                continue
            if now - self._renewed[member.name] > SILENT_S and not asleep:
                self.lose(member, f"it said nothing for {now - self._renewed[member.name]:.0f} s")
            else:
                self._tasks.spawn(self._renew(member))

    async def _renew(self, member: Member) -> None:
        began = self._clock()
        async with asyncio.timeout(_CALL_S):
            done = await self._client.run(task.renew, self._setup.run_id, workers=[member.address], on_error="return")
        if done.get(member.address, "") is None:
            self._renewed[member.name] = began

    async def close(self) -> tuple[str, ...]:
        """End this run's jobs and supervisors everywhere. Returns the workers on which that was not seen."""
        self._tasks.cancel()
        addresses = {member.address: member.name for member in self.members.values() if member.state == "up"}
        if not addresses:
            return ()
        try:
            async with asyncio.timeout(_CALL_S + 10):
                done = await self._client.run(
                    attach.detach, self._setup.run_id, workers=list(addresses), on_error="return"
                )
        except (TimeoutError, OSError):
            done = {}
        return tuple(name for address, name in addresses.items() if done.get(address) is not True)


class AttachedRun(Run):
    """A run whose workers belong to a cluster of others."""

    def __init__(self, begin: Begin, send: Callable[[object], None]) -> None:
        super().__init__(begin, send)
        self._setup = begin.setup
        self._client: Any = None
        self._asking = asyncio.Lock()  # releases and reservations arrive in the order in which they are made
        self._renewing: asyncio.Task[None] | None = None
        self._clock = time.monotonic

    async def start(self) -> None:
        """Connect, look at every worker, and put this package's part on each."""
        scheduler = self._begin.options.scheduler
        assert scheduler is not None
        address = address_of(scheduler)
        try:
            self._client = await Client(
                address, asynchronous=True, set_as_default=False, timeout=_CONNECT_S, name="snakemake"
            )
        except (OSError, TimeoutError, ValueError) as error:
            msg = (
                f"No Dask scheduler answers at {address} ({error}); check the address, and for tls:// Dask's own "
                "configuration (distributed.comm.tls)."
            )
            raise ConfigurationError(msg) from error
        await self._share(address)
        fleet = self._attached = AttachedFleet(self._client, self._setup, self.controller, self._clock)
        self._fleet = self.controller.fleet = fleet  # type: ignore[assignment]
        if not self._setup.replace_environment:
            self._send(Say("warning", f"{address} is not encrypted: jobs get only the variables of `envvars:`."))
        self._observer.event("run-started", run_id=self._setup.run_id, options=self._begin.options, versions={})
        workers = await self._workers()
        fleet.names = resource_names([worker.get("resources", {}) for worker in workers.values()])
        self.controller.pools[ATTACHED] = Pool(ATTACHED, ATTACHED, resources=tuple((name, 0) for name in fleet.names))
        check(list((await fleet.look(list(workers))).values()) if workers else [], self._setup, address)
        self._client.subscribe_topic("all", self._cluster_event)
        self._client.subscribe_topic(TOPIC, lambda _: self._spawn(self._renew_once()))
        self._client.subscribe_topic(task.event_topic(self._setup.run_id), lambda event: self._worker_event(event[1]))
        for where in workers:
            await self._join(where)
        self._renewing = asyncio.create_task(self._renew())
        if not workers:
            self._send(Say("warning", f"{address} has no workers yet; jobs wait until some come."))

    async def _share(self, address: str) -> None:
        """The leases in the scheduler there, which another run may have put there already."""
        try:
            await self._client.register_plugin(SharedLeasesPlugin(), name=PLUGIN_NAME)
            protocol = await self._ask("hello")
        except Exception as error:  # whatever its unpickling or its policy raised there
            msg = (
                f"The scheduler at {address} cannot hold leases for runs that share it ({error!r}); install "
                f"snakemake-executor-plugin-dask {self._setup.plugin_version} in its environment too."
            )
            raise ConfigurationError(msg) from error
        if protocol != PROTOCOL:
            msg = f"The scheduler at {address} has another version of snakemake-executor-plugin-dask; install the same."
            raise ConfigurationError(msg)
        await self._renew_once()

    async def _ask(self, what: str, **more: Any) -> Any:
        async with asyncio.timeout(_CALL_S):
            return await self._client.scheduler.snakemake_leases(what=what, run=self._setup.run_id, **more)

    async def _workers(self) -> dict[str, dict[str, Any]]:
        identity = await self._client.scheduler.identity(n_workers=-1)
        return dict(identity["workers"])

    # Workers come and go

    def _cluster_event(self, event: tuple[float, Any]) -> None:
        message = event[1]
        if isinstance(message, dict) and message.get("worker"):
            if message.get("action") == "add-worker":
                self._spawn(self._newcomer(str(message["worker"])))
            elif message.get("action") == "remove-worker":
                self._removed(str(message["worker"]))

    async def _newcomer(self, address: str) -> None:
        seen = (await self._attached.look([address])).get(address)
        if seen is None:
            return
        found = shortcomings([seen], self._setup)
        if found:
            self._send(Say("warning", f"Worker {address} joined the cluster and is not used: {' '.join(found)}"))
        else:
            await self._join(address)

    async def _join(self, address: str) -> None:
        worker = (await self._workers()).get(address)
        if worker is None:
            return
        if await self._attached.join(address, str(worker["name"]), worker.get("resources", {})) is None:
            self._send(
                Say("warning", f"Worker {worker['name']} at {address} is not used: the plugin's part did not start.")
            )
        else:
            await self._renew_once()

    # Jobs

    async def _submit(self, address: str, spec: JobSpec) -> Outcome | None:
        member = self._attached.by_address(address)
        job = self.controller.sent(spec.key)
        if member is None or job is None or job.lease is None:
            raise NotNow
        amounts = _amounts(job.lease, job.queued.request, member)
        async with self._asking:
            held = await self._ask("reserve", key=spec.key, worker=address, amounts=amounts, capacity=_capacity(member))
        if not held:
            await self._renew_once()
            raise NotNow
        try:
            future = self._pinned(self._client, address, spec)
            try:
                outcome: Outcome = await future.result()
                return outcome
            finally:
                future.release()
        finally:
            self._spawn(self._give_up(spec.key))

    def _failed(self, error: BaseException) -> None:
        """A call that the cluster of others did not answer ends no run: what is reserved there runs out by itself."""
        if isinstance(error, TimeoutError | OSError):
            self._observer.event("call-failed", error=repr(error))
        else:
            super()._failed(error)

    async def _give_up(self, key: str) -> None:
        async with self._asking:
            await self._ask("release", key=key)

    def _worker_event(self, message: Mapping[str, Any]) -> None:
        if "ended" in message:
            self._spawn(self._give_up(message["ended"]["key"]))
        self.controller.received(message)

    async def _kill(self, member: Member, key: str, reason: str) -> None:
        await self._client.run(
            task.kill_job, self._setup.run_id, key, reason, workers=[member.address], on_error="ignore"
        )

    # Leases

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                await self._renew_once()
            except (OSError, TimeoutError) as error:
                self._observer.event("renewal-failed", error=repr(error))

    async def _renew_once(self) -> None:
        """Hold what is held for longer, and take note of what others hold."""
        others = await self._ask("renew", length_s=self._setup.lease_s + OUTLIVES_S)
        for member in self.controller.fleet.members.values() if self.controller.fleet is not None else ():
            if member.state == "up" and member.name in self.controller.ledger.workers(ATTACHED):
                self.controller.ledger.set_others(member.name, _others(others.get(member.address, {}), member))
        self.controller.place_soon()

    async def watch(self) -> None:
        if self._client.status not in ("running", "connecting"):
            msg = "the connection to the Dask scheduler is lost"
            raise PoolError(msg)
        await super().watch()

    async def close(self, *, failed: bool = False) -> tuple[tuple[str, ...], dict[str, Any]]:
        if self._renewing is not None:
            self._renewing.cancel()
        result = await super().close(failed=failed)
        if self._client is not None:
            try:
                await self._ask("end")
            except (OSError, TimeoutError) as error:
                self._observer.event("renewal-failed", error=repr(error))  # what is held there runs out
            await self._client.close()
        return result


def _amounts(lease: Lease, request: Request, member: Member) -> dict[str, float]:
    counted = dict(member.pool.resources)
    return {
        "cores": float(lease.cores_by_worker.get(member.name, 0)),
        "memory_mb": float(lease.memory_mb),
        **{f"gpu {device}": 1.0 for device in lease.devices.get(member.name, ())},
        **{f"resource {name}": float(amount) for name, amount in request.extra if name in counted},
    }


def _capacity(member: Member) -> dict[str, float]:
    assert member.facts is not None
    return {
        "cores": float(member.facts.cores),
        "memory_mb": float(member.facts.memory_mb),
        **{f"gpu {device}": 1.0 for device in member.facts.devices},
        **{f"resource {name}": float(amount) for name, amount in member.pool.resources},
    }


def _others(used: Mapping[str, float], member: Member) -> Others:
    assert member.facts is not None
    return Others(
        cores=round(used.get("cores", 0)),
        memory_mb=round(used.get("memory_mb", 0)),
        devices=tuple(device for device in member.facts.devices if used.get(f"gpu {device}")),
        extra={name: round(used.get(f"resource {name}", 0)) for name, _ in member.pool.resources},
    )


def _alive(run_id: str, keys: Collection[str | None]) -> bool:
    return any(job_key(pid) in keys for pid in attach.marked(run_id))
