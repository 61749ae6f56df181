"""The environment variables in which a batch system speaks of an allocation. Data."""

from collections.abc import Callable, Mapping

from snakemake_executor_plugin_dask.model.frozen import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split()))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Variables:
    """Names of variables. Where several mean the same, the first that is set counts."""

    prefixes: tuple[str, ...]  # of all that it sets in an allocation
    #: Names without such a prefix; others use them too, so they mean this batch system only inside an allocation.
    unprefixed: frozenset[str] = frozenset()
    #: With such a prefix, but configuration of its commands, which is valid on every node.
    settings: frozenset[str] = frozenset()

    id: str  # the allocation's id
    ids: tuple[str, ...] = ()  # each has another value in every allocation, and the same in all processes of one
    marks: tuple[str, ...] = ()  # further ones that say only that a process runs inside an allocation
    end: str | None = None  # when the allocation ends, in seconds since the epoch
    node: str | None = None  # this node's name, as the batch system's commands call it
    node_counts: tuple[str, ...] = ()
    node_files: tuple[str, ...] = ()  # paths of files with a node's name first in each line
    node_list: str | None = None
    parse_node_list: Callable[[str], tuple[str, ...]] = _words

    of_node: frozenset[str] = frozenset()  # set for one node of the allocation
    # What states the size of the whole allocation; docs/slurm.md has the table.
    cores: tuple[str, ...] = ()  # on a node
    cores_per_task: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()  # ranks that Open MPI may start on a node
    gpus: tuple[str, ...] = ()  # on a node
    memory: tuple[str, ...] = ()  # in MiB, the first one on a node; "0" there: all of it, together with other steps
    #: A step would take them for what it asks for itself, which may be more than, or contradict, what it is told.
    of_whole: tuple[str, ...] = ()

    #: Prefixes of those that change which allocations its commands list or cancel, or how they print that.
    choosing: tuple[str, ...] = ()
    #: Those by which one submission would become several, wait for its end, go somewhere else, be none at all, lose its
    #: directives, or not tell its id; and Torque's, by which `qstat` does not see what waits in a routing queue.
    submitting: frozenset[str] = frozenset()
    #: Where any of them is set, the submit command hands an allocation's variables on to what is submitted from inside.
    #: Who unsets the id alone, so that an inner `srun` stands by itself, leaves the others there.
    handed_on: tuple[str, ...] = ()
    #: With such a prefix, but beside `settings` what users and sites choose a server and defaults of its commands by.
    chosen: frozenset[str] = frozenset()

    def inside(self, environment: Mapping[str, str]) -> bool:
        """Whether a process with this environment runs inside an allocation."""
        return any(name in environment for name in (*self.ids, *self.marks))
