"""Dask workers beyond those that a job started with: lent where nobody else can use the room, and given back."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from deciding import a_job, a_ledger, a_pool, hold, waiting_for, worker

from snakemake_executor_plugin_dask.decide.growth import SETTLED_S, Growing, to_give_back, to_lend
from snakemake_executor_plugin_dask.decide.ledger import Ledger, WorkerState
from snakemake_executor_plugin_dask.decide.placement import place
from snakemake_executor_plugin_dask.decide.waiting import Waiting
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request, with_cluster

POOL = a_pool(cores=8, memory_mb=8000)
ONE = Request(cores=2, memory_mb=1000)
SETTLED = SETTLED_S + 1.0


class Lending:
    """One pool, of which room is lent and taken back; what is given back is free at once, or after `finish`."""

    def __init__(self, pool: Pool, ledger: Ledger, jobs: Sequence[QueuedJob] = ()) -> None:
        self.pool, self.ledger = pool, ledger
        self.waiting: Waiting = waiting_for(pool, jobs)
        self.lent: dict[str, str] = {}  # by key: the job's
        self.leaving: set[str] = set()

    def lend(self, now: float, *growing: Growing) -> list[str]:
        """The workers where further Dask workers are."""
        growing = tuple(replace(one, has=list(self.lent.values()).count(one.key)) for one in growing)
        wanted, reserved = self.waiting.classes(self.pool.name), self.waiting.reserved(self.pool.name)
        found = to_lend(growing, wanted, self.pool, self.ledger, reserved, now)
        for key, state, need in found:
            own = f"{key}+{len(self.lent) + 1}@{now}"
            self.lent[own] = key
            self.ledger.hold(own, [state], next(one.request for one in growing if one.key == key), need, now, lent=True)
        return [state.name for _, state, _ in found]

    def give_back(self, now: float) -> list[str]:
        keys = to_give_back(self.waiting.classes(self.pool.name), self.pool, self.ledger, self.leaving, now)
        assert not self.leaving & set(keys)
        assert set(keys) <= self.lent.keys()
        assert len(keys) == len(set(keys))
        self.leaving |= set(keys)
        return keys

    def finish(self, now: float) -> None:
        for key in self.leaving:
            self.ledger.release(key, now)
            del self.lent[key]
        self.leaving = set()


def test_a_job_grows_into_room_that_nobody_waits_for() -> None:
    """Up to its most; and only once nothing has started or ended there for a moment."""
    ledger = a_ledger(POOL, "a")
    hold(ledger, "job", ["a"], Request(cores=3), 0.0)
    world = Lending(POOL, ledger)
    assert not world.lend(1.0, Growing("job", ONE, 9, 0))
    assert world.lend(SETTLED, Growing("job", ONE, 9, 0)) == ["a", "a"]
    assert worker(ledger, "a").free.cores == 1
    assert len(Lending(POOL, a_ledger(POOL, "a", "b")).lend(SETTLED, Growing("job", ONE, 3, 0))) == 3


def test_several_jobs_grow_evenly() -> None:
    """The one with the fewest is next."""
    world = Lending(POOL, a_ledger(POOL, "a"))
    world.lend(SETTLED, Growing("one", ONE, 9, 0), Growing("other", ONE, 9, 0))
    assert sorted(world.lent.values()) == ["one", "one", "other", "other"]


def test_nothing_is_lent_where_a_waiting_job_fits() -> None:
    """Also what is lent already counts as its room; a worker that is kept for a job is left alone."""
    ledger = a_ledger(POOL, "a")
    world = Lending(POOL, ledger)
    assert len(world.lend(SETTLED, Growing("job", ONE, 2, 0))) == 2
    world.waiting.add(a_job(cores=6), POOL, 0.0)
    assert not world.lend(2 * SETTLED, Growing("job", ONE, 9, 0))
    other = Lending(POOL, a_ledger(POOL, "a"), [a_job(cores=20)])
    assert len(other.lend(SETTLED, Growing("job", ONE, 9, 0))) == 4  # it will never fit there


def test_as_much_is_given_back_as_a_waiting_job_needs() -> None:
    """The youngest first, from the worker where the fewest have to go, and each once."""
    ledger = a_ledger(POOL, "a", "b")
    hold(ledger, "other", ["b"], Request(cores=5), 0.0)
    world = Lending(POOL, ledger)
    assert sorted(world.lend(SETTLED, Growing("job", ONE, 9, 0))) == ["a", "a", "a", "a", "b"]
    world.waiting.add(a_job("w", cores=3), POOL, 1.0)
    given = world.give_back(10.0)
    assert [name for name in "ab" for key in given if key in worker(ledger, name).held] == ["b"]
    assert not world.give_back(11.0)
    world.finish(12.0)
    assert [job.key for job, _ in place(world.waiting, ledger, 12.0)] == ["w"]
    world.waiting.add(a_job(cores=8, memory_mb=100), POOL, 13.0)
    assert len(world.give_back(13.0)) == 4


def test_many_jobs_get_room_at_once() -> None:
    """A job for each of those that wait, in their order, and no more than is lent."""
    world = Lending(POOL, a_ledger(POOL, "a"))
    world.lend(SETTLED, Growing("job", ONE, 9, 0))
    for number in range(20):
        world.waiting.add(a_job(f"j{number}", cores=1), POOL, 1.0)
    assert len(world.give_back(10.0)) == 4


def test_thousands_of_places_are_lent_bit_by_bit() -> None:
    """A call lends so many at most, and the next one goes on where nothing has changed."""
    world = Lending(POOL, a_ledger(POOL, *(f"w{number}" for number in range(60))))
    growing = Growing("job", ONE, 1000, 0)
    assert [len(world.lend(SETTLED * times, growing)) for times in (1, 2, 3, 4)] == [100, 100, 40, 0]


def test_many_kinds_of_jobs_look_at_a_worker_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no further once all that is lent is on its way back."""
    pool, looked = a_pool(cores=8, memory_mb=80000), 0
    ledger = a_ledger(pool, *(f"w{number}" for number in range(50)))
    world = Lending(pool, ledger)
    world.lend(SETTLED, Growing("job", Request(cores=8, memory_mb=1000), 40, 0))
    for kind in range(20):
        for number in range(10):
            request = Request(cores=1, memory_mb=100 + kind)
            world.waiting.add(replace(a_job(f"{kind}-{number}"), request=request), pool, 1.0)
    lives = WorkerState.lives

    def counted(state: WorkerState, request: Request, now: float, *, fresh: bool) -> bool:
        nonlocal looked
        looked += 1
        return lives(state, request, now, fresh=fresh)

    monkeypatch.setattr(WorkerState, "lives", counted)
    assert len(world.give_back(10.0)) == 15  # 200 jobs of a core: 80 beside what is lent, 8 in place of each one
    assert looked <= 20 * 50


