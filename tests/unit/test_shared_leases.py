"""Leases that runs on one attached cluster share, with a clock that tests move."""

import asyncio
import pickle
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import pytest
from distributed.core import Status
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.driver.attached.shared import (
    Claim,
    SharedLeases,
    SharedLeasesPlugin,
    Wanted,
    packed,
)
from snakemake_executor_plugin_dask.model.amounts import Amounts

CAPACITY = {
    "w": Amounts(cores=4, memory_mb=1000),
    "other": Amounts(cores=4),
    "gpus of host": Amounts(extra=(("0", 1), ("1", 1))),
}
KEYS = {"a", "b", "c"}


class Clock:
    """Seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Starts at zero."""
    return Clock()


@pytest.fixture
def leases(clock: Clock) -> SharedLeases:
    """Two runs that live."""
    shared = SharedLeases(clock)
    shared.renew("one", 90.0, KEYS)
    shared.renew("two", 90.0, KEYS)
    return shared


def test_runs_do_not_overbook(leases: SharedLeases) -> None:
    """What one run holds, the other cannot."""
    assert leases.reserve("one", "a", {"w": Amounts(cores=3)}, CAPACITY)
    assert not leases.reserve("two", "b", {"w": Amounts(cores=2)}, CAPACITY)
    assert leases.reserve("two", "b", {"w": Amounts(cores=1)}, CAPACITY)
    assert leases.reserve("two", "c", {"other": Amounts(cores=4)}, CAPACITY)
    assert leases.used_by_others("one") == {"w": Amounts(cores=1), "other": Amounts(cores=4)}


def test_a_part_of_what_is_held_is_given_back(leases: SharedLeases) -> None:
    """The rest stays held, for as long as the run says so."""
    assert leases.reserve("one", "a", {"w": Amounts(cores=3), "other": Amounts(cores=4)}, CAPACITY)
    assert leases.release("one", "a", {"other": Amounts(cores=4)})
    assert leases.reserve("two", "b", {"other": Amounts(cores=4)}, CAPACITY)
    assert not leases.reserve("two", "c", {"w": Amounts(cores=2)}, CAPACITY)
    assert not leases.release("one", "b", {"w": Amounts(cores=1)})
    assert leases.release("one", "a")
    assert leases.reserve("two", "c", {"w": Amounts(cores=2)}, CAPACITY)


def test_a_device_is_held_once(leases: SharedLeases) -> None:
    """The GPUs of a host are one place, by whichever of its workers they are held."""
    assert leases.reserve("one", "a", {"w": Amounts(cores=1), "gpus of host": Amounts(extra=(("0", 1),))}, CAPACITY)
    assert not leases.reserve(
        "two", "b", {"other": Amounts(cores=1), "gpus of host": Amounts(extra=(("0", 1),))}, CAPACITY
    )
    assert not leases.reserve(
        "two", "b", {"other": Amounts(cores=1), "gpus of host": Amounts(extra=(("7", 1),))}, CAPACITY
    )
    assert leases.reserve("two", "b", {"other": Amounts(cores=1), "gpus of host": Amounts(extra=(("1", 1),))}, CAPACITY)
    assert leases.used_by_others("two") == {"w": Amounts(cores=1), "gpus of host": Amounts(extra=(("0", 1),))}


def test_given_back_is_free(leases: SharedLeases) -> None:
    """A release is for the key alone, and tells whether anything was held."""
    leases.reserve("one", "a", {"w": Amounts(cores=4)}, CAPACITY)
    assert leases.release("one", "a")
    assert not leases.release("one", "a")
    assert leases.reserve("two", "b", {"w": Amounts(cores=4)}, CAPACITY)


def test_repeating_changes_nothing(leases: SharedLeases) -> None:
    """A question that is asked twice is answered the same."""
    assert leases.reserve("one", "a", {"w": Amounts(cores=4)}, CAPACITY)
    assert leases.reserve("one", "a", {"w": Amounts(cores=4)}, CAPACITY)
    assert leases.used("w") == Amounts(cores=4)


def test_a_run_that_is_silent_loses_all(leases: SharedLeases, clock: Clock) -> None:
    """A killed driver gives nothing back; what it held is free once its jobs must be dead."""
    leases.reserve("one", "a", {"w": Amounts(cores=4)}, CAPACITY)
    clock.now = 60.0
    leases.renew("two", 90.0, KEYS)
    assert not leases.reserve("two", "b", {"w": Amounts(cores=1)}, CAPACITY)
    clock.now = 91.0
    assert leases.reserve("two", "b", {"w": Amounts(cores=4)}, CAPACITY)
    assert not leases.reserve("one", "c", {"w": Amounts(cores=0)}, CAPACITY)


