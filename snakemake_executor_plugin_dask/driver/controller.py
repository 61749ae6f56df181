"""The life of jobs: routed, waiting, placed, running, ended, lost.

Holds the queue and the ledger; runs on the driver's event loop.

Decisions are made by `routing`, `placement` and `demand`; workers are the `fleet`'s. See docs/design.md, «The life of
a job».
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from snakemake_executor_plugin_dask.decide import demand, placement, routing
from snakemake_executor_plugin_dask.decide.ledger import END_BEFORE_S, Lease, Ledger, needs_fresh
from snakemake_executor_plugin_dask.decide.lookahead import LookAhead
from snakemake_executor_plugin_dask.decide.routing import Shape
from snakemake_executor_plugin_dask.driver.fleet import Fleet
from snakemake_executor_plugin_dask.driver.members import Member
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.model import units
from snakemake_executor_plugin_dask.model.errors import RequestError
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome, RunSetup, Size
from snakemake_executor_plugin_dask.model.messages import Dropped, Enqueue, Finished, Later, Level, QueuedJob, Started
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request

Slurm = tuple[tuple[str, str], ...]  # resources by which a pool is made
JobState = Literal["waiting", "sent", "running", "limbo"]

_OFTEN = 5  # preempted allocations of a pool, after which it is said what that means
_KILL_S = 10.0  # how long jobs get to end beyond their grace, before their workers are given back


@dataclass(slots=True)
class Limbo:
    """A run that lost a worker, until nothing of it lives any more."""

    worker: str  # the first that it lost
    why: str
    planned: bool
    on: set[str]  # workers where it is not known to be dead
    unknown: str = ""  # why that cannot be known of one of them


@dataclass(slots=True)
class Job:
    """One job that Snakemake handed over, through all its runs."""

    queued: QueuedJob
    state: JobState = "waiting"
    pool: str = ""
    run: int = 1
    again_since: str = ""  # why it is not its first run
    losses: int = 0  # unplanned ones
    alone: bool = False  # it has lost so many workers that it runs without neighbours now
    outlived: bool = False  # an allocation ended under it once
    key: str = ""  # of the current run, as Dask and the worker know it
    worker: str = ""
    lease: Lease | None = None
    limbo: Limbo | None = None
    limited_by_allocation: bool = False
    killed: str = ""  # why the driver ends it
    reported: bool = False  # Snakemake was told that it started


#: Pools for Slurm resources that come up during the run, and why some of the requests can have none. The second
#: argument: whether they are larger ones beside those of the same resources.
MakePools = Callable[[Sequence[Request], bool], Awaitable[tuple[Sequence[Pool], Mapping[Request, str]]]]


class NotNow(Exception):
    """A worker of an attached cluster has no room for this job any more: another run took it first."""


@dataclass
class Counts:
    """For the line at the end."""

    jobs: int = 0
    attempts: int = 0
    lost_workers: int = 0


@dataclass
class Surroundings:
    """What the controller acts through, so that tests can put something else there."""

    send: Callable[[object], None]  # to Snakemake
    say: Callable[[Level, str], None]  # to the user
    event: Callable[..., None]  # to the event log
    submit: Callable[[str, JobSpec], Awaitable[Outcome | None]]  # to a worker's address; None: its end was told already
    kill: Callable[[Member, str, str], Any]  # (worker, key, reason) -> awaitable
    state_dir: str
    failed: Callable[[BaseException], None]  # an error of the driver's own: the run ends with it
    make_pools: MakePools | None = None
    released: Callable[[str], None] = lambda _: None  # an attempt's key: every process of it is gone
    clock: Callable[[], float] = time.monotonic


class Controller:
    """Waiting and running jobs of one run."""

    def __init__(self, setup: RunSetup, options: Options, around: Surroundings) -> None:
        self._setup = setup
        self._options = options
        self._around = around
        self._clock = around.clock
        self.pools: dict[str, Pool] = {pool.name: pool for pool in options.pools}
        self.shapes: dict[str, Shape] = {pool.name: routing.shape_of(pool, None) for pool in options.pools}
        self.given_up: dict[str, str] = {}
        self._lacks: set[tuple[str, str]] = set()  # pools, and what their workers lack, which was said
        self.ledger = Ledger()
        self.waiting = placement.Waiting()
        self._unmade: dict[Slurm, list[Job]] = {}  # jobs for whose resources Slurm is being asked
        self.jobs: dict[str, Job] = {}  # by the key that Snakemake's side knows
        self._by_run: dict[str, Job] = {}  # by the key of the current run
        self.ahead = LookAhead()
        self.fleet: Fleet = None  # type: ignore[assignment]  # set by the driver before anything happens
        self.counts = Counts()
        self._said: set[str] = set()  # what workers wanted to be told
        self._preempted: dict[str, int] = {}  # by pool: how many allocations
        self._warned: set[str] = set()  # rules whose jobs need the whole of an allocation
        self._scale_not_before = float("-inf")
        self._failures: dict[str, str] = {}  # by pool: why its last worker did not come up
        self._surplus_since: dict[str, float] = {}  # by pool: since when more workers start than are needed
        self._placing: asyncio.Handle | None = None
        self._tasks = Tasks(around.failed)
        self.stopping = False
        self._changed = asyncio.Event()

    # From Snakemake

    def enqueue(self, message: Enqueue) -> None:
        for queued in message.jobs:
            job = Job(queued)
            self.jobs[queued.key] = job
            self.counts.jobs += 1
            unmade = self._unmade_pool(queued.request)
            name, why_none = self._choose_pool(job) if unmade is None else (None, "")
            self._around.event("job-queued", **_identity(queued), request=queued.request, pool=name or "")
            if name is not None:
                self._wait_in(job, name)
            elif unmade is not None:
                self._ask_for_pool(unmade, job)
            else:
                self._finish_unstarted(job, why_none)
        for later in message.soon:
            self._look_ahead(later)
        if self.stopping:
            self.drop_waiting()  # Snakemake was still handing over when it said to start no more
        self.place_soon()

    def _look_ahead(self, later: Later) -> None:
        after = tuple(key for key in later.after if key in self.jobs)  # others ended meanwhile
        if after:
            with contextlib.suppress(RequestError):  # it is told when the job itself is ready
                pool = routing.route(later.request, list(self.pools.values()), self.shapes, self.given_up)
                self.ahead.add(pool, Later(later.request, after))

    def drop_waiting(self) -> None:
        """Start no more; what has a process finishes."""
        self.stopping = True
        dropped = []
        for key, job in [(key, job) for key, job in self.jobs.items() if job.state == "waiting"]:
            self.waiting.discard(key)
            self.ahead.ended(key, succeeded=False)
            if job.run > 1:
                self._not_again(job, job.again_since)  # its outputs may not be as they were before
            else:
                del self.jobs[key]
                dropped.append(key)
        self._around.event("job-dropped", keys=dropped)
        self._around.send(Dropped(tuple(dropped)))

    async def kill_running(self) -> None:
        """End all running jobs and wait for it, bounded."""
        self.drop_waiting()
        asking = Tasks(self._around.failed)  # a worker that stands still answers nothing, and must hold nothing up
        for job in self.jobs.values():
            asking.spawn(self._kill(job, "stopped by Snakemake"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._setup.stop_grace_s + _KILL_S):
                while self.jobs:
                    self._changed.clear()
                    await self._changed.wait()
        asking.cancel()

    # Waiting to running

    def _route(self, job: Job) -> None:
        name, why_none = self._choose_pool(job)
        if name is None:
            self._finish_unstarted(job, why_none)
        else:
            self._wait_in(job, name)

    def _choose_pool(self, job: Job) -> tuple[str | None, str]:
        """The pool's name; None and the reason where no pool can take it."""
        queued = job.queued
        pools = list(self.pools.values())
        try:
            return routing.route(queued.request, pools, self.shapes, self.given_up, queued.name), ""
        except RequestError as error:
            return None, str(error)

    def _finish_unstarted(self, job: Job, why: str) -> None:
        self._finish(job, Outcome(job.queued.key, "not-started", detail=why), message=why)

    def _unmade_pool(self, request: Request) -> Slurm | None:
        """Slurm resources for which a pool is to be made: no job had them so far, or asked for so much with them.

        A checkpoint, a retry or a function of inputs brings such jobs. What pools are meant to have counts: where
        workers turn out to have less, those of a further pool would, too.
        """
        if self._options.slurm_template is None or request.pool is not None:
            return None
        holds = any(not routing.shortages(request, pool, routing.shape_of(pool)) for pool in self.pools.values())
        return None if holds else request.slurm or ()

    def _ask_for_pool(self, slurm: Slurm, job: Job) -> None:
        """The batch system may take its time to answer, and jobs of the same kind share the answer."""
        if slurm not in self._unmade:
            self._tasks.spawn(self._make_pool(slurm))
        self._unmade.setdefault(slurm, []).append(job)

    async def _make_pool(self, slurm: Slurm) -> None:
        requests = list(dict.fromkeys(job.queued.request for job in self._unmade[slurm]))
        assert self._around.make_pools is not None
        further = any(routing.made_for(pool, request) for pool in self.pools.values() for request in requests)
        pools, refused = await self._around.make_pools(requests, further)
        asked = set(requests)
        for pool in pools:
            shape = routing.shape_of(pool)
            # One that settings make as small as those that are there is of no use.
            if not further or any(not routing.shortages(request, pool, shape) for request in requests):
                self.pools[pool.name], self.shapes[pool.name] = pool, shape
                self._around.event("pool-up", pool=pool.name, **_shape_fields(pool))
        for job in self._unmade.pop(slurm):
            request = job.queued.request
            if self.jobs.get(job.queued.key) is not job:
                continue  # dropped meanwhile
            unmade = self._unmade_pool(request)
            if request in refused:
                self._finish_unstarted(job, refused[request])
            elif unmade is None:
                self._route(job)
            elif request in asked:
                self._finish_unstarted(job, _why_not(request, pools or list(self.pools.values()), job.queued.name))
            else:
                self._ask_for_pool(unmade, job)  # it came while another question was on its way
        self.place_soon()

    def _wait_in(self, job: Job, name: str) -> None:
        queued = job.queued
        job.pool, job.state, job.worker, job.lease, job.limbo = name, "waiting", "", None, None
        self._warn_of_waived_margin(job, self.pools[name])
        if job.alone:
            cores = self._cores_alone(queued.request, name)
            queued = dataclasses.replace(queued, request=dataclasses.replace(queued.request, cores=cores))
        self.waiting.add(queued, self.pools[name], self._clock(), fresh=job.outlived)

    def _cores_alone(self, request: Request, name: str) -> int:
        """So many that the job has a worker for itself. On an attached cluster workers differ."""
        largest = max((state.cores for state in self.ledger.states(name).values()), default=0)
        return max(request.cores, self.shapes[name].cores or largest)

    def give_up_waiting(self, key: str, why: str) -> None:
        """A waiting job that nothing can hold any more fails with the reason."""
        job, waited = self.jobs.get(key), self.waiting.discard(key)
        if job is None or waited is None:
            return
        if job.alone and self._cores_alone(job.queued.request, job.pool) < waited.request.cores:
            self._wait_in(job, job.pool)  # the largest worker is a smaller one by now
        else:
            self._finish_unstarted(job, why)

    def _warn_of_waived_margin(self, job: Job, pool: Pool) -> None:
        rule, runtime_s = job.queued.name, job.queued.request.runtime_s
        if runtime_s is None or not needs_fresh(job.queued.request, pool) or rule in self._warned:
            return
        self._warned.add(rule)
        self._around.say(
            "warning",
            f"Rule {rule} asks for runtime={units.format_duration(runtime_s)}, which leaves no margin in pool "
            f"{pool.name}'s walltime of {units.format_duration(pool.walltime_s or 0)}: its jobs wait for new "
            f"allocations, and are ended {END_BEFORE_S:.0f} s before these.",
        )

    def _warn_of_own_end(self, job: Job, runtime_s: float, remaining_s: float) -> None:
        if "own end" in self._warned:
            return
        self._warned.add("own end")
        self._around.say(
            "warning",
            f"Rule {job.queued.name} asks for runtime={units.format_duration(runtime_s)}, and the allocation in which "
            f"Snakemake runs ends in {units.format_duration(round(max(0.0, remaining_s)))}: jobs are ended "
            f"{END_BEFORE_S:.0f} s before it.",
        )

    def place_soon(self) -> None:
        """There may be room that was not there before."""
        if self._placing is None:
            self._placing = asyncio.get_running_loop().call_soon(self._place)

    def _place(self) -> None:
        self._placing = None
        if self.stopping:
            return
        try:
            for queued, lease in placement.place(self.waiting, self.ledger, self._clock()):
                self._send(self.jobs[queued.key], lease)
        except Exception as error:  # noqa: BLE001 - called by the event loop, which would only log it
            self._around.failed(error)

    def _send(self, job: Job, lease: Lease) -> None:
        member = self.fleet.members[lease.workers[0]]
        try:
            spec = self._spec(job, lease, member)
        except OSError as error:
            self.ledger.release(job.queued.key, self._clock())
            why = f"the list of its nodes could not be written: {error}"
            self._finish(job, Outcome(job.queued.key, "not-started", detail=why))
            return
        job.state, job.key, job.worker, job.lease = "sent", spec.key, member.name, lease
        self._by_run[spec.key] = job
        self.counts.attempts += 1
        self._around.event(
            "job-placed",
            key=spec.key,
            worker=member.name,
            workers=lease.cores_by_worker,
            memory_mb=lease.memory_mb,
            devices=lease.devices,
        )
        self._tasks.spawn(self._follow(job, spec.key, self._around.submit(member.address, spec)))

    def _spec(self, job: Job, lease: Lease, member: Member) -> JobSpec:
        """The job as it travels: with what placement decided."""
        spec, request, pool = job.queued.spec(), job.queued.request, member.pool
        environment: list[tuple[str, str | None]] = []
        affinity: tuple[int, ...] = ()
        if member.name in lease.devices:
            from snakemake_executor_plugin_dask.node.devices import cores_for, device_environment

            devices = lease.devices[member.name]
            environment += device_environment(devices, pool.gpu_vendor)
            if member.facts is not None and devices:
                near = dict(zip(member.facts.devices, member.facts.near, strict=False))
                affinity = cores_for(devices, near, lease.cores_by_worker.get(member.name, 0))
        # Without a shared file system a host file would not be found, and launchers use the node they are called on.
        if (len(lease.hosts) > 1 or request.mpi or request.nodes > 1) and self._setup.scratch is None:
            from snakemake_executor_plugin_dask.backends.mpi import job_environment

            attached_in_slurm = pool.kind.found and member.facts is not None and member.facts.in_slurm
            environment += job_environment(
                lease, pool, request.tasks, self._around.state_dir, in_slurm=attached_in_slurm
            )
        runtime_s = request.runtime_s if self._setup.enforce_runtime else None
        limits = [limit for limit in (runtime_s, lease.limit_s) if limit is not None]
        ends = member.facts is not None and member.facts.remaining_s is not None
        if ends and (runtime_s is None or pool.kind.beside_snakemake):
            # Nothing else ends it: do so while its end can still be told apart from a lost worker.
            assert member.facts is not None
            remaining = (member.facts.remaining_s or 0.0) - (self._clock() - member.since)
            # Less than the margin, which placement left beside the job: of a short allocation not its last 30 s.
            limits.append(max(1.0, remaining - min(END_BEFORE_S, pool.margin / 2)))
            if runtime_s is not None and limits[-1] < runtime_s:
                self._warn_of_own_end(job, runtime_s, remaining)
        limit_s = min(limits, default=None)
        job.limited_by_allocation = limit_s is not None and limit_s != runtime_s
        log = spec.log_path if job.run == 1 else f"{spec.log_path}.{job.run}"
        return dataclasses.replace(
            spec,
            key=spec.key.rpartition(".")[0] + f".{job.run}",
            log_path=log,
            # Of a job that spreads, its part on a node.
            memory_limit_mb=lease.memory_mb if self._setup.enforce_memory and request.memory_mb is not None else None,
            runtime_limit_s=limit_s,
            environment=tuple(environment),
            size=None if pool.kind.here else _size(lease, request, member.name),
            affinity=affinity,
        )

    # Running to ended

    def received(self, message: Mapping[str, Any]) -> None:
        """An event from a worker: a job started or ended, or it takes no more since it is about to go."""
        try:
            self._received(message)
        except Exception as error:  # noqa: BLE001 - called by Dask, which would only log it
            self._around.failed(error)

    def _received(self, message: Mapping[str, Any]) -> None:
        if "started" in message:
            job = self._by_run.get(message["started"])
            if job is not None and job.limbo is not None:
                self._end_remains(job, job.limbo)  # asked before, it may have had no process to end
            elif job is not None and job.state == "sent":
                job.state = "running"
                how = {name: message[name] for name in ("pid", "start", "start_depth", "start_reason")}
                self._around.event("job-started", key=job.key, worker=job.worker, **how)
                if not job.reported:
                    job.reported = True
                    self._around.send(Started(job.queued.key))
        elif "ended" in message:
            self._ended(Outcome(**message["ended"]))
        elif "said" in message:
            if message["said"] not in self._said:  # each worker says it
                self._said.add(message["said"])
                self._around.say("warning", message["said"])
        elif message.get("leaving") in self.ledger.workers():
            self.ledger.drain(message["leaving"])

    def attempts(self) -> list[str]:
        """The keys of all attempts that were sent and are not known to be over."""
        return list(self._by_run)

    def sent(self, key: str) -> Job | None:
        """The job of an attempt that was sent and whose end was not told yet."""
        return self._by_run.get(key)

    async def _follow(self, job: Job, key: str, submitted: Awaitable[Outcome | None]) -> None:
        """The task's result is the second way to hear of an end, and the only one where Dask itself failed."""
        try:
            outcome = await submitted
        except asyncio.CancelledError:
            raise
        except NotNow:
            # In limbo what becomes of it is decided once its worker is known to be dead.
            if self._by_run.get(key) is job and job.limbo is None:
                del self._by_run[key]
                self.counts.attempts -= 1
                self._release(job)
                self._around.event("job-requeued", key=job.queued.key, run=job.run, reason="another run was first")
                self._route(job)
                if self.stopping:
                    self.drop_waiting()
                self.place_soon()
        except Exception as error:  # noqa: BLE001 - Dask raises KilledWorker, unpickling's own errors, and others
            await asyncio.sleep(1.0)  # a lost worker is told otherwise, and first
            member = self.fleet.members.get(job.worker)
            if self._by_run.get(key) is job and member is not None:
                # Whether the job has a process is not known, so the worker is given up with all that runs on it.
                self.fleet.lose(member, f"Dask could not run a job on it: {error}")
        else:
            if outcome is not None:
                self._ended(outcome)

    def _ended(self, outcome: Outcome) -> None:
        job = self._by_run.get(outcome.key)
        if job is None:
            return  # told twice, or a late word of an attempt that was given up: not taken
        if job.limbo is not None:
            if self._up(job.worker) is None:
                return  # a lost worker's late word
            if outcome.status != "succeeded":
                self._dead_on(job, job.worker)
                return
        del self._by_run[outcome.key]
        self._around.event("job-ended", outcome=outcome)
        self._release(job)
        if outcome.status == "lost" and not job.killed:
            job.state = "limbo"
            self._tasks.spawn(self._heard_lost(job, outcome))
        elif outcome.status == "out-of-time" and job.limited_by_allocation and not self.stopping:
            self._outlived(job, outcome)
        else:
            self._finish(job, outcome)
        self.place_soon()

    async def _heard_lost(self, job: Job, outcome: Outcome) -> None:
        """A job can hear of its allocation's end before anybody else does: ask whether that was taken away."""
        member = self.fleet.members.get(job.worker)
        preempted = member is not None and (member.preempted or await self.fleet.preempted(member))
        if job.killed:
            self._finish(job, outcome)
        else:
            self._lost(job, outcome.detail, planned=preempted)
        self.place_soon()

    def _outlived(self, job: Job, outcome: Outcome) -> None:
        """Its allocation's end came before any limit of its own."""
        rule, request, pool = job.queued.name, job.queued.request, self.pools[job.pool]
        says = "no runtime" if request.runtime_s is None else f"runtime={units.format_duration(request.runtime_s)}"
        if pool.kind.beside_snakemake:
            message = (
                f"Rule {rule} declares {says}, and its job did not end within the life of the allocation in which "
                f"Snakemake runs ({outcome.ended - outcome.started:.0f} s): start Snakemake in a longer one."
            )
            self._finish(job, outcome, message=message)
            return
        if job.outlived or needs_fresh(request, pool):
            lives = "two allocations" if job.outlived else "a new allocation"
            last = " the last time" if job.outlived else ""
            change = "declare runtime, or give" if request.runtime_s is None else "give"
            message = (
                f"Rule {rule} declares {says}, and its job did not end within the life of {lives} "
                f"({outcome.ended - outcome.started:.0f} s{last}): {change} pool {pool.name} a longer walltime."
            )
            self._finish(job, outcome, message=message)
            return
        job.outlived = True
        self._around.say(
            "warning",
            f"A job of rule {rule} did not end within its allocation's life; it declares {says}. "
            "It is run once more, in a fresh allocation.",
        )
        self._again(job, "its allocation ended first")

    def _lost(self, job: Job, why: str, *, planned: bool) -> None:
        """A run of the job is over without an outcome, and known to be dead."""
        limit = self._options.lost_worker_retries
        if not planned:
            job.losses += 1
        spec = job.queued.spec()
        if job.losses > limit and (job.alone or limit == 0):
            alone = ", the last time while no other job ran there: it is the suspect" if job.alone else ""
            message = f"It lost its worker {job.losses} times ({why}){alone}. --dask-lost-worker-retries is {limit}."
            self._finish(
                job, Outcome(job.key, "lost", worker=job.worker, log_path=spec.log_path, detail=why), message=message
            )
            return
        if self.stopping:
            self._not_again(job, why)
            return
        job.alone = job.losses >= max(1, limit)
        self._around.say(
            "warning", f"Job {spec.jobid} ({spec.name}) runs again: {why}. Its earlier processes are dead."
        )
        self._again(job, why)

    def _not_again(self, job: Job, why: str) -> None:
        detail = f"{why}, and it is not run again, since no more jobs are started"
        self._finish(job, Outcome(job.key, "lost", worker=job.worker, detail=detail))

    def _again(self, job: Job, why: str) -> None:
        job.run += 1
        job.again_since = why
        self._around.event("job-requeued", key=job.queued.key, run=job.run, reason=why)
        self._route(job)

    def _finish(self, job: Job, outcome: Outcome, message: str = "") -> None:
        key = job.queued.key
        self.jobs.pop(key, None)
        self.ahead.ended(key, succeeded=outcome.status == "succeeded")
        if outcome.status != "succeeded":
            self._around.event("job-finished", key=key, status=outcome.status, message=message)
            if job.queued.last and not self.stopping:
                self.drop_waiting()  # before another one takes its place: Snakemake could only say so after that
        self._around.send(Finished(key, dataclasses.replace(outcome, key=key), job.run, message))
        self._changed.set()

    def _release(self, job: Job) -> None:
        """Its cores, memory and devices are free: every process of it is gone."""
        if self.ledger.lease(job.queued.key) is not None:
            self.ledger.release(job.queued.key, self._clock())
        self._around.released(job.key)

    async def _kill(self, job: Job, reason: str) -> None:
        job.killed = reason
        member = self.fleet.members.get(job.worker)
        if job.state in ("sent", "running") and member is not None:
            await self._around.kill(member, job.key, reason)

    # From the fleet

    def worker_joined(self, member: Member) -> None:
        assert member.facts is not None
        pool = self.pools[member.pool.name]
        self._failures.pop(pool.name, None)
        up = self.fleet.of(pool.name, "up")
        if not pool.kind.found:  # where each worker is of its own kind, and `unfit` looks at all of them
            self.shapes[pool.name] = routing.largest(
                [routing.shape_of(m.pool, routing.shape_of_worker(m.pool, m.facts)) for m in up if m.facts is not None]
            )
        self.ledger.add_worker(member.name, member.pool, member.facts, self._clock())
        for kind in ("too_few", "cold"):
            if (text := getattr(member.facts, kind)) and (pool.name, kind) not in self._lacks:
                self._lacks.add((pool.name, kind))
                self._around.say("warning", f"Pool {pool.name}: {text}")
        if member.facts.too_few or (pool.kind.launched and not self.fleet.of(pool.name, "starting")):
            self.route_again(pool)  # only now is it known what its nodes hold
        self.place_soon()

    def route_again(self, pool: Pool) -> None:
        """What is known of the pool has changed."""
        for job in [job for job in self.jobs.values() if job.state == "waiting" and job.pool == pool.name]:
            self.waiting.discard(job.queued.key)
            self._route(job)

    def worker_lost(self, member: Member, why: str, *, told: bool = False) -> None:
        runs = [run for run, job in self._by_run.items() if job.lease is not None and member.name in job.lease.workers]
        self.ledger.drain(member.name)
        life = member.facts.remaining_s if member.facts is not None else None
        planned = life is not None and self._clock() - member.since > life - END_BEFORE_S
        planned |= member.pool.kind.found and not runs  # others take away what is idle
        self._around.event(
            "worker-lost", worker=member.name, pool=member.pool.name, reason=why, jobs=runs, planned=planned
        )
        if not planned:
            self.counts.lost_workers += 1
            jobs = f"; {len(runs)} job{'s' * (len(runs) != 1)} ran on it" if runs else ""
            self._around.say("debug" if told else "warning", f"Worker {member.name} was lost: {why}{jobs}.")
        why = f"worker {member.name} was lost ({why})"
        for job in [self._by_run[run] for run in runs]:
            if job.limbo is None:
                job.state, job.limbo = "limbo", Limbo(member.name, why, planned, on=set())
            job.limbo.on.add(member.name)
            self._end_remains(job, job.limbo)
        self._tasks.spawn(self._confirm(member, runs, planned))

    def _up(self, name: str) -> Member | None:
        member = self.fleet.members.get(name)
        return member if member is not None and member.state == "up" else None

    def _end_remains(self, job: Job, limbo: Limbo) -> None:
        """A job on several workers has its process on the first: where that one lives, it ends the job and says so."""
        member = self._up(job.worker)
        if member is not None:
            limbo.on.add(job.worker)
            self._tasks.spawn(self._around.kill(member, job.key, limbo.why))

    async def _confirm(self, member: Member, runs: Sequence[str], planned: bool) -> None:
        unknown = await self.fleet.confirm_dead(member, runs)
        ran = [self._by_run[run].queued.key for run in runs if run in self._by_run]
        self.fleet.judged(member, ran, planned=planned or member.preempted)
        if member.preempted and not planned:
            self.counts.lost_workers -= 1
            self._around.event("worker-preempted", worker=member.name, pool=member.pool.name)
            self.preempted(member)
        elif member.ended and not planned:
            where = f"Worker {member.name} was in allocation {member.process.allocation_id}"
            self._around.say("warning", f"{where}, whose output ends with: {member.ended}")
        for run in runs:
            job = self._by_run.get(run)
            if job is not None and job.limbo is not None:
                job.limbo.unknown = job.limbo.unknown or unknown or ""
                job.limbo.planned |= member.preempted and job.limbo.worker == member.name
                self._dead_on(job, member.name)
        self.ledger.remove_worker(member.name)
        self.place_soon()

    def _dead_on(self, job: Job, worker: str) -> None:
        """A run in limbo has no process on this worker; once that is so of all its workers, the run is over."""
        limbo = job.limbo
        assert limbo is not None
        limbo.on.discard(worker)
        if limbo.on:
            return
        run = job.key
        del self._by_run[run]
        self._release(job)
        self._around.event("job-ended", outcome=Outcome(run, "lost", worker=limbo.worker, detail=limbo.why))
        if limbo.unknown:
            again = "it is not run again, since two attempts could then run at once"
            message = f"{limbo.why}, and {limbo.unknown}: {again}."
            self._finish(job, Outcome(run, "lost", worker=limbo.worker, detail=limbo.why), message=message)
        elif job.killed:
            self._finish(job, Outcome(run, "cancelled", worker=limbo.worker, detail=job.killed))
        else:
            self._lost(job, limbo.why, planned=limbo.planned)
        self.place_soon()

    def fit_elsewhere(self, pool: Pool) -> bool:
        """Whether all jobs that wait for this pool could run in another one."""
        without = {*self.given_up, pool.name}
        waiting = {job.queued.request for job in self.jobs.values() if job.state == "waiting" and job.pool == pool.name}
        try:
            for request in waiting:
                routing.route(request, list(self.pools.values()), self.shapes, without)
        except RequestError:
            return False
        return True

    def preempted(self, member: Member) -> None:
        """A worker's allocation was taken away for others, which may happen again and again."""
        pool = member.pool.name
        count = self._preempted[pool] = self._preempted.get(pool, 0) + 1
        text = f"Worker {member.name} was in allocation {member.process.allocation_id}, which was preempted"
        text += f", says {member.ended}" if member.ended else ""
        if count == 1:
            text += ". Such losses do not count against --dask-lost-worker-retries"
        self._around.say("warning", f"{text}.")
        if count == _OFTEN:
            self._around.say(
                "warning",
                f"Pool {pool}: {count} allocations were preempted so far. Their jobs run again however often this "
                "happens; a queue or QOS that is not preempted, or shorter jobs, would lose less.",
            )

    def warn(self, text: str) -> None:
        self._around.say("warning", text)

    def pool_failed(self, pool: Pool, why: str) -> None:
        again = self._failures.get(pool.name) == why
        self._failures[pool.name] = why
        self._around.say("debug" if again else "warning", f"A worker of pool {pool.name} did not come up: {why}")

    def pool_given_up(self, pool: Pool, why: str) -> None:
        """Its jobs go to other pools where they fit, or fail with the reason."""
        self.given_up[pool.name] = why
        self._around.event("pool-given-up", pool=pool.name, reason=why)
        self._around.say("error", f"Pool {pool.name} is given up: its workers do not come up. The last reason: {why}")
        self.route_again(pool)
        self.place_soon()

    def event(self, kind: str, **fields: Any) -> None:
        self._around.event(kind, **fields)

    def failed(self, error: BaseException) -> None:
        self._around.failed(error)

    # How many workers

    def scale(self) -> None:
        """Ask for the workers that the waiting jobs need, and give idle ones back."""
        now = self._clock()
        if (self.stopping and not self.jobs) or now < self._scale_not_before:
            return
        self._scale()
        # Thousands of different requests take a while to pack: at most a twentieth of the time goes there.
        self._scale_not_before = now + 20 * (self._clock() - now)

    def _scale(self) -> None:
        now = self._clock()
        for pool in self.pools.values():
            if pool.name in self.given_up or pool.kind.found:
                continue
            starting = len(self.fleet.of(pool.name, "starting"))
            up = len(self.fleet.of(pool.name, "up"))
            classes = [] if self.stopping else self.waiting.classes(pool.name)
            advice = demand.recommend(
                pool,
                classes,
                self.ledger,
                starting,
                self.ahead.of(pool.name),
                now,
                self.shapes[pool.name],
                self.fleet.startup_s(pool.name),
            )
            for name in advice.give_back:
                self.ledger.drain(name)
                self.fleet.give_back(name, "idle")
                self.ledger.remove_worker(name)
                up -= 1
            more = advice.workers - up - starting
            if more >= 0:
                self._surplus_since.pop(pool.name, None)
            elif self.stopping or now - self._surplus_since.setdefault(pool.name, now) >= pool.idle_timeout_s:
                self.fleet.call_back(pool, -more)
            if more > 0 and not self.stopping:
                self.fleet.add(pool, more)


