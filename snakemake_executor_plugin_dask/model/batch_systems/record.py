"""What the plugin knows of one batch system: the fields of its record. Data; the functions in it are pure."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from snakemake_executor_plugin_dask.model.batch_systems import scripts
from snakemake_executor_plugin_dask.model.batch_systems.listings import Seen
from snakemake_executor_plugin_dask.model.batch_systems.variables import Variables
from snakemake_executor_plugin_dask.model.frozen import dataclass

if TYPE_CHECKING:
    from snakemake_executor_plugin_dask.model.pools import Pool

Directives = list[str] | dict[str, Any]
Table = tuple[tuple[str, str], ...]  # a regular expression, and what it means where it is found in a text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class BatchSystem:
    """One batch system. ``where`` in the calls is another cluster's name (Slurm's --clusters), or None."""

    name: str  # as `--dask-cluster` and pools files name it
    title: str  # as sentences name it
    job_class: str  # of dask_jobqueue
    several_nodes: bool = True  # an allocation may hold more than one
    pools_for_resources: bool = False  # pools can be made for what rules declare (slurm_partition and the like)

    # In an allocation

    variables: Variables
    #: Cores and MiB of memory (0: not told) that the allocation holds on this node, from the environment and the
    #: node's number of cores. For where nothing enforces them.
    granted: Callable[[Mapping[str, str], int], tuple[int, int]] | None = None
    #: Variables that make its launchers start ranks on a job's nodes, from these nodes with their number of ranks, and
    #: the path of a file with a line for each rank. None: its launchers go by such a file alone.
    host_variables: Callable[[Sequence[tuple[str, int]], str], list[tuple[str, str | None]]] | None = None
    #: The command, up to what it is to start, that starts one process on another node of the allocation, and its
    #: environment; from the node's name and the caller's environment. It lives as long as that process does, and ends
    #: it by SIGTERM, by force on SIGINT. None: there is none that was tried.
    on_node: Callable[[str, Mapping[str, str]], tuple[list[str], dict[str, str]]] | None = None

    # Submitting

    submit: str
    #: Options of the submit command after which the batch system never starts an allocation a second time.
    no_requeue: tuple[str, ...] = ()
    #: Options with which the submit command only says whether it would take a script.
    rehearsal: tuple[str, ...] = ()
    #: What the rehearsal says of a script that may be taken at another time all the same.
    doubtful: str | None = None
    #: How a script's directives begin, where variables of the environment (SBATCH_ACCOUNT) would win over them.
    overruled: str | None = None
    submitted: str | None = None  # in the submit command's output; group 1 is the id
    id: str = r"[1-9]\d*"  # what an id looks like; `bkill 0` would end all of a user's jobs
    before_script: str = " "  # in a shell, between the submit command and the script's path

    # Asking

    query: Callable[[Collection[str], str, str | None], list[str]]  # ids, user's name, where
    parse: Callable[[str], dict[str, Seen]]  # standard output of the query, to states by `bare` id
    #: In the query's standard error: ids that the batch system does not know (any more); group 1 is the id.
    missing: str | None = None
    none: str | None = None  # likewise, where the query fails since none of the ids is there any more
    #: Asks for these ids alone. Believed where the query above does not list them.
    confirm: Callable[[Collection[str], str | None], list[str]] | None = None
    #: In the standard error of `confirm`, which then fails: one of the ids does not exist.
    confirm_missing: str | None = None
    #: Prints `id|path of the script` of all the user's allocations: finds one whose submission got no answer.
    find: Callable[[str, str | None], list[str]] | None = None  # user's name, where
    #: Prints whether an allocation was taken away for others, from the moment when that is decided.
    preempted: Callable[[str, str | None], list[str]] | None = None
    was_preempted: Callable[[str], bool] = bool  # by what `preempted` printed
    queues: tuple[str, ...] = ()  # prints the names of its queues, first word of each line
    #: Prints the longest time of a queue (None: of all).
    limits: Callable[[str | None, str | None], list[str]] | None = None  # queue, where
    #: Seconds by queue from what `limits` printed (None: infinite). True: a queue was named; else the default counts.
    parse_limits: Callable[[str, bool], dict[str, float | None]] = lambda _out, _named: {}

    # Cancelling

    cancel: Callable[[str, str | None], list[str]]
    #: Cancels by name, for an allocation whose submission was cut off before its id was known.
    cancel_name: Callable[[str, str | None], list[str]] | None = None

    # Scripts

    #: It takes no shell script but a description, lines of `name = value`: directives are a mapping, the prologue goes
    #: into the command, and the Job class knows no walltime.
    description: bool = False
    #: Directives for a pool, and further arguments of the Job class: (pool, setting, allocation's name, directory for
    #: output). They win over a directive of the user's that says otherwise. ConfigurationError.
    directives: "Callable[[Pool, scripts.Setting, str, str], tuple[Directives, dict[str, Any]]]"
    #: Directives that the plugin gives itself: where output goes and what an allocation is called, by which both are
    #: found again; and those after which a submission makes several allocations, waits, or says something else.
    own_directives: frozenset[str]
    values_attached: bool = False  # short ones may have their value attached
    gpu_example: str | None = (
        None  # given: each site names GPUs its own way, and users ask for them in options, as here
    )
    #: Seconds from a walltime as this batch system writes it; ValueError.
    parse_walltime: Callable[[str], float] = scripts.parse_walltime
    format_walltime: Callable[[float], str] = scripts.format_walltime
    # Options of the submit command, long and short, where it has them.
    option_cluster: tuple[str, str] | None = None  # another cluster, whose queue is then the one to ask
    option_qos: tuple[str, str] | None = None
    option_exclude: tuple[str, str] | None = (
        None  # nodes that an allocation is not to get; with a slash: a file of them
    )

    # Its words

    #: In a refusal of the submit command, or the reason of an allocation that would never start: what the user is to
    #: change. It would say the same again; what is not listed may pass.
    refusals: Table
    reasons: Table = ()  # why an allocation is queued, in other words
    unopened: str | None = None  # why one ended whose output could not be opened
    # Regular expressions for the line in an allocation's output with which the batch system says that it ended it.
    endings: str | None = None
    preemptions: str | None = None  # those that say that it was taken away for others
    of_others: str | None = None  # those that say that somebody, the clock or its own use of memory ended it
    of_node: str | None = None  # those that say that its node failed
    states_of_others: str | None = None  # as `of_others`, for the reason that the query gives

    @property
    def commands(self) -> tuple[str, ...]:
        """What must be on PATH."""
        return (self.submit, self.cancel("0", None)[0], self.query(("0",), "", None)[0])
