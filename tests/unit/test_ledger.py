"""What workers have free."""

import pytest
from deciding import MIG, UUIDS, a_job, a_ledger, a_pool, facts_of, fits, hold, waiting_for, worker

from snakemake_executor_plugin_dask.decide.blockers import blockers
from snakemake_executor_plugin_dask.decide.ledger import FRESH_S, SHARED_S, Ledger
from snakemake_executor_plugin_dask.decide.placement import place
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.observe.picture import waiting_states

POOL = a_pool(cores=4, memory_mb=8000, resources=(("licence", 2),))
GPU = a_pool("gpu", cores=8, memory_mb=16000, gpus=4)
WIDE = a_pool("wide", cores=4, nodes=4, walltime_s=7200.0)
MPI = a_pool("mpi", "mpi", cores=4, workers_min=3, workers_max=3)
TIMED = a_pool("timed", walltime_s=3600.0)  # margin 300 s


def test_what_is_held_is_not_free_and_comes_back() -> None:
    """Cores, memory and listed resources are taken by a hold and given back by its release."""
    ledger = a_ledger(POOL, "w")
    holding = hold(ledger, "a", ["w"], Request(3, 5000, extra=(("licence", 2), ("other", 9))), 1.0)
    state = worker(ledger, "w")
    assert (state.free.cores, state.free.memory_mb, state.free.extra) == (1, 3000, (("licence", 0),))
    assert (holding.workers, holding.cores_by_worker, holding.memory_mb, holding.hosts) == (
        ("w",),
        {"w": 3},
        5000,
        ("host-w",),
    )
    assert holding.devices == {}, "a pool without GPUs leaves a job's devices alone"
    assert state.idle_since is None
    assert [held.holding for held in state.held.values()] == [holding]
    ledger.release("a", 5.0)
    assert (state.free.cores, state.free.memory_mb, state.free.extra) == (4, 8000, (("licence", 2),))
    assert not state.held
    assert state.idle_since == 5.0
    assert ledger.holding("a") is None


@pytest.mark.parametrize(
    "request_",
    [Request(5), Request(1, 8001), Request(1, gpus=1), Request(1, extra=(("licence", 3),))],
)
def test_what_is_larger_than_the_worker_does_not_fit(request_: Request) -> None:
    """In each of its amounts."""
    assert not fits(a_ledger(POOL, "w"), "w", request_, 0.0)


def test_a_second_hold_or_release_is_an_error() -> None:
    """Each hold has exactly one release."""
    ledger = a_ledger(POOL, "w")
    hold(ledger, "a", ["w"], Request(1), 0.0)
    with pytest.raises(ValueError, match="holds something already"):
        hold(ledger, "a", ["w"], Request(1), 0.0)
    ledger.release("a", 0.0)
    with pytest.raises(KeyError):
        ledger.release("a", 0.0)
    with pytest.raises(ValueError, match="in the ledger already"):
        ledger.add_worker("w", POOL, facts_of(POOL, "w"), 0.0)


def test_without_mem_mb_a_job_holds_its_cores_share() -> None:
    """As many such jobs fit as there are cores, also where the memory does not divide evenly."""
    pool = a_pool(cores=3, memory_mb=1000)
    ledger = a_ledger(pool, "w")
    for key in "abc":
        assert hold(ledger, key, ["w"], Request(1), 0.0).memory_mb == 333
    assert not fits(ledger, "w", Request(1), 0.0)
    assert fits(ledger, "w", Request(0), 0.0), "a job without cores holds no memory"


def test_devices_are_leased_by_name() -> None:
    """A job gets devices of its own, and one without gpu is told to see none."""
    ledger = a_ledger(GPU, "w", devices=MIG)
    assert hold(ledger, "none", ["w"], Request(1), 0.0).devices == {"w": ()}
    assert hold(ledger, "a", ["w"], Request(1, gpus=1), 0.0).devices == {"w": MIG[:1]}
    assert hold(ledger, "b", ["w"], Request(1, gpus=2), 0.0).devices == {"w": MIG[1:3]}
    assert worker(ledger, "w").free_devices == list(MIG[3:])
    assert not fits(ledger, "w", Request(1, gpus=2), 0.0)
    ledger.release("b", 1.0)
    hold(ledger, "c", ["w"], Request(1, gpus=1), 1.0)
    assert ledger.holding("c").devices == {"w": MIG[1:2]}  # type: ignore[union-attr]