def _why_not(request: Request, pools: Sequence[Pool], name: str) -> str:
    """What the largest pools that can be made lack for the request."""
    try:
        routing.route(request, pools, {}, name=name)
    except RequestError as error:
        return str(error)
    raise AssertionError


def _size(lease: Lease, request: Request, worker: str) -> Size:
    """What a job holds, as seen from its first worker. An MPI job without `tasks` has a rank for each core."""
    cores = sum(lease.cores_by_worker.values())
    mpi = request.mpi or request.nodes > 1 or len(lease.hosts) > 1
    tasks = request.tasks or (cores if mpi else None)
    here = lease.cores_by_worker[worker] if len(lease.cores_by_worker) > 1 else cores // max(1, len(lease.hosts))
    return Size(
        cores=max(1, here),
        tasks=tasks,
        cores_per_task=max(1, cores // (tasks or 1)),
        memory_mb=lease.memory_mb,
        devices=len(lease.devices[worker]) if worker in lease.devices else None,
    )


def _shape_fields(pool: Pool) -> dict[str, Any]:
    return {name: getattr(pool, name) for name in ("cluster", "workers_max", "cores", "memory_mb", "gpus", "nodes")}


def _identity(queued: QueuedJob) -> dict[str, Any]:
    spec = queued.spec()
    group = "--local-groupid" in spec.arguments
    told: dict[str, Any] = {"key": queued.key, "rule": queued.name, "jobid": spec.jobid, "attempt": spec.attempt}
    told |= {"group": group, "log": spec.log_path}
    if spec.wildcards:
        told["wildcards"] = dict(spec.wildcards)
    if spec.members:
        told["members"] = [
            {"rule": each.rule, "jobid": each.jobid, "wildcards": dict(each.wildcards)} for each in spec.members
        ]
    return told
