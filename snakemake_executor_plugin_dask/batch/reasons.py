"""What a batch system's word about an allocation means: why it is queued and what to change; why it ended. Pure.

The words are not those of one batch system: whoever asks may only have a text, from an output or an event log.
"""

import re
from operator import attrgetter

from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS

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
