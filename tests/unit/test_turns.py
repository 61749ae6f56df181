"""Several runs share a cluster evenly over time: the order in which their jobs start."""

import heapq

import pytest

from snakemake_executor_plugin_dask.decide.ledger import Ledger
from snakemake_executor_plugin_dask.decide.placement import place
from snakemake_executor_plugin_dask.decide.turns import Turns
from snakemake_executor_plugin_dask.decide.waiting import Waiting
from snakemake_executor_plugin_dask.model.jobs import JobSpec, WorkerFacts
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.pools import Pool, Shape
from snakemake_executor_plugin_dask.model.requests import Request

POOL = Pool("local", "local", cores=4, memory_mb=4000)
SHAPE = Shape(cores=4, memory_mb=4000)


class World:
    """One worker of four cores, the jobs of some runs, and a clock."""

    def __init__(self) -> None:
        self.turns, self.waiting, self.ledger = Turns(), Waiting(), Ledger()
        self.ledger.add_worker("local-0", POOL, WorkerFacts("local-0", "host", 1, 2, 4, 4000), 0.0)
        self.lasts: dict[str, tuple[float, int]] = {}  # by key: how long the job takes in truth, and its cores
        self.running: list[tuple[float, str]] = []  # until when
        self.since: dict[str, float] = {}
        self.held: dict[str, float] = {}  # by run: core-seconds
        self.now = 0.0

    def come(
        self,
        run: str,
        count: int,
        *,
        cores: int = 1,
        priority: float = 0.0,
        runtime_s: float | None = None,
        lasts_s: float = 60.0,
    ) -> None:
        for _ in range(count):
            key = f"{run}-{len(self.lasts) + 1}"
            self.lasts[key] = lasts_s, cores
            request = Request(cores=cores, runtime_s=runtime_s)
            turn = self.turns.of(key, run, request, POOL, SHAPE, priority)
            job = QueuedJob.of(JobSpec(key, run, "1", 1, (), 1, "log"), request, priority)
            self.waiting.add(job, POOL, self.now, run=run, turn=turn)

    def start(self, most: int) -> list[str]:
        """The keys of the next jobs in their order."""
        started: list[str] = []
        while len(started) < most and (self.waiting or self.running):
            started += self.step()
        return started[:most]

    def pass_time(self, seconds: float) -> dict[str, float]:
        """By run: core-seconds that it held meanwhile."""
        before, until = dict(self.account()), self.now + seconds
        while self.now < until:
            self.step(until)
        return {run: held - before.get(run, 0.0) for run, held in self.account().items()}

    def account(self) -> dict[str, float]:
        held = dict(self.held)
        for _, key in self.running:
            held[key[0]] = held.get(key[0], 0.0) + (self.now - self.since[key]) * self.lasts[key][1]
        return held

    def step(self, until: float = float("inf")) -> list[str]:
        """What starts now; then a second passes, or the time to the next end of a job where that is less."""
        self.waiting.move(self.turns.settle(self.now, self.waiting.firsts()))
        started = [queued.key for queued, _ in place(self.waiting, self.ledger, self.now)]
        for key in started:
            self.turns.started(key, self.now)
            self.since[key] = self.now
            heapq.heappush(self.running, (self.now + self.lasts[key][0], key))
        self.now = min(self.now + 1.0, until, *(end for end, _ in self.running[:1]))
        while self.running and self.running[0][0] <= self.now:
            _, key = heapq.heappop(self.running)
            self.held[key[0]] = self.held.get(key[0], 0.0) + (self.now - self.since[key]) * self.lasts[key][1]
            self.ledger.release(key, self.now)
            self.turns.ended(key, self.now)
        return started


def runs(keys: list[str]) -> str:
    return "".join(key[0] for key in keys)


def test_two_runs_take_turns() -> None:
    """The second run came when a thousand jobs of the first one waited; from then on each has half of the starts."""
    world = World()
    world.come("a", 1000)
    world.start(100)
    world.come("b", 100)
    started = runs(world.start(100))
    assert 45 <= started.count("b") <= 55
    assert "b" in started[:8]


@pytest.mark.parametrize("declared", [None, 3600.0], ids=["undeclared", "declared as long"])
@pytest.mark.parametrize("alone_s", [0, 30, 4000])
def test_what_runs_hold_is_even_however_long_their_jobs_take(declared: float | None, alone_s: float) -> None:
    """Jobs of ten minutes beside jobs of ten seconds, which declare nothing, or the same: each holds half."""
    world = World()
    world.come("a", 500, runtime_s=declared, lasts_s=600.0)
    if alone_s:
        world.pass_time(alone_s)
    world.come("b", 4000, runtime_s=declared, lasts_s=10.0)
    world.pass_time(1200)
    held = world.pass_time(7200)
    assert 0.8 <= held["a"] / held["b"] <= 1.25


@pytest.mark.parametrize("declared", [None, 3600.0], ids=["undeclared", "declared as long"])
def test_who_comes_to_a_run_of_short_jobs_waits_for_none_of_its_past(declared: float | None) -> None:
    """Also where these declare an hour and take seconds: the newcomer's share begins at once."""
    world = World()
    world.come("a", 2000, runtime_s=declared, lasts_s=5.0)
    world.pass_time(500)
    world.come("b", 1000, runtime_s=declared, lasts_s=5.0)
    held = world.pass_time(100)
    assert 0.7 <= held["a"] / held["b"] <= 1.4


def test_one_job_comes_next() -> None:
    """A run of a single job beside one of ten thousand does not wait for these."""
    world = World()
    world.come("a", 10_000)
    world.start(40)
    world.come("b", 1)
    assert "b" in runs(world.start(8))


def test_large_jobs_count_as_large() -> None:
    """A run whose jobs take the whole worker starts a quarter as many as one whose jobs take a core."""
    world = World()
    world.come("a", 400, cores=1)
    world.come("b", 400, cores=4)
    started = runs(world.start(200))
    assert 3 <= started.count("a") / started.count("b") <= 5


def test_priorities_count_within_a_run() -> None:
    """A job of high priority passes those of its own run, and its run gets no more of the starts for it."""
    world = World()
    world.come("a", 100)
    world.come("b", 100)
    world.start(20)
    world.come("a", 1, priority=10.0)
    first = next(key for key in world.start(8) if key.startswith("a"))
    assert first == "a-201"


def test_a_run_that_was_idle_saves_no_turns() -> None:
    """One that had nothing to start for long does not keep the others from starting afterwards."""
    world = World()
    world.come("b", 1)
    world.come("a", 1000)
    world.start(500)
    world.come("b", 400)
    started = runs(world.start(100))
    assert 45 <= started.count("b") <= 55
