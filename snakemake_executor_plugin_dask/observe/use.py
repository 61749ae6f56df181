"""What workers held over a run, what jobs held of it, and what they used. Pure; from a `RunModel`."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.records import OthersHeld, first


@dataclass(frozen=True, slots=True)
class Held:
    """Resource-seconds, or at one moment: what workers hold, and what jobs hold of it."""

    cores: float = 0.0
    memory_mb: float = 0.0
    gpus: float = 0.0
    job_cores: float = 0.0
    job_memory_mb: float = 0.0
    job_gpus: float = 0.0
    job_cpu: float = 0.0  # CPU time that was really used, spread evenly over each attempt
    job_peak_memory_mb: float = 0.0  # sum of the peaks of the attempts of that time


def steps(model: RunModel) -> list[tuple[float, Held]]:
    """What was held and used, from each moment to the next; the last one is all zero. Times ascend, each once."""
    changes: dict[float, list[float]] = {}
    for start, end, amounts in _spans(model):
        for when, sign in ((start, 1), (end, -1)):
            at = changes.setdefault(when, [0.0] * 8)
            for i, amount in enumerate(amounts):
                at[i] += sign * amount
    total = [0.0] * 8
    result = []
    for when in sorted(changes):
        total = [a + b for a, b in zip(total, changes[when], strict=True)]
        result.append((when, Held(*(0.0 if abs(amount) < 1e-6 else amount for amount in total))))
    return result


def integral(model: RunModel) -> Held:
    """Resource-seconds over the whole run."""
    totals = [0.0] * 8
    for start, end, amounts in _spans(model):
        for i, amount in enumerate(amounts):
            if amount:
                totals[i] += amount * (end - start)
    return Held(*totals)


def _spans(model: RunModel) -> Iterator[tuple[float, float, tuple[float, ...]]]:
    """(from, until, what), in the order of `Held`."""
    last = model.end_time
    for start, gone, cores, memory_mb, gpus in _holdings(model):
        end = last if gone is None else min(gone, last)
        if end > start:
            yield start, end, (cores, memory_mb, gpus, 0, 0, 0, 0, 0)
    for start, end, others in others_spans(model):  # which is no part of what this run had
        if end > start:
            yield start, end, (-others.cores, -others.memory_mb, -others.gpus, 0, 0, 0, 0, 0)
    for attempt in model.attempts.values():
        if attempt.placed is None:
            continue
        span = (attempt.ended or last) - attempt.placed
        end = last if attempt.ended is None else min(attempt.ended, last)
        if span > 0 and end > attempt.placed:
            cpu = min((attempt.cpu_s or 0.0) / span, 4.0 * attempt.cores)
            amounts = (attempt.cores, attempt.memory_total_mb, attempt.gpus, cpu, attempt.peak_memory_mb or 0)
            yield attempt.placed, end, (0, 0, 0, *amounts)


def _holdings(model: RunModel) -> list[tuple[float, float | None, float, float, float]]:
    """(from, until, cores, memory, GPUs) of each worker: from its allocation's start until that is gone.

    An allocation that ran and whose worker never joined counts with its pool's size.
    """
    latest = {allocation.worker: allocation for allocation in model.allocations}
    result: list[tuple[float, float | None, float, float, float]] = []
    for worker in model.workers:
        allocation = latest.get(worker.name)
        start, end = worker.joined, worker.gone
        if allocation is not None:
            start = min(start, first(allocation.running, start))
            end = max(end, allocation.gone) if end is not None and allocation.gone is not None else end
        result.append((start, end, worker.cores, worker.memory_mb, worker.gpus))
    for allocation in model.allocations:
        if allocation.running is not None and not allocation.joined:
            pool = model.pools[allocation.pool]
            nodes = pool.nodes or 1
            size = (pool.cores or 0) * nodes, (pool.memory_mb or 0) * nodes, (pool.gpus or 0) * nodes
            result.append((allocation.running, allocation.gone, *size))
    return result


def others_spans(model: RunModel) -> list[tuple[float, float, OthersHeld]]:
    """(from, until, what) other runs held of this run's workers."""
    changes = [*model.others_held, (model.end_time, OthersHeld())]
    return [(start, end, held) for (start, held), (end, _) in pairwise(changes)]


def worker_use(model: RunModel) -> dict[str, float]:
    """Core-seconds that jobs held on each worker."""
    used: dict[str, float] = {}
    for attempt in model.attempts.values():
        if attempt.placed is not None:
            for stay in attempt.all_stays():
                span = first(stay.until, attempt.ended, model.end_time) - stay.since
                used[stay.worker] = used.get(stay.worker, 0.0) + span * stay.cores
    return used


def allocation_wait_s(model: RunModel) -> float:
    """How long jobs waited for a pool of which allocations were queued: a union of times, over all pools."""
    waits = [
        (attempt.queued, first(attempt.placed, attempt.ended, model.end_time), attempt.pool)
        for attempt in model.attempts.values()
    ]
    queued = [(a.submitted, a.submitted + a.queue_s(model.end_time), a.pool) for a in model.allocations]
    spans: list[tuple[float, float]] = []
    for pool in {pool for _, _, pool in queued if model.pools[pool].batch}:
        # A job that was never placed may carry no pool: it waits for any of them.
        jobs = _union((start, end) for start, end, name in waits if name in (pool, ""))
        spans += _both(jobs, _union((start, end) for start, end, name in queued if name == pool))
    return sum(end - start for start, end in _union(spans))


def _union(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    result: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        elif end > start:
            result.append((start, end))
    return result


def _both(first: list[tuple[float, float]], second: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where two sorted lists of disjoint spans overlap."""
    result = []
    i = j = 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < end:
            result.append((start, end))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return result
