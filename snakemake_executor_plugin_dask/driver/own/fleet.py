"""The life of workers: brought up, joined, watched, lost, given back.

Effects on workers and allocations; decides nothing about jobs. Who wants a worker otherwise sets its target, or tells
what became of it; `next_step` says what follows, and `_reconcile` does it.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from snakemake_executor_plugin_dask.backends.base import Backend, Link, WorkerProcess
from snakemake_executor_plugin_dask.batch.allocations import Brakes
from snakemake_executor_plugin_dask.batch.meanings import may_be_the_node
from snakemake_executor_plugin_dask.decide.badnodes import Nodes
from snakemake_executor_plugin_dask.driver.members import SILENT_S, Listener, Member, Members, State
from snakemake_executor_plugin_dask.driver.own.companions import Companion
from snakemake_executor_plugin_dask.driver.own.daskcluster import DaskCluster
from snakemake_executor_plugin_dask.driver.own.leases import LeaseServer
from snakemake_executor_plugin_dask.driver.own.losses import Losses, preempted
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.model.jobs import WorkerFacts
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.worker import client

_log = logging.getLogger(__name__)

_UNREACHED_S = 20.0  # a supervisor starts before its worker joins, and connects in less
_STARTUP_S = 30.0  # before a pool's first worker has joined
_PAUSE_S = 10.0  # between two looks that are a second apart
_LOOK_EVERY_S = 5.0  # at allocations that were submitted and have not joined
_COMPANION_TRIES = 3  # to start companions in a pool that all fail, before no more are started
_COMPANION_AGAIN_S = 5.0


class Step(Enum):
    """What brings a worker nearer to what it should be."""

    LOOK = "look"  # at what became of its allocation
    LOSE = "lose"  # it is given up, and its jobs are ended
    FORGET = "forget"  # its process stays, for others
    END = "end"  # its process, too


def next_step(member: Member, *, shared: bool, silent_s: float, now: float) -> Step | None:
    """What is to be done about a worker now.

    ``shared``: whether other workers of the same launcher work or may come to. ``silent_s``: for how long one that is
    up has said nothing.
    """
    if member.target is State.GONE:
        if member.state in (State.LEAVING, State.STUCK):
            return None
        return Step.FORGET if shared else Step.END
    if member.up and silent_s > SILENT_S:
        return Step.LOSE
    if member.state in (State.SUBMITTED, State.RUNNING) and now - member.looked >= _look_every_s(member, now):
        return Step.LOOK
    return None  # one that is lost waits until its jobs are known to be dead


def _look_every_s(member: Member, now: float) -> float:
    if member.wide is not None:
        return 1.0  # no batch system is asked
    return 0.5 if member.pool.kind.beside_snakemake else min(30.0, max(_LOOK_EVERY_S, (now - member.since) / 10))


def _node_of(member: Member) -> str:
    """Where its allocation is; empty where that is several nodes or none, or no name for a batch script."""
    facts = member.facts
    if (
        facts is None
        or facts.hosts
        or member.wide is not None
        or not member.pool.kind.queued
        or not re.fullmatch(r"[\w.-]+", facts.host)
    ):
        return ""
    return facts.host


def moved(before: float | None, now_expected: float | None, now: float) -> bool:
    """Whether the expected start of an allocation changed by more than a minute and a tenth of the wait."""
    if before is None or now_expected is None:
        return before is not now_expected
    return abs(now_expected - before) > max(60.0, (now_expected - now) / 10)


async def _ended(process: WorkerProcess) -> bool:
    """End a process or allocation. Returns whether it was seen to be gone."""
    async with process.lock:  # one that is being submitted has no allocation yet that could be cancelled
        if not process.closed:
            await process.close()
        return await process.kill()


async def _all_ended(processes: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    """End all of these. Returns those not seen to be gone; one that fails keeps no other from being given back."""
    ended = await asyncio.gather(*map(_ended, processes), return_exceptions=True)
    for process, gone in zip(processes, ended, strict=True):
        if isinstance(gone, Exception):
            _log.error("Worker %s was not given back", process.name, exc_info=gone)
    return [process for process, gone in zip(processes, ended, strict=True) if gone is not True]


@dataclass
class _Experience:
    """What became of a pool's workers so far."""

    brakes: Brakes
    asked: int = 0  # so many were asked for, or launchers of them
    startup_s: float | None = None  # from asking for a worker to its joining, as last seen
    nodes: Nodes = field(default_factory=Nodes)
    left_out: set[str] = field(default_factory=set)  # the nodes of which that was said
    companions: int = 0  # so many were started
    companions_failed: int = 0  # tries, since the last one that joined
    companions_from: float = 0.0  # none is started before


