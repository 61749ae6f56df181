"""Which waiting job starts, and where."""

import pytest
from deciding import a_job, a_ledger, a_pool, facts_of, hold, waiting_for, worker

from snakemake_executor_plugin_dask.decide.blockers import blockers
from snakemake_executor_plugin_dask.decide.ledger import Ledger, WorkerState
from snakemake_executor_plugin_dask.decide.needs import Need
from snakemake_executor_plugin_dask.decide.placement import PATIENCE_S, place
from snakemake_executor_plugin_dask.decide.waiting import Waiting
from snakemake_executor_plugin_dask.model.requests import Request

POOL = a_pool(cores=2)


def started(waiting: Waiting, ledger: Ledger, now: float = 0.0) -> list[str]:
    return [job.key for job, _ in place(waiting, ledger, now)]


def test_priority_comes_first_then_arrival() -> None:
    """Snakemake's priority rules, also where it is no whole number, and the rest is first come, first served."""
    jobs = [a_job("second", priority=0.1), a_job("third"), a_job("first", priority=0.9), a_job("last")]
    waiting, ledger = waiting_for(POOL, jobs), a_ledger(POOL, "w")
    order = []
    for now in range(4):
        order += started(waiting, ledger, now)
        for key in order:
            if ledger.holding(key):
                ledger.release(key, now)
    assert order == ["first", "second", "third", "last"]
    assert len(waiting) == 0


def test_what_starts_is_held_and_waits_no_longer() -> None:
    """Placing takes from the waiting jobs and from what is free."""
    waiting, ledger = waiting_for(POOL, [a_job("a"), a_job("b"), a_job("c")]), a_ledger(POOL, "w")
    assert started(waiting, ledger) == ["a", "b"]
    assert [key for key in "abc" if key in waiting] == ["c"]
    assert worker(ledger, "w").free.cores == 0
    assert ledger.holding("a") is not None
    assert started(waiting, ledger, 1.0) == []


def test_nothing_starts_without_a_worker_of_its_pool() -> None:
    """Jobs wait for their own pool."""
    other = a_pool("other")
    waiting = waiting_for(POOL, [a_job("a")])
    assert started(waiting, a_ledger(other, "w")) == []


def test_small_jobs_pass_a_large_one_that_does_not_fit() -> None:
    """A job that does not fit yet keeps none waiting that fit."""
    waiting = waiting_for(POOL, [a_job("one"), a_job("large", cores=2, priority=1), a_job("two")])
    ledger = a_ledger(POOL, "w")
    hold(ledger, "running", ["w"], Request(1), 0.0)
    assert started(waiting, ledger) == ["one"]


def test_a_large_job_gets_a_worker_when_its_patience_ends() -> None:
    """Where ends are not known, others may pass for a while; then a worker is kept."""
    ledger = a_ledger(POOL, "w")
    hold(ledger, "x", ["w"], Request(1), 0.0)
    hold(ledger, "y", ["w"], Request(1), 0.0)
    waiting = waiting_for(POOL, [a_job("large", cores=2)])
    assert started(waiting, ledger) == []
    waiting.add(a_job("small"), POOL, 1.0)
    ledger.release("x", 10.0)
    assert started(waiting, ledger, 10.0) == ["small"]
    assert started(waiting, ledger, PATIENCE_S) == []
    waiting.add(a_job("small-2"), POOL, PATIENCE_S)
    ledger.release("small", PATIENCE_S + 1)
    assert started(waiting, ledger, PATIENCE_S + 1) == [], "the core is kept"
    (large, small) = blockers(waiting, ledger, PATIENCE_S + 1)
    assert large.short == ("cores",)
    assert (small.short, small.reserved_for) == (("reserved",), "rule")
    ledger.release("y", PATIENCE_S + 2)
    assert started(waiting, ledger, PATIENCE_S + 2) == ["large"]


