"""A job as it travels from Snakemake to a worker and back: frozen data, and its name. Standard library only."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, fields
from typing import Literal

from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster, Spread
from snakemake_executor_plugin_dask.model.shellcommand import ShellCommand
from snakemake_executor_plugin_dask.model.units import count

_TAKEN_FOR_HEX = re.compile(r"[a-f].{7}", re.IGNORECASE)  # by Dask, which looks at the first letter alone
_HEX_NAME = re.compile(r"[0-9a-f]{32}")
_FIRST_WORD = re.compile(r"[^\W\d_]\w*")

Wildcards = Mapping[str, str] | Iterable[tuple[str, str]]

JobStart = Literal["warm", "cold"]

Status = Literal[
    "succeeded",
    "failed",  # the job's own command, or its Snakemake, ended with an error
    "out-of-time",  # runtime exceeded
    "out-of-memory",  # mem_mb exceeded
    "cancelled",  # ended because Snakemake asked for it
    "lost",  # its worker or supervisor went; every process of the attempt is known to be dead
    "not-started",  # the process could not be started at all (detail says why)
]


@dataclass(frozen=True, slots=True)
class Beginning:
    """With what a run's supervisors and warm processes begin, known before Snakemake knows what there is to do.

    ``environment`` is the environment Snakemake was started in; names and values hold undecodable bytes as surrogates
    (``os.fsdecode``). ``soft_limits`` are pairs of a ``resource.RLIMIT_*`` number and its soft limit.
    """

    workdir: str  # absolute; a job's working directory
    umask: int
    soft_limits: tuple[tuple[int, int], ...]
    environment: dict[str, str]
    replace_environment: bool  # False on an attached cluster without TLS: only the variables of `envvars:` travel
    python: str

    @classmethod
    def of(cls, setup: "RunSetup") -> "Beginning":
        """Of this run, by itself."""
        return cls(**{each.name: getattr(setup, each.name) for each in fields(cls)})


@dataclass(frozen=True, slots=True)
class RunSetup(Beginning):
    """What is the same for every job of a run. Each worker gets it once, over TLS or a pipe."""

    run_id: str  # short, random, unique: [a-z0-9]{8}
    snakefile: str
    general_arguments: tuple[str, ...]  # of `python -m snakemake`, the same for all jobs
    snakemake_version: str
    plugin_version: str
    precommand: str = ""  # shell text that must run before a cold job's Snakemake
    #: Where each job gets a directory of its own to work in, since sources and files come from a storage; empty: where
    #: temporary files are. None: jobs work in ``workdir``.
    scratch: str | None = None
    #: Absolute; relative paths of jobs' files count from it, unless a job has a directory of its own.
    files_dir: str = ""
    job_start: JobStart = "warm"
    #: 1: imports; 2: imports and workflow; 3: the job's own function; 4: a shell command alone. For benchmarks, tests
    warm_depth: int = 4
    enforce_runtime: bool = True
    enforce_memory: bool = True
    enforce_cgroup: bool = False  # memory by the kernel, too, where that is possible
    lease_s: float = 60.0  # a supervisor that hears nothing for so long ends its jobs
    stop_grace_s: float = 5.0  # between SIGTERM and SIGKILL
    cores: int | None = None  # of `--cores`: what rules see as `workflow.cores`. None: it was not given
    keep_logs: bool = False  # also of attempts that succeed


@dataclass(frozen=True, slots=True)
class SpareWorker:
    """To a driver's process that was started ahead of a run with workers on this machine: how the first one begins."""

    beginning: Beginning
    config: str  # the path of its configuration, which is not there yet


