"""A run on a Dask cluster that others brought up: its workers are followed and used, and nothing of it is changed.

What jobs hold is reserved in that cluster's scheduler (see `shared.py`), so that several runs do not overbook it.
Leases are renewed through the workers, which have no connection of ours.
"""

import asyncio
import contextlib
import dataclasses
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from snakemake_executor_plugin_dask.backends.attached import (
    Seen,
    check,
    devices_of_worker,
    look_expression,
    pool_of_worker,
    resource_names,
    shortcomings,
)
from snakemake_executor_plugin_dask.backends.base import WorkerProcess
from snakemake_executor_plugin_dask.decide import demand
from snakemake_executor_plugin_dask.decide.ledger import Lease, Others
from snakemake_executor_plugin_dask.decide.routing import Shape, largest, shape_of_worker
from snakemake_executor_plugin_dask.decide.unfit import Unfit
from snakemake_executor_plugin_dask.decide.waiting import WaitingClass
from snakemake_executor_plugin_dask.driver.attached.connecting import connect
from snakemake_executor_plugin_dask.driver.attached.shared import (
    OUTLIVES_S,
    PLUGIN_NAME,
    PROTOCOL,
    TOPIC,
    SharedLeasesPlugin,
)
from snakemake_executor_plugin_dask.driver.controller import NotNow
from snakemake_executor_plugin_dask.driver.fleet import LEASE_MARGIN_S, SILENT_S
from snakemake_executor_plugin_dask.driver.members import Listener, Member, Members
from snakemake_executor_plugin_dask.driver.run import Run
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.interior import dask_client
from snakemake_executor_plugin_dask.model.errors import ConfigurationError, PoolError
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome, RunSetup, WorkerFacts
from snakemake_executor_plugin_dask.model.kinds import ATTACHED
from snakemake_executor_plugin_dask.model.messages import Begin
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.worker import attach
from snakemake_executor_plugin_dask.worker import client as task

RENEW_EVERY_S = 5.0
_CALL_S = 20.0
_LAST_WORDS_S = 1.0  # after a supervisor is gone, the ends of its jobs are told
_JOIN_S = 60.0  # modules may come from a slow file system
#: Workers' leases are renewed only while what their jobs hold is reserved for certain: it must outlast them.
_RESERVED_S = 20.0
_MUTE_S = 60.0  # a scheduler that answers nothing for so long is lost, although the connection stands
#: A scheduler that was lost may come back, with workers. Longer than it takes until all jobs are known to be dead.
_BACK_S = 90.0
_TRY_EVERY_S = 1.0
_CLOSE_S = 5.0
_PLENTY = 10**9  # of what nothing is known of
_MOST_WORKERS = 10_000  # that are asked for; a cluster that grows has a limit of its own