def test_with_known_ends_only_what_does_not_delay_passes() -> None:
    """A job that ends before the large one can start passes; a longer one waits."""
    ledger = a_ledger(POOL, "w")
    hold(ledger, "x", ["w"], Request(1, runtime_s=600.0), 0.0)
    waiting = waiting_for(POOL, [a_job("large", cores=2, runtime_s=60.0)])
    assert started(waiting, ledger) == []
    waiting.add(a_job("long", runtime_s=601.0), POOL, 1.0)
    waiting.add(a_job("unknown"), POOL, 1.0)
    waiting.add(a_job("short", runtime_s=500.0), POOL, 1.0)
    assert started(waiting, ledger, 2.0) == ["short"]
    ledger.release("x", 3.0)
    ledger.release("short", 4.0)
    assert started(waiting, ledger, 5.0) == ["large"]


def test_what_fits_beside_the_large_job_passes() -> None:
    """A kept worker is open to jobs that leave enough for the one it is kept for."""
    pool = a_pool(cores=4)
    ledger = a_ledger(pool, "w")
    hold(ledger, "x", ["w"], Request(2, runtime_s=600.0), 0.0)
    waiting = waiting_for(pool, [a_job("large", cores=3)])
    assert started(waiting, ledger) == []
    waiting.add(a_job("one"), pool, 1.0)
    waiting.add(a_job("two"), pool, 1.0)
    assert started(waiting, ledger, 2.0) == ["one"]


def test_a_reservation_falls_with_its_job() -> None:
    """When the large job is taken back, the others start."""
    ledger = a_ledger(POOL, "w")
    hold(ledger, "x", ["w"], Request(1, runtime_s=600.0), 0.0)
    waiting = waiting_for(POOL, [a_job("large", cores=2)])
    assert started(waiting, ledger) == []
    waiting.add(a_job("small"), POOL, 1.0)
    assert started(waiting, ledger, 1.0) == []
    assert waiting.discard("large") is not None
    assert started(waiting, ledger, 2.0) == ["small"]


def test_a_higher_priority_is_not_bound_by_a_reservation() -> None:
    """What is before the large job in order does not wait for it."""
    ledger = a_ledger(POOL, "w")
    hold(ledger, "x", ["w"], Request(1, runtime_s=600.0), 0.0)
    waiting = waiting_for(POOL, [a_job("large", cores=2)])
    assert started(waiting, ledger) == []
    waiting.add(a_job("first", priority=1), POOL, 1.0)
    assert started(waiting, ledger, 1.0) == ["first"]


def test_busy_workers_are_filled_first() -> None:
    """So that the others can go idle and be given back."""
    ledger = a_ledger(POOL, "a", "b")
    hold(ledger, "x", ["b"], Request(1), 0.0)
    waiting = waiting_for(POOL, [a_job("j")])
    place(waiting, ledger, 0.0)
    assert ledger.holding("j").workers == ("b",)  # type: ignore[union-attr]


def test_tight_fits_leave_large_gaps() -> None:
    """Of two busy workers the one with the smaller gap takes a small job, and the one without spare GPUs too."""
    pool = a_pool(cores=8, gpus=4)
    ledger = a_ledger(pool, "a", "b")
    hold(ledger, "x", ["a"], Request(1), 0.0)
    hold(ledger, "y", ["b"], Request(1, gpus=3), 0.0)
    waiting = waiting_for(pool, [a_job("plain"), a_job("all", gpus=4)])
    place(waiting, ledger, 0.0)
    assert ledger.holding("plain").workers == ("b",)  # type: ignore[union-attr]
    assert ledger.holding("all").workers == ("a",)  # type: ignore[union-attr]


