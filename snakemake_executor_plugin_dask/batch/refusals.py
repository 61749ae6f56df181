"""What a batch system's refusal of an allocation means: whether it would say the same again, and what to change. Pure.

The texts are those of the submit commands of Slurm 22-26, PBS Pro and Torque, LSF 10, Grid Engine 8, OAR 2.5-2.6,
Moab 9 and HTCondor 10-25, and of `squeue` where an allocation would never start. A refusal that is not known here may
pass: a limit on queued jobs, a queue that is closed for a while, a server that does not answer.
"""

import difflib
import re
from collections.abc import Collection

from snakemake_executor_plugin_dask.batch.allocations import Outlook

_QUEUE = "name a queue that exists and takes your jobs: `queue` in the options, `slurm_partition` in a rule's resources"
_ACCOUNT = "name an account of yours: `account` in the options, `slurm_account` in a rule's resources"
_PROJECT = "name a project of yours: `project` or `account` in the options"
_GROUP = "name a group of yours: accounting_group in job_extra_directives"
_QOS = "name a QOS that your account may use: `qos` in a rule's resources, or --qos in job_extra_directives"
_NODE = (
    "ask for what a node of that queue has: cores, memory, gpus, the constraint, or another queue; "
    "`job_mem` in the options gives memory that is not rounded up"
)
_LIMITS = "ask for what that queue allows: walltime, cores, memory, gpus, or another queue"
_TIME = "give the pool a walltime within the queue's limit"
_OPTION = "correct the options of the pool, of which the batch script is made (--dask-plan shows it)"

_TABLE: dict[str, tuple[tuple[str, str], ...]] = {
    "slurm": (
        (r"invalid partition|not permitted to use this partition|access denied to partition", _QUEUE),
        (r"no partition specified", _QUEUE),
        (r"invalid ?account|AccountNotAllowed|account not (known|permitted|allowed)", _ACCOUNT),
        (r"invalid ?qos|QOSNotAllowed|qos not (known|permitted|allowed)", _QOS),
        (r"requested time limit is invalid|invalid time limit|PartitionTimeLimit", _TIME),
        (r"time limit specification required", _TIME),
        (r"(node|topology) configuration is not available|invalid feature|more processors requested", _NODE),
        (r"memory required by task is not available|(node|cpu) count specification invalid", _NODE),
        (r"(memory specification|cpu count per node) can ?not be satisfied", _NODE),
        (r"PartitionConfig|PartitionNodeLimit|BadConstraints|Per(Job|Node)", _NODE),
        (
            r"unrecognized option|invalid (option|directive|wckey|license|generic resource)|reservation is invalid",
            _OPTION,
        ),
        (r"invalid (--)?(gres|number|cpu|task|node)", _OPTION),
    ),
    "pbs": (
        (r"unknown queue|access to queue is denied|unauthorized request", _QUEUE),
        (r"invalid account|unknown (account|project)|not authorized to use (this |the )?(account|project)", _PROJECT),
        (r"max walltime", _TIME),
        (r"exceeds (queue|server) resource limits|violates queue and/or server resource limits", _LIMITS),
        (r"can never run", _NODE),
        (r"unknown resource|illegal|invalid option", _OPTION),
    ),
    "moab": (
        (r"unknown queue|invalid (queue|class)|not authorized to use queue", _QUEUE),
        (r"invalid account|not authorized to use account", _PROJECT),
        (r"invalid qos", _QOS),
        (r"max walltime", _TIME),
        (r"exceeds (queue|server) resource limits|violates queue and/or server resource limits", _LIMITS),
        (r"unknown resource|illegal|invalid (option|resource|node)", _OPTION),
    ),
    "lsf": (
        (r"no such queue|user cannot use the queue", _QUEUE),
        (r"(project|account|user group).*(not exist|not a (valid )?member|invalid|unknown)", _PROJECT),
        (r"run ?limit", _TIME),
        (r"queue's hard limit|too many processors requested", _LIMITS),
        (r"bad resource requirement|illegal option|cannot parse|no such (application|resource)", _OPTION),
    ),
    "sge": (
        (r"unknown queue", _QUEUE),
        (r"project .*(does not exist|not allowed|no access)|no access to project", _PROJECT),
        (r"unknown resource|parallel environment .* does not exist|(invalid|unknown) option", _OPTION),
    ),
    "oar": (
        (r"queue .*(not exist|unknown)|unknown queue", _QUEUE),
        (r"not? enough resources", _NODE),
        (r"project .*(not exist|not allowed)", _PROJECT),
        (r"bad resource request|cannot recognize|unknown (column|option|job type)|invalid", _OPTION),
    ),
    "htcondor": (
        (r"accounting.?group|not (allowed|authorized).*group", _GROUP),
        (r"parse error|syntax error|invalid|unknown (command|universe)|don't know about|illegal", _OPTION),
    ),
}


#: Of any of them: a server that does not answer, a queue that is closed for a while, a limit on queued jobs.
_PASSES = re.compile(
    r"connect|contact|communicat|commlib|timed? ?out|did not answer|temporar|try(ing)? again|again later|too many"
    r"|would exceed|(job|submit|slot|pend)\w* (submit )?limit|jobs are allowed|maximum number|not enabled|closed|busy"
    r"|partition not available|configuration not available now|inactive",
    re.IGNORECASE,
)

#: So much of what a command says is looked at: time would grow with the square of the length.
_READ_CHARACTERS = 4000

#: Slurm's rehearsal says this of nodes that are only down, too.
_DOUBTFUL = "node configuration is not available"


def rehearsed(system: str, said: str) -> str | None:
    """`what_to_change`, where nothing was submitted and only asked."""
    return None if _DOUBTFUL in said else what_to_change(system, said)


def what_to_change(system: str, said: str) -> str | None:
    """What a refusal that will not pass asks the user to change; None: another try may be taken."""
    said = said[:_READ_CHARACTERS]
    return next((advice for pattern, advice in _TABLE[system] if re.search(pattern, said, re.IGNORECASE)), None)


def outlook(system: str, said: str) -> Outlook:
    """What to expect of another try."""
    if what_to_change(system, said) is not None:
        return "final"
    return "passing" if _PASSES.search(said[:_READ_CHARACTERS]) else "unknown"


def no_such(kind: str, name: str, known: Collection[str], change: str) -> str:
    """«there is no queue cpuu (did you mean cpu?) among big, cpu, gpu; change queue in its options»."""
    close = difflib.get_close_matches(name, list(known), n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"there is no {kind} {name}{meant} among {', '.join(sorted(known))}; {change}"
