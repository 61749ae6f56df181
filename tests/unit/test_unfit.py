"""Jobs that no worker of an attached cluster holds: how long they wait, and what is said. Tests move the clock."""

import itertools
from collections.abc import Sequence

import pytest

from snakemake_executor_plugin_dask.backends.attached import pool_of_worker
from snakemake_executor_plugin_dask.decide.ledger import Ledger, WorkerState
from snakemake_executor_plugin_dask.decide.unfit import ADAPTIVE_WAIT_S, WAIT_S, Unfit
from snakemake_executor_plugin_dask.decide.waiting import WaitingClass
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.jobs import WorkerFacts
from snakemake_executor_plugin_dask.model.requests import Request, with_cluster

NAMES = ("licence",)
KINDS = {
    "plain": ({}, WorkerFacts("plain", "h", 1, 2, 4, 4000)),
    "licensed": ({"licence": 1}, WorkerFacts("licensed", "h", 1, 2, 1, 1000)),
    "large": ({}, WorkerFacts("large", "h", 1, 2, 2, 64000)),
}


def states(names: Sequence[str]) -> list[WorkerState]:
    return [WorkerState(name, pool_of_worker(KINDS[name][0], NAMES, 0), KINDS[name][1], 0.0) for name in names]


def waiting(request: Request) -> WaitingClass:
    return WaitingClass(request, False, 1, 0.0, ("work",))


@pytest.mark.parametrize("order", list(itertools.permutations(KINDS)))
def test_a_job_that_fits_one_of_the_workers_fits(order: tuple[str, ...]) -> None:
    """In whatever order they joined; and amounts that no single worker has together do not fit."""
    fitting = [Request(cores=4), Request(cores=1, extra=(("licence", 1),)), Request(cores=2, memory_mb=60000)]
    unfit = [Request(cores=4, memory_mb=60000), Request(cores=2, extra=(("licence", 1),))]
    verdict = Unfit().look([waiting(request) for request in (*fitting, *unfit)], states(order), 0.0, adaptive=False)
    assert [cls.request for cls in verdict.fitting] == fitting
    assert verdict.over == ()


def test_it_waits_is_said_once_and_fails_with_the_usual_message() -> None:
    """Named are the worker that comes nearest, and the call that makes the job fit there."""
    look, there, job = Unfit(), states(["plain", "licensed"]), waiting(Request(cores=6, memory_mb=3000))
    (said,) = look.look([job], there, 0.0, adaptive=False).said
    assert said == (
        "Rule work asks for 6 cores, mem_mb=3000, which no worker of the cluster can hold now: its jobs wait 1m for a "
        "worker that can, then fail."
    )
    verdict = look.look([job], there, WAIT_S - 1, adaptive=False)
    assert (verdict.said, verdict.over) == ((), ())
    ((request, why),) = look.look([job], there, WAIT_S, adaptive=False).over
    assert request == job.request
    assert "6 cores is more than the 4 of a worker" in why
    assert "--set-threads work=4" in why


def test_a_larger_worker_starts_the_wait_anew() -> None:
    """While it is there the job only waits for room; once it has gone the time counts from then."""
    look, job = Unfit(), waiting(Request(cores=2, memory_mb=60000))
    assert look.look([job], states(["plain"]), 0.0, adaptive=False).said
    assert look.look([job], states(["plain", "large"]), 50.0, adaptive=False).fitting == (job,)
    assert not look.look([job], states(["plain"]), 100.0, adaptive=False).over
    assert not look.look([job], states(["plain"]), 100.0 + WAIT_S - 1, adaptive=False).over
    assert look.look([job], states(["plain"]), 100.0 + WAIT_S, adaptive=False).over


def test_a_jobs_dask_workers_may_lie_on_all_of_them() -> None:
    """Whatever their sizes; the message says how many fit, and where they have to be on one, how many there."""
    there = states(["plain", "licensed", "large"])  # 4, 1 and 2 cores
    fits, more = (with_cluster(Request(cores=1), JobCluster(number, 1)) for number in (6, 7))
    look = Unfit()
    assert [cls.request for cls in look.look([waiting(fits), waiting(more)], there, 0.0, adaptive=False).fitting] == [
        fits
    ]
    ((request, why),) = look.look([waiting(more)], there, WAIT_S, adaptive=False).over
    assert request == more
    assert "the cluster's 3 workers can hold 6 Dask workers" in why
    assert "--set-resources work:dask_workers=6" in why
    alone = with_cluster(Request(cores=1), JobCluster(4, 1, together="in a container"))
    look = Unfit()
    assert not look.look([waiting(alone)], there, 0.0, adaptive=False).fitting
    ((_, why),) = look.look([waiting(alone)], there, WAIT_S, adaptive=False).over
    assert "in a container and thus all on one node" in why
    assert "--set-resources work:dask_workers=3" in why


def test_an_adaptive_cluster_has_more_time() -> None:
    """Its workers may have to come through a queue."""
    look, job = Unfit(), waiting(Request(cores=8))
    assert "wait 10m" in look.look([job], states(["plain"]), 0.0, adaptive=True).said[0]
    assert not look.look([job], states(["plain"]), ADAPTIVE_WAIT_S - 1, adaptive=True).over
    assert look.look([job], states(["plain"]), ADAPTIVE_WAIT_S, adaptive=True).over


def test_without_workers_nothing_is_known() -> None:
    """A cluster may be empty for a while; that was said when the run began."""
    look, job = Unfit(), waiting(Request(cores=8))
    for now in (0.0, 10 * WAIT_S):
        verdict = look.look([job], [], now, adaptive=False)
        assert (verdict.said, verdict.over, verdict.fitting) == ((), (), (job,))


def test_resources_that_a_newcomer_brings() -> None:
    """Workers that are there have none of it, and hold jobs with others of their own as before."""
    ledger = Ledger()
    ledger.add_worker("plain", pool_of_worker({}, (), 0), KINDS["plain"][1], 0.0)
    ledger.count_also(pool_of_worker({}, NAMES, 0))
    (state,) = ledger.states("attached").values()
    licensed = Request(cores=1, extra=(("licence", 1),))
    need = ledger.need(licensed, state.pool)
    assert need.takes.extra == licensed.extra
    assert not state.could_hold(need)
    assert not state.has_room(need)
    assert state.has_room(ledger.need(Request(cores=1), state.pool))