def test_a_job_on_several_workers_starts_on_all_at_once() -> None:
    """Workers are counted where there is room on all of them at the same time."""
    pool = a_pool("mpi", "mpi", cores=2, workers_min=3, workers_max=3)
    ledger = a_ledger(pool, "x", "y", "z")
    for name in "xy":
        hold(ledger, name, [name], Request(1, runtime_s=100.0), 0.0)
    waiting = waiting_for(pool, [a_job("gang", cores=4, nodes=2)])
    assert started(waiting, ledger) == []
    (blocker,) = blockers(waiting, ledger, 0.0)
    assert blocker.short == ("workers",)
    assert blocker.free["workers"] == 1
    assert blocker.need["workers"] == 2
    assert blocker.frees_at == 100.0
    ledger.release("x", 1.0)
    assert started(waiting, ledger, 1.0) == ["gang"]
    assert set(ledger.holding("gang").workers) == {"x", "z"}  # type: ignore[union-attr]


def test_a_new_allocation_goes_to_the_job_that_needs_one() -> None:
    """A job for a whole walltime is not kept waiting by a queue of short ones that would use up each allocation."""
    pool = a_pool(cores=2, walltime_s=3600.0, workers_max=2)
    ledger = a_ledger(pool, "old")
    hold(ledger, "x", ["old"], Request(2), 0.0)
    waiting = waiting_for(pool, [a_job(f"short-{number}", runtime_s=60.0) for number in range(10)])
    waiting.add(a_job("whole", runtime_s=3600.0), pool, 0.0)
    assert started(waiting, ledger) == []
    assert blockers(waiting, ledger, 0.0)[-1].short == ("cores",)
    ledger.add_worker("new", pool, facts_of(pool, "new"), PATIENCE_S + 1)
    begun = {job.key: holding for job, holding in place(waiting, ledger, PATIENCE_S + 1)}
    assert set(begun) == {"whole", "short-0"}
    assert begun["whole"].limit_s is not None
    assert begun["whole"].limit_s == 3570.0


def test_a_worker_goes_idle_for_a_job_that_needs_a_new_allocation() -> None:
    """Where no further worker may come, the one that ends first takes nothing more."""
    pool = a_pool(cores=2, walltime_s=3600.0, workers_max=1)
    ledger = a_ledger(pool, "old")
    waiting = waiting_for(pool, [a_job("whole", runtime_s=3600.0)])
    hold(ledger, "x", ["old"], Request(1), 0.0)
    hold(ledger, "y", ["old"], Request(1), 0.0)
    assert started(waiting, ledger, PATIENCE_S + 1) == []
    waiting.add(a_job("short"), pool, PATIENCE_S + 1)
    ledger.release("x", PATIENCE_S + 2)
    assert started(waiting, ledger, PATIENCE_S + 2) == []
    assert [blocker.short for blocker in blockers(waiting, ledger, PATIENCE_S + 2)] == [("fresh",), ("reserved",)]


def test_what_waits_is_grouped_by_what_it_asks_for() -> None:
    """Resources that the pool does not list split no class."""
    waiting = Waiting()
    for number in range(5):
        waiting.add(a_job(f"a{number}", rule="a", extra=(("disk_mb", number + 1),)), POOL, number)
    waiting.add(a_job("b", rule="b", memory_mb=7), POOL, 9.0)
    waiting.add(a_job("again", rule="c"), POOL, 9.0, fresh=True)
    classes = waiting.classes("pool")
    assert [(cls.count, cls.fresh, cls.since, cls.names) for cls in classes] == [
        (5, False, 0, ("a",)),
        (1, False, 9.0, ("b",)),
        (1, True, 9.0, ("c",)),
    ]
    assert waiting.classes("other") == []


def test_a_key_waits_once() -> None:
    """A second job of the same key is an error, and one that does not wait is not found."""
    waiting = waiting_for(POOL, [a_job("a")])
    with pytest.raises(ValueError, match="waits already"):
        waiting.add(a_job("a"), POOL, 0.0)
    assert waiting.discard("b") is None
    job = waiting.discard("a")
    assert job is not None
    assert len(waiting) == 0
    waiting.add(job, POOL, 0.0)
    assert "a" in waiting


