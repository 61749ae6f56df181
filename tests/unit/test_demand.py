"""How many workers a pool should have, and which are given back."""

import heapq
import itertools
import random
import time
from typing import Any

import pytest
from deciding import a_job, a_ledger, a_pool, facts_of, hold, waiting_for, worker

from snakemake_executor_plugin_dask.decide.demand import Recommendation, recommend
from snakemake_executor_plugin_dask.decide.ledger import Ledger
from snakemake_executor_plugin_dask.decide.placement import place
from snakemake_executor_plugin_dask.decide.routing import shape_of
from snakemake_executor_plugin_dask.decide.waiting import Waiting
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.pools import Pool, Shape
from snakemake_executor_plugin_dask.model.requests import Request

POOL = a_pool(cores=2, walltime_s=3600.0)


def advice(pool: Pool, waiting: Waiting, ledger: Ledger, **more: Any) -> Recommendation:
    """What is recommended for this pool; ``more`` replaces the quiet defaults."""
    arguments: dict[str, Any] = {"starting": 0, "soon": (), "now": 0.0, "shape": shape_of(pool)} | more
    return recommend(pool, waiting.classes(pool.name), ledger, **arguments)


def jobs(number: int, **request: Any) -> list[QueuedJob]:
    return [a_job(**request) for _ in range(number)]


@pytest.mark.parametrize("runtime_s", [None, 60.0])
@pytest.mark.parametrize("up", [0, 1])
def test_a_dozen_jobs_ask_for_all_four_workers(runtime_s: float | None, up: int) -> None:
    """Twelve jobs on two-core workers are worth all that may come, with or without a first worker."""
    ledger = a_ledger(POOL, *(["w"] * up))
    waiting = waiting_for(POOL, jobs(12, runtime_s=runtime_s))
    place(waiting, ledger, 0.0)
    assert advice(POOL, waiting, ledger) == Recommendation(4)


def test_a_full_pool_at_work_stays_as_it_is() -> None:
    """Where no further worker may come, nothing idles and jobs wait, there is nothing to change."""
    pool = a_pool(cores=2, workers_max=2)
    ledger = a_ledger(pool, "a", "b")
    waiting = waiting_for(pool, jobs(12))
    place(waiting, ledger, 0.0)
    assert len(waiting)
    assert advice(pool, waiting, ledger) == Recommendation(2)
    ledger.drain("b")  # it still counts among those that may be there
    assert advice(pool, waiting, ledger) == Recommendation(1)


def test_idle_workers_are_looked_at_where_nothing_waits() -> None:
    """The least number stays until the time-out and after it; one more goes with it."""
    pool = a_pool(cores=2, workers_min=1, workers_max=4, idle_timeout_s=100.0)
    ledger = a_ledger(pool, "a", "b")
    assert advice(pool, Waiting(), ledger, now=99.0) == Recommendation(2)
    assert len(advice(pool, Waiting(), ledger, now=100.0).give_back) == 1
    assert advice(pool, Waiting(), Ledger()) == Recommendation(1)


def test_no_more_than_the_jobs_can_use() -> None:
    """Three one-core jobs take two workers of two cores."""
    assert advice(POOL, waiting_for(POOL, jobs(3)), Ledger()).workers == 2


def test_jobs_that_end_before_a_worker_could_start_ask_for_none() -> None:
    """Waiting a few seconds for a running worker beats starting one."""
    ledger = a_ledger(POOL, "w")
    waiting = waiting_for(POOL, jobs(6, runtime_s=5.0))
    place(waiting, ledger, 0.0)
    assert advice(POOL, waiting, ledger, startup_s=60.0).workers == 1


def test_short_jobs_share_places() -> None:
    """A thousand short jobs do not ask for a thousand workers, and long ones do."""
    pool = a_pool(cores=1, workers_max=2000, walltime_s=3600.0)
    short = advice(pool, waiting_for(pool, jobs(1000, runtime_s=60.0)), Ledger(), startup_s=120.0).workers
    assert 100 <= short <= 200
    assert advice(pool, waiting_for(pool, jobs(1000, runtime_s=1800.0)), Ledger()).workers == 1000
    assert advice(pool, waiting_for(pool, jobs(1000)), Ledger()).workers == 1000


@pytest.mark.parametrize(
    ("request_", "workers"),
    [
        ({"cores": 5}, 10),
        ({"cores": 4}, 5),
        ({"cores": 1, "memory_mb": 6000}, 10),
        ({"cores": 1, "memory_mb": 3000}, 4),
        ({"cores": 1, "gpus": 2}, 5),
        ({"cores": 1, "gpus": 3}, 10),
        ({"cores": 1, "extra": (("licence", 1),)}, 10),
        ({"cores": 0}, 1),
    ],
)
def test_packing_counts_every_resource(request_: dict[str, Any], workers: int) -> None:
    """Ten jobs, packed by what is scarce for them on workers of eight cores, 10 GB, and four GPUs."""
    pool = a_pool(cores=8, memory_mb=10_000, gpus=4, resources=(("licence", 1),), workers_max=50)
    assert advice(pool, waiting_for(pool, jobs(10, **request_)), Ledger()).workers == workers


