"""The life of workers: brought up, joined, watched, lost, given back.

Effects on workers and allocations; decides nothing about jobs.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace

from snakemake_executor_plugin_dask.backends.base import Backend, Link, WorkerProcess
from snakemake_executor_plugin_dask.batch.allocations import Brakes
from snakemake_executor_plugin_dask.batch.reasons import ending, may_be_the_node
from snakemake_executor_plugin_dask.decide.badnodes import Nodes
from snakemake_executor_plugin_dask.driver.members import LEASE_MARGIN_S, SILENT_S, Listener, Member, Members
from snakemake_executor_plugin_dask.driver.own.daskcluster import DaskCluster
from snakemake_executor_plugin_dask.driver.own.leases import LeaseServer
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.model.jobs import WorkerFacts
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.worker import client

_UNREACHED_S = 20.0  # a supervisor starts before its worker joins, and connects in less
_SUPERVISOR_WORD_S = 4.0  # how long the supervisor of a lost worker gets to say that its jobs are dead
_STARTUP_S = 30.0  # before a pool's first worker has joined
_PAUSE_S = 10.0  # between two looks that are a second apart
_PREEMPTED_S = 5.0  # how long the batch system may take to say whether it took an allocation away
_OUTPUT_S = 2.0  # how long the end of a lost worker's output may take to read
_WRITTEN_S = 1.4  # how long what was written may take to be seen in a file, for which a server may stand between
_LAST_WORDS_S = 10.0  # how long an allocation whose worker was lost may take to be over
_LOOK_EVERY_S = 5.0  # at allocations that were submitted and have not joined


def _node_of(member: Member) -> str:
    """Where its allocation is; empty where that is several nodes or none, or no name for a batch script."""
    facts = member.facts
    if facts is None or facts.hosts or not member.pool.kind.queued or not re.fullmatch(r"[\w.-]+", facts.host):
        return ""
    return facts.host


def moved(before: float | None, now_expected: float | None, now: float) -> bool:
    """Whether the expected start of an allocation changed by more than a minute and a tenth of the wait."""
    if before is None or now_expected is None:
        return before is not now_expected
    return abs(now_expected - before) > max(60.0, (now_expected - now) / 10)


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
    ) -> None:
        super().__init__(listener, clock, sleep)
        self._cluster = cluster
        self._leases = leases
        self._backends = backends
        self._link = link
        self._lease_s = lease_s
        self._numbers: dict[str, int] = {}
        self._brakes: dict[str, Brakes] = {}
        self._startup_s: dict[str, float] = {}
        self._asking: dict[str, asyncio.Future[bool]] = {}  # by worker: whether it was preempted
        self._nodes: dict[str, Nodes] = {}  # by pool
        self._left_out: dict[str, set[str]] = {}  # by pool: the nodes of which that was said
        self._tasks = Tasks(listener.failed)
        self._checked, self._checked_wall = clock(), time.time()
        self._listening_since = float("-inf")
        self._closing = False
        self._left: list[WorkerProcess] = []  # given back, and not seen to be gone

    # What there is

    def brakes(self, pool: str) -> Brakes:
        return self._brakes.setdefault(pool, Brakes())

    def startup_s(self, pool: str) -> float:
        """From asking for a worker to its joining, as last seen of this pool."""
        return self._startup_s.get(pool, _STARTUP_S)

    # Bringing up

    def add(self, pool: Pool, count: int) -> None:
        """Ask for more workers, as many of them as the brakes allow now."""
        if any(member.process.group for member in self.of(pool.name)):
            return  # one launcher holds all the workers of a pool; the next comes once nothing of it is left
        if pool.kind.beside_snakemake:
            # No queue and no other user suffers from another try; who waits for what he holds wants to hear soon.
            self._brakes.setdefault(pool.name, Brakes(delay_first_s=1.0))
        # Until one has joined, those that run count too: more of them might not reach the scheduler either.
        works = pool.name in self._startup_s
        queued = len({m.process.name for m in self.of(pool.name, "starting") if not (works and m.running)})
        for _ in range(self.brakes(pool.name).allowed(count, queued, self._clock())):
            number = self._numbers[pool.name] = self._numbers.get(pool.name, -1) + 1
            bad = self._nodes_of(pool).bad()
            wanted = replace(pool, left_out=tuple(bad))
            process = self._backends[pool.cluster].worker(wanted, f"{pool.name}-{number}", self._link)
            self._tell_of_nodes(pool, bad, process.pool.left_out)
            now = self._clock()
            for name in [process.name + suffix for suffix in process.group] or [process.name]:
                self.members[name] = Member(name, pool, process, "starting", now)
            self._tasks.spawn(self._start(process, pool))
            if process.group:
                return

    async def _start(self, process: WorkerProcess, pool: Pool) -> None:
        left_out = process.pool.left_out
        await self._cluster.add(process)
        if left_out and not process.pool.left_out and process.failure is None and not self._nodes_of(pool).all_needed:
            self._nodes_of(pool).all_needed = True
            self._listener.warn(
                f"Pool {pool.name}: the batch system takes no allocation without {', '.join(left_out)}, so no node is "
                "left out any more."
            )
        if process.failure is not None:
            await self._never_came(process, process.failure)
        else:
            for member in self.members.values():
                if member.process is process:
                    member.submitted, member.looked = True, self._clock()
            self._listener.event(
                "allocation-submitted", worker=process.name, pool=pool.name, allocation=process.allocation_id
            )

    async def _never_came(self, process: WorkerProcess, why: str, *, preempted: bool = False) -> None:
        """A worker that failed before it joined."""
        members = [m for m in self.members.values() if m.process is process and m.state == "starting"]
        for member in members:
            del self.members[member.name]
        await self._remove(process)
        if not members:
            return
        pool = members[0].pool
        if preempted:  # the next one may be luckier, and queues like any other
            self._listener.event("allocation-gone", worker=process.name, pool=pool.name, reason=why, joined=False)
            self._listener.preempted(members[0])
            return
        if process.node and may_be_the_node(why):
            self._nodes_of(pool).failed(process.node, why)
        brakes = self.brakes(pool.name)
        brakes.failed(
            self._clock(),
            process.outlook,
            up=len(self.of(pool.name, "up")),
            elsewhere=self._listener.fit_elsewhere(pool),
        )
        self._listener.event("allocation-gone", worker=process.name, pool=pool.name, reason=why, joined=False)
        if brakes.given_up:
            for member in self.of(pool.name, "starting"):
                self.give_back(member.name, "its pool is given up")
            self._listener.pool_given_up(pool, why)
        else:
            self._listener.pool_failed(pool, why)

    async def _useless(self, member: Member, address: str, why: str) -> None:
        """A worker that joined and does not answer. It goes alone where its launcher has others."""
        if not self._others(member):
            await self._never_came(member.process, why)
            return
        del self.members[member.name]
        self._listener.pool_failed(member.pool, why)
        await self._cluster.client.retire_workers([address], close_workers=True, remove=True)

    def _others(self, member: Member) -> list[Member]:
        """The other workers of the same launcher that work or may come to."""
        return [
            other
            for other in self.members.values()
            if other.process is member.process and other is not member and other.state in ("starting", "up")
        ]

    def _started_again(self, name: str) -> Member | None:
        """A worker that its launcher's keeper started in the place of one that died; it has a name of its own."""
        for process in self._cluster.workers.values():
            suffix = name.removeprefix(process.name)
            if suffix.rpartition("-again")[0] in process.group:
                self._cluster.adopt(process, suffix)
                self.members[name] = Member(name, process.pool, process, "starting", self._clock())
                return self.members[name]
        return None

    async def joined(self, address: str, name: str, run_id: str) -> None:
        """The scheduler has seen a new worker."""
        member = self.members.get(name) or self._started_again(name)
        if self._closing:
            self._cluster.scheduler.close_worker(address)  # its launcher would be waited for
            return
        if member is None:
            # Its submission was not answered, and counted as failed: nobody would give it back.
            await self._cluster.client.retire_workers([address], close_workers=True, remove=True)
            return
        if member.state != "starting":
            return
        asked = self._cluster.client.run(client.facts, run_id, workers=[address], on_error="return")
        try:
            facts = (await asyncio.wait_for(asked, SILENT_S)).get(address)
        except TimeoutError:
            facts = TimeoutError(f"it said nothing for {SILENT_S:.0f} s")
        if self.members.get(name) is not member or member.state != "starting":
            return  # given back meanwhile
        if not isinstance(facts, WorkerFacts):
            await self._useless(member, address, f"it joined, and could not be asked what it has: {facts or 'it went'}")
            return
        member.address, member.facts = address, facts
        member.state, waited = "up", self._clock() - member.since
        member.since = self._clock()
        self._startup_s[member.pool.name] = waited
        self.brakes(member.pool.name).joined(self._clock())
        if node := _node_of(member):
            self._nodes_of(member.pool).joined(node)
        launcher = {"launcher": member.process.name} if member.process.group else {}
        self._listener.event(
            "worker-joined", worker=name, pool=member.pool.name, waited_s=round(waited, 3), facts=facts, **launcher
        )
        self._listener.worker_joined(member)

    # Losing

    async def confirm_dead(self, member: Member, keys: Sequence[str]) -> str | None:
        """Wait until every process of these attempts is known to be dead. Returns None, or why that cannot be known."""
        if keys:
            self._leases.stop(member.name)
        await self._hear_last_words(member)
        unknown = await self._see_dead(member, keys) if keys else None
        self._tasks.spawn(self._clean_up(member))
        return unknown

    async def _see_dead(self, member: Member, keys: Sequence[str]) -> str | None:
        name = member.name
        deadline = self._clock() + _SUPERVISOR_WORD_S
        while self._clock() < deadline:
            if self._leases.dead(name, keys):
                return None
            await self._sleep(0.02)
        last = self._leases.last_renewal(name)
        run_out = (self._clock() if last is None else last) + self._lease_s + LEASE_MARGIN_S
        while True:
            if not member.process.group and await member.process.kill():
                return None
            if self._leases.dead(name, keys):
                return None
            if self._clock() >= run_out:
                if self._leases.answers(name):
                    # The host answers and the supervisor does not: stopped processes count no lease.
                    host = member.facts.host if member.facts else name
                    return f"the processes on {host} are frozen and cannot be ended from here"
                return None
            await self._sleep(1.0)

    async def _hear_last_words(self, member: Member) -> None:
        """What the batch system says of a lost worker's allocation; asked before this run cancels it."""
        member.preempted = await self.preempted(member)
        # Processes may be dead before the line that says why is written; once the allocation is over, it is.
        began, over = self._clock(), False
        while True:
            with contextlib.suppress(TimeoutError, OSError):
                output = await asyncio.wait_for(asyncio.to_thread(member.process.output_tail), _OUTPUT_S)
                member.ended = ending(output)
            waited_s = self._clock() - began
            if member.ended or not member.pool.kind.queued or waited_s >= (_WRITTEN_S if over else _LAST_WORDS_S):
                return
            await self._sleep(0.2)
            over = over or await self._within(_LAST_WORDS_S - waited_s, member.process.over())

    async def preempted(self, member: Member) -> bool:
        asked = self._asking.get(member.name)
        if asked is None or asked.done():  # many jobs may tell of their end at once
            asked = self._asking[member.name] = asyncio.ensure_future(member.process.preempted())
        return await self._within(_PREEMPTED_S, asked)

    async def _within(self, limit_s: float, asked: Awaitable[bool]) -> bool:
        """What a batch system answers; False where it gives none in time, and its late answer serves others."""
        asking = asyncio.ensure_future(asked)
        done, _ = await asyncio.wait({asking}, timeout=limit_s)
        return bool(done) and asking.exception() is None and asking.result()

    async def _clean_up(self, member: Member) -> None:
        if member.state == "leaving" and member.facts is not None:
            self._nodes_of(member.pool).left(_node_of(member))
        if not self._others(member) and await self._remove(member.process):
            self._listener.event(
                "allocation-gone",
                worker=member.name,
                pool=member.pool.name,
                reason=member.ended or member.state,
                joined=member.facts is not None,
            )
        self.members.pop(member.name, None)
        self._asking.pop(member.name, None)

    async def _remove(self, process: WorkerProcess) -> bool:
        gone = await self._cluster.remove(process.name)
        if not gone:
            self._left.append(process)
        return gone

    # Giving back

    def give_back(self, name: str, why: str) -> None:
        """Give an idle worker, or one that has not joined yet, back."""
        member = self.members.get(name)
        if member is None or member.state in ("leaving", "lost"):
            return
        member.state, member.since = "leaving", self._clock()
        self._listener.event("worker-leaving", worker=name, pool=member.pool.name, reason=why)
        self._tasks.spawn(self._clean_up(member))

    def call_back(self, pool: Pool, count: int) -> None:
        """Give up the last places in the queue; what has started joins, and is given back when idle."""
        queued = [m for m in self.of(pool.name, "starting") if m.submitted and not m.running and not m.process.group]
        for member in queued[::-1][:count]:
            self.give_back(member.name, "not needed any more")

    # Nodes

    def _nodes_of(self, pool: Pool) -> Nodes:
        return self._nodes.setdefault(pool.name, Nodes())

    def _tell_of_nodes(self, pool: Pool, bad: Mapping[str, str], left_out: Collection[str]) -> None:
        """Once of each node."""
        told = self._left_out.setdefault(pool.name, set())
        for node, why in bad.items():
            if node not in told:
                said = (
                    f"Node {node} is left out of later allocations of pool {pool.name}: "
                    if node in left_out
                    else f"Node {node} fails workers of pool {pool.name}, and cannot be left out by the plugin: "
                )
                self._listener.event("node-left-out", pool=pool.name, node=node, reason=why, done=node in left_out)
                self._listener.warn(said + why)
        for node in sorted(told - bad.keys()):
            self._listener.warn(f"Node {node} is used again by pool {pool.name}.")
        self._left_out[pool.name] = set(bad)

    def judged(self, member: Member, jobs: Collection[str], *, planned: bool) -> None:
        node = _node_of(member)
        if planned:
            self._nodes_of(member.pool).left(node)
        elif node and may_be_the_node(member.ended):
            self._nodes_of(member.pool).failed(node, member.ended or "its worker was lost", jobs)

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
        seen = self._cluster.last_seen()
        for member in list(self.members.values()):
            if member.state == "up" and now - self._listening_since > SILENT_S:
                silent = wall - seen.get(member.name, wall)
                supervisor = self._leases.silent_s(member.name) or 0.0
                if max(silent, supervisor) > SILENT_S:
                    self.lose(member, f"it said nothing for {max(silent, supervisor):.0f} s")
            elif (
                member.state == "starting" and member.submitted and now - member.looked >= self._look_every(member, now)
            ):
                member.looked = now
                self._tasks.spawn(self._look(member))

    def unreached(self) -> Member | None:
        """A worker that has joined, and whose supervisor has not come to the lease server in a good while."""
        now = self._clock()
        return next(
            (
                member
                for member in self.members.values()
                if member.state == "up"
                and now - member.since > _UNREACHED_S
                and self._leases.silent_s(member.name) is None
            ),
            None,
        )

    def _look_every(self, member: Member, now: float) -> float:
        return 0.5 if member.pool.kind.beside_snakemake else min(30.0, max(_LOOK_EVERY_S, (now - member.since) / 10))

    async def _look(self, member: Member) -> None:
        state = await member.process.state()
        if member.state != "starting":
            return
        if state.kind == "gone":
            why = state.reason + (f"\n{state.log_tail}" if state.log_tail else "")
            preempted = await self.preempted(member)
            if member.state == "starting":
                await self._never_came(member.process, why, preempted=preempted)
        elif state.kind == "queued" and (
            state.reason != member.queue_reason or moved(member.expected, state.expected, time.time())
        ):
            member.queue_reason, member.expected = state.reason, state.expected
            self._listener.event(
                "allocation-waiting",
                worker=member.process.name,
                pool=member.pool.name,
                reason=state.reason,
                expected=state.expected,
            )
        elif state.kind == "running" and not member.running:
            member.running = True
            self._listener.event("allocation-running", worker=member.process.name, pool=member.pool.name)

    async def close(self) -> tuple[str, ...]:
        """Give everything back. Returns the names of what could not be seen to be gone."""
        self._closing = True
        for member in self.members.values():
            member.state = "leaving"
        processes = {
            process.name: process for process in (*self._left, *(member.process for member in self.members.values()))
        }
        await self._cluster.close()
        self._tasks.cancel()
        gone = await asyncio.gather(*(process.kill() for process in processes.values()), return_exceptions=True)
        return tuple(name for name, dead in zip(processes, gone, strict=True) if dead is not True)
