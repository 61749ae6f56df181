"""What a queue's answers mean for the allocations that it was asked for, and what may be given to its commands. Pure.

Standard library only: Snakemake's own process cancels recorded allocations with it, without Dask.
"""

import re
from collections.abc import Collection, Mapping

from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS, BatchSystem, named
from snakemake_executor_plugin_dask.model.batch_systems.listings import Seen, bare

_GONE = Seen("gone")

_CLUSTER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,-]{0,199}")


def is_id(system: BatchSystem, text: str) -> bool:
    """Whether a text can be the id of one allocation: no option, no user's name, and no word for all of them."""
    return len(text) < 100 and re.fullmatch(system.id, text, re.ASCII) is not None


def is_cluster(text: object) -> bool:
    """Whether it can name Slurm's clusters."""
    return isinstance(text, str) and _CLUSTER.fullmatch(text) is not None


_CHOOSING, _SUBMITTING = named("choosing"), frozenset(named("submitting"))
_KEPT = frozenset((*named("settings"), *named("chosen")))


def undisturbed(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a batch system's commands, without what users set there for their own use of them."""
    return {
        name: value for name, value in environment.items() if not name.startswith(_CHOOSING) and name not in _SUBMITTING
    }


def outside_allocation(environment: Mapping[str, str]) -> dict[str, str]:
    """`undisturbed`, and without the variables of the allocation that Snakemake itself may run in.

    A batch system hands them on to what is submitted from inside, where `SLURM_MEM_PER_CPU` and the like contradict it.
    """
    all_of = [system.variables for system in SYSTEMS.values()]
    handed_on = [each.prefixes for each in all_of if not environment.keys().isdisjoint(each.handed_on)]
    prefixes = tuple(prefix for prefixes in handed_on for prefix in prefixes)
    return {
        name: value
        for name, value in undisturbed(environment).items()
        if name in _KEPT or not name.startswith(prefixes)
    }


def unlisted(system: BatchSystem, ids: Collection[str], code: int, out: str) -> list[str]:
    """Ids that a successful query does not list, where they are worth another question: see `BatchSystem.confirm`."""
    if system.confirm is None or code != 0:
        return []
    listed = system.parse(out)
    return [allocation_id for allocation_id in ids if bare(allocation_id) not in listed]


def confirmed(system: BatchSystem, ids: Collection[str], code: int, out: str, err: str) -> dict[str, Seen]:
    """The answer to `BatchSystem.confirm`: gone is what the batch system says that it does not know."""
    listed = system.parse(out)
    missing = system.confirm_missing
    if code != 0 and not (missing and re.search(missing, err, re.IGNORECASE)):
        return look(system, ids, code, out, err)
    return {allocation_id: listed.get(bare(allocation_id), _GONE) for allocation_id in ids}


def found_by_script(out: str, script: str) -> str | None:
    """The id of the allocation that was made from this script, in what `BatchSystem.find` printed."""
    for line in out.splitlines():
        number, _, path = line.partition("|")
        if path.strip() == script:
            return number.strip()
    return None


def look(system: BatchSystem, ids: Collection[str], code: int, out: str, err: str) -> dict[str, Seen]:
    """States by id. An id that is not listed is gone only if the query succeeded, or says that it is not there."""
    listed = system.parse(out)
    unknown = set(re.findall(system.missing, err, re.IGNORECASE)) if system.missing else set()
    answered = code == 0 or (system.none is not None and re.search(system.none, err) is not None)
    silent = Seen("unknown", (err.strip() or out.strip() or f"exit code {code}").splitlines()[0][:200])
    answer = {}
    for allocation_id in ids:
        number = bare(allocation_id)
        if number in listed:
            answer[allocation_id] = listed[number]
        else:
            answer[allocation_id] = _GONE if answered or number in unknown else silent
    return answer