def test_what_blocks_is_told_with_amounts() -> None:
    """What is short, how much is needed and free, and when there will be room."""
    pool = a_pool(cores=8, memory_mb=8000, gpus=4, resources=(("licence", 1),))
    ledger = a_ledger(pool, "w")
    hold(ledger, "x", ["w"], Request(6, 6000, 500.0, gpus=3, extra=(("licence", 1),)), 0.0)
    jobs = [
        a_job("cores", cores=3, memory_mb=1),
        a_job("memory", memory_mb=3000),
        a_job("gpus", gpus=2),
        a_job("licence", extra=(("licence", 1),)),
    ]
    told = {
        names: blocker
        for job in jobs
        for names, blocker in [(job.key, blockers(waiting_for(pool, [job]), ledger, 0.0)[0])]
    }
    for key, blocker in told.items():
        assert blocker.short == (key,)
        assert blocker.frees_at == 500.0
    assert told["gpus"].need["gpus"] == 2
    assert told["gpus"].free["gpus"] == 1
    assert blockers(waiting_for(pool, jobs), Ledger(), 0.0)[0].short == ("worker",)


def test_a_worker_near_its_end_is_told_as_what_blocks() -> None:
    """Remaining life is a reason like any other."""
    pool = a_pool(walltime_s=3600.0)
    ledger = a_ledger(pool, "w")
    hold(ledger, "x", ["w"], Request(1), 0.0)
    waiting = waiting_for(pool, [a_job("a", runtime_s=1200.0)])
    assert started(waiting, ledger, 3000.0) == []
    assert blockers(waiting, ledger, 3000.0)[0].short == ("life",)


def test_a_bounded_round_goes_on_where_it_stopped() -> None:
    pool = a_pool(workers_max=3, cores=4)
    ledger = a_ledger(pool, "a", "b", "c")
    waiting = waiting_for(
        pool, [*(a_job(f"small-{i}") for i in range(8)), *(a_job(f"wide-{i}", cores=2) for i in range(4))]
    )
    rounds = [[job.key for job, _ in place(waiting, ledger, 1.0, 5)] for _ in range(4)]
    assert [len(placed) for placed in rounds] == [5, 5, 0, 0]
    assert [key for placed in rounds for key in placed] == [*(f"small-{i}" for i in range(8)), "wide-0", "wide-1"]
    assert all(state.free.cores == 0 for state in ledger.states(pool.name).values())


def test_a_job_does_not_look_at_all_idle_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    has_room = WorkerState.has_room

    def counted(self: WorkerState, need: Need) -> bool:
        nonlocal looks
        looks += 1
        return has_room(self, need)

    monkeypatch.setattr(WorkerState, "has_room", counted)
    pool = a_pool(workers_max=300, cores=20, memory_mb=100_000)
    ledger = a_ledger(pool, *(f"w{i}" for i in range(300)))
    waiting = waiting_for(pool, [a_job(f"job-{i}", cores=1 + i % 2, memory_mb=100 + i % 50) for i in range(4000)])
    assert len(place(waiting, ledger, 1.0)) == 4000
    assert looks < 4000 * 30


def test_ten_thousand_jobs_wait_without_strain(monkeypatch: pytest.MonkeyPatch) -> None:
    """When one job ends, its worker alone is asked, and only until it is full, however different the jobs are."""
    pool = a_pool(cores=48, memory_mb=180_000)
    ledger = a_ledger(pool, *(f"w{number}" for number in range(20)))
    jobs = (a_job(f"j{number}", cores=24, memory_mb=1000 + number) for number in range(10_000))
    waiting = waiting_for(pool, jobs)
    assert len(place(waiting, ledger, 0.0)) == 40
    asked: list[str] = []
    has_room = WorkerState.has_room

    def counted(state: WorkerState, need: Need) -> bool:
        asked.append(state.name)
        return has_room(state, need)

    monkeypatch.setattr(WorkerState, "has_room", counted)
    worker = ledger.holding("j0").workers[0]  # type: ignore[union-attr]
    ledger.release("j0", 0.5)
    assert started(waiting, ledger, 0.5) == ["j40"]
    assert set(asked) == {worker}
    assert len(asked) < 5
    assert started(waiting, ledger, 0.6) == []
    assert len(asked) < 5
