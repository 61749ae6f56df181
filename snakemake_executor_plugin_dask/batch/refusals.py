"""What a batch system's refusal of an allocation means: whether it would say the same again, and what to change. Pure.

A refusal that is not in a batch system's record may pass: a limit on queued jobs, a queue that is closed for a while, a
server that does not answer.
"""

import difflib
import re
from collections.abc import Collection

from snakemake_executor_plugin_dask.batch.allocations import Outlook
from snakemake_executor_plugin_dask.model.batch_systems import BatchSystem

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
