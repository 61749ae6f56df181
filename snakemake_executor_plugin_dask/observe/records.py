"""What a run consists of, as its events tell: attempts, workers, allocations, pools. Data only.

Times are seconds since the epoch on the driver's clock; memory is 10^6 bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from snakemake_executor_plugin_dask.model.jobs import GroupMember
from snakemake_executor_plugin_dask.model.kinds import KINDS

_NONE: Mapping[str, int] = {}
_NO_TEXT: Mapping[str, str] = {}
_FRESH_S = 20.0

AttemptState = Literal["waiting", "placed", "running", "ended", "dropped"]


@dataclass(frozen=True, slots=True)
class OthersHeld:
    """What other runs hold of a worker of a cluster that stays."""

    cores: int = 0
    memory_mb: int = 0
    gpus: int = 0
    jobs: int = 0


@dataclass(frozen=True, slots=True)
class Use:
    """What a running job uses now."""

    at: float
    cpu_s: float  # so far
    cores: float | None  # at work since the figures before; None: there were none
    memory_mb: float

    def is_of(self, now: float) -> bool:
        """Whether it is recent enough to count as what is used now. Figures come every 5 s."""
        return now - self.at < _FRESH_S


@dataclass(slots=True)
class Stay:
    """A part of an attempt on one worker: the script's with its Dask workers, or Dask workers alone."""

    worker: str
    cores: int
    since: float
    until: float | None = None  # None: the attempt's end


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
    memory_mb: int | None = None  # on each node
    gpus: int = 0
    runtime_s: float | None = None  # asked for
    asked_memory_mb: int | None = None
    group: bool = False
    wildcards: Mapping[str, str] = field(default_factory=lambda: _NO_TEXT)
    members: tuple[GroupMember, ...] = ()  # of a group job
    input_mb: float | None = None
    planned_log: str = ""  # where its log goes, unless that cannot be written
    allocation: str = ""  # the batch system's identifier of what its (first) worker runs in
    placed: float | None = None
    started: float | None = None
    ended: float | None = None
    workers: Mapping[str, int] = field(default_factory=lambda: _NONE)  # cores on each; equal ones are one
    dask_workers: Mapping[str, int] = field(default_factory=lambda: _NONE)  # of its own, on each worker
    stays: list[Stay] | None = None  # where its Dask workers came and went; None: all is as it was placed
    nodes: int = 1
    devices: tuple[str, ...] = ()
    status: str = ""  # an Outcome's, once ended
    host: str = ""
    pid: int = 0
    start: str = ""
    start_depth: int | None = None  # 1 to 3 of a warm start, 0: cold; None: not known
    start_reason: str = ""  # why not deeper, though it could be
    ran_s: float | None = None  # on the worker's clock
    peak_memory_mb: float | None = None
    cpu_s: float | None = None
    now: "Use | None" = None  # while it runs
    exit_code: int | None = None
    signal: int | None = None
    message: str = ""
    log_path: str = ""
    log_tail: str = ""
    rule_logs: tuple[tuple[str, str], ...] = ()  # path and last lines of the files that a failed rule's `log:` names

    @property
    def worker(self) -> str:
        """The name of the first worker that it holds, on which its process is; empty: it was not placed."""
        return next(iter(self.workers), "")

    def all_stays(self) -> Sequence[Stay]:
        """Each part with its time; none where it was not placed."""
        if self.stays is not None or self.placed is None:
            return self.stays or ()
        return [Stay(name, cores, self.placed) for name, cores in self.workers.items()]

    @property
    def memory_total_mb(self) -> int:
        """Memory held on all nodes."""
        return (self.memory_mb or 0) * max(self.nodes, len(self.workers), 1)

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
    state: Literal["up", "lost", "left"] = "up"
    gone: float | None = None
    why: str = ""
    planned: bool = False  # it was lost because its allocation's time was over, or others came first
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
    expected: float | None = None  # when the batch system expects to start it
    joined: bool = False
    called_back: str = ""  # why it was given up before its worker joined: no failure

    def queue_s(self, now: float) -> float:
        """Seconds from submission until it ran, ended or now."""
        return max(0.0, first(self.running, self.gone, now) - self.submitted)


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
    lost: int = 0
    came: bool = False  # a worker of it was there once

    @property
    def batch(self) -> bool:
        """Whether its allocations queue in a batch system."""
        return self.cluster not in KINDS or KINDS[self.cluster].queued


def first(*values: float | None) -> float:
    """The first that is known; the last one must be."""
    return next(value for value in values if value is not None)


def ran_s(attempt: Attempt, now: float) -> float | None:
    """Seconds it ran, or has run so far."""
    if attempt.ran_s is not None or attempt.started is None:
        return attempt.ran_s
    return max(0.0, first(attempt.ended, now) - attempt.started)
