"""Which nodes of a pool are left out of its later allocations, since workers fail there again and again. Pure."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

_IN_A_ROW = 2  # one failure is anybody's


@dataclass(frozen=True, slots=True)
class Failure:
    """A worker that ended before it joined, or was lost without a plan."""

    node: str
    why: str
    jobs: frozenset[str] = frozenset()  # that ran on it


@dataclass(slots=True)
class Nodes:
    """What became of the workers of one pool, by node.

    A node is bad after two failures with no worker between them that left as planned, where others do better: a worker
    has joined on another node that is not bad itself. As long as no other node was tried, one is left out without this
    proof, since batch systems like to give the same free node again. So all nodes of a pool are never left out. A
    failure under a job that lost workers on several nodes is the job's and not the node's.
    """

    failures: list[Failure] = field(default_factory=list)
    all_needed: bool = False  # without some of them the batch system takes no allocation
    _joined: set[str] = field(default_factory=set)

    def joined(self, node: str) -> None:
        """A worker has joined there."""
        self._joined.add(node)

    def left(self, node: str) -> None:
        """A worker there ended as planned: what failed before is over."""
        self.failures = [failure for failure in self.failures if failure.node != node]

    def failed(self, node: str, why: str, jobs: Collection[str] = ()) -> None:
        """A worker failed there, with these jobs on it."""
        self.failures.append(Failure(node, why, frozenset(jobs)))

    def bad(self) -> dict[str, str]:
        """The nodes to leave out, with the reason in words."""
        if self.all_needed:
            return {}
        places: dict[str, set[str]] = {}
        for failure in self.failures:
            for job in failure.jobs:
                places.setdefault(job, set()).add(failure.node)
        counted = [failure for failure in self.failures if all(len(places[job]) == 1 for job in failure.jobs)]
        counts = Counter(failure.node for failure in counted)
        failing = {node for node, count in counts.items() if count >= _IN_A_ROW}
        tried = self._joined | {failure.node for failure in self.failures}
        if not (self._joined - failing) and len(tried) > 1:
            return {}  # they fail everywhere: it is not the node
        compared = "others work elsewhere" if self._joined - failing else "no other node was tried"
        last = {failure.node: failure.why for failure in counted}
        return {
            node: f"{counts[node]} workers failed there in a row, and {compared}; the last: {last[node]}"
            for node in sorted(failing)
        }
