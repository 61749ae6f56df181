"""What a batch system's word about an allocation means: why it is queued and what to change; why it ended. Pure.

The reasons are those of Slurm, from squeue(1), «JOB REASON CODES», and what OAR and HTCondor say; other systems give
sentences of their own.
"""

import re

_LIMIT = (
    "a limit of the account or QOS is reached: it starts when others of yours end, or with fewer or smaller workers"
)
_QUEUED = (
    (
        r"PartitionDown|PartitionInactive",
        "this queue starts nothing now: wait until it is up, or give the pool another",
    ),
    (r"ReqNodeNotAvail|Maintenance|Reserv", "nodes are down or reserved: a shorter walltime may fit in before"),
    (r"NodeDown|Nodes_required_for_job_are_DOWN", "nodes are down: wait, or give the pool another queue"),
    (r"Assoc\w*(Limit|Grp|Max)|QOS\w*(Limit|Grp|Max)|MaxJobs|MaxCpu|Max\w+Per(User|Account)", _LIMIT),
    (r"JobHeldAdmin", "administrators hold it: ask them"),
    (r"JobHeldUser", "you hold it: release it with scontrol"),
    (r"Licenses", "licences are in use"),
    (r"MaxPoweredUpNodes", "no more nodes may be switched on now: it starts when others are free"),
    (r"^Priority$", "others come first in this queue: fewer or smaller workers may fit in between"),
    (r"^Resources$", "it is the next one, and waits for nodes to become free"),
    (r"^Dependency", "it waits for another one to end"),
    (r"^Hold$", "you hold it: release it with oarresume"),
    (
        r"[Nn]o enough matching resources",
        "the nodes that could hold it are down or taken out: wait, or ask for other ones",
    ),
    (r"^no match found", "no slot can hold it now: wait, or ask for less (condor_q -better-analyze says more)"),
    (r"^BeginTime$", "it is not to start before a time that was asked for, or was requeued a moment ago"),
)

#: Lines in an allocation's own output with which a batch system says that it ended it.
_ENDED = re.compile(
    r"CANCELLED AT|DUE TO TIME LIMIT|DUE TO PREEMPTION|DUE TO NODE FAILURE|oom[-_ ]kill|Exceeded job memory limit"
    r"|TERM_[A-Z]+|PBS: job killed|## OAR .* KILLED ##|via condor_rm|PeriodicRemove expression",
    re.IGNORECASE,
)


_PREEMPTED = re.compile("DUE TO PREEMPTION|TERM_PREEMPT")
#: What says that somebody, the clock or its own use of memory ended an allocation; nothing is wrong with its node.
_STATE_OF_OTHERS = re.compile(
    r"ended \((User .* requested to frag|CANCELLED|DEADLINE"
    r"|OUT_OF_MEMORY|OutOfMemory|PREEMPTED|REVOKED|TIMEOUT|TimeLimit)"
)
_WORDS_OF_OTHERS = re.compile(
    r"CANCELLED AT|TIME LIMIT|oom[-_ ]kill|memory limit|TERM_(OWNER|ADMIN|RUNLIMIT|MEMLIMIT|PREEMPT)"
    "|## OAR .* KILLED ##|via condor_rm",
    re.IGNORECASE,
)


def preempted(output: str) -> bool:
    """Whether a batch system says in an allocation's output that it took it away for others (Slurm, LSF)."""
    return _PREEMPTED.search(ending(output)) is not None


def may_be_the_node(why: str) -> bool:
    """Whether a node may be why an allocation ended; not where others or its own jobs ended it."""
    last = ending(why)
    return "NODE FAILURE" in last or not (_WORDS_OF_OTHERS.search(last) or _STATE_OF_OTHERS.search(why))


def meaning(reason: str) -> str:
    """What the reason of a queued allocation means, in a few words; empty where it says so itself."""
    return next((words for pattern, words in _QUEUED if re.search(pattern, reason)), "")


def ending(output: str) -> str:
    """The last line of an allocation's output in which the batch system says why it ended; empty without one."""
    return next((line.strip() for line in reversed(output.splitlines()) if _ENDED.search(line)), "")
