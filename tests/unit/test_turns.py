"""Several runs share a cluster evenly: the order in which their jobs start."""

from snakemake_executor_plugin_dask.decide.ledger import Ledger
from snakemake_executor_plugin_dask.decide.placement import Waiting, place
from snakemake_executor_plugin_dask.decide.turns import Turns
from snakemake_executor_plugin_dask.model.jobs import JobSpec, WorkerFacts
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.pools import Pool, Shape
from snakemake_executor_plugin_dask.model.requests import Request

POOL = Pool("local", "local", cores=4, memory_mb=4000)
SHAPE = Shape(cores=4, memory_mb=4000)


class World:
    """One worker of four cores, and the jobs of some runs."""

    def __init__(self) -> None:
        self.turns, self.waiting, self.ledger = Turns(), Waiting(), Ledger()
        self.ledger.add_worker("local-0", POOL, WorkerFacts("local-0", "host", 1, 2, 4, 4000), 0.0)
        self.turn_of: dict[str, float] = {}
        self.number = 0

    def come(self, run: str, count: int, *, cores: int = 1, priority: float = 0.0, runtime_s: float = 60.0) -> None:
        for _ in range(count):
            self.number += 1
            key = f"{run}-{self.number}"
            request = Request(cores=cores, runtime_s=runtime_s)
            turn = self.turn_of[key] = self.turns.of(run, request, POOL, SHAPE, priority)
            job = QueuedJob.of(JobSpec(key, run, "1", 1, (), 1, "log"), request, priority)
            self.waiting.add(job, POOL, 0.0, turn=turn)

    def start(self, most: int) -> list[str]:
        """The keys of the next jobs in their order; each ends before the next look."""
        started: list[str] = []
        while len(started) < most and (placed := place(self.waiting, self.ledger, 0.0)):
            for queued, _ in placed:
                self.turns.started(self.turn_of[queued.key])
                self.ledger.release(queued.key, 0.0)
                started.append(queued.key)
        return started[:most]


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
