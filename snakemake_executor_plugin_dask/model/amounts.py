"""Amounts: what workers have, and what jobs take of it. Pure."""

from collections.abc import Iterator
from typing import Self

from snakemake_executor_plugin_dask.model.frozen import dataclass

#: What is not known yet, and counts as enough: more than any worker has.
UNKNOWN = 10**15


@dataclass(frozen=True, slots=True)
class Amounts:
    """Cores, memory, GPUs and whatever else is counted, all of them whole numbers.

    They are added, subtracted and compared amount by amount. ``a <= b``: whoever asks for ``a`` finds it in ``b``. What
    is not asked for is not looked at, so that a worker which is overbooked in one amount still has room in the others.
    """

    cores: int = 0
    memory_mb: int = 0  # 10^6 bytes
    gpus: int = 0
    nodes: int = 0  # whole ones, of a worker that holds several
    coreless: int = 0  # places for jobs with `threads: 0`, which are bounded in number
    extra: tuple[tuple[str, int], ...] = ()  # other resources by name, sorted

    def __add__(self, other: Self) -> "Amounts":
        return Amounts(
            self.cores + other.cores,
            self.memory_mb + other.memory_mb,
            self.gpus + other.gpus,
            self.nodes + other.nodes,
            self.coreless + other.coreless,
            _sum(self.extra, other.extra, 1) if other.extra else self.extra,
        )

    def __sub__(self, other: Self) -> "Amounts":
        return Amounts(
            self.cores - other.cores,
            self.memory_mb - other.memory_mb,
            self.gpus - other.gpus,
            self.nodes - other.nodes,
            self.coreless - other.coreless,
            _sum(self.extra, other.extra, -1) if other.extra else self.extra,
        )

    def __mul__(self, number: int) -> "Amounts":
        return Amounts(
            self.cores * number,
            self.memory_mb * number,
            self.gpus * number,
            self.nodes * number,
            self.coreless * number,
            tuple((name, amount * number) for name, amount in self.extra),
        )

    def __le__(self, other: Self) -> bool:
        # Asked for each waiting kind of job and each worker, so it is spelt out.
        if (
            (self.cores > other.cores and self.cores > 0)
            or (self.memory_mb > other.memory_mb and self.memory_mb > 0)
            or (self.gpus > other.gpus and self.gpus > 0)
            or (self.nodes > other.nodes and self.nodes > 0)
            or (self.coreless > other.coreless and self.coreless > 0)
        ):
            return False
        return not self.extra or not self.short_of(other)

    def least(self, other: Self) -> "Amounts":
        """The smaller of both, amount by amount."""
        there = dict(other.extra)
        return Amounts(
            min(self.cores, other.cores),
            min(self.memory_mb, other.memory_mb),
            min(self.gpus, other.gpus),
            min(self.nodes, other.nodes),
            min(self.coreless, other.coreless),
            tuple((name, min(amount, there[name])) for name, amount in self.extra if name in there),
        )

    def most(self, other: Self) -> "Amounts":
        """The larger of both, amount by amount."""
        extra = dict(self.extra)
        for name, amount in other.extra:
            extra[name] = max(amount, extra.get(name, amount))
        return Amounts(
            max(self.cores, other.cores),
            max(self.memory_mb, other.memory_mb),
            max(self.gpus, other.gpus),
            max(self.nodes, other.nodes),
            max(self.coreless, other.coreless),
            tuple(sorted(extra.items())),
        )

    def times_in(self, other: Self) -> int:
        """How often this is found in the other; UNKNOWN where nothing is asked for."""
        return min((max(0, there) // wanted for _, wanted, there in self._beside(other)), default=UNKNOWN)

    def short_of(self, other: Self) -> tuple[str, ...]:
        """The names of the amounts of which the other has too little, such as ``memory_mb``."""
        return tuple(name for name, wanted, there in self._beside(other) if wanted > there)

    def share_of(self, other: Self) -> float:
        """The largest part that this takes of one of the other's amounts; infinite where that has none of it."""
        return max(
            (wanted / there if there > 0 else float("inf") for _, wanted, there in self._beside(other)), default=0.0
        )

    def of(self, name: str) -> int:
        """One amount of `extra`."""
        return dict(self.extra).get(name, 0)

    def memory_share_mb(self, cores: int) -> int:
        """Of this worker's memory, what belongs to so many of its cores; 0 where either is not known.

        Rounded down, so that the shares of all cores together are never more than the whole.
        """
        return 0 if UNKNOWN in (self.cores, self.memory_mb) else self.memory_mb * cores // max(self.cores, 1)

    def with_memory_mb(self, memory_mb: int) -> "Amounts":
        """The same with other memory."""
        if memory_mb == self.memory_mb:
            return self
        return Amounts(self.cores, memory_mb, self.gpus, self.nodes, self.coreless, self.extra)

    def _beside(self, other: Self) -> Iterator[tuple[str, int, int]]:
        """Each amount that is asked for (above zero): its name, how much, and how much the other has."""
        for name in ("cores", "memory_mb", "gpus", "nodes", "coreless"):
            if (wanted := getattr(self, name)) > 0:
                yield name, wanted, getattr(other, name)
        if self.extra:
            there = dict(other.extra)
            for name, wanted in self.extra:
                if wanted > 0:
                    yield name, wanted, there.get(name, 0)


NOTHING = Amounts()


def _sum(
    one: tuple[tuple[str, int], ...], other: tuple[tuple[str, int], ...], sign: int
) -> tuple[tuple[str, int], ...]:
    total = dict(one)
    for name, amount in other:
        total[name] = total.get(name, 0) + sign * amount
    return tuple(sorted(total.items()))
