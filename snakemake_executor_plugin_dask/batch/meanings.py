"""What a batch system's words about an allocation mean. Pure.

Why it is queued, and what to change; why it ended; whether a refusal would be the same again. The words of queued and
ended ones are not those of one batch system: whoever asks may only have a text, from an output or an event log. A
refusal that is not in a batch system's record may pass: a limit on queued jobs, a queue that is closed for a while, a
server that does not answer.
"""

import difflib
import re
from collections.abc import Collection
from operator import attrgetter

from snakemake_executor_plugin_dask.batch.allocations import Outlook
from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS, BatchSystem

_REASONS = tuple(reason for system in SYSTEMS.values() for reason in system.reasons)


def _any_system(field: str) -> str:
    """An expression for what any of them says, from a field of its record."""
    return "|".join(filter(None, map(attrgetter(field), SYSTEMS.values())))


_ENDINGS = re.compile(_any_system("endings"), re.IGNORECASE)
_PREEMPTIONS = re.compile(_any_system("preemptions"))
_OF_OTHERS = re.compile(_any_system("of_others"), re.IGNORECASE)
_OF_NODE = re.compile(_any_system("of_node"))
_STATES_OF_OTHERS = re.compile(rf"ended \(({_any_system('states_of_others')})")


def preempted(output: str) -> bool:
    """Whether a batch system says in an allocation's output that it took it away for others (Slurm, LSF)."""
    return _PREEMPTIONS.search(ending(output)) is not None


def may_be_the_node(why: str) -> bool:
    """Whether a node may be why an allocation ended; not where others or its own jobs ended it."""
    last = ending(why)
    return _OF_NODE.search(last) is not None or not (_OF_OTHERS.search(last) or _STATES_OF_OTHERS.search(why))


def meaning(reason: str) -> str:
    """What the reason of a queued allocation means, in a few words; empty where it says so itself."""
    return next((words for pattern, words in _REASONS if re.search(pattern, reason)), "")


def ending(output: str) -> str:
    """The last line of an allocation's output in which the batch system says why it ended; empty without one."""
    return next((line.strip() for line in reversed(output.splitlines()) if _ENDINGS.search(line)), "")


# Refusals


#: Of any of them: a server that does not answer, a queue that is closed for a while, a limit on queued jobs.
_PASSES = re.compile(
    r"connect|contact|communicat|commlib|timed? ?out|did not answer|temporar|try(ing)? again|again later|too many"
    r"|would exceed|(job|submit|slot|pend)\w* (submit )?limit|jobs are allowed|maximum number|not enabled|closed|busy"
    r"|partition not available|configuration not available now|inactive",
    re.IGNORECASE,
)

#: So much of what a command says is looked at: time would grow with the square of the length.
_READ_CHARACTERS = 4000


def rehearsed(system: BatchSystem, said: str) -> str | None:
    """`what_to_change`, where nothing was submitted and only asked."""
    return None if system.doubtful and system.doubtful in said else what_to_change(system, said)


def what_to_change(system: BatchSystem, said: str) -> str | None:
    """What a refusal that will not pass asks the user to change; None: another try may be taken."""
    said = said[:_READ_CHARACTERS]
    return next((advice for pattern, advice in system.refusals if re.search(pattern, said, re.IGNORECASE)), None)


def outlook(system: BatchSystem, said: str) -> Outlook:
    """What to expect of another try."""
    if what_to_change(system, said) is not None:
        return "final"
    return "passing" if _PASSES.search(said[:_READ_CHARACTERS]) else "unknown"


def no_such(kind: str, name: str, known: Collection[str], change: str) -> str:
    """As "there is no queue cpuu (did you mean cpu?) among big, cpu, gpu; change queue in its options"."""
    close = difflib.get_close_matches(name, list(known), n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"there is no {kind} {name}{meant} among {', '.join(sorted(known))}; {change}"
