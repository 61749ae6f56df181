"""Two runs on one attached cluster, each with a ledger of its own, on a clock of the test's own."""

import heapq
import itertools
import random
from dataclasses import replace

import pytest
from deciding import a_job, a_ledger, a_pool, facts_of, hold, waiting_for, worker

from snakemake_executor_plugin_dask.decide.ledger import Ledger, Others
from snakemake_executor_plugin_dask.decide.placement import PATIENCE_S, Missing, place, place_missing
from snakemake_executor_plugin_dask.decide.reservations import to_claim
from snakemake_executor_plugin_dask.decide.waiting import Waiting
from snakemake_executor_plugin_dask.driver.attached.shared import Claim, Places, SharedLeases, Wanted
from snakemake_executor_plugin_dask.driver.attached.workers import RENEW_EVERY_S
from snakemake_executor_plugin_dask.model.amounts import NOTHING, Amounts
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.kinds import ATTACHED
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.requests import with_cluster

POOL = a_pool(ATTACHED, ATTACHED, cores=4)
LEASE_S = 1e9  # runs here do not fall silent
LONGEST_S = 100.0
ROUNDS = 3  # of renewals, after which something must run


class Cluster:
    """What both runs see of it: workers, a clock, and the leases in its scheduler."""

    def __init__(self, workers: int) -> None:
        self.now = 0.0
        self.names = [f"w{number}" for number in range(workers)]
        self.leases = SharedLeases(lambda: self.now)
        self.capacity = {name: worker(self.a_ledger(), name).total for name in self.names}

    def a_ledger(self) -> Ledger:
        ledger = Ledger()
        for name in self.names:
            ledger.add_worker(name, POOL, facts_of(POOL, name), self.now)
        return ledger


class Run:
    """One run, as `AttachedCluster` has it: what it places is held only once the scheduler has agreed."""

    def __init__(self, name: str, cluster: Cluster, chance: random.Random) -> None:
        self.name, self.cluster, self.random = name, cluster, chance
        self.ledger, self.waiting = cluster.a_ledger(), Waiting()
        self.running: dict[str, QueuedJob] = {}
        self.started: dict[str, float] = {}
        self.missing: dict[str, Missing] = {}  # Dask workers that were lost
        self.instead: dict[str, dict[str, str]] = {}  # by job: reservations of their own, by worker
        self.ends: list[tuple[float, int, str]] = []
        self.numbers = itertools.count()
        self.refused = 0
        self.hear()

    def arrive(self, job: QueuedJob) -> None:
        self.waiting.add(job, POOL, self.cluster.now)

    def hear(self) -> None:
        """A renewal: what the other run holds."""
        keys = {*self.running, *(key for keys in self.instead.values() for key in keys.values())}
        self.cluster.leases.renew(self.name, LEASE_S, keys, Wanted())
        states = self.ledger.states(ATTACHED)
        found = to_claim(self.waiting.reserved(ATTACHED), states, self.cluster.now)
        self.cluster.leases.claim(self.name, None if found is None else Claim(*found, self.cluster.capacity))
        others = self.cluster.leases.used_by_others(self.name)
        for name in self.cluster.names:
            self.ledger.set_others(name, Others(others.get(name, NOTHING), ()))

    def place(self) -> None:
        """What fits is reserved; where the other run was first, it waits again."""
        for job, _ in place(self.waiting, self.ledger, self.cluster.now):
            if self.reserve(job.key, self.places(job.key)):
                self.running[job.key] = job
                self.started.setdefault(job.key, self.cluster.now)
                most = job.request.runtime_s or LONGEST_S
                end = self.cluster.now + self.random.uniform(1.0, most)
                heapq.heappush(self.ends, (end, next(self.numbers), job.key))
            else:
                self.ledger.release(job.key, self.cluster.now)
                self.arrive(job)
        for key, missing in list(self.missing.items()):
            left = missing.workers
            for there, _ in place_missing(missing, self.waiting, self.ledger, self.cluster.now):
                part = f"{key}+{next(self.numbers)}"
                if self.reserve(part, {there.worker: self.places(key)[there.worker]}):
                    self.instead.setdefault(key, {})[there.worker] = part
                    left -= there.workers
                else:
                    self.ledger.release_place(key, there.worker, self.cluster.now)
            if left:
                self.missing[key] = replace(missing, workers=left)
            else:
                del self.missing[key]

    def places(self, key: str) -> Places:
        return {state.name: part.amounts for state, part in self.ledger.parts(key)}

    def reserve(self, key: str, places: Places) -> bool:
        """All places of a job at once."""
        capacity = {name: self.cluster.capacity[name] for name in places}
        if self.cluster.leases.reserve(self.name, key, places, capacity):
            return True
        self.refused += 1
        self.hear()
        return False

    def end(self) -> None:
        """The next end of a job."""
        _, _, key = heapq.heappop(self.ends)
        del self.running[key]
        self.missing.pop(key, None)
        self.ledger.release(key, self.cluster.now)
        for reserved in (key, *self.instead.pop(key, {}).values()):
            self.cluster.leases.release(self.name, reserved)

    def lose_a_part(self) -> None:
        """Dask workers of a job end with their node's part, which is given back at once, and are to be replaced."""
        parts = [
            (key, name)
            for key in self.running
            if key not in self.missing
            for name in self.places(key)
            if name != self.ledger.parts(key)[0][1].holding.workers[0]
        ]
        if not parts:
            return
        key, name = self.random.choice(parts)
        amounts = self.places(key)[name]
        cluster = self.running[key].request.cluster
        assert cluster is not None
        self.ledger.release_place(key, name, self.cluster.now)
        if own := self.instead.get(key, {}).pop(name, None):
            self.cluster.leases.release(self.name, own)
        else:
            self.cluster.leases.release(self.name, key, {name: amounts})
        number = cluster.each.times_in(amounts)
        self.missing[key] = Missing(key, self.running[key].request, POOL, number)