@dataclass(frozen=True, slots=True)
class Size:
    """What a job holds, for the variables in which its batch system states the size of the whole allocation."""

    cores: int  # on its (first) node
    tasks: int | None  # None: it declares none
    cores_per_task: int
    memory_mb: int | None  # on each node, 10^6 bytes
    devices: int | None  # on its (first) node; None: they are not counted


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A job of a group job."""

    rule: str
    jobid: str
    wildcards: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Update:
    """An output that a job updates, and where it is kept as it was before. Paths may be relative."""

    output: str
    backup: str  # by the job's own Snakemake, while the job runs
    before: str  # by the worker, until the main process knows how the attempt ended; empty: it was not there


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One attempt of one job (or group job), placed on one worker."""

    key: str  # unique for each attempt: "<rule>-<run_id>-<jobid>-<attempt>.<run>"; also the Dask task's key
    name: str  # rule, or group
    jobid: str
    attempt: int  # Snakemake's attempt, from 1
    arguments: tuple[str, ...]  # of `python -m snakemake`, this job's own; they come before the general ones
    max_threads: int  # of a rule, whatever it asks for: the cores that the job holds
    log_path: str  # stdout and stderr; absolute
    #: Values that the command line cannot express, by argparse destination (see worker/entry.py), pickled. None: none.
    overrides: bytes | None = None
    script: str | None = None  # a custom job script (--jobscript), absolute path; then arguments are not used
    #: A pickled description of the call that the local executor would make (see warmcall.py). None: not possible.
    call: bytes | None = None
    #: The plain shell command that it is. None: it needs a Snakemake around it.
    command: ShellCommand | None = None
    #: What `wait` said of that command, which is over: a Snakemake is only to look at what it made, and to say so.
    ended: int | None = None
    start: JobStart = "warm"
    memory_limit_mb: int | None = None  # 10^6 bytes
    runtime_limit_s: float | None = None
    #: Set (or, where None, removed) in the job's environment: devices, host lists.
    environment: tuple[tuple[str, str | None], ...] = ()
    size: Size | None = None  # None: the variables of a batch system stay as they are
    cluster: JobCluster | None = None  # of its own, for a bare `Client()` in it
    spread: Spread | None = None  # None: the whole cluster is on the job's node
    #: Of that cluster, and its key, as PEM. Made on the worker, but where other nodes need it, too.
    certificate: tuple[str, str] | None = None
    affinity: tuple[int, ...] = ()  # the cores that its processes may use; empty: all of the worker's
    #: Directory for its local copies of storage files, removed with the attempt; may hold variables ($TMPDIR), and be
    #: relative. None: it shares them.
    local_copies: str | None = None
    wildcards: tuple[tuple[str, str], ...] = ()
    members: tuple[GroupMember, ...] = ()  # of a group job
    input_mb: float | None = None  # of its input files, 10^6 bytes; None: not known
    #: The log files that its rule (or its members' rules) declares; shown where it fails.
    rule_logs: tuple[str, ...] = ()
    #: Outputs that it updates. What an earlier run of the attempt, whose end is not known, made of them is undone.
    updates: tuple[Update, ...] = ()
    #: Listed before success is reported, so that a network file system shows late outputs.
    output_dirs: tuple[str, ...] = ()

    @property
    def is_group(self) -> bool:
        """Whether it is a group job, whose Snakemake runs its members."""
        return bool(self.members)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. Times are seconds since the epoch on the worker's clock; memory in 10^6 bytes."""

    key: str
    status: Status
    worker: str = ""
    host: str = ""
    allocation: str = ""  # the batch system's id
    pid: int = 0
    start: JobStart = "cold"
    exit_code: int | None = None
    signal: int | None = None
    started: float = 0.0
    ended: float = 0.0
    peak_memory_mb: float | None = None  # above the baseline of the job's own Snakemake
    cpu_s: float | None = None  # user + system of the whole process tree
    log_path: str = ""
    log_tail: str = ""  # at most 20 lines and 4 kB; only of attempts that did not succeed
    #: The same of the rule's own log files that it wrote, behind their paths.
    rule_logs: tuple[tuple[str, str], ...] = ()
    detail: str = ""  # one sentence for people, where the fields above do not say it


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker knows about its own node(s), told once when it joins."""

    name: str
    host: str
    pid: int
    supervisor_pid: int
    cores: int
    memory_mb: int  # usable by jobs: what the node or cgroup grants, less the worker's reserve
    #: Identifiers as the worker's own CUDA_VISIBLE_DEVICES (or the driver library) names them.
    devices: tuple[str, ...] = ()
    too_few: str = ""  # why there are fewer devices than the pool declares, as a sentence
    cold: str = ""  # why jobs cannot start warm there, though they should, as a sentence
    near: tuple[tuple[int, ...], ...] = ()  # for each device the cores nearest to it; empty where that is not known
    remaining_s: float | None = None  # of the allocation's life; None: no end known
    hosts: tuple[str, ...] = ()  # the nodes of a worker that holds several
    allocation_id: str | None = None  # of the batch system
    plugin_version: str = ""
    snakemake_version: str = ""
    batch_system: str | None = None  # of a worker of others: in whose allocation it runs

    @property
    def own_host(self) -> str:
        """Of ``hosts`` the one where the worker itself is; batch systems name it first."""
        return self.host if self.host in self.hosts or not self.hosts else self.hosts[0]


def job_text(name: str, wildcards: Wildcards, members: Sequence[GroupMember] = (), most: int = 3) -> str:
    """A job as people know it: "align (sample=A)", for a group "group (2 jobs: align (sample=A), sort (sample=A))".

    It may hold what a terminal would obey. At most ``most`` members are named.
    """
    if members:
        return f"{name} ({count(len(members), 'job')}: {members_text(members, most)})"
    values = wildcard_text(wildcards)
    return f"{name} ({values})" if values else name


def members_text(members: Sequence[GroupMember], most: int = 3) -> str:
    """The jobs of a group: "align (sample=A), sort (sample=A), and 2 more"."""
    more = [f"and {len(members) - most:,} more"] if len(members) > most else []
    return ", ".join([*(job_text(each.rule, each.wildcards) for each in members[:most]), *more])


def wildcard_text(wildcards: Wildcards) -> str:
    """As "sample=A, lane=1"; empty without wildcards."""
    return ", ".join(f"{name}={value}" for name, value in dict(wildcards).items())


def task_key(rule: str, run_id: str, jobid: str | int, attempt: int, run: int) -> str:
    """The key of one attempt, unique in Dask, by which Dask's pages group and colour tasks by rule.

    Dask takes from a key the words up to the first one that is not made of letters alone (`dask.utils.key_split`).
    """
    # A run id of letters alone would count as part of the rule's name.
    unmistakable = run_id if any(c.isdigit() for c in run_id) else f"0{run_id}"
    return f"{task_group(rule)}-{unmistakable}-{jobid}-{attempt}.{run}"


def run_of(key: str) -> int:
    """How often the attempt has been started with it, by its key; more than 1: workers were lost."""
    return int(key.rpartition(".")[2])


def task_group(rule: str) -> str:
    """What Dask will show for a rule: its name; where Dask would misread that, a readable and unique form of it."""
    first, *words = rule.split("-")
    if (
        len(rule.encode("utf-8", "surrogatepass")) <= 80  # it becomes part of files' names
        and _FIRST_WORD.fullmatch(first)
        and all(word.isalpha() and not _TAKEN_FOR_HEX.fullmatch(word) for word in words)
        and not _HEX_NAME.fullmatch(rule)
    ):
        return rule
    import hashlib  # few rules need it, and it takes as long as all else here

    digest = hashlib.sha256(rule.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    readable = re.sub(r"\W", "_", rule)[:40].strip("_")
    if not _FIRST_WORD.match(readable):
        readable = f"rule_{readable}".rstrip("_")
    return f"{readable}.{digest}"
