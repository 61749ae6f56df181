"""What the events of a run add up to: jobs, workers, allocations, and their use over time. Pure.

Every figure of the status, the end line and the report comes from here, so that it can be computed again from the
event log. Unknown kinds and fields are passed over; a log that stops in the middle (the writer was killed) gives the
picture as it was then. Times are seconds since the epoch on the driver's clock; memory is 10^6 bytes.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from snakemake_executor_plugin_dask.observe.events import Event

AttemptState = Literal["waiting", "placed", "running", "ended", "dropped"]


@dataclass(slots=True)
class Attempt:
    """One run of one job on a worker, or its wait for one."""

    key: str
    rule: str
    jobid: str
    attempt: int  # Snakemake's
    run: int  # from 1; more where a worker was lost
    queued: float
    pool: str = ""
    state: AttemptState = "waiting"
    cores: int = 1  # asked for, then held
    memory_mb: int | None = None
    gpus: int = 0
    runtime_s: float | None = None  # asked for
    asked_memory_mb: int | None = None
    group: bool = False
    placed: float | None = None
    started: float | None = None
    ended: float | None = None
    workers: dict[str, int] = field(default_factory=dict)  # cores on each
    devices: tuple[str, ...] = ()
    status: str = ""  # an Outcome's, once ended
    host: str = ""
    pid: int = 0
    start: str = ""
    ran_s: float | None = None  # on the worker's clock
    peak_memory_mb: float | None = None
    cpu_s: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    message: str = ""
    log_path: str = ""
    log_tail: str = ""

    @property
    def worker(self) -> str:
        return next(iter(self.workers), "")

    @property
    def cpu_efficiency(self) -> float | None:
        """CPU time used of core time held, 0 to 1 and rarely above."""
        if self.cpu_s is None or not self.ran_s or not self.cores:
            return None
        return self.cpu_s / (self.ran_s * self.cores)


@dataclass(slots=True)
class Worker:
    """One worker from its coming to its going."""

    name: str
    pool: str
    joined: float
    host: str = ""
    cores: int = 0  # over all its nodes
    memory_mb: int = 0
    gpus: int = 0
    remaining_s: float | None = None  # of its allocation's life, when it joined
    state: Literal["up", "draining", "lost", "left"] = "up"
    gone: float | None = None
    why: str = ""
    planned: bool = False  # it was lost because its allocation's time was over
    running: set[str] = field(default_factory=set)
    attempts: int = 0


@dataclass(slots=True)
class Allocation:
    """What a worker runs in, as the batch system (or this machine) gives it."""

    worker: str
    pool: str
    submitted: float
    id: str = ""
    running: float | None = None
    gone: float | None = None
    reason: str = ""  # of the wait, then of the end
    joined: bool = False

    def queue_s(self, now: float) -> float:
        """Seconds from submission until it ran, ended or now."""
        return max(0.0, _first(self.running, self.gone, now) - self.submitted)


@dataclass(slots=True)
class PoolRecord:
    """A pool's settings and fate."""

    name: str
    cluster: str = ""
    workers_max: int | None = None
    cores: int | None = None
    memory_mb: int | None = None
    gpus: int | None = None
    nodes: int | None = None
    given_up: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """Resource-seconds, or at one moment: what workers hold, and what jobs hold of it."""

    cores: float = 0.0
    memory_mb: float = 0.0
    gpus: float = 0.0
    job_cores: float = 0.0
    job_memory_mb: float = 0.0
    job_gpus: float = 0.0
    job_cpu: float = 0.0  # CPU time that was really used, spread evenly over each attempt
    job_peak_memory_mb: float = 0.0  # sum of the peaks of the attempts of that time


