"""The workers of a run as the controller knows them, whoever brought them up. Data, and who is told of changes."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Protocol

from snakemake_executor_plugin_dask.backends.base import AllocationState, WorkerProcess
from snakemake_executor_plugin_dask.model.jobs import WorkerFacts
from snakemake_executor_plugin_dask.model.pools import Pool

SILENT_S = 45.0  # a worker or supervisor that says nothing for so long is given up; shorter than a lease
LEASE_MARGIN_S = 15.0  # beyond the lease: two clocks, and the time to end processes


class State(Enum):
    """Where a worker is. `_AFTER` says what may follow."""

    ASKED = "asked"  # its process is being started, or the batch system is being asked for it
    SUBMITTED = "submitted"  # the process was started, or the batch system has the request
    RUNNING = "running"  # its process was seen to run, or its allocation to have started
    UP = "up"  # it has joined the scheduler, and what it holds is known
    LOST = "lost"  # it went by itself, or was given up; its jobs may live or not
    LEAVING = "leaving"  # its process is being ended
    STUCK = "stuck"  # it was, and could not be seen to be gone
    GONE = "gone"  # nothing of it is left, and it is off the list


_STARTING = (State.ASKED, State.SUBMITTED, State.RUNNING)

_AFTER: dict[State, set[State]] = {
    State.ASKED: {State.SUBMITTED, State.UP, State.LEAVING, State.GONE},
    State.SUBMITTED: {State.RUNNING, State.UP, State.LEAVING, State.GONE},
    State.RUNNING: {State.UP, State.LEAVING, State.GONE},
    State.UP: {State.LOST, State.LEAVING, State.GONE},
    State.LOST: {State.LEAVING, State.GONE},
    State.LEAVING: {State.STUCK, State.GONE},
    State.STUCK: set(),  # it is told at the end
    State.GONE: set(),
}


_NOTHING_TOLD = AllocationState("queued")


@dataclass(eq=False)
class Member:
    """One worker."""

    name: str
    pool: Pool
    process: WorkerProcess
    state: State
    since: float  # monotonic: when it was asked for; from its joining on, when it joined
    target: State = State.UP  # what it should be; gone, once nothing more is wanted of it
    address: str = ""
    facts: WorkerFacts | None = None
    looked: float = 0.0  # monotonic: when the batch system was last asked about it
    told: AllocationState = _NOTHING_TOLD  # what the event log last said of its wait
    asked_preempted: "asyncio.Future[bool] | None" = None
    preempted: bool = False  # the batch system says that it took its allocation away for others
    ended: str = ""  # in the batch system's words, why its allocation ended by itself
    #: Of a companion: the wide worker on one of whose nodes it is. It has no room of its own, and is no worker of its
    #: pool for those who count them.
    wide: "Member | None" = None

    @property
    def shown(self) -> str:
        """The name of the worker that people know, which a companion is a part of."""
        return self.name if self.wide is None else self.wide.name

    @property
    def starting(self) -> bool:
        """Whether it was asked for and has not joined."""
        return self.state in _STARTING

    @property
    def up(self) -> bool:
        """Whether it takes jobs."""
        return self.state is State.UP

    def become(self, state: State) -> None:
        """Go on to another state; ValueError where that cannot follow."""
        if state not in _AFTER[self.state]:
            msg = f"worker {self.name} cannot become {state.value} after {self.state.value}"
            raise ValueError(msg)
        self.state = state


class Listener(Protocol):
    """Who is told of workers: the controller. Called on the driver's event loop; none of it waits."""

    def worker_joined(self, member: Member) -> None:
        """It is up, and its facts are known. Once for each."""

    def worker_lost(self, member: Member, why: str, *, told: bool = False) -> None:
        """It went by itself, or was given up. Once for each that was up; `Members.confirm_dead` is asked in turn."""

    def fit_elsewhere(self, pool: Pool) -> bool:
        """Whether all jobs that wait for this pool could run in another one."""
        ...

    def preempted(self, member: Member) -> None:
        """Its allocation was taken away for others before it joined."""

    def warn(self, text: str) -> None:
        """A sentence for the user."""

    def pool_failed(self, pool: Pool, why: str) -> None:
        """A worker did not come up; there will be other tries."""

    def pool_given_up(self, pool: Pool, why: str) -> None:
        """There will be no other try. Once for each pool."""

    def nodes_closed(self, pool: Pool, why: str) -> None:
        """The nodes of its wide workers get no companions: there will be no other try. Once for each pool."""

    def event(self, kind: str, **fields: Any) -> None:
        """For the event log."""

    def failed(self, error: BaseException) -> None:
        """An error of the driver's own: the run ends with it."""


class Members:
    """A cluster's workers: the list, and losing one of it. What is not here differs by who brought them up."""

    _HOW_LOST: ClassVar[str]  # what it means that the scheduler lost a worker

    def __init__(
        self,
        listener: Listener,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._listener = listener
        self._clock = clock
        self._sleep = sleep
        self.members: dict[str, Member] = {}

    def up(self, pool: str) -> list[Member]:
        """The workers of a pool that are up."""
        return [member for member in self.workers() if member.pool.name == pool and member.up]

    def starting(self, pool: str) -> list[Member]:
        """The workers of a pool that were asked for and have not joined."""
        return [member for member in self.workers() if member.pool.name == pool and member.starting]

    def workers(self) -> list[Member]:
        """All but companions, which are parts of others."""
        return [member for member in self.members.values() if member.wide is None]

    async def confirm_dead(self, member: Member, keys: Sequence[str]) -> str | None:
        """Wait until every process of these attempts is known to be dead on a lost worker, and take it off the list.

        Called once for each lost worker, at once. Returns None, or why that cannot be known.
        """
        raise NotImplementedError

    async def preempted(self, _member: Member) -> bool:
        """Whether the batch system says that it took, or is about to take, its allocation away for others."""
        return False

    def judged(self, member: Member, jobs: Collection[str], *, planned: bool) -> None:
        """It is known whether the loss of a worker, on which these jobs ran, was planned."""

    def by_address(self, address: str) -> Member | None:
        """The worker at an address of Dask's."""
        return next((member for member in self.members.values() if member.address == address), None)

    def removed(self, address: str) -> None:
        """The scheduler lost a worker's connection."""
        member = self.by_address(address)
        if member is not None:
            self.lose(member, self._HOW_LOST)

    def lose(self, member: Member, why: str, *, told: bool = False) -> None:
        """Nothing happens to one that is not up or is given back. ``told``: the user knows why many go at once."""
        if member.up and member.target is State.UP:
            member.become(State.LOST)
            self._listener.worker_lost(member, why, told=told)