class Fleet(Members):
    """All workers of the run's own cluster."""

    _HOW_LOST = "its connection closed"

    def __init__(
        self,
        cluster: DaskCluster,
        leases: LeaseServer,
        backends: Mapping[str, Backend],
        link: Link,
        lease_s: float,
        listener: Listener,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        refusal: Callable[[], str] | None = None,
    ) -> None:
        """``refusal``: why no worker can be started any more, for any thread; empty: it can."""
        super().__init__(listener, clock, sleep)
        self._cluster = cluster
        self._leases = leases
        self._backends = backends
        self._link = link
        self._refusal = refusal
        self._losses = Losses(leases, lease_s, clock, sleep)
        self._experience: dict[str, _Experience] = {}  # by pool
        self._tasks = Tasks(listener.failed)
        self._checked, self._checked_wall = clock(), time.time()
        self._listening_since = float("-inf")
        self._closing = False

    # What there is

    def _of_pool(self, pool: Pool) -> _Experience:
        if pool.name not in self._experience:
            # No queue and no other user suffers from another try; who waits for what he holds wants to hear soon.
            brakes = Brakes(delay_first_s=1.0) if pool.kind.beside_snakemake else Brakes()
            self._experience[pool.name] = _Experience(brakes)
        return self._experience[pool.name]

    def try_again(self) -> None:
        """A further run has come: pools that were given up get one more try, and none waits for its next one."""
        for experience in self._experience.values():
            experience.brakes.try_again()
            experience.companions_failed = 0

    def startup_s(self, pool: Pool) -> float:
        """From asking for a worker to its joining, as last seen of this pool."""
        return self._of_pool(pool).startup_s or _STARTUP_S

    def _starting(self, process: WorkerProcess) -> list[Member]:
        """The workers that this process is to bring, and that have not joined."""
        return [member for member in self.members.values() if member.process is process and member.starting]

    def _shared(self, member: Member) -> bool:
        """Whether other workers of the same launcher work or may come to."""
        return bool(member.process.group) and any(
            other.process is member.process and other is not member and (other.starting or other.up)
            for other in self.members.values()
        )

    # What is to be done

    def _reconcile(self, member: Member, silent_s: float = 0.0) -> None:
        """Compare a worker with what it should be, and take the next step.

        Once a second for each, and at once where a target was set.
        """
        now, shared = self._clock(), member.target is State.GONE and self._shared(member)
        match next_step(member, shared=shared, silent_s=silent_s, now=now):
            case Step.LOOK:
                for other in self._starting(member.process):
                    other.looked = now
                self._tasks.spawn(self._look(member.process))
            case Step.LOSE:
                self.lose(member, f"it said nothing for {silent_s:.0f} s")
            case Step.FORGET:
                self._off(member)
            case Step.END:
                reason = member.ended or ("lost" if member.state is State.LOST else "leaving")
                member.become(State.LEAVING)
                self._tasks.spawn(self._end([member], reason))

    def _let_go(self, member: Member) -> None:
        for other in [other for other in self.members.values() if other.wide is member]:
            if member.state is State.LOST and other.up:
                self.lose(other, f"worker {member.name} was lost", told=True)
            elif other.up or other.starting:  # it goes with the allocation, and nothing runs there
                other.target = State.GONE
                self._off(other)
        member.target = State.GONE
        self._reconcile(member)

    async def _end(self, members: Sequence[Member], reason: str) -> None:
        """End the process of workers that leave."""
        process = members[0].process
        if not await _ended(process):
            for member in members:
                member.become(State.STUCK)
            return
        for member in members:
            self._off(member)
        self._note("allocation-gone", process, reason=reason, joined=members[0].facts is not None)

    def _note(self, kind: str, process: WorkerProcess, **fields: object) -> None:
        if isinstance(process, Companion):
            return  # it has no allocation of its own
        self._listener.event(kind, worker=process.name, pool=process.pool.name, **fields)

    def _off(self, member: Member) -> None:
        member.become(State.GONE)
        del self.members[member.name]

    # Bringing up

    def add(self, pool: Pool, count: int) -> None:
        """Ask for more workers, as many of them as the brakes allow now."""
        there = [m for m in self.workers() if m.pool.name == pool.name and m.state is not State.STUCK]
        if any(member.process.group for member in there):
            return  # one launcher holds all the workers of a pool; the next comes once nothing of it is left
        known = self._of_pool(pool)
        # Until one has joined, those that run count too: more of them might not reach the scheduler either.
        works = known.startup_s is not None
        queued = {m.process.name for m in there if m.starting and not (works and m.state is State.RUNNING)}
        for _ in range(known.brakes.allowed(count, len(queued), self._clock(), len(self.up(pool.name)))):
            bad = known.nodes.bad()
            wanted = replace(pool, left_out=tuple(bad))
            process = self._backends[pool.cluster].worker(wanted, f"{pool.name}-{known.asked}", self._link)
            known.asked += 1
            self._tell_of_nodes(pool, bad, process.pool.left_out)
            for suffix in process.group or ("",):
                name = process.name + suffix
                self.members[name] = Member(name, pool, process, State.ASKED, self._clock())
            self._tasks.spawn(self._start(process, pool))
            if process.group:
                return

    async def _start(self, process: WorkerProcess, pool: Pool) -> None:
        left_out, nodes = process.pool.left_out, self._of_pool(pool).nodes
        async with process.lock:
            if self._refusal is not None and (refused := await asyncio.to_thread(self._refusal)):
                process.failure, process.outlook = refused, "final"
            else:
                await process.start()
        if left_out and not process.pool.left_out and process.failure is None and not nodes.all_needed:
            nodes.all_needed = True
            self._listener.warn(
                f"Pool {pool.name}: the batch system takes no allocation without {', '.join(left_out)}, so no node is "
                "left out any more."
            )
        if process.failure is not None:
            await self._never_came(process, process.failure)
        else:
            for member in self._starting(process):
                member.become(State.SUBMITTED)
                member.looked = self._clock()
            self._note("allocation-submitted", process, allocation=process.allocation_id)

    def open_nodes(self, name: str) -> None:
        """Have companions on all further nodes of a wide worker. May be repeated, and is where some were lost."""
        wide = self.members.get(name)
        if wide is None or not wide.up or wide.target is State.GONE or wide.facts is None:
            return
        known, facts = self._of_pool(wide.pool), wide.facts
        if known.companions_failed >= _COMPANION_TRIES or self._clock() < known.companions_from:
            return
        there = {member.process.node for member in self.members.values() if member.wide is wide}
        for host in facts.hosts:
            if host not in there | {facts.own_host}:
                known.companions += 1
                process = Companion(wide, f"{name}+{known.companions}", host, self._link, self.call)
                member = Member(process.name, wide.pool, process, State.ASKED, self._clock(), wide=wide)
                self.members[member.name] = member
                self._tasks.spawn(self._open(member))

    async def _open(self, member: Member) -> None:
        async with member.process.lock:
            await member.process.start()
        if member.state is not State.ASKED:
            return  # it has joined, or its wide worker is given back
        if member.process.failure is not None:
            await self._companion_failed(member, member.process.failure)
            return
        member.become(State.SUBMITTED)
        member.looked = self._clock()

    async def _companion_failed(self, member: Member, why: str) -> None:
        """One that has not joined, and will not."""
        known = self._of_pool(member.pool)
        member.target = State.GONE
        member.become(State.LEAVING)
        await self._end([member], why)
        if member.wide is None or not member.wide.up or self._clock() < known.companions_from:
            return  # it went with its wide worker, or failed with others that were started at the same time
        known.companions_failed += 1
        known.companions_from = self._clock() + _COMPANION_AGAIN_S
        why = f"on {member.process.node}, of worker {member.shown}, {why}"
        if known.companions_failed == _COMPANION_TRIES:
            self._listener.nodes_closed(member.pool, why)
        elif known.companions_failed < _COMPANION_TRIES:
            self._listener.warn(f"Pool {member.pool.name}: a node cannot take Dask workers of jobs yet: {why}")

    async def call(self, address: str, function: Callable[..., Any], *arguments: Any, within_s: float) -> Any:
        """What a function gives on one worker. Raises what it raises there; TimeoutError, OSError."""
        async with asyncio.timeout(within_s):
            done = await self._cluster.client.run(function, *arguments, workers=[address])
        return done[address]

    async def _look(self, process: WorkerProcess) -> None:
        """At what became of an allocation whose workers have not joined."""
        state = await process.state()
        if not (members := self._starting(process)):
            return
        told = members[0].told
        if state.kind == "gone":
            why = state.reason + (f"\n{state.log_tail}" if state.log_tail else "")
            await self._never_came(process, why, preempted=await self.preempted(members[0]))
        elif state.kind == "queued" and (
            state.reason != told.reason or moved(told.expected, state.expected, time.time())
        ):
            members[0].told = state
            self._note("allocation-waiting", process, reason=state.reason, expected=state.expected)
        elif state.kind == "running" and members[0].state is State.SUBMITTED:
            for member in members:
                member.become(State.RUNNING)
            self._note("allocation-running", process)

    async def _never_came(self, process: WorkerProcess, why: str, *, preempted: bool = False) -> None:
        """A worker failed before it joined, or all that a launcher was to bring."""
        if not (members := self._starting(process)):
            return  # given back meanwhile
        if members[0].wide is not None:
            await self._companion_failed(members[0], why)
            return
        for member in members:
            member.target = State.GONE
            member.become(State.LEAVING)
        await self._end(members, why)
        pool = members[0].pool
        if preempted:  # the next one may be luckier, and queues like any other
            self._listener.preempted(members[0])
            return
        known = self._of_pool(pool)
        if process.node and may_be_the_node(why):
            known.nodes.failed(process.node, why)
        known.brakes.failed(
            self._clock(), process.outlook, up=len(self.up(pool.name)), elsewhere=self._listener.fit_elsewhere(pool)
        )
        if known.brakes.given_up:
            for member in self.starting(pool.name):
                self.give_back(member.name, "its pool is given up")
            self._listener.pool_given_up(pool, why)
        else:
            self._listener.pool_failed(pool, why)

    async def joined(self, address: str, name: str, run_id: str) -> None:
        """The scheduler has seen a new worker."""
        member = self.members.get(name) or self._started_again(name)
        if self._closing:
            self._cluster.scheduler.close_worker(address)  # its launcher would be waited for
            return
        if member is None or member.target is State.GONE:
            # Its submission was not answered, and counted as failed: nobody would give it back.
            await self._retire(address)
            return
        if not member.starting:
            return
        asked = self._cluster.client.run(client.facts, run_id, workers=[address], on_error="return")
        try:
            facts = (await asyncio.wait_for(asked, SILENT_S)).get(address)
        except TimeoutError:
            facts = TimeoutError(f"it said nothing for {SILENT_S:.0f} s")
        if member not in self._starting(member.process):
            return  # given back meanwhile
        if not isinstance(facts, WorkerFacts):
            why = f"it joined, and could not be asked what it has: {facts or 'it went'}"
            if not self._shared(member):
                await self._never_came(member.process, why)
                return
            self._let_go(member)  # alone: others of its launcher work
            self._listener.pool_failed(member.pool, why)
            await self._retire(address)
            return
        now, known = self._clock(), self._of_pool(member.pool)
        member.become(State.UP)
        waited_s, member.since = now - member.since, now
        member.address, member.facts = address, facts
        if member.wide is not None:
            known.companions_failed = 0
            where: dict[str, Any] = {"worker": member.shown, "pool": member.pool.name, "host": member.process.node}
            self._listener.event("node-opened", **where, waited_s=round(waited_s, 3))
            self._listener.worker_joined(member)
            return
        known.startup_s = waited_s
        known.brakes.joined()
        if node := _node_of(member):
            known.nodes.joined(node)
        more = {"launcher": member.process.name} if member.process.group else {}
        rounded_s = round(waited_s, 3)
        self._listener.event(
            "worker-joined", worker=name, pool=member.pool.name, waited_s=rounded_s, facts=facts, **more
        )
        self._listener.worker_joined(member)

    def _started_again(self, name: str) -> Member | None:
        """A worker that its launcher's keeper started in the place of one that died; it has a name of its own."""
        for member in self.members.values():
            process, suffix = member.process, name.removeprefix(member.process.name)
            if member.target is State.UP and suffix.rpartition("-again")[0] in process.group:
                process.group = (*process.group, suffix)
                self.members[name] = Member(name, process.pool, process, State.RUNNING, self._clock())
                return self.members[name]
        return None

    async def _retire(self, address: str) -> None:
        await self._cluster.client.retire_workers([address], close_workers=True, remove=True)

    # Losing

    async def confirm_dead(self, member: Member, keys: Sequence[str]) -> str | None:
        unknown = await self._losses.confirm(member, keys)
        self._let_go(member)
        return unknown

    async def preempted(self, member: Member) -> bool:
        return await preempted(member)

    # Giving back

    def give_back(self, name: str, why: str) -> None:
        """Give an idle worker, or one that has not joined yet, back."""
        member = self.members.get(name)
        if member is None or not (member.starting or member.up):
            return
        self._listener.event("worker-leaving", worker=name, pool=member.pool.name, reason=why)
        if member.up:
            self._of_pool(member.pool).nodes.left(_node_of(member))
        self._let_go(member)

    def call_back(self, pool: Pool, count: int) -> None:
        """Give up the last places in the queue; what has started joins, and is given back when idle."""
        queued = [m for m in self.starting(pool.name) if m.state is State.SUBMITTED and not m.process.group]
        for member in queued[::-1][:count]:
            self.give_back(member.name, "not needed any more")

    # Nodes

    def _tell_of_nodes(self, pool: Pool, bad: Mapping[str, str], left_out: Collection[str]) -> None:
        """Once of each node."""
        known = self._of_pool(pool)
        for node, why in bad.items():
            if node not in known.left_out:
                said = (
                    f"Node {node} is left out of later allocations of pool {pool.name}: "
                    if node in left_out
                    else f"Node {node} fails workers of pool {pool.name}, and cannot be left out by the plugin: "
                )
                self._listener.event("node-left-out", pool=pool.name, node=node, reason=why, done=node in left_out)
                self._listener.warn(said + why)
        for node in sorted(known.left_out - bad.keys()):
            self._listener.warn(f"Node {node} is used again by pool {pool.name}.")
        known.left_out = set(bad)

    def judged(self, member: Member, jobs: Collection[str], *, planned: bool) -> None:
        node, nodes = _node_of(member), self._of_pool(member.pool).nodes
        if planned:
            nodes.left(node)
        elif node and may_be_the_node(member.ended):
            nodes.failed(node, member.ended or "its worker was lost", jobs)

    # Watching

    async def check(self) -> None:
        """Once a second: workers that went silent, allocations that went away before they joined."""
        now, wall = self._clock(), time.time()
        paused = now - self._checked > _PAUSE_S or abs((wall - self._checked_wall) - (now - self._checked)) > _PAUSE_S
        self._checked, self._checked_wall = now, wall
        if paused:
            # This process was stopped or starved, or the clock was set: who was heard when says nothing. Listen anew.
            self._listening_since = now
            self._leases.listen_anew()
        listening = now - self._listening_since > SILENT_S
        silent = self._silent_s(wall) if listening else {}
        for member in list(self.members.values()):
            self._reconcile(member, silent.get(member.name, 0.0) if member.up else 0.0)

    def _silent_s(self, wall: float) -> dict[str, float]:
        """By worker: for how long it, or its supervisor, has said nothing."""
        found = self._leases.silent_s()
        for name, seen in self._cluster.last_seen().items():
            if (silent_s := wall - seen) > found.get(name, 0.0):
                found[name] = silent_s
        return found

    def unreached(self) -> Member | None:
        """A worker that has joined, and whose supervisor has not come to the lease server in a good while."""
        now, heard = self._clock(), self._leases.silent_s()
        unheard = [member for name, member in self.members.items() if name not in heard]
        return next((member for member in unheard if member.up and now - member.since > _UNREACHED_S), None)

    async def close(self) -> tuple[str, ...]:
        """Give everything back. Returns the names of what could not be seen to be gone."""
        self._closing = True
        for member in self.members.values():
            member.target = State.GONE
        processes = [member.process for member in self.workers()]
        left = await _all_ended(list(dict.fromkeys(processes)))  # and companions with their allocations
        await self._cluster.close()
        self._tasks.cancel()
        left = await _all_ended(left)  # without a scheduler one may have ended by itself
        return tuple(process.name for process in left)
