"""The life of jobs: waiting, sent, running, ended, lost.

Its jobs wait in the cluster's queue (`dispatch`); runs on the driver's event loop.

Where they wait, which worker they get and for how long is decided elsewhere (`routes`, `decide/placement`, `outfit`);
workers are the cluster's. See docs/design.md, "The life of a job".
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

from snakemake_executor_plugin_dask.decide.ledger import END_BEFORE_S, Holding
from snakemake_executor_plugin_dask.decide.needs import needs_fresh
from snakemake_executor_plugin_dask.driver import sentences
from snakemake_executor_plugin_dask.driver.cluster import Cluster, NotNow, Surroundings
from snakemake_executor_plugin_dask.driver.dispatch import Dispatch
from snakemake_executor_plugin_dask.driver.jobs import Attempt, Job, Limbo, State
from snakemake_executor_plugin_dask.driver.members import Listener, Member
from snakemake_executor_plugin_dask.driver.outfit import outfit, runtime_limit
from snakemake_executor_plugin_dask.driver.packing import Packing
from snakemake_executor_plugin_dask.driver.parts import Parts
from snakemake_executor_plugin_dask.driver.routes import Routes
from snakemake_executor_plugin_dask.driver.sentences import Teller
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.model.jobs import Outcome, RunSetup
from snakemake_executor_plugin_dask.model.messages import (
    Dropped,
    DropWaiting,
    Enqueue,
    Finished,
    QueuedJob,
    Started,
    Stop,
)
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.pools import Pool

KILL_S = 10.0  # how long jobs get to end beyond their grace, before their workers are given back


@dataclass
class Counts:
    """For the line at the end."""

    jobs: int = 0
    attempts: int = 0
    lost_workers: int = 0


class Controller(Listener):
    """Waiting and running jobs of one run, which hears of its cluster's workers."""

    def __init__(
        self,
        setup: RunSetup,
        options: Options,
        cluster: Cluster,
        dispatch: Dispatch,
        around: Surroundings,
        kill_s: float = KILL_S,
    ) -> None:
        self._setup, self._kill_s = setup, kill_s
        self._retries = options.lost_worker_retries
        self._cluster = cluster
        self._around = around
        self.clock = around.clock
        self._tell = Teller(around.say)
        self.dispatch = dispatch
        dispatch.runs[setup.run_id] = self
        self.pools, self.ledger, self.waiting = dispatch.pools, dispatch.ledger, dispatch.waiting
        self.ahead, self.place_soon = dispatch.ahead, dispatch.place_soon
        self.parts = Parts(
            self.ledger,
            self.waiting,
            cluster,
            around,
            over=self._ended,
            dead=self._dead_on,
            room=self.place_soon,
        )
        self.jobs: dict[str, Job] = {}  # by the key that Snakemake's side knows
        self.sent: dict[str, Job] = {}  # by the key of an attempt that was sent and is not known to be over
        self._packing = Packing()
        self.routes = Routes(setup.run_id, dispatch, self.jobs, around, self._tell, self._finish_unstarted)
        self.counts = Counts()
        self._tasks = Tasks(around.failed)
        self.stopping = False
        self._changed = asyncio.Event()

    # From Snakemake

    async def hear(self, message: object) -> bool:
        """A message of Snakemake's side; False: it has said stop, and all that runs is ended where it said so."""
        match message:
            case Enqueue():
                self.enqueue(message)
                self._cluster.scale()
                await asyncio.sleep(0)  # many may have come, and each takes some milliseconds
            case DropWaiting():
                self.drop_waiting()
            case Stop(kill=kill):
                self.stopping = True
                if kill:
                    await self.kill_running()
                return False
        return True

    def enqueue(self, message: Enqueue) -> None:
        """Jobs that are ready: each waits in its pool, or fails where none can take it."""
        for queued in message.jobs:
            job = Job.of(self._packing.packed(queued))
            self.jobs[queued.key] = job
            self.counts.jobs += 1
            self.routes.enter(job, queued.told or {})
        for later in message.soon:
            self.routes.look_ahead(later)
        if self.stopping:
            self.drop_waiting()  # Snakemake was still handing over when it said to start no more
        self.place_soon()

    def drop_waiting(self) -> None:
        """Start no more; what has a process finishes."""
        self.stopping = True
        dropped = []
        for key, job in [(key, job) for key, job in self.jobs.items() if job.waits]:
            self.dispatch.discard(key)
            self.ahead.ended(key, succeeded=False)
            if job.attempt.number > 1:
                self._not_again(job, job.again_since)  # its outputs may not be as they were before
            else:
                del self.jobs[key]
                dropped.append(key)
        self.event("job-dropped", keys=dropped)
        self._around.send(Dropped(tuple(dropped)))

    async def kill_running(self) -> None:
        """End all running jobs and wait for it, bounded."""
        self.drop_waiting()
        asking = Tasks(self.failed)  # a worker that stands still answers nothing, and must hold nothing up
        for job in self.jobs.values():
            job.attempt.killed = reason = "stopped by Snakemake"
            if job.attempt.state in (State.SENT, State.RUNNING):
                asking.spawn(self._cluster.kill(job.attempt, reason))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._setup.stop_grace_s + self._kill_s):
                while self.jobs:
                    self._changed.clear()
                    await self._changed.wait()
        asking.cancel()

    # Waiting to running

    def _finish_unstarted(self, job: Job, why: str) -> None:
        self._finish(job, Outcome(job.queued.key, "not-started", detail=why), message=why)

    def start(self, queued: QueuedJob, holding: Holding) -> None:
        """The dispatch has room for it. Does not wait."""
        job = self.jobs[queued.key]
        attempt, request, now = job.attempt, job.queued.request, self.clock()
        member = self._cluster.workers.members[holding.workers[0]]
        try:
            spec = outfit(
                self._packing.spec(job.queued),
                attempt.number,
                request,
                holding,
                member,
                self._setup,
                self._around.state_dir,
            )
        except OSError as error:
            self.dispatch.release(job.queued.key)
            why = f"the list of its nodes could not be written: {error}"
            self._finish(job, Outcome(job.queued.key, "not-started", detail=why))
            return
        limit = runtime_limit(request, holding, member, now, enforce=self._setup.enforce_runtime)
        if limit.own_end_s is not None and request.runtime_s is not None:
            self._tell.own_end(job.queued.name, request.runtime_s, limit.own_end_s)
        attempt.member, attempt.holding, attempt.limited_by_allocation = member, holding, limit.by_allocation
        attempt.become(State.SENT)
        self.sent[attempt.key] = job
        self.counts.attempts += 1
        self._note_placed(attempt, member, holding)
        spec = self.parts.begin(job, member.pool, holding, spec)
        spec = dataclasses.replace(spec, runtime_limit_s=limit.limit_s)
        self._tasks.spawn(self._follow(job, self._cluster.submit(attempt, spec)))

    def _note_placed(self, attempt: Attempt, member: Member, holding: Holding) -> None:
        request, memory_mb, dask_workers = attempt.request, holding.memory_mb, {}
        workers = self._as_shown(holding.cores_by_worker)
        if request.cluster is not None:
            each = holding.dask_workers or {member.name: request.cluster.workers}
            dask_workers["dask_workers"] = self._as_shown(each)
        if holding.dask_workers and request.memory_mb is not None:
            memory_mb = request.memory_mb // len(workers)  # on average
        self.event(
            "job-placed",
            key=attempt.key,
            worker=member.shown,
            workers=workers,
            memory_mb=memory_mb,
            devices=holding.devices,
            **dask_workers,
        )

    def _as_shown(self, amounts: Mapping[str, int]) -> dict[str, int]:
        """By worker, those of its nodes together."""
        members, summed = self._cluster.workers.members, dict[str, int]()
        for name, amount in amounts.items():
            shown = members[name].shown if name in members else name
            summed[shown] = summed.get(shown, 0) + amount
        return summed

    # Running to ended

    def received(self, message: Mapping[str, Any]) -> None:
        """An event from a worker: a job started or ended, or it takes no more since it is about to go."""
        try:
            self._received(message)
        except Exception as error:  # noqa: BLE001 - called by Dask, which would only log it
            self.failed(error)

    def _received(self, message: Mapping[str, Any]) -> None:
        if "begun" in message:  # a short job's start, which is told with its end
            self._received(message["begun"])
        if self.parts.received(message):
            return
        if "started" in message:
            job = self.sent.get(message["started"])
            if job is not None and job.attempt.state is State.LIMBO:
                self._end_remains(job)  # asked before, it may have had no process to end
            elif job is not None and job.attempt.state is State.SENT:
                job.attempt.become(State.RUNNING)
                how = {name: message[name] for name in ("pid", "start", "start_depth", "start_reason")}
                self.event("job-started", key=job.attempt.key, worker=job.attempt.shown, **how)
                if not job.reported:
                    job.reported = True
                    self._around.send(Started(job.queued.key))
        elif "ended" in message:
            self._ended(Outcome(**message["ended"]))
        elif "said" in message:
            self._tell.from_worker(message["said"])
        elif (name := message.get("ending") or message.get("leaving")) is not None:
            self.dispatch.drain(name)

    async def _follow(self, job: Job, submitted: Awaitable[Outcome | None]) -> None:
        """The task's result is the second way to hear of an end, and the only one where Dask itself failed."""
        attempt = job.attempt
        try:
            outcome = await submitted
        except asyncio.CancelledError:
            raise
        except NotNow:
            # In limbo what becomes of it is decided once its worker is known to be dead.
            if attempt.state is State.SENT:
                self.counts.attempts -= 1
                self.parts.withdrawn(attempt)
                self._over(job, State.WAITING)
                self.event("job-requeued", key=job.queued.key, run=attempt.number, reason="another run was first")
                self.routes.route(job)
                if self.stopping:
                    self.drop_waiting()
                self.place_soon()
        except Exception as error:  # noqa: BLE001 - Dask raises KilledWorker, unpickling's own errors, and others
            await asyncio.sleep(1.0)  # a lost worker is told otherwise, and first
            if self.sent.get(attempt.key) is job and attempt.member is not None:
                # Whether the job has a process is not known, so the worker is given up with all that runs on it.
                self._cluster.workers.lose(attempt.member, f"Dask could not run a job on it: {error}")
        else:
            if outcome is not None:
                self._ended(outcome)

    def _over(self, job: Job, state: State) -> None:
        """No process of the attempt is left: its cores, memory and devices are free."""
        attempt = job.attempt
        attempt.become(state)
        del self.sent[attempt.key]
        self.dispatch.release(job.queued.key)
        freed, attempt.freed = attempt.freed, None
        if freed is not None:
            freed()

    def _ended(self, outcome: Outcome) -> None:
        job = self.sent.get(outcome.key)
        if job is None:
            return  # told twice, or a late word of an attempt that was given up: not taken
        attempt = job.attempt
        if attempt.state is State.LIMBO:
            if attempt.member is None or not attempt.member.up:
                return  # a lost worker's late word
            if outcome.status != "succeeded":
                self._dead_on(job, attempt.worker)
                return
        whole = self.parts.ended(attempt, outcome)
        if whole is None:
            return
        outcome = dataclasses.replace(whole, worker=attempt.shown or whole.worker)
        lost = outcome.status == "lost" and not attempt.killed
        noted = outcome
        if outcome.status == "succeeded" and outcome.log_tail:  # for when Snakemake misses its outputs
            noted = dataclasses.replace(outcome, log_tail="", rule_logs=())
        self.event("job-ended", outcome=noted)
        self._over(job, State.LOST if lost else State.ENDED)
        if lost:
            self._tasks.spawn(self._heard_lost(job, outcome))
        elif outcome.status == "out-of-time" and attempt.limited_by_allocation and not self.stopping:
            self._outlived(job, outcome)
        else:
            self._finish(job, outcome)
        self.place_soon()

    async def _heard_lost(self, job: Job, outcome: Outcome) -> None:
        """A job can hear of its allocation's end before anybody else does: ask whether that was taken away."""
        member = job.attempt.member
        shared = member is not None and self._shared(member)
        preempted = member is not None and (member.preempted or await self._cluster.workers.preempted(member))
        if job.attempt.killed:
            self._finish(job, outcome)
        else:
            self._lost(job, outcome.detail, planned=preempted, shared=shared)
        self.place_soon()

    def _outlived(self, job: Job, outcome: Outcome) -> None:
        """Its allocation's end came before any limit of its own."""
        rule, request, pool = job.queued.name, job.queued.request, self.pools[job.pool]
        if pool.kind.beside_snakemake:
            message = sentences.ended_with_snakemakes_allocation(rule, request.runtime_s, outcome)
            self._finish(job, outcome, message=message)
        elif job.outlived or needs_fresh(request, pool):
            message = sentences.ended_with_its_allocation(rule, request.runtime_s, outcome, pool, twice=job.outlived)
            self._finish(job, outcome, message=message)
        else:
            job.outlived = True
            self._tell.outlived(self._packing.spec(job.queued), request.runtime_s)
            self._again(job, "its allocation ended first")

    def _shared(self, member: Member) -> bool:
        """Whether other runs have jobs on a worker."""
        state = self.ledger.states(member.pool.name).get(member.name)
        return state is not None and not all(self.owns(key) for key in state.held)

    def owns(self, key: str) -> bool:
        """Whether what is held under a key is held for a job of this run, or for a Dask worker lent to one."""
        return key in self.jobs or key.rpartition("+")[0] in self.sent

    def _lost(self, job: Job, why: str, *, planned: bool, shared: bool) -> None:
        """An attempt is over without an outcome, and known to be dead: the next one, if the job may have one.

        ``shared``: another run's job may be what ended the worker. Whose it is shows once the job runs alone.
        """
        spec, limit = self._packing.spec(job.queued), self._retries
        if not planned and shared and limit:
            job.shared_losses += 1
        elif not planned:
            job.losses += 1
        if job.losses > limit and (job.alone or limit == 0):
            outcome = Outcome(job.attempt.key, "lost", worker=job.attempt.shown, log_path=spec.log_path, detail=why)
            self._finish(job, outcome, message=sentences.lost_too_often(job.losses, why, limit, alone=job.alone))
        elif self.stopping:
            self._not_again(job, why)
        else:
            job.alone = job.losses >= max(1, limit) or job.shared_losses > limit
            self._tell.runs_again(spec, why)
            self._again(job, why)

    def _not_again(self, job: Job, why: str) -> None:
        outcome = Outcome(job.attempt.key, "lost", worker=job.attempt.shown, detail=sentences.not_again(why))
        self._finish(job, outcome)

    def _again(self, job: Job, why: str) -> None:
        job.attempt, job.again_since = job.attempt.next(), why
        self.event("job-requeued", key=job.queued.key, run=job.attempt.number, reason=why)
        self.routes.route(job)

    def _finish(self, job: Job, outcome: Outcome, message: str = "") -> None:
        key = job.queued.key
        self.jobs.pop(key, None)
        self.ahead.ended(key, succeeded=outcome.status == "succeeded")
        if outcome.status != "succeeded":
            self.event("job-finished", key=key, status=outcome.status, message=message)
            if job.queued.last and not self.stopping:
                self.drop_waiting()  # before another one takes its place: Snakemake could only say so after that
        if outcome.key != key:
            outcome = dataclasses.replace(outcome, key=key)
        self._around.send(Finished(key, outcome, job.attempt.number, message))
        self._changed.set()

    def abandon(self) -> None:
        """The run is over, and every process of its attempts is gone, told or not: nothing is held for them."""
        for job in list(self.sent.values()):
            self._over(job, State.LOST)
            self.jobs.pop(job.queued.key, None)
            self.ahead.ended(job.queued.key, succeeded=False)
        self.parts.abandon()
        self.routes.close()
        self._tasks.cancel()

    # A worker is lost

    def worker_lost(self, member: Member, why: str, *, told: bool = False) -> None:
        """The whole story: its jobs are ended, seen to be dead, and run again."""
        try:
            self._worker_lost(member, why, told=told)
        except Exception as error:  # noqa: BLE001 - called by Dask, which would only log it
            self.failed(error)

    def _worker_lost(self, member: Member, why: str, *, told: bool) -> None:
        # It gets no more jobs.
        self.dispatch.drain(member.name)
        lost = [
            (job, job.attempt)
            for job in self._sent_to(member)
            if job.attempt.holding and member.name in job.attempt.holding.workers and not self.parts.ending(job.attempt)
        ]
        parts = self.parts.lost_worker(member)
        keys = [attempt.key for _, attempt in lost]
        planned = _at_its_end(member, self.clock())
        planned |= member.pool.kind.found and not lost  # others take away what is idle
        if member.wide is None:
            self.event("worker-lost", worker=member.name, pool=member.pool.name, reason=why, jobs=keys, planned=planned)
            self.counts.lost_workers += not planned
        else:
            where = {"worker": member.shown, "pool": member.pool.name, "host": member.process.node}
            self.event("node-closed", **where, reason=why, jobs=keys)
        if not planned:
            self._tell.worker_lost(member, why, len(lost), told=told)

        # Its jobs may live or not. A job on several workers has its process on the first: where that one lives, it is
        # asked to end the job, and its word is waited for as well.
        why = f"{sentences.named(member)} was lost ({why})"
        shared = self._shared(member)
        for job, attempt in lost:
            if attempt.limbo is None:
                attempt.become(State.LIMBO)
                attempt.limbo = Limbo(member.shown, why, planned, shared, on=set())
            attempt.limbo.on.add(member.name)
            attempt.limbo.on |= self.parts.lost_script(attempt)
            self._end_remains(job)

        async def confirmed() -> None:
            # Nothing of them lives there, or that cannot be known.
            of_parts = [part.attempt.key for part in parts]
            unknown = await self._cluster.workers.confirm_dead(member, keys + of_parts)
            for part in parts:
                self.parts.confirmed(part, unknown=unknown)
            ran = [job.queued.key for job, attempt in lost if not attempt.state.final]
            self._cluster.workers.judged(member, ran, planned=planned or member.preempted)
            if member.wide is not None:
                pass  # its allocation is the wide worker's, which tells of its end itself
            elif member.preempted and not planned:
                self.counts.lost_workers -= 1
                self.event("worker-preempted", worker=member.name, pool=member.pool.name)
                self._tell.preempted(member)
            elif member.ended and not planned:
                self._tell.last_words(member)
            # Those that are dead on all their workers run again, or fail with the reason.
            for job, attempt in lost:
                if attempt.state is State.LIMBO and attempt.limbo is not None:
                    attempt.limbo.unknown = attempt.limbo.unknown or unknown or ""
                    attempt.limbo.planned |= member.preempted and attempt.limbo.worker == member.shown
                    self._dead_on(job, member.name)
            self.dispatch.gone(member.name)

        self._tasks.spawn(confirmed())

    def _sent_to(self, member: Member) -> list[Job]:
        """Those that may be on a worker, and few others: a hundred workers with thousands of jobs may go at once."""
        state = self.ledger.states(member.pool.name).get(member.name)
        if state is None:  # a node of another one
            return list(self.sent.values())
        held = (self.jobs.get(key) for key in state.held)
        return [job for job in held if job is not None and job.attempt.key in self.sent]

    def _end_remains(self, job: Job) -> None:
        """Have an attempt in limbo ended by its first worker, where that one lives."""
        attempt, limbo = job.attempt, job.attempt.limbo
        if limbo is not None and attempt.member is not None and attempt.member.up:
            limbo.on.add(attempt.worker)
            self._tasks.spawn(self._cluster.kill(attempt, limbo.why))

    def _dead_on(self, job: Job, worker: str) -> None:
        """An attempt in limbo has no process on this worker; once that is so of all its workers, it is over."""
        attempt, limbo = job.attempt, job.attempt.limbo
        assert limbo is not None
        limbo.on.discard(worker)
        if limbo.on:
            return
        self._over(job, State.LOST)
        outcome = Outcome(attempt.key, "lost", worker=limbo.worker, detail=limbo.why)
        self.event("job-ended", outcome=outcome)
        if limbo.unknown:
            self._finish(job, outcome, message=sentences.may_still_live(limbo.why, limbo.unknown))
        elif attempt.killed:
            self._finish(job, dataclasses.replace(outcome, status="cancelled", detail=attempt.killed))
        else:
            self._lost(job, limbo.why, planned=limbo.planned, shared=limbo.shared)
        self.place_soon()

    # What else is heard of workers

    def event(self, kind: str, **fields: Any) -> None:
        self._around.event(kind, **fields)

    def failed(self, error: BaseException) -> None:
        self._around.failed(error)

    def warn(self, text: str) -> None:
        self._tell.warn(text)

    def worker_joined(self, member: Member) -> None:
        assert member.facts is not None
        pool, workers = self.pools[member.pool.name], self._cluster.workers
        self.dispatch.joined(member, workers.up(pool.name))
        self._tell.worker_joined(member)
        if member.facts.too_few or (pool.kind.launched and not workers.starting(pool.name)):
            self.routes.route_again(pool)  # only now is it known what its nodes hold
        self.place_soon()

    def count_also(self, pool: Pool) -> None:
        """Workers of the pool declare further resources: a job holds those that it asks for, and no others."""
        self.pools.put(pool)
        self.ledger.count_also(pool)
        self.routes.route_again(pool)

    def fit_elsewhere(self, pool: Pool) -> bool:
        return self.routes.fit_elsewhere(pool)

    def preempted(self, member: Member) -> None:
        self._tell.preempted(member)

    def pool_failed(self, pool: Pool, why: str) -> None:
        self._tell.pool_failed(pool, why)

    def nodes_closed(self, pool: Pool, why: str) -> None:
        self.pools.closed[pool.name] = why
        self._tell.nodes_closed(pool, why)
        self.routes.route_again(pool)
        self.place_soon()

    def pool_given_up(self, pool: Pool, why: str) -> None:
        self.pools.given_up[pool.name] = why
        self.event("pool-given-up", pool=pool.name, reason=why)
        self._tell.pool_given_up(pool, why)
        self.routes.route_again(pool)
        self.place_soon()


def _at_its_end(member: Member, now: float) -> bool:
    """Whether a worker's allocation has come to the end of its life, which was known beforehand."""
    life_s = member.facts.remaining_s if member.facts is not None else None
    return life_s is not None and now - member.since > life_s - END_BEFORE_S
