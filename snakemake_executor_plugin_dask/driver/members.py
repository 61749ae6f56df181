"""The workers of a run as the controller knows them, whoever brought them up. Data, and who is told of changes."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from snakemake_executor_plugin_dask.backends.base import WorkerProcess
from snakemake_executor_plugin_dask.model.jobs import WorkerFacts
from snakemake_executor_plugin_dask.model.pools import Pool

SILENT_S = 45.0  # a worker or supervisor that says nothing for so long is given up; shorter than a lease
LEASE_MARGIN_S = 15.0  # beyond the lease: two clocks, and the time to end processes

#: *Starting* until it joins the scheduler, then *up*; *leaving* once it is given back, *lost* when it went by itself.
State = Literal["starting", "up", "leaving", "lost"]


@dataclass
class Member:
    """One worker."""

    name: str
    pool: Pool
    process: WorkerProcess
    state: State
    since: float  # monotonic; of the state, of a lost one of the time before
    address: str = ""
    facts: WorkerFacts | None = None
    queue_reason: str = ""  # as the batch system last gave it
    expected: float | None = None  # when it was likely to start, as that was last told
    submitted: bool = False  # the process was started, or the batch system has the request
    running: bool = False  # its allocation has started
    looked: float = 0.0
    preempted: bool = False  # the batch system says that it took its allocation away for others
    ended: str = ""  # in the batch system's words, why its allocation ended by itself


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

    def of(self, pool: str, *states: State) -> list[Member]:
        """The workers of a pool that are in one of the states (without states: of any)."""
        return [m for m in self.members.values() if m.pool.name == pool and (not states or m.state in states)]

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
        return next((member for member in self.members.values() if member.address == address), None)

    def removed(self, address: str) -> None:
        """The scheduler lost a worker's connection."""
        member = self.by_address(address)
        if member is not None and member.state == "up":
            self.lose(member, self._HOW_LOST)

    def lose(self, member: Member, why: str, *, told: bool = False) -> None:
        """``told``: the user knows already why many go at once."""
        if member.state in ("lost", "leaving"):
            return
        member.state = "lost"  # it joined when it did: whether its allocation had ended by itself follows from that
        self._listener.worker_lost(member, why, told=told)