def test_large_groups_of_devices_stay_whole() -> None:
    """A single device comes from the smallest group that has one."""
    ledger = a_ledger(GPU, "w")
    hold(ledger, "a", ["w"], Request(1, gpus=1), 0.0)
    hold(ledger, "b", ["w"], Request(1, gpus=1), 0.0)
    ledger.release("a", 0.0)
    # Free: 0, 2, 3. The lone one is taken, and the pair stays.
    assert hold(ledger, "c", ["w"], Request(1, gpus=1), 0.0).devices["w"] == UUIDS[:1]
    assert worker(ledger, "w").free_devices == list(UUIDS[2:])


def test_a_worker_counts_no_more_devices_than_its_pool() -> None:
    """A pool of two GPUs leases two, whatever the node shows; a local pool without gpus leases none."""
    for pool, devices in (
        (a_pool(gpus=2), UUIDS[:2]),
        (a_pool(cluster="local"), ()),
        (a_pool(cluster="cuda"), UUIDS),
    ):
        assert worker(a_ledger(pool, "w", devices=UUIDS), "w").free_devices == list(devices)


def test_a_wide_worker_leases_whole_nodes() -> None:
    """Hosts are handed out as wholes, and no two jobs share one."""
    ledger = a_ledger(WIDE, "w")
    first = hold(ledger, "a", ["w"], Request(6, nodes=2), 0.0)
    assert (first.hosts, first.cores_by_worker) == (("w-n0", "w-n1"), {"w": 6})
    assert len(worker(ledger, "w").free_hosts) == 2
    assert not fits(ledger, "w", Request(3, nodes=3), 0.0)
    second = hold(ledger, "b", ["w"], Request(8, mpi=True), 0.0)
    assert second.hosts == ("w-n2", "w-n3"), "an MPI job without nodes spreads over as many as its cores need"
    ledger.release("a", 1.0)
    assert worker(ledger, "w").free_hosts == ["w-n0", "w-n1"]


def test_a_job_on_several_workers_holds_a_part_of_each() -> None:
    """Each of the workers gives its part."""
    ledger = a_ledger(MPI, "x", "y", "z")
    hold(ledger, "small", ["z"], Request(3), 0.0)
    assert fits(ledger, "x", Request(8, nodes=2), 0.0)
    assert not fits(ledger, "z", Request(8, nodes=2), 0.0)
    holding = hold(ledger, "gang", ["x", "y"], Request(5, 1000, nodes=2), 0.0)
    assert holding.cores_by_worker == {"x": 3, "y": 2}
    assert holding.hosts == ("host-x", "host-y")


def test_a_removed_worker_names_its_jobs_and_keeps_the_others_held() -> None:
    """A job on several workers holds those that are left until it is released."""
    ledger = a_ledger(MPI, "x", "y")
    hold(ledger, "gang", ["x", "y"], Request(8, nodes=2), 0.0)
    assert ledger.remove_worker("x") == ["gang"]
    assert ledger.workers() == ["y"]
    assert worker(ledger, "y").free.cores == 0
    ledger.add_worker("x", MPI, facts_of(MPI, "x"), 1.0)
    ledger.release("gang", 2.0)
    assert worker(ledger, "y").free.cores == 4
    assert worker(ledger, "x").free.cores == 4, "a new worker of the same name is another one"


def test_a_draining_worker_takes_nothing() -> None:
    """What runs there runs on."""
    ledger = a_ledger(POOL, "w")
    hold(ledger, "a", ["w"], Request(1), 0.0)
    ledger.drain("w")
    assert not fits(ledger, "w", Request(1), 0.0)
    assert worker(ledger, "w").held


def test_remaining_life_covers_runtime_and_margin() -> None:
    """A used worker takes a job only if its end is far enough."""
    ledger = a_ledger(TIMED, "w")
    hold(ledger, "a", ["w"], Request(1), 0.0)
    assert fits(ledger, "w", Request(1, runtime_s=1800.0), 1500.0)
    assert not fits(ledger, "w", Request(1, runtime_s=1800.0), 1501.0)
    # Without runtime, half the walltime is assumed.
    assert fits(ledger, "w", Request(1), 1500.0)
    assert not fits(ledger, "w", Request(1), 1501.0)


def test_default_runtime_serves_for_placing_alone() -> None:
    """It replaces half the walltime and sets no limit."""
    pool = a_pool(walltime_s=3600.0, default_runtime_s=600.0)
    ledger = a_ledger(pool, "w")
    hold(ledger, "a", ["w"], Request(1), 0.0)
    assert fits(ledger, "w", Request(1), 2700.0)
    assert not fits(ledger, "w", Request(1), 2701.0)
    holding = hold(ledger, "b", ["w"], Request(1), 2700.0)
    assert (holding.limit_s, holding.until) == (None, None)


