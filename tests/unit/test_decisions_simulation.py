"""Thousands of random mixes of jobs on random workers, on a clock of the test's own."""

import heapq
import itertools
import math
import random
from dataclasses import replace

import pytest
from deciding import MIG, UUIDS, a_job, a_pool, facts_of, fits, worker

from snakemake_executor_plugin_dask.decide.blockers import blockers
from snakemake_executor_plugin_dask.decide.gangs import plan, to_open
from snakemake_executor_plugin_dask.decide.ledger import Holding, Ledger
from snakemake_executor_plugin_dask.decide.placement import PATIENCE_S, Missing, place, place_missing
from snakemake_executor_plugin_dask.decide.reservations import lets_pass, start_on
from snakemake_executor_plugin_dask.decide.routing import places, shape_of, shortages
from snakemake_executor_plugin_dask.decide.waiting import JobClass, Order, Queue, Waiting
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import with_cluster

LONGEST_S = 200


class Simulation:
    """One run: jobs arrive, start, end after a time of their own, and workers come and go."""

    def __init__(self, seed: int, pools: list[Pool], *, turmoil: bool) -> None:
        self.random = random.Random(seed)
        self.pools = pools
        self.turmoil = turmoil
        self.ledger = Ledger()
        self.waiting = Waiting()
        self.now = 0.0
        self.running: dict[str, tuple[QueuedJob, Holding]] = {}
        self.ends: list[tuple[float, int, str]] = []
        self.arrived: dict[str, float] = {}
        self.started: dict[str, float] = {}
        self.numbers = itertools.count()
        self.names = itertools.count()
        self.missing: dict[str, Missing] = {}  # Dask workers that were lost
        self.lost_on: dict[str, int] = {}  # by job: how many with the nodes of wide workers

    def join(self, pool: Pool) -> None:
        name = f"{pool.name}-{next(self.names)}"
        devices = self.random.choice([UUIDS, MIG])[: pool.gpus or 0]
        self.ledger.add_worker(name, pool, facts_of(pool, name, devices=devices), self.now)

    def arrive(self) -> None:
        pool = self.random.choice(self.pools)
        nodes = 1
        if pool.nodes:
            nodes = self.random.randint(1, pool.nodes)
        elif pool.cluster == "mpi":
            nodes = self.random.randint(1, pool.workers_max)
        assert pool.cores
        assert pool.memory_mb
        extra = dict(pool.resources)
        if (pool.nodes or places(pool, JobCluster(1, 1)) > 1) and self.random.random() < 0.2:
            self.arrive_with_dask(pool)
            return
        job = a_job(
            priority=self.random.choice([0, 0, 0, 5]),
            cores=self.random.choice([0, 1, 1, 2, pool.cores]) * nodes,
            memory_mb=self.random.choice([None, None, 100, 1000, pool.memory_mb // 2, pool.memory_mb - 300]),
            runtime_s=self.random.choice([None, 60.0, LONGEST_S]),
            gpus=self.random.randint(0, pool.gpus) * nodes if pool.gpus and self.random.random() < 0.7 else 0,
            nodes=nodes,
            mpi=bool(pool.nodes),
            extra=tuple((name, self.random.randint(1, amount)) for name, amount in extra.items()),
        )
        assert not shortages(job.request, pool, shape_of(pool))
        self.waiting.add(job, pool, self.now)
        self.arrived[job.key] = self.now

    def arrive_with_dask(self, pool: Pool) -> None:
        """A job with Dask workers of its own, as many as so many workers of the pool can hold."""
        assert pool.cores
        assert pool.memory_mb
        cluster = JobCluster(
            workers=self.random.randint(1, 6),
            cores=self.random.randint(1, pool.cores),
            memory_mb=self.random.choice([None, 100, pool.memory_mb // 2]),
            gpus=self.random.randint(0, pool.gpus or 0),
            script_cores=self.random.randint(0, 2),
            script_memory_mb=100,
        )
        extra = tuple((name, 1) for name, _ in pool.resources)
        runtime_s = self.random.choice([None, 60.0, LONGEST_S])
        there = pool.nodes or len(self.ledger.workers(pool.name))
        number = cluster.fitting(shape_of(pool).amounts, there)
        if not number:
            return
        cluster = replace(cluster, workers=number, most=self.random.choice([0, number + 2]) if pool.nodes else 0)
        job = a_job(priority=self.random.choice([0, 5]), runtime_s=runtime_s, extra=extra)
        job = replace(job, request=with_cluster(job.request, cluster))
        assert not shortages(job.request, pool, shape_of(pool))
        self.waiting.add(job, pool, self.now)
        self.arrived[job.key] = self.now

    def place(self) -> None:
        for missing in self.missing.values():
            for lost, _ in place_missing(missing, self.waiting, self.ledger, self.now):
                assert lost.workers
                if lost.node is not None:
                    self.lost_on[missing.key] -= lost.workers
        self.missing.clear()
        self.open_nodes()
        for job, holding in place(self.waiting, self.ledger, self.now):
            key = job.key
            assert key not in self.running
            self.running[key] = job, holding
            self.started[key] = self.now
            most = job.request.runtime_s or LONGEST_S
            heapq.heappush(self.ends, (self.now + self.random.uniform(1, most), next(self.numbers), key))
        self.check_amounts()
        self.check_nothing_fits()

    def open_nodes(self) -> None:
        """Some of the nodes that are wanted get a supervisor; without turmoil all of them do."""
        for pool in self.pools:
            for name in to_open(self.waiting.classes(pool.name), pool, self.ledger):
                for host in worker(self.ledger, name).closed_hosts:
                    if not self.turmoil or not self.ends or self.random.random() < 0.5:
                        self.ledger.open_node(f"{host}-{next(self.names)}", name, host, (), self.now)

    def lose_a_node(self) -> None:
        """The supervisor of a wide worker's node: jobs with Dask workers there do without, or run again."""
        wide = [state for pool in self.pools if pool.nodes for state in self.ledger.states(pool.name).values()]
        nodes = [(state, node) for state in wide for node in state.nodes.values() if node.name != state.name]
        if not nodes:
            return
        state, node = self.random.choice(nodes)
        self.ledger.close_node(node.name)
        assert node.host in state.closed_hosts
        for key, (job, holding) in list(self.running.items()):
            if node.name in holding.workers:
                self.again(key, job, state.pool)
            elif key in state.held and node.name in state.held[key].nodes:
                self.ledger.release_place(key, node.name, self.now)
                lost = self.lost_on[key] = self.lost_on.get(key, 0) + holding.dask_workers.get(node.name, 1)
                self.missing[key] = Missing(key, job.request, state.pool, lost)

    def again(self, key: str, job: QueuedJob, pool: Pool) -> None:
        """A job that has lost its worker waits once more."""
        del self.running[key]
        self.missing.pop(key, None)
        self.ledger.release(key, self.now)
        fields = ("cores", "memory_mb", "gpus", "nodes", "mpi", "cluster")
        self.waiting.add(a_job(f"{key}+", **{name: getattr(job.request, name) for name in fields}), pool, self.now)

    def step(self) -> None:
        """To the next end of a job."""
        self.now, _, key = heapq.heappop(self.ends)
        if key in self.running:
            del self.running[key]
            self.missing.pop(key, None)
            self.ledger.release(key, self.now)

    def lose_a_worker(self) -> None:
        """One worker goes and another one comes; its jobs wait again."""
        names = self.ledger.workers()
        if not names:
            return
        name = self.random.choice(names)
        pool = worker(self.ledger, name).pool
        for key in self.ledger.remove_worker(name):
            job, holding = self.running[key]
            if name not in holding.workers and not pool.nodes:
                self.ledger.release_place(key, name, self.now)
                self.missing[key] = Missing(key, job.request, pool, 1)
                continue
            self.again(key, job, pool)
        self.join(pool)

    def check_amounts(self) -> None:
        """Recount from the leases alone what is held, and compare with what the workers have."""
        by_worker: dict[str, list[Holding]] = {}
        for _, holding in self.running.values():
            if holding.dask_workers:
                continue
            for name in holding.workers:
                by_worker.setdefault(name, []).append(holding)
        gangs = [(job.request, holding) for job, holding in self.running.values() if holding.dask_workers]
        for request, holding in gangs:
            assert request.cluster is not None
            more = sum(holding.dask_workers.values()) - request.cluster.workers
            assert 0 <= more <= max(0, request.cluster.most - request.cluster.workers)
            assert sum(holding.cores_by_worker.values()) == request.cores + more * request.cluster.cores
        for name in self.ledger.workers():
            state = worker(self.ledger, name)
            holdings = by_worker.get(name, [])
            devices = [device for holding in holdings for device in holding.devices.get(name, ())]
            if state.wide:
                hosts = [host for holding in holdings for host in holding.hosts]
                for part in state.held.values():
                    hosts += part.nodes.values()
                    assert not part.nodes or set(part.nodes.values()) == set(part.hosts)
                    if not part.nodes:
                        continue
                    cluster = self.running[part.holding.key][0].request.cluster
                    assert cluster is not None
                    for worker_name, number in part.holding.dask_workers.items():
                        script = worker_name == part.holding.workers[0]
                        assert number <= cluster.fitting_on(state.total, script=script)
                assert len(hosts) == len(set(hosts))
                assert set(hosts) <= set(state.facts.hosts)
                assert len(hosts) + len(state.free_hosts) == state.pool.nodes
                continue
            of_gangs = [part for part in state.held.values() if part.holding.dask_workers]
            devices += [device for part in of_gangs for device in part.devices]
            cores = sum(part.amounts.cores for part in of_gangs)
            assert sum(holding.cores_by_worker[name] for holding in holdings) + cores <= state.facts.cores
            memory_mb = sum(part.amounts.memory_mb for part in of_gangs)
            assert sum(holding.memory_mb for holding in holdings) + memory_mb <= state.facts.memory_mb
            assert {holding.key for holding in holdings} | {part.holding.key for part in of_gangs} == set(state.held)
            assert len(devices) == len(set(devices)), "a device is held twice"
            assert sorted([*devices, *state.free_devices]) == sorted(state.facts.devices), "a device is lost"
            for holding in holdings:
                job = self.running[holding.key][0]
                assert len(holding.devices.get(name, ())) == -(-job.request.gpus // job.request.nodes)
            for resource, amount in state.pool.resources:
                held = sum(dict(self.running[holding.key][0].request.extra).get(resource, 0) for holding in holdings)
                held += sum(part.amounts.of(resource) for part in of_gangs)
                assert held + state.free.of(resource) == amount

    def check_nothing_fits(self) -> None:
        """No job waits that would fit, but where a worker is kept for one before it."""
        for queue in self.waiting.queues():
            for order, cls in queue.heads:
                if cls.need.gang is not None:
                    self.check_no_places(queue, cls, order)
                    continue
                open_to_it = 0
                for name, state in self.ledger.states(queue.pool.name).items():
                    if not fits(self.ledger, name, cls.request, self.now):
                        continue
                    kept = queue.reserved.get(name)
                    if kept is not None and kept.cls is not cls:
                        first = kept.cls.head()
                        assert first is not None, "a worker is kept for nobody"
                        if order > first.order and not lets_pass(kept, state, cls, self.now):
                            continue
                    open_to_it += 1
                assert open_to_it < cls.need.workers, f"{cls.request} fits and waits"

    def check_no_places(self, queue: Queue, cls: JobClass, order: Order) -> None:
        """As `check_nothing_fits`, for a job with Dask workers of its own."""
        states = self.ledger.states(queue.pool.name).values()
        rooms = [(state, state.free) for state in states if state.name not in queue.reserved]
        rooms = [(state, room) for state, room in rooms if state.lives(cls.request, self.now, fresh=cls.fresh)]
        assert not plan(cls.need, rooms), f"{cls.request} fits and waits"

    def check_blockers(self) -> None:
        """Each waiting class is told what it waits for, and when there is room for its first job."""
        told = blockers(self.waiting, self.ledger, self.now)
        assert sum(blocker.count for blocker in told) == len(self.waiting)
        assert all(blocker.short for blocker in told)
        each = iter(told)
        for queue in self.waiting.queues():
            states = [state for state in self.ledger.states(queue.pool.name).values() if not state.draining]
            for _, cls in queue.heads:
                blocker = next(each)
                if cls.need.gang is None and blocker.short != ("companions",):
                    starts = sorted(found[0] for state in states if (found := start_on(state, cls, self.now)))
                    start = starts[cls.need.workers - 1] if len(starts) >= cls.need.workers else math.inf
                    assert blocker.frees_at == (None if math.isinf(start) else start)

    def run(self, jobs: int) -> None:
        """Let jobs arrive in bursts, and everything end."""
        left = jobs
        while left or len(self.waiting) or self.running:
            burst = min(left, self.random.choice([0, 0, 1, 3, 20]))
            for _ in range(burst):
                self.arrive()
            left -= burst
            if self.turmoil and self.random.random() < 0.02:
                self.lose_a_worker()
            if self.turmoil and self.random.random() < 0.05:
                self.lose_a_node()
            self.place()
            if self.random.random() < 0.05:
                self.check_blockers()
            if self.ends:
                self.step()
            elif not burst:
                assert left or not len(self.waiting), "jobs wait and nothing runs"
        for name in self.ledger.workers():
            state = worker(self.ledger, name)
            assert not state.held
            assert state.idle_since is not None


def mixed_pools(chance: random.Random) -> list[Pool]:
    """One to three pools of different kinds."""
    kinds = [
        a_pool("cpu", cores=chance.randint(2, 8), memory_mb=chance.randint(2000, 20000)),
        a_pool("gpu", cores=8, memory_mb=20000, gpus=4, resources=(("licence", 2),)),
        a_pool("wide", cores=4, nodes=4),
        a_pool("mpi", "mpi", cores=4, workers_min=4, workers_max=4),
    ]
    return chance.sample(kinds, chance.randint(1, 3))


@pytest.mark.parametrize("block", range(10))
def test_random_mixes_hold_every_promise(block: int) -> None:
    """Nothing is held twice or lost, nothing that fits waits, and all jobs end, also while workers are lost."""
    for seed in range(block * 60, block * 60 + 60):
        chance = random.Random(seed)
        pools = mixed_pools(chance)
        simulation = Simulation(seed, pools, turmoil=bool(seed % 2))
        for pool in pools:
            for _ in range(pool.workers_max if pool.cluster == "mpi" else chance.randint(1, 4)):
                simulation.join(pool)
        simulation.run(chance.choice([10, 40]))


@pytest.mark.parametrize("block", range(10))
def test_random_gpu_mixes_share_four_devices(block: int) -> None:
    """Jobs of none to four GPUs on nodes with four devices: no device is held twice and none is lost."""
    pool = a_pool("gpu", cores=8, memory_mb=20000, gpus=4)
    for seed in range(block * 60, block * 60 + 60):
        simulation = Simulation(seed, [pool], turmoil=bool(seed % 3 == 0))
        for _ in range(1 + seed % 2):
            simulation.join(pool)
        simulation.run(25)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("known", ["all", "none", "small ones", "some"])
def test_a_stream_of_small_jobs_does_not_starve_a_large_one(seed: int, known: str) -> None:
    """A job for a whole worker starts within the bound, though small ones keep coming that would fit at once."""
    chance = random.Random(seed)
    pool = a_pool(cores=4)
    simulation = Simulation(seed, [pool], turmoil=False)
    for _ in range(chance.randint(1, 3)):
        simulation.join(pool)
    ends: list[tuple[float, str]] = []
    large = a_job("large", cores=4, runtime_s=30.0 if known == "all" else None)
    asked = 5.0
    while "large" not in simulation.started:
        if "large" not in simulation.waiting and simulation.now >= asked:
            simulation.waiting.add(large, pool, simulation.now)
        for _ in range(3):
            declares = known in {"all", "small ones"} or (known == "some" and chance.random() < 0.5)
            simulation.waiting.add(a_job(cores=1, runtime_s=30.0 if declares else None), pool, simulation.now)
        for job, holding in place(simulation.waiting, simulation.ledger, simulation.now):
            simulation.started[job.key] = simulation.now
            heapq.heappush(ends, (simulation.now + chance.uniform(5, 30), holding.key))
        simulation.now, key = heapq.heappop(ends)
        simulation.ledger.release(key, simulation.now)
        assert simulation.now < asked + PATIENCE_S + 100
    assert simulation.started["large"] <= asked + PATIENCE_S + 60


@pytest.mark.parametrize("seed", range(20))
def test_jobs_on_several_workers_neither_deadlock_nor_starve(seed: int) -> None:
    """Jobs that need two to four of four workers at once all run, beside small ones."""
    chance = random.Random(seed)
    pool = a_pool("mpi", "mpi", cores=2, workers_min=4, workers_max=4)
    simulation = Simulation(seed, [pool], turmoil=False)
    for _ in range(4):
        simulation.join(pool)
    for _ in range(10):
        nodes = chance.randint(2, 4)
        simulation.waiting.add(a_job(cores=2 * nodes, nodes=nodes, mpi=True), pool, 0.0)
        for _ in range(5):
            simulation.waiting.add(a_job(), pool, 0.0)
    simulation.run(0)
    assert len(simulation.started) == 60


@pytest.mark.parametrize("seed", range(20))
def test_jobs_with_dask_workers_neither_deadlock_nor_starve(seed: int) -> None:
    """Jobs whose Dask workers need up to four of four workers at once all run, beside a stream of small ones."""
    chance = random.Random(seed)
    pool = a_pool("cpu", cores=4, workers_max=4)
    simulation = Simulation(seed, [pool], turmoil=False)
    for _ in range(4):
        simulation.join(pool)
    for _ in range(6):
        request = with_cluster(a_job().request, JobCluster(chance.randint(1, 7), 2))
        simulation.waiting.add(replace(a_job(), request=request), pool, 0.0)
    large = {key for cls in simulation.waiting.classes("cpu") for key in simulation.waiting.keys("cpu", cls.request)}
    while not large <= simulation.started.keys():
        for _ in range(3):
            simulation.waiting.add(a_job(cores=chance.randint(1, 2), runtime_s=None), pool, simulation.now)
        simulation.place()
        simulation.step()
        assert simulation.now < 6 * (LONGEST_S + PATIENCE_S + 60)


@pytest.mark.parametrize("seed", range(20))
def test_dask_workers_on_whole_nodes_neither_deadlock_nor_starve(seed: int) -> None:
    """Jobs whose Dask workers need up to four nodes of a wide worker all run, beside a stream of MPI jobs."""
    chance = random.Random(seed)
    pool = a_pool("wide", cores=4, nodes=4, workers_max=2)
    simulation = Simulation(seed, [pool], turmoil=False)
    for _ in range(2):
        simulation.join(pool)
    for _ in range(6):
        request = with_cluster(a_job().request, JobCluster(chance.randint(1, 7), 2))
        simulation.waiting.add(replace(a_job(), request=request), pool, 0.0)
    large = {key for cls in simulation.waiting.classes("wide") for key in simulation.waiting.keys("wide", cls.request)}
    while not large <= simulation.started.keys():
        for _ in range(3):
            simulation.waiting.add(a_job(nodes=chance.randint(1, 2), mpi=True), pool, simulation.now)
        simulation.place()
        if simulation.ends:
            simulation.step()
        assert simulation.now < 6 * (LONGEST_S + PATIENCE_S + 60)
