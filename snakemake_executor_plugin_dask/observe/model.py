"""What the events of a run add up to: jobs, workers, allocations. Pure.

Unknown kinds and fields are passed over; a log that stops in the middle (the writer was killed) gives the picture as it
was then. What was held and used over time is computed from this by `use`.
"""

import sys
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Literal

from snakemake_executor_plugin_dask.model.jobs import GroupMember
from snakemake_executor_plugin_dask.observe.events import Event
from snakemake_executor_plugin_dask.observe.records import (
    Allocation,
    Attempt,
    OthersHeld,
    PoolRecord,
    Stay,
    Use,
    Worker,
)

#: Fields that name something, in every kind of event.
_NAMES = ("worker", "pool", "key", "rule")
#: What an end means for the job, by its status; any other one has failed.
_FATES = {"succeeded": "succeeded", "cancelled": "stopped"}


class RunModel:
    """The state of a run after the events it was fed with."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.run_id = ""
        self.started: float | None = None
        self.ended: float | None = None
        self.now = 0.0  # of the last event
        self.last_progress = 0.0  # a job started or ended, or a worker came
        self.facts: Event = {}  # the run-started event
        self.known_jobs = 0  # that the run has, as was known before the first one
        self.end: Event = {}  # the run-ended event
        self.pools: dict[str, PoolRecord] = {}
        self.workers: list[Worker] = []
        self.current: dict[str, Worker] = {}  # by name, those that are there
        self.others: dict[str, OthersHeld] = {}  # by worker, where other runs hold something now
        self.others_held: list[tuple[float, OthersHeld]] = []  # of all workers, from each of these moments on
        self.allocations: list[Allocation] = []
        self._allocation: dict[str, Allocation] = {}  # the latest of each worker's name
        self._launcher: dict[str, str] = {}  # by worker: the name under which its allocation was asked for
        self.pending: dict[str, Allocation] = {}  # those whose worker has not joined
        self.attempts: dict[str, Attempt] = {}
        self.waiting: dict[str, Attempt] = {}
        self.waits: Counter[str] = Counter()  # how many of them by pool, none that is zero
        self.running: dict[str, Attempt] = {}  # placed ones among them
        self._placements: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}  # equal ones are shared
        self.jobs: dict[tuple[str, str], str] = {}  # (rule, jobid) -> fate, see `counts`
        self.failed: dict[tuple[str, str], Attempt] = {}  # the last attempt of each job that has failed, as they did
        self._fates: Counter[str] = Counter()
        self._placed = 0
        self.lost_workers = 0
        self.starts: Counter[tuple[int, str]] = Counter()  # attempts by depth, and why it was not deeper
        self.blockers: list[dict[str, Any]] = []
        self.said: list[tuple[float, str, str]] = []
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Take one event in. Fields of a wrong type are an error only of that event: it is passed over."""
        when = float(event["t"])
        self.now = max(self.now, when)
        if self.started is None:
            self.started = self.now
        handle = _HANDLERS.get(event["kind"])
        if handle is None:
            return
        try:
            for name in _NAMES:
                if name in event:
                    _text(event[name])
            handle(self, event, when)
        except (KeyError, TypeError, ValueError, AttributeError):
            self.said.append((self.now, "warning", f"an event of kind {event['kind']} could not be read"))

    def note_uses(self, uses: Mapping[str, Sequence[float]]) -> bool:
        """What running jobs use, by key: when that was, CPU time so far in seconds, memory in 10^6 bytes.

        Whether any of it is news.
        """
        news = False
        for key, (at, cpu_s, memory_mb) in _with_parts(uses, self.running).items():
            attempt = self.running.get(key)
            if attempt is None or (attempt.now is not None and attempt.now.at >= at):
                continue
            before = attempt.now
            since, used = (attempt.started, 0.0) if before is None else (before.at, before.cpu_s)
            lasted = at - since if since is not None else 0.0
            cores = round(max(0.0, cpu_s - used) / lasted, 2) if lasted > 0 else None
            attempt.now = Use(at, cpu_s, cores, memory_mb)
            news = True
        return news

    # The run

    def _on_run_started(self, event: Event, when: float) -> None:
        versions = event.get("versions")
        self.started, self.facts = when, event | {"versions": versions if isinstance(versions, dict) else {}}
        self.run_id = str(event.get("run_id", ""))
        self.known_jobs = int(event.get("jobs") or 0)
        for pool in (event.get("options") or {}).get("pools") or ():
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
        record = self._pool(_text(pool["name"]))
        record.cluster = _text(pool.get("cluster") or record.cluster)
        for name in ("workers_max", "cores", "memory_mb", "gpus", "nodes"):
            if pool.get(name) is not None:
                setattr(record, name, _number(pool[name]))

    # Allocations and workers

    def _on_allocation_submitted(self, event: Event, when: float) -> None:
        self._pool(event["pool"])
        allocation = Allocation(event["worker"], event["pool"], when, str(event.get("allocation") or ""))
        self.allocations.append(allocation)
        self._allocation[allocation.worker] = self.pending[allocation.worker] = allocation

    def _on_allocation_waiting(self, event: Event, _: float) -> None:
        if allocation := self._allocation.get(event["worker"]):
            allocation.reason = str(event.get("reason") or "")
            allocation.expected = _number(event.get("expected"))

    def _on_allocation_running(self, event: Event, when: float) -> None:
        if (allocation := self._allocation.get(event["worker"])) and allocation.running is None:
            allocation.running, allocation.reason = when, ""

    def _on_allocation_gone(self, event: Event, when: float) -> None:
        allocation = self._allocation.get(event["worker"])
        self.pending.pop(event["worker"], None)
        if allocation is None:  # it failed before it had an identifier
            allocation = Allocation(event["worker"], self._pool(event["pool"]).name, when)
            self.allocations.append(allocation)
        if allocation.gone is None:
            allocation.gone, allocation.reason = when, str(event.get("reason") or "")

    def _on_worker_joined(self, event: Event, when: float) -> None:
        facts = event["facts"]
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
            remaining_s=_number(facts.get("remaining_s")),
        )
        self.workers.append(worker)
        self.current[worker.name] = worker
        pool.came = True
        self._launcher[worker.name] = _text(event.get("launcher") or worker.name)
        self.last_progress = when
        if allocation := self._allocation.get(_text(event.get("launcher") or worker.name)):
            allocation.joined = True
            self.pending.pop(allocation.worker, None)
            allocation.id = allocation.id or str(facts.get("allocation_id") or "")
            if allocation.running is None:  # the batch system was not asked in between
                allocation.running = when
            allocation.reason = ""

    def allocation_id(self, worker: str) -> str:
        """The batch system's identifier of what a worker runs in; empty where it has none."""
        allocation = self._allocation.get(self._launcher.get(worker, worker))
        return allocation.id if allocation is not None and self._pool(allocation.pool).batch else ""

    def _on_worker_lost(self, event: Event, when: float) -> None:
        planned = bool(event.get("planned"))
        self._gone(event, when, "lost", planned=planned)
        self.lost_workers += not planned
        self._pool(event["pool"]).lost += not planned

    def _on_worker_preempted(self, event: Event, _: float) -> None:
        """What was taken for a loss was none."""
        self.lost_workers -= 1
        self._pool(event["pool"]).lost -= 1
        if worker := next((each for each in reversed(self.workers) if each.name == event["worker"]), None):
            worker.planned = True

    def _on_worker_leaving(self, event: Event, when: float) -> None:
        self._gone(event, when, "left")
        if (allocation := self.pending.get(event["worker"])) is not None:
            allocation.called_back = str(event.get("reason") or "") or "not needed"

    def _gone(self, event: Event, when: float, state: Literal["lost", "left"], *, planned: bool = False) -> None:
        if worker := self.current.pop(event["worker"], None):
            worker.gone, worker.state, worker.planned = when, state, planned
            worker.why = str(event.get("reason") or "")
            if self.others.pop(worker.name, None) is not None:
                self._sum_others(when)

    def _on_others_held(self, event: Event, when: float) -> None:
        for name, held in event["held"].items():
            if name in self.current:
                self.others[name] = OthersHeld(*(int(held[field]) for field in OthersHeld.__slots__))
        self.others = {name: held for name, held in self.others.items() if held.jobs}
        self._sum_others(when)

    def _sum_others(self, when: float) -> None:
        total = (sum(getattr(held, field) for held in self.others.values()) for field in OthersHeld.__slots__)
        self.others_held.append((when, OthersHeld(*total)))

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
            memory_mb=_number(request.get("memory_mb")),
            asked_memory_mb=_number(request.get("memory_mb")),
            gpus=int(request.get("gpus") or 0),
            runtime_s=_number(request.get("runtime_s")),
            nodes=int(request.get("nodes") or 1),
            group=bool(event.get("group")),
            planned_log=_text(event.get("log") or ""),
        )
        attempt.wildcards = _wildcards(event.get("wildcards"))
        attempt.input_mb = _number(event.get("input_mb"))
        if members := event.get("members"):
            attempt.members = tuple(
                GroupMember(_text(each["rule"]), str(each.get("jobid", "")), _wildcards(each.get("wildcards")))
                for each in members
            )
        self._waits(attempt)

    def _waits(self, attempt: Attempt) -> None:
        self._waits_no_more(attempt.key)
        self.attempts[attempt.key] = self.waiting[attempt.key] = attempt
        self.waits[attempt.pool] += 1
        self._fate(attempt, "unfinished")

    def _waits_no_more(self, key: str) -> None:
        if (attempt := self.waiting.pop(key, None)) is not None:
            self.waits[attempt.pool] -= 1
            if not self.waits[attempt.pool]:
                del self.waits[attempt.pool]

    def _on_job_placed(self, event: Event, when: float) -> None:
        attempt = self.attempts[event["key"]]
        attempt.state, attempt.placed = "placed", when
        self._placed += 1
        held = event.get("workers") or {event["worker"]: attempt.cores}
        workers = {str(name): int(cores) for name, cores in held.items()}
        attempt.workers = self._placements.setdefault(tuple(workers.items()), workers)
        attempt.cores = sum(attempt.workers.values())
        if event.get("memory_mb") is not None:
            attempt.memory_mb = _number(event["memory_mb"])
        elif attempt.memory_mb is None and (worker := self.current.get(attempt.worker)) and worker.cores:
            attempt.memory_mb = worker.memory_mb * attempt.cores // worker.cores
        if dask_workers := event.get("dask_workers"):
            attempt.dask_workers = {str(name): int(number) for name, number in dask_workers.items()}
        if devices := event.get("devices"):
            attempt.devices = tuple(str(device) for several in devices.values() for device in several)
        self._waits_no_more(attempt.key)
        self.running[attempt.key] = attempt
        for name in attempt.workers:
            if worker := self.current.get(name):
                attempt.pool = worker.pool
                worker.running.add(attempt.key)
                worker.attempts += 1
        attempt.allocation = self.allocation_id(attempt.worker)
        self.last_progress = when

    def _on_job_started(self, event: Event, when: float) -> None:
        attempt = self.attempts[event["key"]]
        attempt.state, attempt.started = "running", when
        attempt.pid, attempt.start = int(event.get("pid") or 0), str(event.get("start") or "")
        depth = _number(event.get("start_depth"))
        attempt.start_depth = None if depth is None else int(depth)
        attempt.start_reason = sys.intern(_text(event.get("start_reason") or ""))
        if depth is not None:
            self.starts[int(depth), attempt.start_reason] += 1
        self.last_progress = when

    def _on_job_ended(self, event: Event, when: float) -> None:
        outcome = event["outcome"]
        attempt = self.attempts[outcome["key"]]
        if attempt.state == "ended":
            return
        attempt.state, attempt.ended, attempt.status = "ended", when, str(outcome["status"])
        attempt.peak_memory_mb, attempt.cpu_s = _number(outcome.get("peak_memory_mb")), _number(outcome.get("cpu_s"))
        attempt.exit_code, attempt.signal = _number(outcome.get("exit_code")), _number(outcome.get("signal"))
        attempt.host, attempt.status = sys.intern(_text(outcome.get("host") or "")), sys.intern(attempt.status)
        attempt.log_path, attempt.log_tail = _text(outcome.get("log_path") or ""), _text(outcome.get("log_tail") or "")
        if attempt.log_path == attempt.planned_log:
            attempt.log_path = attempt.planned_log  # one text of the two
        if rule_logs := outcome.get("rule_logs"):
            attempt.rule_logs = tuple((_text(path), _text(tail)) for path, tail in rule_logs)
        attempt.allocation = attempt.allocation or _text(outcome.get("allocation") or "")
        attempt.start = attempt.start or str(outcome.get("start") or "")
        attempt.message = str(outcome.get("detail") or "")
        if outcome.get("started") and outcome.get("ended"):
            attempt.ran_s = max(0.0, outcome["ended"] - outcome["started"])
        self._leave(attempt)
        self._fate(attempt, _FATES.get(attempt.status, "failed"))
        self.last_progress = when

    def _on_job_finished(self, event: Event, when: float) -> None:
        """What Snakemake was told in the end, which may follow on an end, or stand alone (no pool takes the job)."""
        attempt = self._latest(event["key"])
        status = str(event["status"])
        if attempt.state != "ended":
            attempt.state, attempt.ended, attempt.status = "ended", when, status
            self._leave(attempt)
        attempt.message = str(event.get("message") or "") or attempt.message
        self._fate(attempt, _FATES.get(status, "failed"))

    def _on_job_requeued(self, event: Event, when: float) -> None:
        before = self._latest(event["key"])
        if before.state != "ended":
            before.state, before.ended, before.status = "ended", when, "lost"
            before.message = str(event.get("reason") or "")
            self._leave(before)
        run = int(event.get("run") or before.run + 1)
        again = Attempt(f"{_stem(before.key)}.{run}", before.rule, before.jobid, before.attempt, run, when)
        same = ("pool", "cores", "gpus", "nodes", "runtime_s", "asked_memory_mb", "group")
        for name in (*same, "wildcards", "members", "input_mb", "planned_log"):
            setattr(again, name, getattr(before, name))
        again.memory_mb = before.asked_memory_mb
        self._waits(again)

    def _on_job_dropped(self, event: Event, _: float) -> None:
        for key in event["keys"]:
            attempt = self._latest(key)
            attempt.state = "dropped"
            self._waits_no_more(attempt.key)
            self._fate(attempt, "dropped")

    def _latest(self, key: str) -> Attempt:
        """The last run of the attempt that Snakemake knows by this key."""
        attempt = self.attempts[key]
        while following := self.attempts.get(f"{_stem(key)}.{attempt.run + 1}"):
            attempt = following
        return attempt

    def _fate(self, attempt: Attempt, fate: str) -> None:
        job = attempt.rule, attempt.jobid
        if job in self.jobs:
            self._fates[self.jobs[job]] -= 1
        self.jobs[job] = fate
        self._fates[fate] += 1
        self.failed.pop(job, None)
        if fate == "failed":
            self.failed[job] = attempt

    def _on_dask_workers_lost(self, event: Event, when: float) -> None:
        attempt, name = self._dask_workers(event, -1)
        stays = [stay for stay in attempt.stays or () if stay.worker == name and stay.until is None]
        of_it = [stay for stay in stays if stay.cores == int(event["cores"])] or stays
        if of_it:
            of_it[-1].until = when
        if name not in attempt.workers and (worker := self.current.get(name)):
            worker.running.discard(attempt.key)

    _on_dask_workers_returned = _on_dask_workers_lost

    def _dask_workers(self, event: Event, sign: int) -> tuple[Attempt, str]:
        """The attempt that has more of them, or fewer, and on which worker."""
        attempt, name = self.attempts[event["key"]], event["worker"]
        attempt.stays = list(attempt.all_stays())
        for field, amount in (("workers", event["cores"]), ("dask_workers", event["number"])):
            before: Mapping[str, int] = getattr(attempt, field)
            left = before.get(name, 0) + sign * int(amount)
            setattr(
                attempt, field, {**before, name: left} if left > 0 else {k: v for k, v in before.items() if k != name}
            )
        return attempt, name

    def _on_dask_workers_placed(self, event: Event, when: float) -> None:
        attempt, name = self._dask_workers(event, 1)
        assert attempt.stays is not None
        attempt.stays.append(Stay(name, int(event["cores"]), when))
        if worker := self.current.get(name):
            worker.running.add(attempt.key)

    def _leave(self, attempt: Attempt) -> None:
        self._waits_no_more(attempt.key)
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
        """Jobs by fate, attempts that ran, lost workers.

        A job's fate: ``succeeded``, ``failed``, ``stopped`` (Snakemake ended before it), ``dropped`` (not started), or
        ``unfinished``.
        """
        names = ("succeeded", "failed", "stopped", "dropped", "unfinished")
        return {
            "jobs": len(self.jobs),
            **{name: self._fates[name] for name in names},
            "attempts": self._placed,
            "lost_workers": self.lost_workers,
        }


