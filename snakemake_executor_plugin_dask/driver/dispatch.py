"""What the runs of a cluster share: its pools, what its workers have free, and the jobs that wait. Places jobs.

A cluster that a run brings up for itself has one run, a cluster that stays has several at a time.
"""

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from snakemake_executor_plugin_dask.decide import growth, placement
from snakemake_executor_plugin_dask.decide.ledger import Ledger
from snakemake_executor_plugin_dask.decide.lookahead import LookAhead
from snakemake_executor_plugin_dask.decide.turns import Turns
from snakemake_executor_plugin_dask.decide.waiting import Waiting, WaitingClass
from snakemake_executor_plugin_dask.driver.members import Member
from snakemake_executor_plugin_dask.driver.pools import Pools
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.pools import Pool

if TYPE_CHECKING:
    from snakemake_executor_plugin_dask.driver.controller import Controller

_AT_ONCE = 200  # jobs are started before the event loop does other things: each takes about a millisecond
_GIVE_BACK_S = 1.0  # lent room is asked back no oftener: that looks at all workers


class Dispatch:
    """One queue and one ledger for all runs."""

    def __init__(
        self,
        pools: Pools,
        clock: Callable[[], float],
        failed: Callable[[BaseException], None],
        turns: Turns | None = None,
    ) -> None:
        """``turns``: by which several runs share what is there evenly; without it all jobs are those of one run."""
        self.pools = pools
        self.clock = clock
        self._failed = failed
        self._turns = turns
        self.ledger = Ledger()
        self.waiting = Waiting()
        self.ahead = LookAhead()
        self.runs: dict[str, Controller] = {}  # by their ids
        self._placing: asyncio.Handle | None = None
        self._asked_back = -math.inf

    @property
    def stopping(self) -> bool:
        """Whether there are runs, and none of them starts jobs any more."""
        return bool(self.runs) and all(run.stopping for run in self.runs.values())

    @property
    def over(self) -> bool:
        """Whether there are runs, and none of them has a job or will have one."""
        return self.stopping and not any(run.jobs for run in self.runs.values())

    def wanted(self, pool: str) -> list[WaitingClass]:
        """What room is needed for in a pool: jobs that wait, and Dask workers that jobs have lost."""
        if self.stopping:
            return []
        lost = [each for run in self.runs.values() for each in run.parts.missing(pool)]
        return self.waiting.classes(pool) + lost

    def wait(self, run_id: str, queued: QueuedJob, pool: Pool, *, fresh: bool) -> None:
        """A job waits for room in the pool; ``fresh``: in a new allocation."""
        turn = 0.0
        if self._turns is not None:
            shape = self.pools.shapes[pool.name]
            turn = self._turns.of(queued.key, run_id, queued.request, pool, shape, queued.priority)
        run = "" if self._turns is None else run_id
        self.waiting.add(queued, pool, self.clock(), fresh=fresh, run=run, turn=turn)

    def discard(self, key: str) -> QueuedJob | None:
        """Take a job out of the queue; None where it does not wait."""
        if self._turns is not None:
            self._turns.left(key)
        return self.waiting.discard(key)

    def end(self, run_id: str) -> None:
        """A run is over; none of its jobs waits, and nothing of it is held."""
        self.runs.pop(run_id, None)
        if self._turns is not None:
            self._turns.end(run_id)
        self.place_soon()

    def release(self, key: str) -> None:
        """No process of a job is left: what it held is free. Nothing happens where it holds nothing."""
        if self.ledger.holding(key) is not None:
            self.ledger.release(key, self.clock())
        if self._turns is not None:
            self._turns.ended(key, self.clock())

    def settle(self) -> None:
        """Have turns follow what runs have really held. Every second or so."""
        if self._turns is not None:
            self.waiting.move(self._turns.settle(self.clock(), self.waiting.firsts()))

    def joined(self, member: Member, up: list[Member]) -> None:
        """A worker is there; ``up`` are all of its pool. May be repeated."""
        assert member.facts is not None
        if member.name in self.ledger.workers():
            return
        pool = self.pools[member.pool.name]
        if member.wide is not None:
            node, devices = member.process.node, member.facts.devices
            self.ledger.open_node(member.name, member.wide.name, node, devices, self.clock())
            self.place_soon()
            return
        if not pool.kind.found:  # where each worker is of its own kind, and `unfit` looks at all of them
            self.pools.seen(pool, up)
        self.ledger.add_worker(member.name, member.pool, member.facts, self.clock())
        self.place_soon()

    def drain(self, name: str) -> None:
        """Nothing more is placed on a worker; it may be gone already."""
        self.ledger.close_node(name)
        if name in self.ledger.workers():
            self.ledger.drain(name)

    def gone(self, name: str) -> None:
        """A worker is gone. May be repeated."""
        if name in self.ledger.workers():
            self.ledger.remove_worker(name)
        self.place_soon()

    def place_soon(self) -> None:
        """There may be room that was not there before."""
        if self._placing is None:
            self._placing = asyncio.get_running_loop().call_soon(self._place)

    def _place(self) -> None:
        self._placing = None
        try:
            for run in self.runs.values():
                run.parts.place_missing()
            placed = placement.place(self.waiting, self.ledger, self.clock(), _AT_ONCE)
            if len(placed) >= _AT_ONCE:
                self.place_soon()
            for queued, holding in placed:
                if self._turns is not None:
                    self._turns.started(queued.key, self.clock())
                owner = next((run for run in self.runs.values() if queued.key in run.jobs), None)
                if owner is None:  # dropped, since another one of this round could not be started
                    self.release(queued.key)
                else:
                    owner.start(queued, holding)
            if self.clock() - self._asked_back >= _GIVE_BACK_S:  # else `lend` follows soon enough
                self._asked_back = self.clock()
                self.lend(more=False)
        except Exception as error:  # noqa: BLE001 - called by the event loop, which would only log it
            self._failed(error)

    def lend(self, *, more: bool = True) -> None:
        """Have lent Dask workers given back that others wait for; ``more``: and lend what nobody can use."""
        runs = list(self.runs.values())
        for pool in self.pools.values():
            growing = [each for run in runs for each in run.parts.growing(pool.name)]
            if not growing:
                continue
            wanted, now = self.wanted(pool.name), self.clock()
            leaving = {key for run in runs for key in run.parts.leaving()}
            for key in growth.to_give_back(wanted, pool, self.ledger, leaving, now):
                for run in runs:
                    run.parts.give_back(key)
            reserved = self.waiting.reserved(pool.name)
            for key, state, need in growth.to_lend(growing, wanted, pool, self.ledger, reserved, now) if more else ():
                for run in runs:
                    run.parts.lend(key, state, need)
