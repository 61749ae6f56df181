"""A worker that is lost: every process of its jobs is seen to be dead, and its allocation's last words are heard."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from snakemake_executor_plugin_dask.batch.meanings import ending
from snakemake_executor_plugin_dask.driver.members import LEASE_MARGIN_S, Member
from snakemake_executor_plugin_dask.driver.own.leases import LeaseServer

_SUPERVISOR_WORD_S = 4.0  # how long the supervisor of a lost worker gets to say that its jobs are dead
_PREEMPTED_S = 5.0  # how long the batch system may take to say whether it took an allocation away
_OUTPUT_S = 2.0  # how long the end of a lost worker's output may take to read
_WRITTEN_S = 3.0  # how long what was written may take to be seen in a file, for which a server may stand between
_LAST_WORDS_S = 10.0  # how long an allocation whose worker was lost may take to be over


class Losses:
    """Of the run's own workers."""

    def __init__(
        self,
        leases: LeaseServer,
        lease_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._leases, self._lease_s = leases, lease_s
        self._clock, self._sleep = clock, sleep

    async def confirm(self, member: Member, keys: Sequence[str]) -> str | None:
        """Wait until every process of these attempts is known to be dead. Returns None, or why that cannot be known."""
        if keys:
            self._leases.stop(member.name)
        await self._hear_last_words(member)
        return await self._see_dead(member, keys) if keys else None

    async def _see_dead(self, member: Member, keys: Sequence[str]) -> str | None:
        name, lost = member.name, self._clock()
        while True:
            early = self._clock() < lost + _SUPERVISOR_WORD_S
            if not early and not member.process.group and await member.process.kill():
                return None
            if self._leases.dead(name, keys):
                return None
            last = self._leases.last_renewal(name)
            if not early and self._clock() >= (lost if last is None else last) + self._lease_s + LEASE_MARGIN_S:
                if self._leases.answers(name):
                    # The host answers and the supervisor does not: stopped processes count no lease.
                    host = member.facts.host if member.facts else name
                    return f"the processes on {host} are frozen and cannot be ended from here"
                return None
            await self._sleep(0.02 if early else 1.0)

    async def _hear_last_words(self, member: Member) -> None:
        """What the batch system says of a lost worker's allocation; asked before this run cancels it."""
        member.preempted = await preempted(member)
        # Processes may be dead before the line that says why is written; once the allocation is over, it is.
        until, over = self._clock() + _LAST_WORDS_S, False
        while True:
            with contextlib.suppress(TimeoutError, OSError):
                output = await asyncio.wait_for(asyncio.to_thread(member.process.output_tail), _OUTPUT_S)
                member.ended = ending(output)
            if member.ended or not member.pool.kind.queued or self._clock() >= until:
                return
            await self._sleep(0.2)
            if not over and (over := await _within(max(0.0, until - self._clock()), member.process.over())):
                until = self._clock() + _WRITTEN_S


async def preempted(member: Member) -> bool:
    """Whether the batch system says that it took a worker's allocation away; False where it does not say in time."""
    asked = member.asked_preempted
    if asked is None or asked.done():  # many jobs may tell of their end at once
        asked = member.asked_preempted = asyncio.ensure_future(member.process.preempted())
    return await _within(_PREEMPTED_S, asked)


async def _within(limit_s: float, asked: Awaitable[bool]) -> bool:
    """What a batch system answers; False where it gives none in time, and its late answer serves others."""
    asking = asyncio.ensure_future(asked)
    done, _ = await asyncio.wait({asking}, timeout=limit_s)
    return bool(done) and asking.exception() is None and asking.result()
