"""The states of an attempt: what may follow what, and what is left to an attempt that waits again."""

from typing import Any

import pytest

from snakemake_executor_plugin_dask.driver.jobs import Attempt, State
from snakemake_executor_plugin_dask.model.requests import Request


def attempt(*path: State) -> Attempt:
    found = Attempt("a-0abc12345-1-1.1", 1, Request(1))
    for state in path:
        found.become(state)
    return found


@pytest.mark.parametrize(
    "path",
    [
        (State.SENT, State.RUNNING, State.ENDED),
        (State.SENT, State.ENDED),
        (State.SENT, State.WAITING, State.SENT, State.RUNNING, State.LIMBO, State.LOST),
        (State.SENT, State.LIMBO, State.ENDED),
        (State.SENT, State.RUNNING, State.LOST),
    ],
)
def test_each_way_ends_in_a_final_state(path: tuple[State, ...]) -> None:
    """Only its last state is final, and nothing follows it."""
    assert not any(attempt(*path[:length]).state.final for length in range(len(path)))
    over = attempt(*path)
    assert over.state.final
    for state in State:
        with pytest.raises(ValueError, match="cannot become"):
            over.become(state)


@pytest.mark.parametrize(
    ("path", "state"),
    [
        ((), State.RUNNING),
        ((), State.ENDED),
        ((State.SENT, State.RUNNING), State.SENT),
        ((State.SENT, State.RUNNING), State.WAITING),
        ((State.SENT, State.LIMBO), State.RUNNING),
        ((State.SENT, State.LIMBO), State.WAITING),
    ],
)
def test_what_cannot_follow_is_an_error(path: tuple[State, ...], state: State) -> None:
    """A job with a process does not wait, and what is in limbo comes back from there only as over."""
    one = attempt(*path)
    with pytest.raises(ValueError, match=f"cannot become {state.value}"):
        one.become(state)
    assert one.state is (path[-1] if path else State.WAITING)


def test_one_that_waits_again_holds_nothing() -> None:
    """Another run was first on its worker."""
    one = attempt(State.SENT)
    member: Any = object()
    one.member = one.holding = member
    one.become(State.WAITING)
    assert (one.member, one.holding, one.worker) == (None, None, "")


def test_the_next_attempt_has_a_key_of_its_own() -> None:
    """Also the tenth one after the ninth."""
    one = attempt()
    for number in range(2, 12):
        one = one.next()
        assert (one.key, one.number, one.state) == (f"a-0abc12345-1-1.{number}", number, State.WAITING)