def test_the_margin_is_waived_on_a_new_allocation_alone() -> None:
    """A job of exactly the walltime runs there, until 30 s before the end."""
    ledger = Ledger()
    ledger.add_worker("new", TIMED, facts_of(TIMED, "new", remaining_s=3590.0), 0.0)
    whole = Request(1, runtime_s=3600.0)
    holding = hold(ledger, "a", ["new"], whole, 5.0)
    assert holding.limit_s == 3555.0
    assert holding.until == 3560.0
    assert fits(ledger, "new", whole, 15.0), "what starts together shares it"
    assert not fits(ledger, "new", whole, 15.1), "something has run there"


def test_a_start_that_took_long_does_not_keep_a_job_waiting_for_ever() -> None:
    """What fits beside the margin by the walltime fits on a new worker, though starting took of its life."""
    ledger = Ledger()
    ledger.add_worker("new", TIMED, facts_of(TIMED, "new", remaining_s=3400.0), 0.0)
    assert fits(ledger, "new", Request(1, runtime_s=3300.0), 0.0)
    ledger.add_worker("half", TIMED, facts_of(TIMED, "half", remaining_s=1800.0), 0.0)
    assert not fits(ledger, "half", Request(1, runtime_s=3300.0), 0.0), "that much less is no new allocation"


def test_what_needs_a_new_allocation_waits_for_one() -> None:
    """A job whose allocation ended under it once goes to one on which nothing has run, but what started with it."""
    ledger = a_ledger(TIMED, "w")
    assert fits(ledger, "w", Request(1), FRESH_S, fresh=True)
    hold(ledger, "a", ["w"], Request(1), 0.0, fresh=True)
    assert fits(ledger, "w", Request(1), SHARED_S, fresh=True)
    later = SHARED_S + 0.1
    assert fits(ledger, "w", Request(1), later)
    assert not fits(ledger, "w", Request(1), later, fresh=True)


def test_an_allocation_that_cannot_be_renewed_is_used_to_its_end() -> None:
    """In an mpi pool nothing better comes later, so neither margin nor runtime keeps a job waiting."""
    pool = a_pool("m", "mpi")
    ledger = a_ledger(pool, "w", remaining_s=1000.0)
    hold(ledger, "a", ["w"], Request(1), 0.0)
    assert fits(ledger, "w", Request(1, runtime_s=900.0), 70.0)
    assert fits(ledger, "w", Request(1, runtime_s=9000.0), 71.0), (
        "it is ended before the allocation, by its worker's end alone"
    )
    assert hold(ledger, "b", ["w"], Request(1, runtime_s=9000.0), 71.0).limit_s is None


def test_no_known_end_is_no_limit() -> None:
    """A local worker takes a job of any runtime."""
    ledger = a_ledger(a_pool(cluster="local"), "w")
    holding = hold(ledger, "a", ["w"], Request(1, runtime_s=1e9), 7.0, fresh=True)
    assert (holding.limit_s, holding.until) == (None, 7.0 + 1e9)


def test_jobs_without_cores_hold_no_memory_and_are_bounded_in_number() -> None:
    """Ten for each core of a worker, never fewer than Snakemake's own executor runs (cores + 5); others go on."""
    pool = a_pool(cores=2, memory_mb=4000)
    ledger = a_ledger(pool, "w")
    hold(ledger, "busy", ["w"], Request(2, 4000), 0.0)
    for number in range(20):
        holding = hold(ledger, f"small-{number}", ["w"], Request(0), 0.0)
        assert holding.memory_mb == 0
    assert not fits(ledger, "w", Request(0), 0.0)
    ledger.release("busy", 0.0)
    assert fits(ledger, "w", Request(2, 4000), 0.0)
    assert not fits(ledger, "w", Request(0), 0.0)
    ledger.release("small-3", 0.0)
    assert fits(ledger, "w", Request(0), 0.0)
    waiting = waiting_for(pool, [a_job(cores=0)])
    hold(ledger, "small-again", ["w"], Request(0), 0.0)
    assert place(waiting, ledger, 1.0) == []
    (blocker,) = blockers(waiting, ledger, 1.0)
    assert blocker.short == ("coreless",)
    assert "threads: 0, of which a worker runs ten" in waiting_states([blocker], 1.0)[0].what