def check(cluster: Cluster, runs: list[Run]) -> None:
    """Recount from both ledgers: no worker holds more than it has, and the scheduler knows all of it."""
    for name in cluster.names:
        held = [part.amounts for run in runs for part in worker(run.ledger, name).held.values()]
        assert sum(held, NOTHING) == cluster.leases.used(name)
        assert cluster.leases.used(name) <= cluster.capacity[name]


def with_dask(chance: random.Random, *, most: int) -> QueuedJob:
    """A job whose Dask workers need up to so many workers of the cluster."""
    cluster = JobCluster(chance.randint(1, 2 * most - 1), 2, memory_mb=100, script_cores=1, script_memory_mb=100)
    return replace(a_job(), request=with_cluster(a_job(memory_mb=1).request, cluster))


def test_room_that_others_hold_is_claimed() -> None:
    """After a minute in which others may pass, devices too; where the start is known, from a minute before it on."""
    pool = a_pool(ATTACHED, ATTACHED, cores=4, gpus=2)
    ledger = a_ledger(pool, "w", now=0.0)
    states = ledger.states(ATTACHED)
    ledger.set_others("w", Others(Amounts(cores=2), worker(ledger, "w").devices))
    large = a_job("large", cores=4, gpus=1, memory_mb=100)
    waiting = waiting_for(pool, [large])
    for now, claimed in ((1.0, None), (PATIENCE_S + 1.0, ("large", {"w": Amounts(4, 100, 1)}))):
        assert not place(waiting, ledger, now)
        assert to_claim(waiting.reserved(ATTACHED), states, now) == claimed
    ledger.set_others("w", Others())
    hold(ledger, "own", ["w"], a_job(runtime_s=1000.0).request, 0.0)
    waiting = waiting_for(pool, [large])
    for now, claims in ((1.0, False), (950.0, True)):
        assert not place(waiting, ledger, now)
        assert waiting.reserved(ATTACHED)
        assert (to_claim(waiting.reserved(ATTACHED), states, now) is not None) == claims


@pytest.mark.parametrize("block", range(10))
def test_two_runs_with_dask_workers_do_not_wait_for_each_other(block: int) -> None:
    """All places of a job are reserved or none, so both runs come to their end, and nothing is held twice or lost."""
    refused = 0
    for seed in range(block * 20, block * 20 + 20):
        chance = random.Random(seed)
        cluster = Cluster(3)
        runs = [Run(name, cluster, chance) for name in ("one", "two")]
        for run in runs:
            for _ in range(8):
                run.arrive(with_dask(chance, most=3) if chance.random() < 0.6 else a_job(memory_mb=100))
        while any(run.running or len(run.waiting) for run in runs):
            for run in chance.sample(runs, 2):
                if chance.random() < 0.5:  # else it has not heard yet what the other did
                    run.hear()
                run.place()
                check(cluster, runs)
            for _ in range(ROUNDS):
                if any(run.running for run in runs):
                    break
                cluster.now += RENEW_EVERY_S
                for run in chance.sample(runs, 2):
                    run.hear()
                    run.place()
            assert any(run.running for run in runs), "jobs wait and nothing runs"
            if chance.random() < 0.1:
                chance.choice(runs).lose_a_part()
                check(cluster, runs)
            first = min((run for run in runs if run.ends), key=lambda run: run.ends[0])
            cluster.now = first.ends[0][0]
            first.end()
        assert all(len(run.started) == 8 for run in runs)
        assert not any(cluster.leases.used(name).cores for name in cluster.names)
        refused += sum(run.refused for run in runs)
    assert refused, "the runs never met"


@pytest.mark.parametrize("seed", range(20))
def test_the_stream_of_one_run_does_not_starve_the_other(seed: int) -> None:
    """Whatever that waits for: a worker of its own, or room for all its Dask workers; each of several in turn."""
    chance = random.Random(seed)
    cluster = Cluster(3)
    one, two = Run("one", cluster, chance), Run("two", cluster, chance)
    dask = with_cluster(a_job(memory_mb=1).request, JobCluster(5, 2, memory_mb=100))
    large = [replace(a_job(f"dask-{number}"), request=dask) for number in range(2)]
    large.append(a_job("whole", cores=4, memory_mb=100))
    heard = {run.name: 0.0 for run in (one, two)}
    while any(job.key not in one.started for job in large):
        while len(two.waiting) < 20:
            two.arrive(a_job(cores=chance.randint(1, 2), memory_mb=100))
        if cluster.now >= 5.0 and not one.started and not len(one.waiting):
            for job in large:
                one.arrive(job)
        for run in chance.sample([one, two], 2):
            if cluster.now - heard[run.name] >= RENEW_EVERY_S:
                heard[run.name] = cluster.now
                run.hear()
            run.place()
            check(cluster, [one, two])
        first = min((run for run in (one, two) if run.ends), key=lambda run: run.ends[0], default=None)
        cluster.now = cluster.now + 1.0 if first is None else min(cluster.now + 1.0, first.ends[0][0])
        while first is not None and first.ends and first.ends[0][0] <= cluster.now:
            first.end()
        assert cluster.now < 5.0 + 3 * (PATIENCE_S + 2 * LONGEST_S)