def test_whole_nodes_are_packed_into_wide_workers() -> None:
    """Two jobs of two nodes share a worker of four."""
    pool = a_pool(nodes=4, cores=4, workers_max=10)
    assert advice(pool, waiting_for(pool, jobs(4, cores=8, nodes=2)), Ledger()).workers == 2
    assert advice(pool, waiting_for(pool, jobs(4, cores=12, nodes=3)), Ledger()).workers == 4


def test_a_job_on_several_workers_asks_for_all_of_them() -> None:
    """Also where they have room for more than its part."""
    pool = a_pool("mpi", "mpi", cores=8, workers_max=4)
    assert advice(pool, waiting_for(pool, jobs(1, cores=3, nodes=3, mpi=True)), Ledger()).workers == 3


def test_free_and_starting_workers_come_first() -> None:
    """What is there, and what was asked for already, is not asked for again."""
    ledger = a_ledger(POOL, "w")
    hold(ledger, "x", ["w"], Request(1), 0.0)
    waiting = waiting_for(POOL, jobs(3))
    assert advice(POOL, waiting, ledger, starting=1).workers == 2
    assert advice(POOL, waiting_for(POOL, jobs(4)), ledger, starting=1).workers == 3


def test_what_ends_before_a_new_worker_is_up_counts_as_free() -> None:
    """Known ends within the start-up time spare a worker."""
    ledger = a_ledger(POOL, "w")
    hold(ledger, "x", ["w"], Request(2, runtime_s=20.0), 0.0)
    waiting = waiting_for(POOL, jobs(2))
    assert advice(POOL, waiting, ledger, startup_s=30.0).workers == 1
    assert advice(POOL, waiting, ledger, startup_s=10.0).workers == 2


def test_too_short_a_life_is_no_room() -> None:
    """Jobs that a worker's remaining life does not cover need another one."""
    ledger = a_ledger(POOL, "w")
    hold(ledger, "x", ["w"], Request(1), 0.0)
    waiting = waiting_for(POOL, jobs(1, runtime_s=1800.0))
    assert advice(POOL, waiting, ledger, now=1000.0).workers == 1
    assert advice(POOL, waiting, ledger, now=2000.0).workers == 2


def test_the_bounds_hold() -> None:
    """Never more than the most, never fewer than the least."""
    pool = a_pool(workers_min=2, workers_max=3)
    assert advice(pool, Waiting(), Ledger()).workers == 2
    assert advice(pool, waiting_for(pool, jobs(100)), Ledger()).workers == 3
    ledger = a_ledger(pool, "a", "b", "c")
    assert advice(pool, Waiting(), ledger, now=1000.0) == Recommendation(2, ("c",))


def test_draining_workers_count_against_the_most() -> None:
    """They hold their allocation until they are gone."""
    ledger = a_ledger(POOL, "a", "b", "c", "d")
    for name in "abcd":
        hold(ledger, name, [name], Request(2), 0.0)
    ledger.drain("a")
    assert advice(POOL, waiting_for(POOL, jobs(10)), ledger).workers == 3


def test_idle_workers_are_given_back_after_the_timeout() -> None:
    """Only those that nothing needs, and none on which something runs."""
    pool = a_pool(idle_timeout_s=60.0)
    ledger = a_ledger(pool, "busy", "idle", "other")
    hold(ledger, "x", ["busy"], Request(1), 0.0)
    assert advice(pool, Waiting(), ledger, now=59.0) == Recommendation(3)
    assert advice(pool, Waiting(), ledger, now=60.0) == Recommendation(1, ("other", "idle"))
    ledger.release("x", 100.0)
    assert advice(pool, Waiting(), ledger, now=150.0) == Recommendation(1, ("other", "idle"))
    assert advice(pool, Waiting(), ledger, now=160.0).workers == 0


def test_a_pool_of_fixed_size_gives_nothing_back() -> None:
    """Idle or not."""
    pool = a_pool("p", "local", workers_min=2, workers_max=2)
    assert advice(pool, Waiting(), a_ledger(pool, "a", "b"), now=1e6) == Recommendation(2)