def test_renewals_keep_what_is_held(leases: SharedLeases, clock: Clock) -> None:
    """A living run holds on for as long as it likes."""
    leases.reserve("one", "a", {"w": Amounts(cores=4)}, CAPACITY)
    for _ in range(10):
        clock.now += 60.0
        leases.renew("one", 90.0, KEYS)
        leases.renew("two", 90.0, KEYS)
    assert not leases.reserve("two", "b", {"w": Amounts(cores=1)}, CAPACITY)


def test_a_release_that_was_not_heard_is_made_up_for(leases: SharedLeases) -> None:
    """A renewal says which attempts live; what others hold comes back."""
    leases.reserve("one", "a", {"w": Amounts(cores=2)}, CAPACITY)
    leases.reserve("one", "b", {"w": Amounts(cores=1)}, CAPACITY)
    leases.renew("one", 90.0, {"b"})
    assert leases.used("w") == Amounts(cores=1)


Step = tuple[str, str, str, int]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["reserve", "release", "renew", "wait", "end"]),
            st.sampled_from(["one", "two", "three"]),
            st.sampled_from(["a", "b", "c"]),
            st.integers(0, 5),
        ),
        max_size=60,
    )
)
def test_never_more_than_there_is(steps: list[Step]) -> None:
    """Whatever the runs do and however long they are silent, no worker holds more than it has."""
    clock = Clock()
    shared = SharedLeases(clock)
    for what, run, key, amount in steps:
        match what:
            case "reserve":
                shared.reserve(run, key, {"w": Amounts(cores=amount)}, CAPACITY)
            case "release":
                shared.release(run, key)
            case "renew":
                shared.renew(run, 90.0, KEYS)
            case "end":
                shared.end(run)
            case _:
                clock.now += 20.0 * amount
        assert shared.used("w").cores <= CAPACITY["w"].cores


def test_a_cluster_is_to_grow_for_what_waits(leases: SharedLeases, clock: Clock) -> None:
    """By what all runs could use, from what they saw when they said so; a run that is silent wants nothing any more."""
    assert leases.target() == 0
    leases.renew("one", 90.0, KEYS, Wanted(seen=2, more=0))
    assert leases.target() == 0, "nothing waits: what is there is the cluster's own business"
    leases.renew("one", 90.0, KEYS, Wanted(seen=2, more=3))
    assert leases.target() == 5
    leases.renew("two", 90.0, KEYS, Wanted(seen=3, more=1))
    assert leases.target() == 7
    leases.renew("one", 90.0, KEYS, Wanted(seen=3, more=2))
    assert leases.target() == 6, "one came"
    clock.now = 30.0
    leases.renew("two", 90.0, KEYS, Wanted(seen=3, more=1))
    assert leases.target() == 4


def a_claim(key: str, **cores: int) -> Claim:
    """Of a job that will take so many cores of these workers."""
    return Claim(key, {place: Amounts(cores=number) for place, number in cores.items()}, CAPACITY)


def test_a_job_that_waits_is_left_room(leases: SharedLeases) -> None:
    """By others, and beside it they may hold what is left; who has claimed it may take it."""
    leases.reserve("two", "b", {"w": Amounts(cores=2)}, CAPACITY)
    assert not leases.claim("one", a_claim("large", w=3))
    assert leases.used_by_others("two") == {"w": Amounts(cores=3)}
    assert not leases.reserve("two", "c", {"w": Amounts(cores=1)}, CAPACITY)
    assert leases.reserve("two", "c", {"other": Amounts(cores=4)}, CAPACITY)
    assert leases.release("two", "b")
    assert leases.reserve("two", "b", {"w": Amounts(cores=1)}, CAPACITY), "beside it"
    assert leases.reserve("one", "a", {"w": Amounts(cores=3)}, CAPACITY)
    assert leases.claim("one", None), "which others gain by"
    assert leases.used_by_others("two") == {"w": Amounts(cores=3)}


