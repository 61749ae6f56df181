"""Where the parts of a job's own Dask cluster go: which workers, what they hold, what is asked for, what is told."""

from dataclasses import replace

from deciding import a_job, a_ledger, a_pool, hold, waiting_for, worker

from snakemake_executor_plugin_dask.decide.demand import recommend
from snakemake_executor_plugin_dask.decide.ledger import Ledger
from snakemake_executor_plugin_dask.decide.placement import Missing, blockers, place, place_missing
from snakemake_executor_plugin_dask.decide.routing import shape_of
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.requests import Request, with_cluster

POOL = a_pool(cores=4, memory_mb=8000, gpus=4)


def with_workers(
    number: int, cores: int = 2, key: str = "", runtime_s: float | None = None, **values: int
) -> QueuedJob:
    """A job with so many Dask workers of its own, and a script of one core."""
    request = with_cluster(a_job(runtime_s=runtime_s).request, JobCluster(number, cores, **values))
    return replace(a_job(key), request=request)


def placed(ledger: Ledger, job: QueuedJob) -> dict[str, int]:
    """How many Dask workers of the job go where; the script's worker first."""
    found = place(waiting_for(POOL, [job]), ledger, 1.0)
    return dict(found[0][1].dask_workers) if found else {}


def test_on_as_few_workers_as_can_be() -> None:
    """On one where that holds all, the tightest; else on those with the most room."""
    ledger = a_ledger(POOL, "a", "b", "c")
    hold(ledger, "other", ["b"], Request(cores=1), 0.0)
    assert placed(ledger, with_workers(1, key="one")) == {"b": 1}
    assert sorted(placed(ledger, with_workers(3, key="three")).values()) == [1, 2]
    assert ledger.holding("three")
    assert not placed(ledger, with_workers(1, cores=3))  # all or nothing


def test_the_script_goes_where_it_costs_no_worker() -> None:
    """A node with an odd core takes it, though others hold as many workers."""
    ledger = a_ledger(POOL, "a", "b")
    hold(ledger, "other", ["b"], Request(cores=1), 0.0)
    assert placed(ledger, with_workers(3)) == {"b": 1, "a": 2}


def test_what_each_worker_holds() -> None:
    """Cores, memory and devices of the parts, and all of it is given back."""
    ledger = a_ledger(POOL, "a", "b")
    job = with_workers(3, key="k", memory_mb=1000, gpus=1, script_memory_mb=500)
    ((_, holding),) = place(waiting_for(POOL, [job]), ledger, 1.0)
    home, other = holding.dask_workers
    assert holding.workers == (home,)
    assert holding.cores_by_worker == {home: 3, other: 4}
    assert holding.memory_mb == 1500
    assert worker(ledger, other).free.memory_mb == 6000
    assert [len(holding.devices[name]) for name in (home, other)] == [1, 2]
    ledger.release_place("k", other, 2.0)
    assert worker(ledger, other).idle_since == 2.0
    assert worker(ledger, home).held
    ledger.release("k", 3.0)
    for name in (home, other):
        assert worker(ledger, name).free == worker(ledger, name).total


def test_lost_workers_are_placed_anew() -> None:
    """As many as have room, and not on a worker that is kept for another job."""
    ledger = a_ledger(POOL, "a", "b")
    job = with_workers(3, key="k")
    waiting = waiting_for(POOL, [job])
    ((_, holding),) = place(waiting, ledger, 1.0)
    home, other = holding.dask_workers
    ledger.remove_worker(other)
    ledger.release_place("k", other, 2.0)
    missing = Missing("k", job.request, POOL, 2)
    assert not place_missing(missing, waiting, ledger, 2.0)
    ledger.add_worker("c", POOL, worker(ledger, home).facts, 3.0)
    hold(ledger, "small", ["c"], Request(cores=1, runtime_s=1000.0), 3.0)
    waiting.add(a_job("large", cores=4, runtime_s=10.0), POOL, 3.0)
    place(waiting, ledger, 3.0)
    assert not place_missing(missing, waiting, ledger, 4.0)
    waiting.discard("large")
    ((there, _),) = place_missing(missing, waiting, ledger, 4.0)
    assert (there.state.name, there.workers) == ("c", 1)


def test_workers_are_kept_for_it() -> None:
    """When all its parts will fit is known from what runs, and small jobs that would last longer do not delay it."""
    ledger = a_ledger(POOL, "a", "b")
    for name, runtime_s in (("a", 100.0), ("b", 200.0)):
        hold(ledger, f"on {name}", [name], Request(cores=3, runtime_s=runtime_s), 0.0)
    waiting = waiting_for(POOL, [with_workers(3, key="k")])
    assert not place(waiting, ledger, 0.0)
    (kept,) = set(waiting.reserved("pool").values())
    assert (kept.start, set(kept.workers)) == (200.0, {"a", "b"})
    ledger.release("on a", 100.0)
    waiting.add(a_job("long", runtime_s=150.0, cores=2), POOL, 100.0)
    waiting.add(a_job("short", runtime_s=50.0, cores=2), POOL, 100.0)
    assert [job.key for job, _ in place(waiting, ledger, 100.0)] == ["short"]
    ledger.release("short", 150.0)
    ledger.release("on b", 200.0)
    assert [job.key for job, _ in place(waiting, ledger, 200.0)] == ["k"]


def test_as_many_workers_are_asked_for_as_hold_all_parts() -> None:
    """Also where one part alone has a worker for itself."""
    for number, cores, wanted in ((1, 2, 1), (3, 2, 2), (4, 2, 3), (2, 4, 3)):
        job = with_workers(number, cores=cores, runtime_s=1.0)
        waiting = waiting_for(POOL, [job])
        advice = recommend(POOL, waiting.classes("pool"), Ledger(), 0, (), 0.0, shape_of(POOL))
        assert advice.workers == wanted


def test_it_is_told_what_such_a_job_waits_for() -> None:
    """For a worker, or for room for all its Dask workers."""
    waiting = waiting_for(POOL, [with_workers(3, key="k")])
    (blocker,) = blockers(waiting, Ledger(), 0.0)
    assert blocker.short == ("worker",)
    ledger = a_ledger(POOL, "a")
    (blocker,) = blockers(waiting, ledger, 0.0)
    assert (blocker.short, blocker.need, blocker.free) == (
        ("dask_workers",),
        {"dask_workers": 3},
        {"dask_workers": 2},
    )