_HANDLERS: Mapping[str, Callable[[RunModel, Event, float], None]] = {
    name.removeprefix("_on_").replace("_", "-"): method
    for name, method in vars(RunModel).items()
    if name.startswith("_on_")
}


def _with_parts(
    uses: Mapping[str, Sequence[float]], running: Container[str]
) -> Mapping[str, tuple[float, float, float]]:
    """With what the parts of a job's own Dask cluster use (``<attempt>+1`` and so on) counted as the job's."""
    found: dict[str, tuple[float, float, float]] = {}
    for key, (at, cpu_s, memory_mb) in uses.items():
        whole = key if key in running else key.rpartition("+")[0]
        if whole in running and whole in uses:
            at_0, cpu_0, memory_0 = found.get(whole, (0.0, 0.0, 0.0))
            found[whole] = max(at_0, at), cpu_0 + cpu_s, memory_0 + memory_mb
    return found


def _wildcards(value: Any) -> dict[str, str]:
    return {sys.intern(_text(name)): str(each) for name, each in (value or {}).items()}


def _stem(key: str) -> str:
    return key.rpartition(".")[0]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        msg = f"expected text, found {value!r}"
        raise TypeError(msg)
    return value


def _number(value: Any) -> Any:
    """An int or float as it is, or None."""
    if value is not None and type(value) is not int and type(value) is not float:
        msg = f"expected a number, found {value!r}"
        raise TypeError(msg)
    return value