class RunModel:
    """The state of a run after the events it was fed with."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.run_id = ""
        self.started: float | None = None
        self.ended: float | None = None
        self.now = 0.0  # of the last event
        self.last_progress = 0.0  # a job started or ended, or a worker came
        self.facts: Event = {}  # the run-started event
        self.end: Event = {}  # the run-ended event
        self.pools: dict[str, PoolRecord] = {}
        self.workers: list[Worker] = []
        self.current: dict[str, Worker] = {}  # by name, those that are there
        self.allocations: list[Allocation] = []
        self._allocation: dict[str, Allocation] = {}  # the latest of each worker's name
        self.attempts: dict[str, Attempt] = {}
        self.waiting: dict[str, Attempt] = {}
        self.running: dict[str, Attempt] = {}  # placed ones among them
        self.jobs: dict[tuple[str, str], str] = {}  # (rule, jobid) -> status of the latest attempt
        self.messages: dict[tuple[str, str], str] = {}
        self.lost_workers = 0
        self.blockers: list[dict[str, Any]] = []
        self.said: list[tuple[float, str, str]] = []
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Take one event in. Fields of a wrong type are an error only of that event: it is passed over."""
        self.now = max(self.now, float(event["t"]))
        if self.started is None:
            self.started = self.now
        handle = getattr(self, "_on_" + event["kind"].replace("-", "_"), None)
        if handle is None:
            return
        try:
            handle(event, float(event["t"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            self.said.append((self.now, "warning", f"an event of kind {event['kind']} could not be read"))

    # The run

    def _on_run_started(self, event: Event, when: float) -> None:
        self.started, self.facts = when, event
        self.run_id = str(event.get("run_id", ""))
        pools = event.get("pools") or (event.get("options") or {}).get("pools") or []
        for pool in pools:
            self._pool_settings(pool)

    def _on_run_ended(self, event: Event, when: float) -> None:
        self.ended, self.end = when, event

    def _on_said(self, event: Event, when: float) -> None:
        self.said.append((when, str(event.get("level", "info")), str(event["text"])))

    def _on_waiting(self, event: Event, _: float) -> None:
        self.blockers = [dict(blocker) for blocker in event["blockers"]]

    def _on_pool_up(self, event: Event, _: float) -> None:
        self._pool_settings({**event, "name": event["pool"]})

    def _on_pool_given_up(self, event: Event, _: float) -> None:
        self._pool(event["pool"]).given_up = str(event.get("reason", "")) or "no reason given"

    def _pool(self, name: str) -> PoolRecord:
        return self.pools.setdefault(name, PoolRecord(name))

    def _pool_settings(self, pool: Event) -> None:
        record = self._pool(str(pool["name"]))
        for name in ("cluster", "workers_max", "cores", "memory_mb", "gpus", "nodes"):
            if pool.get(name) is not None:
                setattr(record, name, pool[name])

    # Allocations and workers

    def _on_allocation_submitted(self, event: Event, when: float) -> None:
        self._pool(event["pool"])
        allocation = Allocation(event["worker"], event["pool"], when, str(event.get("allocation") or ""))
        self.allocations.append(allocation)
        self._allocation[allocation.worker] = allocation

    def _on_allocation_waiting(self, event: Event, _: float) -> None:
        if allocation := self._allocation.get(event["worker"]):
            allocation.reason = str(event.get("reason") or "")

    def _on_allocation_running(self, event: Event, when: float) -> None:
        if (allocation := self._allocation.get(event["worker"])) and allocation.running is None:
            allocation.running, allocation.reason = when, ""

    def _on_allocation_gone(self, event: Event, when: float) -> None:
        allocation = self._allocation.get(event["worker"])
        if allocation is None:  # it failed before it had an identifier
            allocation = Allocation(event["worker"], event["pool"], when)
            self.allocations.append(allocation)
        if allocation.gone is None:
            allocation.gone, allocation.reason = when, str(event.get("reason") or "")

    def _on_worker_joined(self, event: Event, when: float) -> None:
        facts = event.get("facts") or event
        pool = self._pool(event["pool"])
        nodes = max(1, len(facts.get("hosts") or ()))
        worker = Worker(
            event["worker"],
            pool.name,
            when,
            host=str(facts.get("host", "")),
            cores=int(facts["cores"]) * nodes,
            memory_mb=int(facts["memory_mb"]) * nodes,
            gpus=len(facts.get("devices") or ()) * nodes,
            remaining_s=facts.get("remaining_s"),
        )
        self.workers.append(worker)
        self.current[worker.name] = worker
        self.last_progress = when
        if allocation := self._allocation.get(worker.name):
            allocation.joined = True
            allocation.id = allocation.id or str(facts.get("allocation_id") or "")
            if allocation.running is None:  # the batch system was not asked in between
                allocation.running = when
            allocation.reason = ""

    def _on_worker_draining(self, event: Event, _: float) -> None:
        if worker := self.current.get(event["worker"]):
            worker.state, worker.why = "draining", str(event.get("reason") or "")

    def _on_worker_lost(self, event: Event, when: float) -> None:
        planned = bool(event.get("planned"))
        self._gone(event, when, "lost", planned=planned)
        self.lost_workers += not planned

    def _on_worker_leaving(self, event: Event, when: float) -> None:
        self._gone(event, when, "left")

    _on_worker_left = _on_worker_leaving

    def _gone(self, event: Event, when: float, state: Literal["lost", "left"], *, planned: bool = False) -> None:
        if worker := self.current.pop(event["worker"], None):
            worker.gone, worker.state, worker.planned = when, state, planned
            worker.why = str(event.get("reason") or "")

    # Jobs

    def _on_job_queued(self, event: Event, when: float) -> None:
        request = event.get("request") or {}
        attempt = Attempt(
            str(event["key"]),
            str(event["rule"]),
            str(event["jobid"]),
            int(event.get("attempt", 1)),
            1,
            when,
            pool=str(event.get("pool") or ""),
            cores=int(request.get("cores") or 1),
            memory_mb=request.get("memory_mb"),
            asked_memory_mb=request.get("memory_mb"),
            gpus=int(request.get("gpus") or 0),
            runtime_s=request.get("runtime_s"),
            group=bool(event.get("group")),
        )
        self._waits(attempt)

    def _waits(self, attempt: Attempt) -> None:
        self.attempts[attempt.key] = self.waiting[attempt.key] = attempt
        self.jobs[attempt.rule, attempt.jobid] = "waiting"

    def _on_job_placed(self, event: Event, when: float) -> None:
        attempt = self._attempt(event["key"])
        attempt.state, attempt.placed = "placed", when
        names = event.get("workers") or [event["worker"]]
        if isinstance(names, dict):
            attempt.workers = {str(name): int(cores) for name, cores in names.items()}
        else:
            share = attempt.cores // len(names)
            attempt.workers = {str(name): share for name in names}
            attempt.workers[str(names[0])] += attempt.cores - share * len(names)
        attempt.cores = sum(attempt.workers.values())
        if event.get("memory_mb") is not None:
            attempt.memory_mb = event["memory_mb"]
        elif attempt.memory_mb is None and (worker := self.current.get(attempt.worker)) and worker.cores:
            attempt.memory_mb = worker.memory_mb * attempt.cores // worker.cores
        devices = event.get("devices") or {}
        attempt.devices = tuple(str(device) for several in devices.values() for device in several)
        self.waiting.pop(attempt.key, None)
        self.running[attempt.key] = attempt
        for name in attempt.workers:
            if worker := self.current.get(name):
                attempt.pool = worker.pool
                worker.running.add(attempt.key)
                worker.attempts += 1
        self.last_progress = when

    def _on_job_started(self, event: Event, when: float) -> None:
        attempt = self._attempt(event["key"])
        attempt.state, attempt.started = "running", when
        attempt.pid, attempt.start = int(event.get("pid") or 0), str(event.get("start") or "")
        self.jobs[attempt.rule, attempt.jobid] = "running"
        self.last_progress = when

    def _on_job_ended(self, event: Event, when: float) -> None:
        outcome = event.get("outcome") or event
        attempt = self._attempt(outcome["key"])
        if attempt.state == "ended":
            return
        attempt.state, attempt.ended, attempt.status = "ended", when, str(outcome["status"])
        for name in ("host", "peak_memory_mb", "cpu_s", "exit_code", "signal", "log_path", "log_tail"):
            if outcome.get(name) is not None:
                setattr(attempt, name, outcome[name])
        attempt.start = attempt.start or str(outcome.get("start") or "")
        attempt.message = str(outcome.get("detail") or "")
        if outcome.get("started") and outcome.get("ended"):
            attempt.ran_s = max(0.0, outcome["ended"] - outcome["started"])
        self._leave(attempt)
        self.jobs[attempt.rule, attempt.jobid] = attempt.status
        self.last_progress = when

    def _on_job_finished(self, event: Event, when: float) -> None:
        """What Snakemake was told in the end, which may follow on an end, or stand alone (no pool takes the job)."""
        attempt = self._latest(event["key"])
        status = str(event["status"])
        if attempt.state != "ended":
            attempt.state, attempt.ended, attempt.status = "ended", when, status
            self._leave(attempt)
        attempt.message = str(event.get("message") or "") or attempt.message
        self.jobs[attempt.rule, attempt.jobid] = status

    def _on_job_requeued(self, event: Event, when: float) -> None:
        before = self._latest(event["key"])
        if before.state != "ended":
            before.state, before.ended, before.status = "ended", when, "lost"
            before.message = str(event.get("reason") or "")
            self._leave(before)
        run = int(event.get("run") or before.run + 1)
        again = Attempt(f"{_stem(before.key)}.{run}", before.rule, before.jobid, before.attempt, run, when)
        for name in ("pool", "cores", "gpus", "runtime_s", "asked_memory_mb", "group"):
            setattr(again, name, getattr(before, name))
        again.memory_mb = before.asked_memory_mb
        self._waits(again)

    def _on_job_dropped(self, event: Event, _: float) -> None:
        for key in event["keys"]:
            attempt = self._latest(key)
            attempt.state = "dropped"
            self.waiting.pop(attempt.key, None)
            self.jobs[attempt.rule, attempt.jobid] = "dropped"

    def _attempt(self, key: str) -> Attempt:
        return self.attempts[key]

    def _latest(self, key: str) -> Attempt:
        """The last run of the attempt that Snakemake knows by this key."""
        attempt = self.attempts[key]
        while following := self.attempts.get(f"{_stem(key)}.{attempt.run + 1}"):
            attempt = following
        return attempt

    def _leave(self, attempt: Attempt) -> None:
        self.waiting.pop(attempt.key, None)
        self.running.pop(attempt.key, None)
        for name in attempt.workers:
            if worker := self.current.get(name):
                worker.running.discard(attempt.key)

    # Figures

    @property
    def end_time(self) -> float:
        """The end of the run, or of what is known of it."""
        return self.ended if self.ended is not None else self.now

    def counts(self) -> dict[str, int]:
        """Jobs by fate (``succeeded``, ``failed``, ``dropped``, ``unfinished``), attempts that ran, lost workers."""
        fates = Counter(
            state
            if state in ("succeeded", "dropped")
            else "unfinished"
            if state in ("waiting", "running")
            else "failed"
            for state in self.jobs.values()
        )
        ran = sum(1 for attempt in self.attempts.values() if attempt.placed is not None)
        names = ("succeeded", "failed", "dropped", "unfinished")
        return {
            "jobs": len(self.jobs),
            **{name: fates[name] for name in names},
            "attempts": ran,
            "lost_workers": self.lost_workers,
        }

    def steps(self) -> list[tuple[float, Held]]:
        """What was held and used, from each moment to the next; the last one is all zero. Times ascend, each once."""
        changes: dict[float, list[float]] = {}

        def add(start: float | None, end: float | None, amounts: tuple[float, ...]) -> None:
            if start is None:
                return
            end = self.end_time if end is None else min(end, self.end_time)
            if end > start:
                for when, sign in ((start, 1), (end, -1)):
                    at = changes.setdefault(when, [0.0] * 8)
                    for i, amount in enumerate(amounts):
                        at[i] += sign * amount

        for start, end, cores, memory_mb, gpus in self.holdings():
            add(start, end, (cores, memory_mb, gpus, 0, 0, 0, 0, 0))
        for attempt in self.attempts.values():
            span = attempt.placed is not None and (attempt.ended or self.end_time) - attempt.placed
            if span and span > 0:
                memory_mb = (attempt.memory_mb or 0) * max(1, len(attempt.workers))
                cpu = min((attempt.cpu_s or 0.0) / span, 4.0 * attempt.cores)
                amounts = (attempt.cores, memory_mb, attempt.gpus, cpu, attempt.peak_memory_mb or 0)
                add(attempt.placed, attempt.ended, (0, 0, 0, *amounts))
        total = [0.0] * 8
        result = []
        for when in sorted(changes):
            total = [a + b for a, b in zip(total, changes[when], strict=True)]
            result.append((when, Held(*(0.0 if abs(amount) < 1e-6 else amount for amount in total))))
        return result

    def holdings(self) -> list[tuple[float, float | None, float, float, float]]:
        """(from, until, cores, memory, GPUs) of each worker: from its allocation's start until that is gone.

        An allocation that ran and whose worker never joined counts with its pool's size.
        """
        latest = {allocation.worker: allocation for allocation in self.allocations}
        result: list[tuple[float, float | None, float, float, float]] = []
        for worker in self.workers:
            allocation = latest.get(worker.name)
            start, end = worker.joined, worker.gone
            if allocation is not None:
                start = min(start, _first(allocation.running, start))
                end = max(end, allocation.gone) if end is not None and allocation.gone is not None else end
            result.append((start, end, worker.cores, worker.memory_mb, worker.gpus))
        for allocation in self.allocations:
            if allocation.running is not None and not allocation.joined:
                pool = self._pool(allocation.pool)
                nodes = pool.nodes or 1
                size = (pool.cores or 0) * nodes, (pool.memory_mb or 0) * nodes, (pool.gpus or 0) * nodes
                result.append((allocation.running, allocation.gone, *size))
        return result

    def integral(self) -> Held:
        """Resource-seconds over the whole run."""
        totals = [0.0] * 8
        steps = self.steps()
        for (start, held), (end, _) in zip(steps, steps[1:], strict=False):
            for i, name in enumerate(Held.__slots__):
                totals[i] += getattr(held, name) * (end - start)
        return Held(*totals)

    def allocation_wait_s(self) -> float:
        """How long jobs of a pool waited while allocations of that pool were queued: a union of times, over all pools."""
        waits: list[tuple[float, float, str]] = []
        for attempt in self.attempts.values():
            waits.append((attempt.queued, _first(attempt.placed, attempt.ended, self.end_time), attempt.pool))
        queued = [(a.submitted, a.submitted + a.queue_s(self.end_time), a.pool) for a in self.allocations]
        spans: list[tuple[float, float]] = []
        for pool in {pool for _, _, pool in queued}:
            # A job that was never placed may carry no pool: it waits for any of them.
            jobs = _union((start, end) for start, end, name in waits if name in (pool, ""))
            spans += _both(jobs, _union((start, end) for start, end, name in queued if name == pool))
        return sum(end - start for start, end in _union(spans))


def _stem(key: str) -> str:
    return key.rpartition(".")[0]


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _union(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    result: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        elif end > start:
            result.append((start, end))
    return result


def _both(first: list[tuple[float, float]], second: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where two sorted lists of disjoint spans overlap."""
    result = []
    i = j = 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < end:
            result.append((start, end))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return result
