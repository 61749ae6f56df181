"""How fast jobs are placed, and whether many waiting ones slow it down; one process, no cluster.

`./run bench placement` prints the time of one decision (a job ends, the next one is placed) with 100 and with
10,000 waiting jobs, and their ratio: of equal jobs, of jobs that all differ, and of a look that finds no room; the
time of one recommendation; and the time for each job where all workers are idle, with 100 and with 1,000 of them.
"""

import statistics
import time
from collections.abc import Callable

from snakemake_executor_plugin_dask.decide.demand import recommend
from snakemake_executor_plugin_dask.decide.ledger import Ledger
from snakemake_executor_plugin_dask.decide.placement import place
from snakemake_executor_plugin_dask.decide.routing import shape_of
from snakemake_executor_plugin_dask.decide.waiting import Waiting
from snakemake_executor_plugin_dask.model.jobs import JobSpec, WorkerFacts
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request

POOL = Pool("pool", "slurm", 0, 400, cores=48, memory_mb=180_000, walltime_s=86_400.0)
WORKERS = 200
FEW, MANY = 100, 10_000
DECISIONS = 1000

RequestOf = Callable[[int], Request]


def main() -> None:
    print(f"{WORKERS} workers of {POOL.cores} cores; medians; times are this machine's, ratios are what to compare\n")
    print(f"{'':34}{FEW:>12,} {MANY:>12,} waiting    ratio")
    kinds: dict[str, RequestOf] = {
        "equal jobs": lambda _: Request(2, 4000, 600.0),
        "jobs that all differ": lambda number: Request(2, 4000 + number % 3000, 600.0 + number % 3000),
    }
    for name, request_of in kinds.items():
        report(f"decision, {name}", decision_s(FEW, request_of), decision_s(MANY, request_of))
    for name, request_of in kinds.items():
        report(f"look without room, {name}", look_s(FEW, request_of), look_s(MANY, request_of))
    for name, request_of in kinds.items():
        report(f"recommendation, {name}", recommendation_s(FEW, request_of), recommendation_s(MANY, request_of))
    print(f"\n{'':34}{100:>12,} {1000:>12,} idle       ratio")
    report("placement, jobs of 50 kinds", idle_s(100), idle_s(1000))


def report(name: str, few_s: float, many_s: float) -> None:
    print(f"{name:34}{few_s * 1e6:>9.0f} µs {many_s * 1e6:>9.0f} µs {many_s / few_s:>15.2f}")


def decision_s(number: int, request_of: RequestOf) -> float:
    """A job ends, another one comes, and one starts: the number of waiting jobs stays."""
    waiting, ledger, running = full(number, request_of)
    took = []
    for decision in range(DECISIONS):
        now = 10.0 + decision / 100
        ended = running.pop(0)
        begun = time.perf_counter()
        ledger.release(ended, now)
        waiting.add(a_job(number + 100_000 + decision, request_of), POOL, now)
        placed = place(waiting, ledger, now)
        took.append(time.perf_counter() - begun)
        running += [lease.key for _, lease in placed]
    return statistics.median(took)


def look_s(number: int, request_of: RequestOf) -> float:
    """A job comes, and nothing has room."""
    waiting, ledger, _ = full(number, request_of)
    took = []
    for look in range(200):
        waiting.add(a_job(number + 200_000 + look, request_of), POOL, 10.0)
        begun = time.perf_counter()
        assert not place(waiting, ledger, 10.0 + look)
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def recommendation_s(number: int, request_of: RequestOf) -> float:
    """How many workers all of them need."""
    waiting, ledger, _ = full(number, request_of)
    took = []
    for _ in range(5):
        begun = time.perf_counter()
        recommend(POOL, waiting.classes(POOL.name), ledger, 0, (), 10.0, shape_of(POOL))
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def idle_s(workers: int) -> float:
    """Of each job, where as many wait as idle workers can take."""
    waiting, ledger = Waiting(), Ledger()
    for worker in range(workers):
        ledger.add_worker(f"w{worker}", POOL, WorkerFacts(f"w{worker}", f"host{worker}", 1, 2, 48, 180_000), 0.0)
    for number in range(workers * 24):
        waiting.add(a_job(number, lambda i: Request(1 + i % 3, 2000 + 10 * (i % 50), 600.0)), POOL, 0.0)
    begun, placed = time.perf_counter(), 0
    while now := len(place(waiting, ledger, 1.0, 200)):
        placed += now
    return (time.perf_counter() - begun) / placed


def full(number: int, request_of: RequestOf) -> tuple[Waiting, Ledger, list[str]]:
    """All workers full, and so many jobs waiting."""
    ledger, waiting = Ledger(), Waiting()
    for worker in range(WORKERS):
        name = f"w{worker}"
        facts = WorkerFacts(
            name, f"host{worker}", 1, 2, POOL.cores or 1, POOL.memory_mb or 1, remaining_s=POOL.walltime_s
        )
        ledger.add_worker(name, POOL, facts, 0.0)
    running: list[str] = []
    count = 0
    while len(waiting) < number:
        for _ in range(number - len(waiting)):
            waiting.add(a_job(count, request_of), POOL, 0.0)
            count += 1
        running += [lease.key for _, lease in place(waiting, ledger, 0.0)]
    return waiting, ledger, running


def a_job(number: int, request_of: RequestOf) -> QueuedJob:
    key = f"rule-run-{number}-1.1"
    return QueuedJob.of(JobSpec(key, "rule", str(number), 1, (), 2, "/log"), request_of(number))


if __name__ == "__main__":
    main()