class AttachedFleet(Members):
    """The workers of the cluster, as the controller knows them. Brings none up and gives none back."""

    _HOW_LOST = "it left the cluster"

    def __init__(self, client: Any, setup: RunSetup, listener: Listener, clock: Callable[[], float]) -> None:
        super().__init__(listener, clock)
        self.client = client  # another one once the scheduler was lost and is back
        self._setup = setup
        self._renewed: dict[str, float] = {}  # by worker: when the last renewal was sent that it answered
        self._sent: dict[str, float] = {}  # the same of the last one that was sent: it may arrive all the same
        self._here: dict[str, int] = {}  # by worker: its supervisor, where that can be seen on this machine
        self._tasks = Tasks(listener.failed)
        self._began = self._last_round = clock()
        self._joining: dict[str, str] = {}  # by address: the name that the worker gets
        self.reserved_at = clock()  # when the reservations were last renewed
        self.names: tuple[str, ...] = ()  # of the resources that workers declare
        self.names_changed: Callable[[tuple[str, ...]], None] = lambda _: None

    def add(self, pool: Pool, count: int) -> None:
        """Others decide how many workers there are."""

    def give_back(self, name: str, why: str) -> None:
        """They are not ours."""

    async def look(self, addresses: Sequence[str]) -> dict[str, Seen]:
        """What the workers' environments have; those that do not answer are left out."""
        expression = look_expression(self._setup.workdir)
        found = await asyncio.gather(*(self._call(address, _CALL_S, eval, expression) for address in addresses))
        return {address: Seen(**seen) for address, seen in zip(addresses, found, strict=True) if isinstance(seen, dict)}

    async def _call(self, address: str, within_s: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function gives on one worker, or the error; a worker that hangs holds up no other one."""
        try:
            async with asyncio.timeout(within_s):
                done = await self.client.run(function, *arguments, workers=[address], on_error="return")
        except Exception as error:  # noqa: BLE001 - a client that is closed meanwhile raises what it happens to meet
            return error
        return done.get(address, OSError("the worker is not there"))

    async def join(self, address: str, name: str, resources: Mapping[str, Any]) -> None:
        """Put this package's part on a worker that was looked at. Raises PoolError where that is not possible."""
        if self.by_address(address) is not None or address in self._joining:
            return
        short = name.rpartition("://")[2]
        known = {*self.members, *self._joining.values()}
        unique = short if short not in known else f"{short}-{address.rpartition(':')[2]}"
        self._joining[address] = unique
        try:
            facts = await self._call(address, _JOIN_S, attach.attach, self._setup, unique)
        finally:
            del self._joining[address]
        if not isinstance(facts, WorkerFacts):
            msg = f"the plugin's part did not start ({facts!r})"
            raise PoolError(msg)
        taken = {
            device
            for m in self.members.values()
            if m.facts and m.facts.host == facts.host
            for device in m.facts.devices
        }
        facts = dataclasses.replace(facts, devices=devices_of_worker(resources, facts.devices, taken))
        self._count(resource_names([resources]))
        pool = pool_of_worker(resources, self.names, len(facts.devices))
        now = self._clock()
        member = Member(unique, pool, WorkerProcess(pool, unique, None), "up", now, address, facts)  # type: ignore[arg-type]
        self.members[unique] = member
        self._renewed[unique] = self._sent[unique] = now
        if facts.host == platform.node() and attach.seen_here(facts.supervisor_pid):
            self._here[unique] = facts.supervisor_pid
        self._listener.event("worker-joined", worker=unique, pool=pool.name, waited_s=0.0, facts=facts)
        self._listener.worker_joined(member)

    def _count(self, names: Sequence[str]) -> None:
        """A worker that joins may declare resources that none had so far: jobs hold them now, and others lack them."""
        if new := set(names) - set(self.names):
            self.names = tuple(sorted({*self.names, *new}))
            for member in self.members.values():
                held = dict.fromkeys(self.names, 0) | dict(member.pool.resources)
                member.pool = dataclasses.replace(member.pool, resources=tuple(sorted(held.items())))
            self.names_changed(self.names)

    async def confirm_dead(self, member: Member, keys: Sequence[str]) -> str | None:
        """Its supervisor ends the jobs once the worker is gone, or no renewal comes; on this machine we do."""
        run_out = self._sent.get(member.name, self._clock()) + self._setup.lease_s + LEASE_MARGIN_S
        here = self._here.pop(member.name, None)
        if keys and (here is None or not await asyncio.to_thread(attach.end_from_outside, here, set(keys))):
            await asyncio.sleep(max(0.0, run_out - self._clock()))
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
            elif now - self.reserved_at < _RESERVED_S:
                self._tasks.spawn(self._renew(member))

    async def _renew(self, member: Member) -> None:
        began = self._sent[member.name] = self._clock()
        # By its number the supervisor knows when it was due, and does not count it from a late arrival.
        number = int((began - self._began) / RENEW_EVERY_S)
        error = await self._call(member.address, _CALL_S, task.renew, self._setup.run_id, number)
        if error is None:
            self._renewed[member.name] = began
        else:
            self._listener.event("renewal-failed", error=repr(error))

    async def close(self) -> tuple[str, ...]:
        """End this run's jobs and supervisors everywhere. Returns the workers on which that was not seen."""
        self._tasks.cancel()
        members = [member for member in self.members.values() if member.state == "up"]
        done = await asyncio.gather(
            *(self._call(member.address, _CALL_S + 10, attach.detach, self._setup.run_id) for member in members)
        )
        lost = [member.name for member in self.members.values() if member.state == "lost"]
        return (*lost, *(member.name for member, gone in zip(members, done, strict=True) if gone is not True))


class AttachedRun(Run):
    """A run whose workers belong to a cluster of others."""

    def __init__(self, begin: Begin, send: Callable[[object], None]) -> None:
        super().__init__(begin, send)
        self._setup = begin.setup
        self._client: Any = None
        self._asking = asyncio.Lock()  # releases and reservations arrive in the order in which they are made
        self._renewing: asyncio.Task[None] | None = None
        self._following: dict[str, asyncio.Task[Any] | None] = {}  # by the attempt's key: who waits for its result
        self._refused: set[str] = set()  # addresses of workers that cannot be used, which was said
        self._looked_at: set[str] = set()  # addresses of newcomers at this moment
        self._renewal_due = False
        self._ready = False  # the workers that were there at the start have been looked at
        self._clock = time.monotonic
        self._address = ""
        self._scheduler_id: Any = None
        self._mute_since: float | None = None  # since when no question to the scheduler was answered
        self._lost_at: float | None = None  # when the scheduler was lost; None: it is there
        self._ran: set[str] = set()  # the jobs that it ended, by Snakemake's keys
        self._unfit = Unfit()
        self._adaptive = False
        self._shape = Shape()  # of a new worker, as far as one was seen
        self._more = 0  # workers that the waiting jobs could use

    async def start(self) -> None:
        """Connect, look at every worker, and put this package's part on each."""
        await self._connect()
        fleet = self._attached = AttachedFleet(self._client, self._setup, self.controller, self._clock)
        fleet.names_changed = self._count_also
        self._fleet = self.controller.fleet = fleet  # type: ignore[assignment]
        try:
            await self._begin_with(fleet)
        except Exception as error:
            if not self._lost():
                raise
            msg = f"The Dask scheduler at {self._address} was lost while the run was prepared: {_in_words(error)}"
            raise ConfigurationError(msg) from error

    async def _connect(self) -> None:
        scheduler = self._begin.options.scheduler
        assert scheduler is not None
        self._client, self._address = await connect(scheduler)
        self._scheduler_id = self._client.scheduler_info().get("id")

    async def _begin_with(self, fleet: AttachedFleet) -> None:
        await self._share(self._address)
        if not self._setup.replace_environment:
            self.say("warning", f"{self._address} is not encrypted: jobs get only the variables of `envvars:`.")
        self._observer.event("run-started", run_id=self._setup.run_id, options=self._begin.options, versions={})
        self._subscribe()
        workers = await self._workers()
        self._count_also(resource_names([worker.get("resources", {}) for worker in workers.values()]))
        fleet.names = tuple(name for name, _ in self.controller.pools[ATTACHED].resources)
        seen = await fleet.look(list(workers))
        check(list(seen.values()), self._setup, self._address)
        self._ready = True
        await asyncio.gather(*(self._join(where, workers[where]) for where in seen))
        for where in workers.keys() - seen.keys():
            self.say("warning", f"Worker {workers[where]['name']} at {where} does not answer; not used so far.")
        await self._renew_once()
        self._renewing = self._tasks.spawn(self._renew())
        if not workers:
            self.say("warning", f"{self._address} has no workers yet; jobs wait until some come.")

    def _subscribe(self) -> None:
        self._client.subscribe_topic("all", self._cluster_event)
        self._client.subscribe_topic(TOPIC, lambda _: self._renew_soon())
        own = task.event_topic(self._setup.run_id)
        self._client.subscribe_topic(own, lambda event: self._worker_event(event[1]))

    def _count_also(self, names: Sequence[str]) -> None:
        """The names of all resources that workers declare: of these a job holds what it asks for, and of no others."""
        pool = Pool(ATTACHED, ATTACHED, resources=tuple((name, 0) for name in names))
        self.controller.pools[ATTACHED] = pool
        self.controller.ledger.count_also(pool)
        self.controller.route_again(pool)

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
            return await dask_client.call(self._client, "snakemake_leases", what=what, run=self._setup.run_id, **more)

    async def _workers(self) -> dict[str, dict[str, Any]]:
        return await dask_client.workers(self._client)

    # Workers come and go

    def _cluster_event(self, event: tuple[float, Any]) -> None:
        message = event[1]
        if isinstance(message, dict) and message.get("worker") and self._ready:
            if message.get("action") == "add-worker":
                self._spawn(self._newcomer(str(message["worker"])))
            elif message.get("action") == "remove-worker":
                self._removed(str(message["worker"]))

    def _removed(self, address: str) -> None:
        self._refused.discard(address)
        super()._removed(address)

    async def _newcomer(self, address: str) -> None:
        if address in self._looked_at:
            return
        self._looked_at.add(address)
        try:
            seen = (await self._attached.look([address])).get(address)
            worker = (await self._workers()).get(address)
        finally:
            self._looked_at.discard(address)
        if worker is None or seen is None:
            return  # one that does not answer is looked at again in the next round
        if found := shortcomings([seen], self._setup):
            self._refuse(address, worker, " ".join(found))
        else:
            await self._join(address, worker)
            await self._renew_once()

    async def _join(self, address: str, worker: Mapping[str, Any]) -> None:
        try:
            await self._attached.join(address, str(worker["name"]), worker.get("resources", {}))
        except PoolError as error:
            self._refuse(address, worker, f"{error}.")

    def _worker_event(self, message: Mapping[str, Any]) -> None:
        self.controller.received(message)
        if "leaving" in message:
            self._spawn(self._attach_again(str(message["leaving"])))

    async def _attach_again(self, name: str) -> None:
        """A worker of others goes on without this run's supervisor; the next round gives it a new one."""
        await asyncio.sleep(_LAST_WORDS_S)
        member = self._attached.members.get(name)
        if member is not None and not self.controller.stopping:
            self._attached.lose(member, "its supervisor process ended")

    def _refuse(self, address: str, worker: Mapping[str, Any], why: str) -> None:
        self._refused.add(address)
        self.say("warning", f"Worker {worker['name']} at {address} is not used: {why}")

    async def _compare(self) -> None:
        """Notice what no event told: workers that came before events were subscribed to, or while nothing was heard."""
        if self._lost_at is not None:
            return
        there = set(await self._client.ncores())
        members = self._attached.members.values()
        # A lost one comes back only once its jobs are known to be dead: a new renewal would let them live on.
        for address in there - {member.address for member in members} - self._refused:
            self._spawn(self._newcomer(address))
        for address in {member.address for member in members if member.state == "up"} - there:
            self._removed(address)

    # Jobs

    async def _submit(self, address: str, spec: JobSpec) -> Outcome | None:
        member = self._attached.by_address(address)
        job = self.controller.sent(spec.key)
        if member is None or job is None or job.lease is None:
            raise NotNow
        amounts = _amounts(job.lease, job.queued.request, member)
        try:
            async with self._asking:
                held = await self._ask("reserve", key=spec.key, amounts=amounts, capacity=_capacity(member))
        except Exception as error:
            if not isinstance(error, OSError | TimeoutError) and not self._lost():
                raise
            held = False  # if it was held nevertheless, the next renewal gives it back
        if not held and not self._lost():
            await self._renew_once()
        # Its worker may have been lost meanwhile.
        if not held or self.controller.sent(spec.key) is not job or job.limbo is not None:
            raise NotNow
        self._following[spec.key] = asyncio.current_task()
        future = self._pinned(self._client, address, spec)
        try:
            outcome: Outcome = await future.result()
            return outcome
        except Exception:
            if self._lost():
                return None  # what becomes of it is known once its worker's end is
            raise
        finally:
            future.release()

    def _released(self, key: str) -> None:
        """Only now, and not when Dask's task ends, is what was reserved free for other runs."""
        following = self._following.pop(key, None)
        if following is not None and following is not asyncio.current_task():
            # Its worker is gone, and a task that is pinned to an address would wait for another worker to have it.
            following.cancel()
        self._spawn(self._give_up(key))

    def _failed(self, error: BaseException) -> None:
        """A call that the cluster of others did not answer ends no run: what is reserved there runs out by itself.

        Whatever a client raises that has lost its scheduler, is said by `_look_for_scheduler`.
        """
        if isinstance(error, TimeoutError | OSError) or self._lost():
            self._observer.event("call-failed", error=repr(error))
        else:
            super()._failed(error)

    async def _give_up(self, key: str) -> None:
        async with self._asking:
            await self._ask("release", key=key)  # the next renewal makes up for one that fails

    async def _kill(self, member: Member, key: str, reason: str) -> None:
        await self._client.run(
            task.kill_job, self._setup.run_id, key, reason, workers=[member.address], on_error="ignore"
        )

    # Leases

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            if self._lost():
                continue
            try:
                await self._renew_once()
                await self._compare()
            except Exception as error:
                if not isinstance(error, OSError | TimeoutError) and not self._lost():
                    raise
                self._mute_since = self._clock() if self._mute_since is None else self._mute_since
                self._observer.event("renewal-failed", error=repr(error))
            else:
                self._mute_since = None

    def _renew_soon(self) -> None:
        if not self._renewal_due:
            self._renewal_due = True
            self._spawn(self._renew_once())

    async def _renew_once(self) -> None:
        """Hold what is held for longer, and take note of what others hold."""
        async with self._asking:
            self._renewal_due = False
            asked, keys = self._clock(), self.controller.attempts()
            seen = len(self._attached.of(ATTACHED, "up")) + len(self._refused)
            length_s = self._setup.lease_s + OUTLIVES_S
            told = await self._ask("renew", length_s=length_s, keys=keys, seen=seen, more=self._more)
        self._attached.reserved_at = asked
        self._adaptive = told["adaptive"]
        for member in self._attached.members.values():
            if member.state == "up" and member.name in self.controller.ledger.workers(ATTACHED):
                others = _all_of(member) if member.address in told["closing"] else _others(told["others"], member)
                self.controller.ledger.set_others(member.name, others)
        self.controller.place_soon()

    # Jobs that wait

    async def watch(self) -> None:
        self._look_for_scheduler()
        if not self.controller.stopping:
            self._look_at_waiting()
        await super().watch()

    def _look_at_waiting(self) -> None:
        """What no worker can hold fails in the end; for the rest the cluster should grow, where it does."""
        now, controller = self._clock(), self.controller
        states = [state for state in controller.ledger.states(ATTACHED).values() if not state.draining]
        verdict = self._unfit.look(controller.waiting.classes(ATTACHED), states, now, adaptive=self._adaptive)
        for text in verdict.said:
            self.say("warning", text)
        for request, why in verdict.over:
            for key in controller.waiting.keys(ATTACHED, request):
                controller.give_up_waiting(key, why)
        if states:
            self._shape = largest([shape_of_worker(state.pool, state.facts) for state in states])
        before, self._more = self._more, self._wanted(verdict.fitting, len(states), now)
        if self._more > before and self._lost_at is None:
            self._renew_soon()

    def _wanted(self, waiting: Sequence[WaitingClass], there: int, now: float) -> int:
        """How many workers more these jobs could use; one, where nothing is known of a worker."""
        pool = dataclasses.replace(
            self.controller.pools[ATTACHED], workers_min=0, workers_max=_MOST_WORKERS, idle_timeout_s=math.inf
        )
        seen, unknown = dict(self._shape.extra), _PLENTY if self._shape.cores is None else 0
        extra = tuple((name, seen.get(name, unknown)) for name, _ in pool.resources)
        shape = dataclasses.replace(self._shape, extra=extra)
        soon = self.controller.ahead.of(ATTACHED)
        advice = demand.recommend(pool, waiting, self.controller.ledger, 0, soon, now, shape)
        return max(0, advice.workers - there)

    # The scheduler goes, and may come back

    def _lost(self) -> bool:
        """Whether the scheduler is lost: it was said so, or its connection is not what it was."""
        if self._lost_at is not None:
            return True
        known = self._client.scheduler_info().get("id")
        return bool(self._client.status != "running" or known != self._scheduler_id)

    def _look_for_scheduler(self) -> None:
        mute = self._mute_since is not None and self._clock() - self._mute_since > _MUTE_S
        if self._lost_at is None and (mute or self._lost()):
            self._lost_at = self._clock()
            attempts = [self.controller.sent(key) for key in self.controller.attempts()]
            self._ran = {job.queued.key for job in attempts if job is not None}
            what = f"has not answered for {_MUTE_S:.0f} s" if mute else "closed its connection"
            ran = f" while {_jobs(len(self._ran))} ran on its workers" if self._ran else ""
            again = ", and runs these jobs again," if self._ran else ""
            text = (
                f"The Dask scheduler at {self._address} was lost: it {what}{ran}. The run goes on{again} if it is back "
                f"with workers within {_BACK_S:.0f} s."
            )
            self.say("warning", text)
            for member in list(self._attached.members.values()):
                self._attached.lose(member, "the scheduler was lost", told=True)
            self._refused.clear()
            self._tasks.spawn(self._come_back(self._client))

    async def _come_back(self, old: Any) -> None:
        """Connect anew once the scheduler is there, and follow its workers. Ends the run where it does not come."""
        assert self._lost_at is not None
        await _close(old)
        while self._clock() - self._lost_at < _BACK_S:
            try:
                await self._connect()
                if await self._workers():
                    await self._share(self._address)
                    self._subscribe()
                    break
            except Exception as error:  # noqa: BLE001 - whatever a scheduler raises that is not quite there yet
                self._observer.event("call-failed", error=repr(error))
            if self._client is not old:
                await _close(self._client)
            await asyncio.sleep(_TRY_EVERY_S)
        else:
            jobs = self.controller.jobs
            waiting = sum(job.state == "waiting" for key, job in jobs.items() if key not in self._ran)
            ended = f"the {_jobs(len(self._ran))} on its workers ended with it" if self._ran else "no job ran"
            kept = f", and {waiting} more waited" if waiting else ""
            msg = (
                f"The Dask scheduler at {self._address} was lost, and is not back with workers after {_BACK_S:.0f} s: "
                f"{ended}{kept}; bring the cluster up, and run Snakemake again."
            )
            super()._failed(ConfigurationError(msg))
            return
        self._attached.client = self._client
        self._lost_at = self._mute_since = None
        self.say("info", f"The Dask scheduler is back at {self._address}; the run goes on.")
        await self._compare()

    async def close(self, *, failed: bool = False) -> tuple[str, ...]:
        if self._renewing is not None:
            self._renewing.cancel()
        left = await super().close(failed=failed)
        if self._client is not None:
            if not left and not self._lost():  # else jobs may still live there; what they hold runs out after them
                try:
                    await self._ask("end")
                except Exception as error:  # noqa: BLE001 - it is told to a scheduler that may be gone by now
                    self._observer.event("renewal-failed", error=repr(error))
            await _close(self._client)
        return left


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def _in_words(error: BaseException) -> str:
    return " ".join(str(error).split()) or repr(error)


async def _close(client: Any) -> None:
    """Close a client that may have lost its scheduler, and would wait for it."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_CLOSE_S):
            await client.close()


# What is reserved. The GPUs of a host are one place: workers there may see the same ones, and two runs may have met
# these workers in another order.


def _gpus_of(member: Member) -> str:
    assert member.facts is not None
    return f"gpus of {member.facts.host}"


def _amounts(lease: Lease, request: Request, member: Member) -> dict[str, dict[str, float]]:
    counted = dict(member.pool.resources)
    return {
        member.address: {
            "cores": float(lease.cores_by_worker.get(member.name, 0)),
            "memory_mb": float(lease.memory_mb),
            **{f"resource {name}": float(amount) for name, amount in request.extra if name in counted},
        },
        _gpus_of(member): dict.fromkeys(lease.devices.get(member.name, ()), 1.0),
    }


def _capacity(member: Member) -> dict[str, dict[str, float]]:
    assert member.facts is not None
    return {
        member.address: {
            "cores": float(member.facts.cores),
            "memory_mb": float(member.facts.memory_mb),
            **{f"resource {name}": float(amount) for name, amount in member.pool.resources},
        },
        _gpus_of(member): dict.fromkeys(member.facts.devices, 1.0),
    }


def _all_of(member: Member) -> Others:
    """Nothing more is placed on a worker that is about to be closed."""
    assert member.facts is not None
    return Others(member.facts.cores, member.facts.memory_mb, member.facts.devices, dict(member.pool.resources))


def _others(held: Mapping[str, Mapping[str, float]], member: Member) -> Others:
    assert member.facts is not None
    used, gpus = held.get(member.address, {}), held.get(_gpus_of(member), {})
    return Others(
        cores=round(used.get("cores", 0)),
        memory_mb=round(used.get("memory_mb", 0)),
        devices=tuple(device for device in member.facts.devices if gpus.get(device)),
        extra={name: round(used.get(f"resource {name}", 0)) for name, _ in member.pool.resources},
    )