def test_what_does_not_help_stays() -> None:
    """A job that would not fit with all of it gone, or not in the worker's life, takes nothing away."""
    ledger = a_ledger(POOL, "a")
    hold(ledger, "other", ["a"], Request(cores=4), 0.0)
    world = Lending(POOL, ledger)
    world.lend(SETTLED, Growing("job", ONE, 9, 0))
    world.waiting.add(a_job(cores=5), POOL, 1.0)
    assert not world.give_back(10.0)


def test_jobs_on_several_workers_get_room() -> None:
    """With a Dask cluster of their own, of whose parts all have to fit."""
    ledger = a_ledger(POOL, "a", "b")
    world = Lending(POOL, ledger)
    world.lend(SETTLED, Growing("job", ONE, 9, 0))
    request = with_cluster(Request(cores=4), JobCluster(3, 4))
    world.waiting.add(replace(a_job("gang"), request=request), POOL, 1.0)
    assert world.give_back(10.0)
    world.finish(11.0)
    assert [job.key for job, _ in place(world.waiting, ledger, 12.0)] == ["gang"]


def test_a_long_mix_is_never_held_up() -> None:
    """Random jobs beside two that grow: whoever waits starts as soon as it would without what is lent."""
    for seed in range(200):
        chance = random.Random(seed)
        ledger = a_ledger(POOL, *"abc"[: chance.randint(1, 3)])
        world, now = Lending(POOL, ledger), 0.0
        ends: list[tuple[float, str]] = []
        for number in range(40):
            now += chance.choice([0.1, 1.0, 5.0])
            for end, key in sorted(ends):
                if end <= now:
                    ledger.release(key, now)
                    ends.remove((end, key))
            if chance.random() < 0.5:
                world.waiting.add(a_job(f"{seed}-{number}", cores=chance.choice([1, 2, 5, 8])), POOL, now)
            ends += [(now + chance.uniform(1, 20), job.key) for job, _ in place(world.waiting, ledger, now)]
            before = len(world.waiting)
            world.give_back(now)
            world.finish(now)
            ends += [(now + chance.uniform(1, 20), job.key) for job, _ in place(world.waiting, ledger, now)]
            reserved = world.waiting.reserved(POOL.name)
            for cls in world.waiting.classes(POOL.name):
                need = ledger.need(cls.request, POOL)
                for state in ledger.states(POOL.name).values():
                    lent = [held for held in state.held.values() if held.holding.lent]
                    room = sum((held.amounts for held in lent), state.free)
                    # It has started, or would not fit without what is lent, or the worker is kept for another one.
                    assert not lent or not state.part(need) <= room or state.name in reserved, (seed, before)
            world.lend(now, Growing("one", ONE, 3, 0), Growing("two", Request(cores=1), 5, 0))
            for state in ledger.states(POOL.name).values():
                assert state.free.cores >= 0
                assert state.free.memory_mb >= 0
