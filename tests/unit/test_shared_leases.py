"""Leases that runs on one attached cluster share, with a clock that tests move."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.driver.shared import SharedLeases

CAPACITY = {"w": {"cores": 4.0, "memory_mb": 1000.0}, "other": {"cores": 4.0}, "gpus of host": {"0": 1.0, "1": 1.0}}
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
    assert leases.reserve("one", "a", {"w": {"cores": 3}}, CAPACITY)
    assert not leases.reserve("two", "b", {"w": {"cores": 2}}, CAPACITY)
    assert leases.reserve("two", "b", {"w": {"cores": 1}}, CAPACITY)
    assert leases.reserve("two", "c", {"other": {"cores": 4}}, CAPACITY)
    assert leases.used_by_others("one") == {"w": {"cores": 1}, "other": {"cores": 4}}


def test_a_device_is_held_once(leases: SharedLeases) -> None:
    """The GPUs of a host are one place, by whichever of its workers they are held."""
    assert leases.reserve("one", "a", {"w": {"cores": 1}, "gpus of host": {"0": 1}}, CAPACITY)
    assert not leases.reserve("two", "b", {"other": {"cores": 1}, "gpus of host": {"0": 1}}, CAPACITY)
    assert not leases.reserve("two", "b", {"other": {"cores": 1}, "gpus of host": {"7": 1}}, CAPACITY)
    assert leases.reserve("two", "b", {"other": {"cores": 1}, "gpus of host": {"1": 1}}, CAPACITY)
    assert leases.used_by_others("two") == {"w": {"cores": 1}, "gpus of host": {"0": 1}}


def test_given_back_is_free(leases: SharedLeases) -> None:
    """A release is for the key alone, and tells whether anything was held."""
    leases.reserve("one", "a", {"w": {"cores": 4}}, CAPACITY)
    assert leases.release("one", "a")
    assert not leases.release("one", "a")
    assert leases.reserve("two", "b", {"w": {"cores": 4}}, CAPACITY)


def test_repeating_changes_nothing(leases: SharedLeases) -> None:
    """A question that is asked twice is answered the same."""
    assert leases.reserve("one", "a", {"w": {"cores": 4}}, CAPACITY)
    assert leases.reserve("one", "a", {"w": {"cores": 4}}, CAPACITY)
    assert leases.used("w") == {"cores": 4}


def test_a_run_that_is_silent_loses_all(leases: SharedLeases, clock: Clock) -> None:
    """A killed driver gives nothing back; what it held is free once its jobs must be dead."""
    leases.reserve("one", "a", {"w": {"cores": 4}}, CAPACITY)
    clock.now = 60.0
    leases.renew("two", 90.0, KEYS)
    assert not leases.reserve("two", "b", {"w": {"cores": 1}}, CAPACITY)
    clock.now = 91.0
    assert leases.reserve("two", "b", {"w": {"cores": 4}}, CAPACITY)
    assert not leases.reserve("one", "c", {"w": {"cores": 0}}, CAPACITY)


def test_renewals_keep_what_is_held(leases: SharedLeases, clock: Clock) -> None:
    """A living run holds on for as long as it likes."""
    leases.reserve("one", "a", {"w": {"cores": 4}}, CAPACITY)
    for _ in range(10):
        clock.now += 60.0
        leases.renew("one", 90.0, KEYS)
        leases.renew("two", 90.0, KEYS)
    assert not leases.reserve("two", "b", {"w": {"cores": 1}}, CAPACITY)


def test_a_release_that_was_not_heard_is_made_up_for(leases: SharedLeases) -> None:
    """A renewal says which attempts live; what others hold comes back."""
    leases.reserve("one", "a", {"w": {"cores": 2}}, CAPACITY)
    leases.reserve("one", "b", {"w": {"cores": 1}}, CAPACITY)
    leases.renew("one", 90.0, {"b"})
    assert leases.used("w") == {"cores": 1}


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
                shared.reserve(run, key, {"w": {"cores": float(amount)}}, CAPACITY)
            case "release":
                shared.release(run, key)
            case "renew":
                shared.renew(run, 90.0, KEYS)
            case "end":
                shared.end(run)
            case _:
                clock.now += 20.0 * amount
        assert shared.used("w").get("cores", 0) <= CAPACITY["w"]["cores"]
