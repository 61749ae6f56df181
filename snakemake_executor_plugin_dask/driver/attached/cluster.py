"""A Dask cluster that others brought up: its workers are followed and used, and nothing of it is changed.

What jobs hold is reserved in that cluster's scheduler (see `shared.py`), so that several runs do not overbook it.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.backends.attached import check, resource_names, shortcomings
from snakemake_executor_plugin_dask.decide.reservations import to_claim
from snakemake_executor_plugin_dask.driver import dasktasks
from snakemake_executor_plugin_dask.driver.attached import places
from snakemake_executor_plugin_dask.driver.attached.connecting import connect
from snakemake_executor_plugin_dask.driver.attached.growth import Growth
from snakemake_executor_plugin_dask.driver.attached.shared import (
    OUTLIVES_S,
    PLUGIN_NAME,
    PROTOCOL,
    TOPIC,
    Places,
    SharedLeasesPlugin,
    packed,
    unpacked,
)
from snakemake_executor_plugin_dask.driver.attached.workers import RENEW_EVERY_S, AttachedWorkers
from snakemake_executor_plugin_dask.driver.cluster import Cluster, NotNow, Surroundings
from snakemake_executor_plugin_dask.driver.controller import Controller
from snakemake_executor_plugin_dask.driver.jobs import Attempt, State
from snakemake_executor_plugin_dask.driver.members import Members
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.interior import dask_attached
from snakemake_executor_plugin_dask.model.errors import ConfigurationError, PoolError
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome
from snakemake_executor_plugin_dask.model.kinds import ATTACHED
from snakemake_executor_plugin_dask.model.messages import Begin
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.units import count
from snakemake_executor_plugin_dask.node import jobsecrets
from snakemake_executor_plugin_dask.worker import client as task

_CALL_S = 20.0
_LAST_WORDS_S = 1.0  # after a supervisor is gone, the ends of its jobs are told
_MUTE_S = 60.0  # a scheduler that answers nothing for so long is lost, although the connection stands
#: A scheduler that was lost may come back, with workers. Longer than it takes until all jobs are known to be dead.
_BACK_S = 90.0
_TRY_EVERY_S = 1.0
_CLOSE_S = 5.0


class AttachedCluster(Cluster):
    """A cluster of others, on which runs share the workers."""

    workers: Members  # from `start` on

    def __init__(self, begin: Begin, around: Surroundings) -> None:
        self._setup, self._scheduler = begin.setup, begin.options.scheduler
        self._encrypted = begin.setup.replace_environment
        self._around = around
        self._event, self._say = around.event, around.say
        self._clock = around.clock
        self._tasks = Tasks(self._failed)
        self._client: Any = None
        self._asking = asyncio.Lock()  # releases and reservations arrive in the order in which they are made
        self._renewing: asyncio.Task[None] | None = None
        self._refused: set[str] = set()  # addresses of workers that cannot be used, which was said
        self._looked_at: set[str] = set()  # addresses of newcomers at this moment
        self._renewal_due = False
        self._ready = False  # the workers that were there at the start have been looked at
        self._address = ""
        self._scheduler_id: Any = None
        self._mute_since: float | None = None  # since when no question to the scheduler was answered
        self._lost_at: float | None = None  # when the scheduler was lost; None: it is there
        self._places: dict[str, dict[str, Places]] = {}  # by attempt and worker: what is reserved for it
        self._secrets: dict[str, Path] = {}  # by attempt: where those of its own Dask cluster are
        self._ran: set[str] = set()  # the jobs that it ended, by Snakemake's keys
        self._claims = ""  # the key of the waiting job that other runs are to leave room for
        self._growth = Growth()

    async def start(self, jobs: Controller) -> None:
        """Connect, look at every worker, and put this package's part on each."""
        self._jobs = jobs
        await self._connect()
        self.workers = self._workers = AttachedWorkers(self._client, self._setup, jobs, self._failed, self._clock)
        self._workers.names_changed = self._count_also
        try:
            await self._begin()
        except Exception as error:
            if not self._lost():
                raise
            msg = f"The Dask scheduler at {self._address} was lost while the run was prepared: {_in_words(error)}"
            raise ConfigurationError(msg) from error

    async def _connect(self) -> None:
        assert self._scheduler is not None
        self._client, self._address = await connect(self._scheduler)
        self._scheduler_id = self._client.scheduler_info().get("id")

    async def _begin(self) -> None:
        await self._share(self._address)
        if not self._setup.replace_environment:
            self._say("warning", f"{self._address} is not encrypted: jobs get only the variables of `envvars:`.")
        self._subscribe()
        workers = await self._there()
        self._count_also(resource_names([worker.get("resources", {}) for worker in workers.values()]))
        self._workers.names = tuple(name for name, _ in self._jobs.pools[ATTACHED].resources)
        seen = await self._workers.look(list(workers))
        check(list(seen.values()), self._setup, self._address)
        self._ready = True
        await asyncio.gather(*(self._join(where, workers[where]) for where in seen))
        for where in workers.keys() - seen.keys():
            self._say(
                "warning", f"Worker {workers[where]['name']} at {where} does not answer, so it is not used for now."
            )
        await self._renew_once()
        self._renewing = self._tasks.spawn(self._renew())
        if not workers:
            self._say("warning", f"{self._address} has no workers yet; jobs wait until some come.")

    def _subscribe(self) -> None:
        self._client.subscribe_topic("all", self._cluster_event)
        self._client.subscribe_topic(TOPIC, lambda _: self._renew_soon())
        own = task.event_topic(self._setup.run_id)
        self._client.subscribe_topic(own, lambda event: self._worker_event(task.of_event(event[1])))

    def _count_also(self, names: Sequence[str]) -> None:
        """The names of all resources that workers declare: of these a job holds what it asks for, and of no others."""
        pool = Pool(ATTACHED, ATTACHED, resources=tuple((name, 0) for name in names))
        self._jobs.count_also(pool)

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
            return await dask_attached.call(self._client, "snakemake_leases", what=what, run=self._setup.run_id, **more)

    async def _there(self) -> dict[str, dict[str, Any]]:
        return await dask_attached.workers(self._client)

    # Workers come and go

    def _cluster_event(self, event: tuple[float, Any]) -> None:
        message = event[1]
        if isinstance(message, dict) and message.get("worker") and self._ready:
            if message.get("action") == "add-worker":
                self._tasks.spawn(self._newcomer(str(message["worker"])))
            elif message.get("action") == "remove-worker":
                self._removed(str(message["worker"]))

    def _removed(self, address: str) -> None:
        self._refused.discard(address)
        self._workers.removed(address)

    async def _newcomer(self, address: str) -> None:
        if address in self._looked_at:
            return
        self._looked_at.add(address)
        try:
            seen = (await self._workers.look([address])).get(address)
            worker = (await self._there()).get(address)
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
            await self._workers.join(address, str(worker["name"]), worker.get("resources", {}))
        except PoolError as error:
            self._refuse(address, worker, f"{error}.")

    def _worker_event(self, message: Mapping[str, Any]) -> None:
        self._jobs.received(message)
        if "leaving" in message:
            self._tasks.spawn(self._attach_again(str(message["leaving"])))

    async def _attach_again(self, name: str) -> None:
        """A worker of others goes on without this run's supervisor; the next round gives it a new one."""
        await asyncio.sleep(_LAST_WORDS_S)
        member = self._workers.members.get(name)
        if member is not None and not self._jobs.stopping:
            self._workers.lose(member, "its supervisor process ended")

    def _refuse(self, address: str, worker: Mapping[str, Any], why: str) -> None:
        self._refused.add(address)
        self._say("warning", f"Worker {worker['name']} at {address} is not used: {why}")

    async def _compare(self) -> None:
        """Notice what no event told: workers that came before events were subscribed to, or while nothing was heard."""
        if self._lost_at is not None:
            return
        there = set(await self._client.ncores())
        members = self._workers.members.values()
        # A lost one comes back only once its jobs are known to be dead: a new renewal would let them live on.
        for address in there - {member.address for member in members} - self._refused:
            self._tasks.spawn(self._newcomer(address))
        for address in {member.address for member in members if member.up} - there:
            self._removed(address)

    # Jobs

    async def submit(self, attempt: Attempt, spec: JobSpec) -> Outcome | None:
        submitted = asyncio.current_task()
        if attempt.member is None or attempt.state is not State.SENT:
            raise NotNow
        owner = attempt.key.rpartition("+")[0]  # empty: it is no part of a job's own Dask cluster
        pinned = False

        def freed() -> None:
            """Only now, and not when Dask's task ends, is what was reserved free for other runs."""
            if pinned and submitted is not None and submitted is not asyncio.current_task():
                # Its worker is gone, and a task pinned to an address would wait for another worker to have it.
                submitted.cancel()
            self._give_up(attempt.key, attempt.worker)

        attempt.freed = freed
        try:
            held = await self._reserve(attempt, owner)
        except Exception as error:
            if not isinstance(error, OSError | TimeoutError) and not self._lost():
                raise
            held = False  # if it was held nevertheless, the next renewal gives it back
        if not held and not self._lost():
            await self._renew_once()
        # Its worker may have been lost meanwhile.
        if not held or attempt.state is not State.SENT:
            raise NotNow
        pinned = True
        job = self._jobs.sent.get(attempt.key)
        if job is not None and job.queued.key == self._claims:
            self._renew_soon()  # what was left for it is held now
        try:
            spec = self._without_secrets(spec, owner or attempt.key)
        except OSError as error:
            why = f"the certificate of its Dask cluster could not be written: {error}"
            return Outcome(attempt.key, "not-started", worker=attempt.worker, detail=why)
        future = dasktasks.submit(self._client, self._setup.run_id, attempt, spec)
        try:
            outcome: Outcome = await future.result()
            return outcome
        except Exception:
            if self._lost():
                return None  # what becomes of it is known once its worker's end is
            raise
        finally:
            future.release()

    async def _reserve(self, attempt: Attempt, owner: str) -> bool:
        """Whether the scheduler holds what an attempt takes.

        A job's own Dask cluster has all its places at once, so that no two of them wait for each other. A part that
        takes the place of a lost one has its own.
        """
        if attempt.worker in self._places.get(owner, {}):
            return True
        members, job = self._workers.members, self._jobs.sent[owner or attempt.key]
        parts = {
            state.name: part
            for state, part in self._jobs.ledger.parts(job.queued.key)
            if not owner or state.name == attempt.worker
        }
        if not parts.keys() <= members.keys():
            return False  # one was lost meanwhile
        self._places[attempt.key] = {name: places.reserved([(members[name], part)]) for name, part in parts.items()}
        amounts = places.reserved([(members[name], part) for name, part in parts.items()])
        capacity = packed(places.capacity([members[name] for name in parts]))
        async with self._asking:
            held: bool = await self._ask("reserve", key=attempt.key, amounts=packed(amounts), capacity=capacity)
        return held

    def _without_secrets(self, spec: JobSpec, owner: str) -> JobSpec:
        """An attempt as it travels: without encryption the secrets of its own Dask cluster are in files."""
        if self._encrypted or spec.spread is None or spec.certificate is None:
            return spec
        directory = self._secrets.get(owner)
        if directory is None:
            directory = Path(self._around.state_dir, f"dask-{owner}").absolute()
            jobsecrets.make(directory, spec.certificate)
            self._secrets[owner] = directory
        spread = replace(spec.spread, secrets=os.fspath(directory), environment=())
        return replace(spec, spread=spread, certificate=None)

    async def kill(self, attempt: Attempt, reason: str) -> None:
        try:
            await dasktasks.kill(self._client, self._setup.run_id, attempt, reason)
        except Exception as error:  # noqa: BLE001 - a client that has lost its scheduler raises what it happens to meet
            self._failed(error)

    pages = None  # the dashboard is that of others

    async def tell_cluster(self, attempt: Attempt, message: Mapping[str, Any]) -> None:
        try:
            await dasktasks.tell_cluster(self._client, self._setup.run_id, attempt, message)
        except Exception as error:  # noqa: BLE001 - as for `kill`
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        """A call that the cluster of others did not answer ends no run: what is reserved there runs out by itself.

        Whatever a client raises that has lost its scheduler, is said by `_look_for_scheduler`.
        """
        if isinstance(error, TimeoutError | OSError) or self._lost():
            self._event("call-failed", error=repr(error))
        else:
            self._around.failed(error)

    def _give_up(self, key: str, worker: str) -> None:
        """What an attempt had is free, for all runs."""
        owner = key.rpartition("+")[0]
        if key not in self._places and (place := self._places.get(owner, {}).pop(worker, None)) is not None:
            self._tasks.spawn(self._release(owner, amounts=packed(place)))  # a part of what its job had
            return
        self._places.pop(key, None)
        if (secrets := self._secrets.pop(key, None)) is not None:
            shutil.rmtree(secrets, ignore_errors=True)  # what is left goes with the run's directory
        self._tasks.spawn(self._release(key))

    async def _release(self, key: str, **more: Any) -> None:
        async with self._asking:
            await self._ask("release", key=key, **more)  # the next renewal makes up for one that fails

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
                self._event("renewal-failed", error=repr(error))
            else:
                self._mute_since = None

    def _renew_soon(self) -> None:
        if not self._renewal_due:
            self._renewal_due = True
            self._tasks.spawn(self._renew_once())

    async def _renew_once(self) -> None:
        """Hold what is held for longer, and take note of what others hold."""
        async with self._asking:
            self._renewal_due = False
            asked, keys = self._clock(), [*self._jobs.sent, *(key for key in self._places if "+" in key)]
            seen = len(self._workers.up(ATTACHED)) + len(self._refused)
            length_s = self._setup.lease_s + OUTLIVES_S
            wanted = {"seen": seen, "more": self._growth.more, "claim": self._claim()}
            told = await self._ask("renew", length_s=length_s, keys=keys, **wanted)
        self._workers.reserved_at = asked
        self._growth.adaptive = told["adaptive"]
        held = unpacked(told["others"])
        for member in self._workers.members.values():
            if member.up and member.name in self._jobs.ledger.workers(ATTACHED):
                others = places.all_of(member) if member.address in told["closing"] else places.others(held, member)
                self._jobs.ledger.set_others(member.name, others)
        self._jobs.place_soon()

    # Jobs that wait

    def _claim(self) -> dict[str, Any] | None:
        """What other runs are to leave for a job of this one that would starve otherwise."""
        self._claims = ""
        reserved, states = self._jobs.waiting.reserved(ATTACHED), self._jobs.ledger.states(ATTACHED)
        found = to_claim(reserved, states, self._jobs.clock())
        if found is None or not found[1].keys() <= self._workers.members.keys():
            return None
        self._claims, parts = found
        members = [(self._workers.members[name], amounts) for name, amounts in parts.items()]
        capacity = places.capacity([member for member, _ in members])
        amounts = places.claimed(members, capacity)
        return {"key": self._claims, "amounts": packed(amounts), "capacity": packed(capacity)}

    def scale(self) -> None:
        """Others decide how many workers there are; a cluster that grows is told how many these jobs could use."""
        if not self._jobs.stopping and self._growth.look(self._jobs, self._say) and self._lost_at is None:
            self._renew_soon()

    async def watch(self) -> None:
        self._look_for_scheduler()
        await self._workers.check()

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
            self._ran = {job.queued.key for job in self._jobs.sent.values()}
            what = f"has not answered for {_MUTE_S:.0f} s" if mute else "closed its connection"
            ran = f" while {count(len(self._ran), 'job')} ran on its workers" if self._ran else ""
            again = ", and runs these jobs again," if self._ran else ""
            text = (
                f"The Dask scheduler at {self._address} was lost: it {what}{ran}. The run goes on{again} if it is back "
                f"with workers within {_BACK_S:.0f} s."
            )
            self._say("warning", text)
            for member in list(self._workers.members.values()):
                self._workers.lose(member, "the scheduler was lost", told=True)
            self._refused.clear()
            self._tasks.spawn(self._come_back(self._client))

    async def _come_back(self, old: Any) -> None:
        """Connect anew once the scheduler is there, and follow its workers. Ends the run where it does not come."""
        assert self._lost_at is not None
        await _close(old)
        while self._clock() - self._lost_at < _BACK_S:
            try:
                await self._connect()
                if await self._there():
                    await self._share(self._address)
                    self._subscribe()
                    break
            except Exception as error:  # noqa: BLE001 - whatever a scheduler raises that is not quite there yet
                self._event("call-failed", error=repr(error))
            if self._client is not old:
                await _close(self._client)
            await asyncio.sleep(_TRY_EVERY_S)
        else:
            jobs = self._jobs.jobs
            waiting = sum(job.waits for key, job in jobs.items() if key not in self._ran)
            ended = f"the {count(len(self._ran), 'job')} on its workers ended with it" if self._ran else "no job ran"
            kept = f", and {waiting} more waited" if waiting else ""
            msg = (
                f"The Dask scheduler at {self._address} was lost, and is not back with workers after {_BACK_S:.0f} s: "
                f"{ended}{kept}; bring the cluster up, and run Snakemake again."
            )
            self._around.failed(ConfigurationError(msg))
            return
        self._workers.client = self._client
        self._lost_at = self._mute_since = None
        self._say("info", f"The Dask scheduler is back at {self._address}; the run goes on.")
        await self._compare()

    def uses(self) -> Mapping[str, Sequence[float]]:
        return self._workers.uses()

    async def close(self) -> tuple[str, ...]:
        if self._renewing is not None:
            self._renewing.cancel()
        if self._client is None:
            return ()
        left = await self._workers.close()
        if not left and not self._lost():  # else jobs may still live there; what they hold runs out after them
            try:
                await self._ask("end")
            except Exception as error:  # noqa: BLE001 - it is told to a scheduler that may be gone by now
                self._event("renewal-failed", error=repr(error))
        await _close(self._client)
        return left


def _in_words(error: BaseException) -> str:
    return " ".join(str(error).split()) or repr(error)


async def _close(client: Any) -> None:
    """Close a client that may have lost its scheduler, and would wait for it."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_CLOSE_S):
            await client.close()