def test_who_has_claimed_for_longest_comes_first(leases: SharedLeases, clock: Clock) -> None:
    """A claim beside which there is no room is not heard: its run holds nothing back from the first one's."""
    leases.claim("one", a_claim("large", w=3))
    clock.now = 1.0
    leases.claim("two", a_claim("other", w=3, other=4))
    assert leases.used_by_others("one") == {}
    assert leases.reserve("one", "a", {"other": Amounts(cores=4)}, CAPACITY)
    assert not leases.reserve("two", "b", {"w": Amounts(cores=3)}, CAPACITY)
    clock.now = 2.0
    leases.claim("one", a_claim("next", w=3))
    assert leases.reserve("two", "b", {"w": Amounts(cores=3)}, CAPACITY), "its turn, since the first one's is another"


def test_a_claim_is_said_again_and_again(leases: SharedLeases, clock: Clock) -> None:
    """That of a run which is silent is over long before what it holds."""
    leases.claim("one", a_claim("large", w=3))
    clock.now = 30.0
    leases.renew("two", 90.0, KEYS)
    assert leases.reserve("two", "b", {"w": Amounts(cores=4)}, CAPACITY)


class Worker(SimpleNamespace):
    """A worker as a scheduler knows it."""

    address: str
    name: str
    host: str
    status: Status


@pytest.fixture
def workers() -> list[Worker]:
    """Three idle ones, two of them on one host."""
    return [Worker(address=f"tcp://{n}", name=n, host=n[0], status=Status.running) for n in ("a1", "a2", "b1")]


@pytest.fixture
def plugin(workers: list[Worker], clock: Clock) -> SharedLeasesPlugin:
    """In a scheduler of these workers, that would close any of them."""
    found = SharedLeasesPlugin(clock)

    def to_close(attribute: str = "address", **_: Any) -> list[str]:
        return [getattr(worker, attribute) for worker in found.valid_workers_downscaling(scheduler, workers)]

    scheduler = SimpleNamespace(
        workers={worker.address: worker for worker in workers},
        handlers={},
        adaptive_target=lambda _: 1,
        workers_to_close=to_close,
        log_event=lambda *_: None,
    )
    asyncio.run(found.start(scheduler))
    return found


def ask(plugin: SharedLeasesPlugin, what: str, **more: Any) -> Any:
    return asyncio.run(plugin.answer(what, "one", **more))


def test_no_worker_with_jobs_is_closed(plugin: SharedLeasesPlugin) -> None:
    """Nor one whose group is closed together with it."""
    ask(plugin, "renew", length_s=90.0, keys=["k"])
    held = packed({"tcp://a1": Amounts(cores=1)})
    assert ask(plugin, "reserve", key="k", amounts=held, capacity=held)
    assert plugin.workers_to_close(target=0, attribute="name") == ["a2", "b1"]
    key = pickle.dumps(attrgetter("host"))
    assert plugin.workers_to_close(target=0, attribute="name", key=key) == ["b1"]


def test_nothing_is_placed_on_a_worker_that_is_being_closed(
    plugin: SharedLeasesPlugin, workers: list[Worker], clock: Clock
) -> None:
    """From the moment on at which the cluster was told that it may; other workers take jobs as before."""
    assert not ask(plugin, "renew", length_s=90.0, keys=["k", "m"])["adaptive"]
    workers[-1].status = Status.closing_gracefully
    assert plugin.adaptive_target("5s") == 1
    told = ask(plugin, "renew", length_s=90.0, keys=["k", "m"])
    assert (told["adaptive"], told["closing"]) == (True, ["tcp://b1"])
    plugin.workers_to_close(target=2, attribute="name")
    held = packed({"tcp://a1": Amounts(cores=1)})
    assert not ask(plugin, "reserve", key="k", amounts=held, capacity=held)
    clock.now += 60.0  # it was not closed after all
    assert ask(plugin, "reserve", key="k", amounts=held, capacity=held)


def test_a_claim_is_told_by_a_renewal(plugin: SharedLeasesPlugin) -> None:
    """And what is left for the jobs of others is told as held by them."""
    amounts = packed({"tcp://a1": Amounts(cores=3)})
    claim = {"key": "large", "amounts": amounts, "capacity": packed({"tcp://a1": Amounts(cores=4)})}
    ask(plugin, "renew", length_s=90.0, keys=[], claim=claim)
    told = asyncio.run(plugin.answer("renew", "two", length_s=90.0, keys=[]))
    assert told["others"] == amounts
    more = {"amounts": packed({"tcp://a1": Amounts(cores=2)}), "capacity": claim["capacity"]}
    assert not asyncio.run(plugin.answer("reserve", "two", key="b", **more))
    ask(plugin, "renew", length_s=90.0, keys=[])
    assert asyncio.run(plugin.answer("reserve", "two", key="b", **more))
