"""What a worker, its supervisor, the warm process and that one's children say to each other of jobs.

Each pair of them holds the only two ends of a socket pair (see `wire`) and runs the same code.
"""

from collections.abc import Mapping
from typing import Any

from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobs import Beginning, JobSpec, JobStart, Outcome, RunSetup
from snakemake_executor_plugin_dask.model.shellcommand import Shell

# Worker to supervisor, and of these `Setup` and `Start` from the supervisor on to the warm process


@dataclass(frozen=True, slots=True)
class Ahead:
    """A run is about to come, and `Setup` follows then. A warm process gets as far as it can without."""

    beginning: Beginning


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message, but for `Ahead`."""

    setup: RunSetup


@dataclass(frozen=True, slots=True)
class Start:
    """Start this job. `Started` follows, or `Ended` alone; from the warm process `Spawned`, `Forked` or `Cold`."""

    spec: JobSpec


@dataclass(frozen=True, slots=True)
class Kill:
    """End this attempt; its `Ended` follows. One that is not known has ended."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Renew:
    """The leases of all attempts live on; a lower number than the last one is late and means nothing."""

    number: int


@dataclass(frozen=True, slots=True)
class Leave:
    """End all jobs, and then yourself."""


# In both directions


@dataclass(frozen=True, slots=True)
class OfCluster:
    """What an attempt's own Dask cluster, or the driver, is to know of the other (`supervisor/jobcluster.py`)."""

    key: str
    message: Mapping[str, Any]


# Supervisor to worker


@dataclass(frozen=True, slots=True)
class Started:
    """A job's process runs."""

    key: str
    pid: int
    start: JobStart
    depth: int | None  # of a warm start, 0 where that is not known; None: cold
    reason: str  # why not deeper
    time: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Ended:
    """All of an attempt's processes are gone."""

    outcome: Outcome
    begun: Started | None = None  # of a short job, whose start was not told by itself


@dataclass(frozen=True, slots=True)
class Ending:
    """It starts no more jobs, and ends once those that run are gone."""


@dataclass(frozen=True, slots=True)
class Said:
    """A warning for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Uses:
    """Every few seconds: what the running attempts use, by key: CPU time in seconds, memory in 10^6 bytes."""

    by_key: Mapping[str, tuple[float, float]]


# Supervisor to warm process


@dataclass(frozen=True, slots=True)
class EndChild:
    """End the child that has this job, where one still has it: its shell has ended, and it waits for outputs."""

    key: str


# Warm process to supervisor; its children say some of it to it


@dataclass(frozen=True, slots=True)
class Warm:
    """It takes jobs, and starts them at this depth (0: none of them), or why not deeper."""

    depth: int
    reason: str = ""
    dag_reason: str = ""  # why jobs that need a DAG of their own start cold
    shell: Shell | None = None  # None: no shell command is started without a Snakemake
    shell_reason: str = ""  # why not, though the workflow has some that could be


@dataclass(frozen=True, slots=True)
class Spawned:
    """The job's process is this shell, and no Snakemake."""

    key: str
    pid: int
    unlike: str = ""  # in a trial: in what Snakemake started it otherwise than the supervisor would


@dataclass(frozen=True, slots=True)
class Forked:
    """The job's process is a child of the warm process: a Snakemake, or one that has not said yet what it starts."""

    key: str
    pid: int
    depth: int  # 0: not known
    reason: str = ""  # why not deeper, where only the job's start has shown it


@dataclass(frozen=True, slots=True)
class Cold:
    """Nothing of the job has begun, and it cannot be started warm."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """A child's shell command is over, as ``os.waitpid`` would tell it."""

    status: int
    cpu_s: float
    again: bool  # the child can run another one


@dataclass(frozen=True, slots=True)
class Exited:
    """A job's process is gone, with this status of ``os.waitpid``."""

    key: str
    status: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Stale:
    """The workflow changed since it was read: the warm process is to be replaced."""

    reason: str
