"""What the executor in Snakemake's process and the driver process say to each other.

Both run the same code on the same machine, joined by a socket pair that only they hold (see `wire`).
"""

import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome, RunSetup
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.requests import Request

if TYPE_CHECKING:
    from snakemake_executor_plugin_dask.model.kept import Kept

# Executor to driver


#: Of Snakemake's logger.
Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Begin:
    """The first message: everything about the run."""

    setup: RunSetup
    options: Options
    state_dir: str  # .snakemake/dask/<run id>, mode 0700
    event_log: str
    jobs: int = 0  # that are known before the first one, a group's as one
    kept: "Kept | None" = None  # the cluster that the run is to use, if that is one that stays


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job that Snakemake handed over. Thousands may wait, so what placement does not ask for stays packed."""

    key: str
    name: str  # of its rule or group
    packed: bytes
    request: Request
    priority: float = 0.0
    last: bool = False  # once it has failed, Snakemake starts no more jobs
    told: Mapping[str, object] | None = None  # for the event log, once; None: it waits, and was told

    @classmethod
    def of(cls, spec: JobSpec, request: Request, priority: float = 0.0, *, last: bool = False) -> "QueuedJob":
        """Pack a job."""
        packed = pickle.dumps(spec, protocol=pickle.HIGHEST_PROTOCOL)
        return cls(spec.key, spec.name, packed, request, priority, last, _told(spec))


def _told(spec: JobSpec) -> dict[str, object]:
    told: dict[str, object] = {"key": spec.key, "rule": spec.name, "jobid": spec.jobid, "attempt": spec.attempt}
    told |= {"group": spec.is_group, "log": spec.log_path}
    if spec.input_mb is not None:
        told["input_mb"] = spec.input_mb
    if spec.wildcards:
        told["wildcards"] = dict(spec.wildcards)
    if spec.members:
        told["members"] = [
            {"rule": each.rule, "jobid": each.jobid, "wildcards": each.wildcards} for each in spec.members
        ]
    return told


@dataclass(frozen=True, slots=True)
class Later:
    """A job that becomes ready when jobs end which were handed over."""

    request: Request
    after: tuple[str, ...]  # their keys


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Jobs that are ready, and some that become ready next. `Finished` or `Dropped` follows for each that is ready."""

    jobs: tuple[QueuedJob, ...]
    soon: tuple[Later, ...] = ()


@dataclass(frozen=True, slots=True)
class DropWaiting:
    """Start no more of the waiting jobs; those with a process finish."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End: with ``kill`` running jobs are ended first; every worker and allocation is given back."""

    kill: bool


@dataclass(frozen=True, slots=True)
class ShowStatus:
    """Print the whole picture (SIGUSR1)."""


# Driver to executor, and what it shows


@dataclass(frozen=True, slots=True)
class Blocker:
    """What a class of waiting jobs waits for.

    ``short`` has of `worker` (none is there), `cores`, `memory`, `gpus`, `nodes`, `coreless` (a place among the jobs
    with `threads: 0`, which are bounded in number), `life` (of the allocations that are there), `fresh` (a new
    allocation), `workers` (so many at once), `dask_workers` (room for all that a job has of its own), `companions` (on
    nodes of a wide worker, which take its Dask workers), `reserved` (kept for another job), and the names of
    resources that the pool lists; empty: they fit, and start at the next look.
    """

    pool: str
    names: tuple[str, ...]  # of the rules, a few
    count: int
    short: tuple[str, ...]
    need: Mapping[str, int]  # by the same words, on each worker
    free: Mapping[str, int]  # what the best of the workers has
    frees_at: float | None  # when there is room at the latest, on the ledger's clock; None: not known
    reserved_for: str | None = None  # the rule for which a worker is kept


@dataclass(frozen=True, slots=True)
class Started:
    """The job's first attempt has a process."""

    key: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The job is over, once and for all."""

    key: str
    outcome: Outcome
    runs: int = 1  # how often it was run, lost workers included
    message: str = ""  # the driver's own sentence, where the outcome alone does not explain the failure


@dataclass(frozen=True, slots=True)
class Together:
    """What was told of jobs within a moment, in order."""

    messages: tuple[Started | Finished, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Jobs that were not started, and will not be. Follows `DropWaiting` or `Stop`."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Say:
    """A line between Snakemake's own. From the executor: it was shown, and belongs into the event log."""

    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Fatal:
    """The run cannot go on; every job that is not finished is lost. The text is for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The last message: everything was given back, but for what ``left`` names."""

    left: tuple[str, ...] = ()
