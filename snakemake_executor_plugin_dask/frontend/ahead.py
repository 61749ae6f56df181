"""Jobs that become ready when others end: what workers are kept and brought up for. Pure, but for `Graph`."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from snakemake_executor_plugin_dask.frontend.handover import members
from snakemake_executor_plugin_dask.interior import snakemake_dag
from snakemake_executor_plugin_dask.model.messages import Later
from snakemake_executor_plugin_dask.model.requests import Request

_MOST = 500  # jobs that are looked at; more would change nothing
_MOST_AWAITED = 5_000  # by one of them: this is asked with every 200 jobs that are handed over


class Graph:
    """Snakemake's jobs and what they wait for. A *whole* job is a group, or a single job that is in none."""

    def __init__(self, dag: Any) -> None:
        self._dag = dag

    def parts(self, whole: Any) -> Iterable[Any]:
        """Its single jobs."""
        return members(whole)

    def whole(self, single: Any) -> Any:
        """The job that it is a part of."""
        return snakemake_dag.group_of(self._dag, single) or single

    def dependents(self, single: Any) -> Iterable[Any]:
        """The single jobs that wait for it."""
        return snakemake_dag.dependents(self._dag, single)

    def awaited(self, single: Any) -> Iterable[Any]:
        """The single jobs that it waits for now: those that have run, or need not run, are left out."""
        for other in self._dag.job_dependencies(single):
            if not self._dag.finished(other) and snakemake_dag.is_to_run(self._dag, other):
                yield other


def ready_next(
    jobs: Iterable[Any], graph: Graph, keys: Mapping[Any, str], known: Mapping[Any, Request]
) -> tuple[Later, ...]:
    """The jobs that become ready when these, and others that were handed over before, end.

    ``keys``: of all jobs that were handed over, these among them. ``known``: requests of single jobs, as far as they
    could be known.
    """
    found: list[Later] = []
    seen: set[Any] = set()
    for job in itertools.chain.from_iterable(map(graph.parts, jobs)):
        for single in itertools.islice(graph.dependents(job), _MOST):
            later = graph.whole(single)
            if later in seen or len(seen) >= _MOST:
                continue
            seen.add(later)
            request, after = known.get(single), _awaited(later, graph, keys)
            if request is not None and after:
                found.append(Later(request, tuple(sorted(after))))
    return tuple(found)


def _awaited(later: Any, graph: Graph, keys: Mapping[Any, str]) -> set[str]:
    """Keys of all that a job waits for; none where some of it was not handed over yet, or where it is too much."""
    own = set(graph.parts(later))
    after = set()
    for number, other in enumerate(itertools.chain.from_iterable(map(graph.awaited, own))):
        if other not in own:
            key = keys.get(graph.whole(other))
            if key is None or number >= _MOST_AWAITED:
                return set()
            after.add(key)
    return after