def test_jobs_that_become_ready_soon_keep_and_bring_workers() -> None:
    """They may use what runs now, since they become ready when that ends; only the rest asks for more."""
    ledger = a_ledger(POOL, "a", "b")
    hold(ledger, "x", ["a"], Request(2), 0.0)
    assert advice(POOL, Waiting(), ledger, soon=[(Request(1), 2)], now=100.0) == Recommendation(1, ("b",))
    assert advice(POOL, Waiting(), ledger, soon=[(Request(1), 3)], now=100.0) == Recommendation(2)
    assert advice(POOL, Waiting(), ledger, soon=[(Request(1), 6)], now=100.0) == Recommendation(3)


def test_what_waits_makes_room_for_what_follows_it() -> None:
    """Four jobs and the four that follow them take the same two workers, there or not; eight that follow take more."""
    for there in (0, 1, 2):
        ledger = a_ledger(POOL, *"ab"[:there])
        waiting = waiting_for(POOL, jobs(4))
        assert advice(POOL, waiting, ledger, soon=[(Request(1), 4)]).workers == 2
        assert advice(POOL, waiting, ledger, soon=[(Request(1), 8)]).workers == 4


def test_starting_workers_count_where_they_are_needed() -> None:
    """By what waits, or becomes ready when what runs has ended; the others may be called back."""
    ledger = a_ledger(POOL, "a")
    hold(ledger, "x", ["a"], Request(2), 0.0)
    assert advice(POOL, Waiting(), ledger, starting=2).workers == 1
    assert advice(POOL, waiting_for(POOL, jobs(3)), ledger, starting=2).workers == 3
    assert advice(POOL, Waiting(), ledger, starting=2, soon=[(Request(1), 4)]).workers == 2


def test_an_idle_worker_at_its_end_makes_room_while_work_remains() -> None:
    """It stands in the way where no more may come; without work it just ends."""
    pool = a_pool(workers_min=1, workers_max=1, walltime_s=3600.0)
    ledger = a_ledger(pool, "old")
    hold(ledger, "x", ["old"], Request(1), 0.0)
    ledger.release("x", 3200.0)
    waiting = waiting_for(pool, jobs(1, runtime_s=600.0))
    assert advice(pool, waiting, ledger, now=3201.0) == Recommendation(1, ("old",))
    assert advice(pool, Waiting(), ledger, now=3201.0) == Recommendation(1)


def test_a_job_that_needs_a_new_allocation_replaces_an_idle_worker() -> None:
    """Where there is room a worker is added, else an idle used one gives way; an unused one serves as it is."""
    whole = {"runtime_s": 3600.0}
    one = a_pool(walltime_s=3600.0, workers_max=1)
    two = a_pool(walltime_s=3600.0, workers_max=2)
    for pool, expected in ((one, Recommendation(1, ("old",))), (two, Recommendation(2))):
        ledger = a_ledger(pool, "old")
        hold(ledger, "x", ["old"], Request(1), 0.0)
        ledger.release("x", 1.0)
        assert advice(pool, waiting_for(pool, jobs(1, **whole)), ledger, now=20.0) == expected
    assert advice(one, waiting_for(one, jobs(1, **whole)), a_ledger(one, "new")) == Recommendation(1)
    waiting = waiting_for(one, jobs(1), fresh=True)
    ledger = a_ledger(one, "old")
    hold(ledger, "x", ["old"], Request(1), 0.0)
    assert advice(one, waiting, ledger, now=20.0) == Recommendation(1), "not from under a running job"


def test_no_more_workers_give_way_than_are_needed() -> None:
    """One new allocation holds four such jobs, so three idle workers stay."""
    pool = a_pool(cores=4, walltime_s=3600.0, workers_max=4)
    ledger = a_ledger(pool, *"abcd")
    for name in "abcd":
        hold(ledger, name, [name], Request(4), 0.0)
        ledger.release(name, 1900.0)
    found = advice(pool, waiting_for(pool, jobs(4), fresh=True), ledger, now=1901.0)
    assert (found.workers, len(found.give_back)) == (4, 1)


def test_jobs_that_need_a_new_allocation_share_it() -> None:
    """As many as fit in one, whether they come together or shortly after one another."""
    pool = a_pool(cores=4, walltime_s=3600.0)
    ledger = a_ledger(pool, "old")
    hold(ledger, "x", ["old"], Request(4), 0.0)
    waiting = waiting_for(pool, jobs(3), fresh=True)
    assert advice(pool, waiting, ledger, now=3000.0) == Recommendation(2)
    ledger.add_worker("new", pool, facts_of(pool, "new"), 3001.0)
    assert len(place(waiting, ledger, 3001.0)) == 3
    late = waiting_for(pool, jobs(1), fresh=True)
    assert advice(pool, late, ledger, now=3005.0) == Recommendation(2)
    assert len(place(late, ledger, 3005.0)) == 1


def test_an_unknown_size_asks_for_one_worker_to_look_at() -> None:
    """Until one was seen, it is taken to hold everything."""
    pool = a_pool(cores=None, memory_mb=None)
    assert advice(pool, waiting_for(pool, jobs(100)), Ledger(), shape=Shape(gpus=0)).workers == 1


