"""Where the parts of a job's own Dask cluster go: which workers, what they hold, what is asked for, what is told."""

from dataclasses import replace

from deciding import a_job, a_ledger, a_pool, hold, waiting_for, worker

from snakemake_executor_plugin_dask.decide.blockers import blockers
from snakemake_executor_plugin_dask.decide.demand import recommend
from snakemake_executor_plugin_dask.decide.gangs import to_open
from snakemake_executor_plugin_dask.decide.ledger import Ledger
from snakemake_executor_plugin_dask.decide.placement import Missing, place, place_missing
from snakemake_executor_plugin_dask.decide.routing import shape_of
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.requests import Request, with_cluster
from snakemake_executor_plugin_dask.observe.picture import PoolState, waiting_states
from snakemake_executor_plugin_dask.observe.status import waiting_line

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


WIDE = a_pool("wide", cores=4, memory_mb=8000, gpus=4, nodes=3)


def opened(*names: str) -> Ledger:
    """A wide worker whose nodes all have a supervisor, and devices of their own."""
    ledger = a_ledger(WIDE, "w")
    for number, name in enumerate(names, 1):
        ledger.open_node(name, "w", f"w-n{number}", tuple(f"{name}:{device}" for device in range(4)), 0.0)
    return ledger


def test_whole_nodes_of_a_wide_worker_hold_them() -> None:
    """As few as can be, evenly; each node has memory and devices of its own, and all of it is given back."""
    ledger = opened("x", "y")
    job = with_workers(2, key="k", memory_mb=3000, gpus=1, script_memory_mb=4000, script_cores=0)
    waiting = waiting_for(WIDE, [job])
    ((_, holding),) = place(waiting, ledger, 1.0)
    assert holding.dask_workers == {"w": 1, "x": 1}
    assert (holding.workers, holding.hosts, holding.memory_mb) == (("w",), ("w-n0",), 7000)
    assert [len(devices) for devices in holding.devices.values()] == [1, 1]
    assert holding.devices["x"] == ("x:0",)
    waiting.add(with_workers(1, key="other"), WIDE, 1.0)
    ((_, other),) = place(waiting, ledger, 1.0)
    assert (other.workers, other.hosts) == (("y",), ("w-n2",)), "its script is where its node is"
    ledger.release("k", 2.0)
    ledger.release("other", 2.0)
    assert worker(ledger, "w").free == worker(ledger, "w").total
    assert worker(ledger, "w").free_hosts == ["w-n0", "w-n1", "w-n2"]


def test_more_of_them_where_they_cost_nothing() -> None:
    """Up to `dask_workers_max`, since the job holds its nodes as wholes."""
    for most, expected in ((0, [1, 2]), (4, [1, 2]), (6, [1, 2])):
        job = with_workers(3, key="k", most=most)
        ((_, holding),) = place(waiting_for(WIDE, [job]), opened("x", "y"), 1.0)
        assert list(holding.dask_workers.values()) == expected
    job = with_workers(2, cores=1, key="k", most=6)
    ((_, holding),) = place(waiting_for(WIDE, [job]), opened("x", "y"), 1.0)
    assert holding.dask_workers == {"w": 3}


def test_nodes_get_a_supervisor_once_a_job_needs_one() -> None:
    """MPI jobs need none; the job waits until they are there."""
    ledger = opened()
    waiting = waiting_for(WIDE, [a_job("mpi", nodes=3, cores=12, mpi=True)])
    assert not to_open(waiting.classes("wide"), WIDE, ledger)
    waiting = waiting_for(WIDE, [with_workers(3, key="k")])
    assert not place(waiting, ledger, 1.0)
    (blocker,) = blockers(waiting, ledger, 1.0)
    assert blocker.short == ("companions",)
    (told,) = waiting_states([blocker], 1.0)
    assert waiting_line(told, PoolState("wide")) == (
        "1 job (rule) waits for nodes of a worker to be made ready for Dask workers in pool wide: a job needs 2 nodes, "
        "and of the free ones 1 is ready."
    )
    assert to_open(waiting.classes("wide"), WIDE, ledger) == ["w"]
    ledger.open_node("x", "w", "w-n1", (), 2.0)
    assert len(place(waiting, ledger, 2.0)) == 1


def test_a_lost_node_is_opened_anew_for_its_job() -> None:
    """What it had is placed there, or on another node of the same worker; other jobs lose nothing."""
    ledger = opened("x")
    job = with_workers(3, key="k")
    waiting = waiting_for(WIDE, [job])
    ((_, holding),) = place(waiting, ledger, 1.0)
    assert holding.dask_workers == {"w": 1, "x": 2}
    hold(ledger, "mpi", ["w"], Request(4, mpi=True), 1.0)
    ledger.close_node("x")
    ledger.release_place("k", "x", 2.0)
    missing = Missing("k", job.request, WIDE, 2)
    assert not place_missing(missing, waiting, ledger, 2.0)
    assert to_open(waiting.classes("wide"), WIDE, ledger) == ["w"]
    ledger.open_node("x-again1", "w", "w-n1", (), 3.0)
    ((there, _),) = place_missing(missing, waiting, ledger, 3.0)
    assert (there.worker, there.workers) == ("x-again1", 2)
    assert ledger.holding("mpi")
    ledger.release("k", 4.0)
    ledger.release("mpi", 4.0)
    assert worker(ledger, "w").free == worker(ledger, "w").total
