"""Jobs that no worker of an attached cluster can hold at this moment: how long they wait for a larger one. Pure.

Workers there differ, and come and go by the will of others. So such a job may become possible, but is not left waiting
for ever.
"""

import bisect
from collections.abc import Sequence
from dataclasses import replace

from snakemake_executor_plugin_dask.decide import gangs, routing
from snakemake_executor_plugin_dask.decide.ledger import WorkerState
from snakemake_executor_plugin_dask.decide.needs import need_of
from snakemake_executor_plugin_dask.decide.waiting import WaitingClass
from snakemake_executor_plugin_dask.model import units
from snakemake_executor_plugin_dask.model.errors import RequestError
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.pools import Pool, Shape
from snakemake_executor_plugin_dask.model.requests import Request, with_cluster

WAIT_S = 60.0
#: While the cluster is adaptive, other workers may be on their way, through a batch system's queue.
ADAPTIVE_WAIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """``said``: sentences for the user. ``over``: requests that have waited long enough, with the reason why they fail.

    ``fitting``: the classes that some worker can hold.
    """

    said: tuple[str, ...]
    over: tuple[tuple[Request, str], ...]
    fitting: tuple[WaitingClass, ...]


class Unfit:
    """What was seen of the waiting jobs so far."""

    def __init__(self) -> None:
        self._since: dict[Request, float] = {}
        self._told: set[str] = set()
        self._fitting: set[Request] = set()
        self._workers: tuple[str, ...] = ()

    def look(
        self, waiting: Sequence[WaitingClass], states: Sequence[WorkerState], now: float, *, adaptive: bool
    ) -> Verdict:
        """Once a second or so. ``states``: the workers that are there; without any, nothing is known to fit or not."""
        if not states:
            return Verdict((), (), tuple(waiting))
        workers = tuple(state.name for state in states)
        if workers != self._workers:
            self._workers, self._fitting = workers, set()
        said: list[str] = []
        over: list[tuple[Request, str]] = []
        fitting: list[WaitingClass] = []
        wait_s = ADAPTIVE_WAIT_S if adaptive else WAIT_S
        since, self._since = self._since, {}
        for cls in waiting:
            if cls.request in self._fitting or _hold(states, cls.request):
                self._fitting.add(cls.request)
                fitting.append(cls)
                continue
            began = since.get(cls.request, now)
            name = cls.names[0] if cls.names else ""
            if now - began >= wait_s:
                over.append((cls.request, _why(cls.request, states, name)))
                continue
            self._since[cls.request] = began
            if name not in self._told:
                self._told.add(name)
                said.append(
                    f"Rule {name} asks for {routing.describe(cls.request)}, which no worker of the cluster can hold "
                    f"now: its jobs wait {units.format_duration(wait_s)} for a worker that can, then fail."
                )
        return Verdict(tuple(said), tuple(over), tuple(fitting))


def _hold(states: Sequence[WorkerState], request: Request) -> bool:
    """Whether one of them, or for a job's own Dask cluster all together, could hold it while they are empty."""
    need = need_of(request, states[0].pool, Shape())
    if need.gang is not None:
        return bool(gangs.plan(need, [(state, state.total) for state in states]))
    return any(
        state.could_hold(need_of(request, state.pool, Shape(state.total.cores, gpus=state.total.gpus)))
        for state in states
    )


def _why(request: Request, states: Sequence[WorkerState], name: str) -> str:
    """The usual message about what is short, on the worker that comes nearest."""
    if (cluster := request.cluster) is not None and (fitting := _dask_workers(request, cluster, states)):
        fewer = routing.Shortage("", (f"dask_workers={fitting}",))
        return (
            f"{routing.who(name)} asks for {routing.describe(request)}, and the cluster's "
            f"{units.count(len(states), 'worker')} can hold {units.count(fitting, 'Dask worker')}.\n"
            f"  To make it fit: {routing.make_it_fit(name, request, [(fewer,)])}"
        )
    shapes = [(state.pool, routing.shape_of_worker(state.pool, state.facts)) for state in states]
    pool, shape = min(shapes, key=lambda pair: _distance(request, *pair))
    try:
        routing.route(request, [pool], {pool.name: shape}, name=name)
    except RequestError as error:
        return str(error)
    return f"Rule {name} asks for {routing.describe(request)}, which no worker of the cluster can hold."


def _dask_workers(request: Request, cluster: JobCluster, states: Sequence[WorkerState]) -> int:
    """How many of a job's Dask workers fit beside its script on all workers together."""

    def fit(workers: int) -> bool:
        return _hold(states, with_cluster(request, replace(cluster, workers=workers)))

    return bisect.bisect_left(range(1, cluster.workers + 1), True, key=lambda workers: not fit(workers))


def _distance(request: Request, pool: Pool, shape: Shape) -> tuple[int, float]:
    short = routing.shortages(request, pool, shape)
    return len(short), -sum(part.kept for part in short)
