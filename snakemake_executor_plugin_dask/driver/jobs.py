"""A job that Snakemake handed over, and each attempt at it with the states that it goes through. Data.

An attempt is one start of a job. Its key is what Dask, the worker and the event log know it by.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from snakemake_executor_plugin_dask.decide.ledger import Holding
from snakemake_executor_plugin_dask.driver.members import Member
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.requests import Request


class State(Enum):
    """Where an attempt is. `_AFTER` says what may follow."""

    WAITING = "waiting"  # it has no process and holds nothing
    SENT = "sent"  # it holds room on a worker, which may have started it by now
    RUNNING = "running"  # its worker has said that it started
    LIMBO = "limbo"  # a worker of it was lost: it may live or not
    ENDED = "ended"  # its outcome was told, and no process of it is left
    LOST = "lost"  # over without an outcome

    @property
    def final(self) -> bool:
        """Whether nothing follows: the job is finished, or its next attempt begins."""
        return not _AFTER[self]


_AFTER: dict[State, set[State]] = {
    State.WAITING: {State.SENT},
    # Another run was first, and it waits again; of a short job the end is told before the start.
    State.SENT: {State.WAITING, State.RUNNING, State.LIMBO, State.ENDED, State.LOST},
    State.RUNNING: {State.LIMBO, State.ENDED, State.LOST},
    State.LIMBO: {State.ENDED, State.LOST},  # a success counts, where its first worker is there to tell it
    State.ENDED: set(),
    State.LOST: set(),
}


@dataclass(slots=True)
class Limbo:
    """What is known of an attempt that lost a worker, until nothing of it lives any more."""

    worker: str  # the first that it lost
    why: str
    planned: bool
    shared: bool  # jobs of other runs were there, and may be what ended it
    on: set[str]  # workers where it is not known to be dead
    unknown: str = ""  # why that cannot be known of one of them


@dataclass(slots=True, eq=False)
class Attempt:
    """One start of a job."""

    key: str
    number: int
    request: Request
    state: State = State.WAITING
    member: Member | None = None  # the worker it was sent to: the first of several
    holding: Holding | None = None
    limbo: Limbo | None = None  # in that state
    limited_by_allocation: bool = False
    killed: str = ""  # why the driver ends it
    freed: Callable[[], None] | None = None  # called once, when what it holds is free: no process of it is left

    @property
    def worker(self) -> str:
        """The name of its (first) worker; empty: it has none."""
        return "" if self.member is None else self.member.name

    @property
    def shown(self) -> str:
        """The name of that worker as people know it."""
        return "" if self.member is None else self.member.shown

    def become(self, state: State) -> None:
        """Go on to another state; ValueError where that cannot follow."""
        if state not in _AFTER[self.state]:
            msg = f"attempt {self.key} cannot become {state.value} after {self.state.value}"
            raise ValueError(msg)
        self.state = state
        if state is State.WAITING:
            self.member = self.holding = None

    def next(self) -> "Attempt":
        """The one after this one, which waits."""
        number = self.number + 1
        return Attempt(f"{self.key.rpartition('.')[0]}.{number}", number, self.request)


@dataclass(slots=True, eq=False)
class Job:
    """One job, through all its attempts."""

    queued: QueuedJob
    attempt: Attempt  # the current one
    pool: str = ""
    again_since: str = ""  # why it is not its first attempt
    losses: int = 0  # unplanned ones
    shared_losses: int = 0  # of workers on which other runs had jobs; these spend no retry
    alone: bool = False  # it has lost so many workers that it runs without neighbours now
    outlived: bool = False  # an allocation ended under it once
    reported: bool = False  # Snakemake was told that it started

    @classmethod
    def of(cls, queued: QueuedJob) -> "Job":
        """With its first attempt, which waits."""
        return cls(queued, Attempt(queued.key, 1, queued.request))

    @property
    def waits(self) -> bool:
        """Whether its attempt has no process."""
        return self.attempt.state is State.WAITING