def test_thousands_of_different_requests_pack_quickly() -> None:
    """The number follows from the sums, and it takes a fraction of a second."""
    pool = a_pool(cores=16, memory_mb=64_300, workers_max=10_000, walltime_s=36_000.0)
    chance = random.Random(0)
    different = [a_job(cores=2, memory_mb=chance.randint(7000, 8000), runtime_s=3000.0 + n) for n in range(10_000)]
    waiting = waiting_for(pool, different)
    begun = time.process_time()
    workers = advice(pool, waiting, Ledger()).workers
    assert time.process_time() - begun < 5.0
    assert 1250 <= workers <= 1400


class Elastic:
    """Placement and demand in a closed loop, with allocations that take time to start and end by themselves."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        chance = self.random
        most = chance.randint(1, 4)
        self.pool = a_pool(
            cores=4,
            gpus=chance.choice([None, 2]),
            walltime_s=1800.0,
            workers_min=chance.choice([0, 0, min(1, most)]),
            workers_max=most,
        )
        self.startup_s = chance.choice([1.0, 20.0, 100.0])
        self.ledger, self.waiting = Ledger(), Waiting()
        self.events: list[tuple[float, int, str, str]] = []
        self.numbers = itertools.count()
        self.starting = 0
        self.running: dict[str, QueuedJob] = {}

    def at(self, when: float, what: str, name: str = "") -> None:
        heapq.heappush(self.events, (when, next(self.numbers), what, name))

    def run(self, number: int) -> float:
        for job in (self.job() for _ in range(number)):
            self.waiting.add(job, self.pool, 0.0)
        now = 0.0
        self.at(0.0, "tick")
        while len(self.waiting) or self.running or self.ledger.workers():
            now, _, what, name = heapq.heappop(self.events)
            assert now < 3 * 86400, f"{[cls.request for cls in self.waiting.classes('pool')]} waits for ever"
            self.happens(what, name, now)
            self.place(now)
            if not (len(self.waiting) or self.running) and self.pool.workers_min:
                break
        return now

    def job(self) -> QueuedJob:
        runtime_s = self.random.choice([None, 60.0, 600.0, 1620.0, 1700.0, 1800.0])
        gpus = self.random.randint(0, self.pool.gpus) if self.pool.gpus else 0
        return a_job(cores=self.random.randint(1, 4), runtime_s=runtime_s, gpus=gpus)

    def happens(self, what: str, name: str, now: float) -> None:
        if what == "join":
            self.starting -= 1
            self.ledger.add_worker(name, self.pool, facts_of(self.pool, name), now)
            self.at(now + 1800.0, "end", name)
        elif what == "done" and name in self.running:
            del self.running[name]
            self.ledger.release(name, now)
        elif what == "end" and name in self.ledger.workers():
            for key in self.ledger.remove_worker(name):
                self.ledger.release(key, now)
                job = self.running.pop(key)
                assert job.request.runtime_s is None, "the allocation ended under a job that declared its runtime"
                self.waiting.add(a_job(f"{key}+", cores=job.request.cores), self.pool, now, fresh=True)
        elif what == "tick":
            self.scale(now)
            self.at(now + 5.0, "tick")

    def scale(self, now: float) -> None:
        found = advice(self.pool, self.waiting, self.ledger, now=now, starting=self.starting, startup_s=self.startup_s)
        for name in found.give_back:
            assert not worker(self.ledger, name).held, "a worker is given back under a running job"
            self.ledger.remove_worker(name)
        up = len(self.ledger.workers())
        assert self.pool.workers_min <= found.workers <= self.pool.workers_max
        for _ in range(found.workers - up - self.starting):
            self.starting += 1
            self.at(now + self.startup_s, "join", f"w{next(self.numbers)}")
        assert up + self.starting <= self.pool.workers_max

    def place(self, now: float) -> None:
        for job, holding in place(self.waiting, self.ledger, now):
            self.running[job.key] = job
            # Without a runtime most end well within the half walltime that is assumed, a few take longer.
            longest = job.request.runtime_s or self.random.choice([600.0, 600.0, 1700.0])
            took = min(self.random.uniform(1.0, longest), holding.limit_s or longest)
            self.at(now + took, "done", job.key)


@pytest.mark.parametrize("block", range(5))
def test_an_elastic_pool_finishes_whatever_fits(block: int) -> None:
    """Random jobs up to the whole walltime all run, within the bounds, and every worker is given back at the end."""
    for seed in range(block * 12, block * 12 + 12):
        pool = Elastic(seed)
        pool.run(pool.random.choice([3, 30]))
        assert not pool.running
        assert len(pool.ledger.workers()) <= max(pool.pool.workers_min, pool.pool.workers_max)
