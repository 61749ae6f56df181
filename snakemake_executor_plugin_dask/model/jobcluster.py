"""The Dask cluster of a job's own, from `dask_workers` in its rule. Pure."""

from snakemake_executor_plugin_dask.model.amounts import Amounts
from snakemake_executor_plugin_dask.model.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """What a node needs to know of a job's Dask cluster whose parts lie on several nodes.

    ``part`` 0 has the script and the scheduler. The others know where that one listens, and how its Python was started.
    """

    host: str  # the address by which the other nodes reach this one
    workers: int  # of all parts together
    part: int = 0
    scheduler: str = ""
    python: str = ""
    environment: tuple[tuple[str, str | None], ...] = ()  # what the script's has beyond what its node gave it
    modules: tuple[str, ...] = ()  # those of Dask that the script has imported
    pages: str = ""  # the path under which the scheduler serves its pages; empty: it serves none
    lent: bool = False  # its one Dask worker is given back at some time, and nothing replaces it here
    #: Where what is said to nodes is not encrypted: a directory that they share and only the user can read. It has the
    #: certificate, and what the job has changed in its environment.
    secrets: str = ""


@dataclass(frozen=True, slots=True)
class JobCluster:
    """So many Dask workers of one size, beside the job's script, which shares its part with the cluster's scheduler."""

    workers: int  # on its way to a node: those there
    cores: int  # of each worker, and its threads
    memory_mb: int | None = None  # of each worker, 10^6 bytes. None: not declared
    gpus: int = 0  # of each worker
    script_cores: int = 1
    script_memory_mb: int | None = None  # None: not declared
    together: str = ""  # why all are on one node, as «in a container», where nobody could start its Python elsewhere
    most: int = 0  # workers that it may grow to; no more than ``workers``: it does not grow
    options: str = ""  # further arguments of Dask's worker class, as JSON; empty: none

    @property
    def total(self) -> Amounts:
        """What script, scheduler and workers hold together; memory that is not declared counts as none."""
        return self.each * self.workers + self.script

    def fitting(self, room: Amounts, nodes: int = 1) -> int:
        """How many such workers, and not more than are wanted, fit beside the script on so many nodes of this size."""
        if not self.script <= room:
            return 0
        beside = self.fitting_on(room, script=True)
        return min(self.workers, beside + (nodes - 1) * self.fitting_on(room, script=False))

    def over(self, room: Amounts, most: int) -> tuple[int, ...]:
        """On as few whole nodes of this size as hold all, and at most so many: the workers on each, the script's first.

        Evenly, and as many of ``most`` workers as fit there, since nobody else can use what is left. Empty: too many.
        """
        first, other = self.fitting_on(room, script=True), self.fitting_on(room, script=False)
        lacking = self.workers - first
        nodes = 1 + (-(-lacking // other) if other else most) if lacking > 0 else 1
        if nodes > (1 if self.together else most) or not self.script <= room:
            return ()
        holds, numbers = [first] + [other] * (nodes - 1), [0] * nodes
        for _ in range(min(max(self.workers, self.most), sum(holds))):
            chosen = min(
                (node for node in range(nodes) if numbers[node] < holds[node]), key=lambda node: (numbers[node], -node)
            )
            numbers[chosen] += 1
        return tuple(numbers)

    def fitting_on(self, room: Amounts, *, script: bool) -> int:
        """How many workers fit on one node of this size, beside the script where that is there, too."""
        if not script:
            return self.each.times_in(room)
        return self.each.times_in(room - self.script) if self.script <= room else 0

    @property
    def each(self) -> Amounts:
        """Of one worker."""
        return Amounts(self.cores, self.memory_mb or 0, self.gpus)

    @property
    def script(self) -> Amounts:
        """Of the script and the scheduler together."""
        return Amounts(self.script_cores, self.script_memory_mb or 0)
