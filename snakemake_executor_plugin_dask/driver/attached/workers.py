"""The workers of a cluster that others brought up: joined, watched, lost, left. None is started or closed.

Leases are renewed through the workers, which have no connection of ours.
"""

import asyncio
import dataclasses
import platform
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from snakemake_executor_plugin_dask.backends.attached import (
    Seen,
    devices_of_worker,
    look_expression,
    pool_of_worker,
    resource_names,
)
from snakemake_executor_plugin_dask.backends.base import WorkerProcess
from snakemake_executor_plugin_dask.driver.members import LEASE_MARGIN_S, SILENT_S, Listener, Member, Members, State
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.model.errors import PoolError
from snakemake_executor_plugin_dask.model.jobs import RunSetup, WorkerFacts
from snakemake_executor_plugin_dask.worker import attach
from snakemake_executor_plugin_dask.worker import client as task

RENEW_EVERY_S = 5.0
_CALL_S = 20.0
_JOIN_S = 60.0  # modules may come from a slow file system
#: Workers' leases are renewed only while what their jobs hold is reserved for certain: it must outlast them.
_RESERVED_S = 20.0

Failed = Callable[[BaseException], None]


@dataclass(eq=False, kw_only=True)
class AttachedMember(Member):
    """A worker whose lease is renewed through itself."""

    renewed: float  # monotonic: when the last renewal was sent that it answered
    sent: float  # the same of the last one that was sent: it may arrive all the same
    uses: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # what its attempts used, by key
    here: int | None = None  # its supervisor, where that can be seen on this machine


class AttachedWorkers(Members):
    """All workers of a cluster that are used. Brings none up and gives none back."""

    _HOW_LOST = "it left the cluster"

    def __init__(
        self,
        client: Any,
        setup: RunSetup,
        listener: Listener,
        failed: Failed,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(listener, clock, sleep)
        self.client = client  # another one once the scheduler was lost and is back
        self._setup = setup
        self.members: dict[str, AttachedMember] = {}  # type: ignore[assignment]
        self._tasks = Tasks(failed)
        self._began = self._last_round = clock()
        self._joining: dict[str, str] = {}  # by address: the name that the worker gets
        self.reserved_at = clock()  # when the reservations were last renewed
        self.names: tuple[str, ...] = ()  # of the resources that workers declare
        self.names_changed: Callable[[tuple[str, ...]], None] = lambda _: None

    async def look(self, addresses: Sequence[str]) -> dict[str, Seen]:
        """What the workers' environments have; those that do not answer are left out."""
        expression = look_expression(self._setup.workdir)
        found = await asyncio.gather(*(self._call(address, _CALL_S, eval, expression) for address in addresses))
        return {address: Seen(**seen) for address, seen in zip(addresses, found, strict=True) if isinstance(seen, dict)}

    async def _call(self, address: str, within_s: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function gives on one worker, or the error; a worker that hangs holds up no other one."""
        try:
            async with asyncio.timeout(within_s):
                done = await self.client.run(function, *arguments, workers=[address], on_error="return")
        except Exception as error:  # noqa: BLE001 - a client that is closed meanwhile raises what it happens to meet
            return error
        return done.get(address, OSError("the worker is not there"))

    async def join(self, address: str, name: str, resources: Mapping[str, Any]) -> None:
        """Put this package's part on a worker that was looked at. Raises PoolError where that is not possible."""
        if self.by_address(address) is not None or address in self._joining:
            return
        short = name.rpartition("://")[2]
        known = {*self.members, *self._joining.values()}
        unique = short if short not in known else f"{short}-{address.rpartition(':')[2]}"
        self._joining[address] = unique
        try:
            facts = await self._call(address, _JOIN_S, attach.attach, self._setup, unique)
        finally:
            del self._joining[address]
        if not isinstance(facts, WorkerFacts):
            msg = f"the plugin's supervisor did not start there ({facts!r})"
            raise PoolError(msg)
        taken = {
            device
            for m in self.members.values()
            if m.facts and m.facts.host == facts.host
            for device in m.facts.devices
        }
        facts = dataclasses.replace(facts, devices=devices_of_worker(resources, facts.devices, taken))
        self._count(resource_names([resources]))
        pool = pool_of_worker(resources, self.names, len(facts.devices))
        now, pid = self._clock(), facts.supervisor_pid
        process = WorkerProcess(pool, unique, None)  # type: ignore[arg-type]
        member = AttachedMember(
            unique, pool, process, State.UP, now, address=address, facts=facts, renewed=now, sent=now
        )
        member.here = pid if facts.host == platform.node() and attach.seen_here(pid) else None
        self.members[unique] = member
        self._listener.event("worker-joined", worker=unique, pool=pool.name, waited_s=0.0, facts=facts)
        self._listener.worker_joined(member)

    def _count(self, names: Sequence[str]) -> None:
        """A worker that joins may declare resources that none had so far: jobs hold them now, and others lack them."""
        if new := set(names) - set(self.names):
            self.names = tuple(sorted({*self.names, *new}))
            for member in self.members.values():
                held = dict.fromkeys(self.names, 0) | dict(member.pool.resources)
                member.pool = dataclasses.replace(member.pool, resources=tuple(sorted(held.items())))
            self.names_changed(self.names)

    async def confirm_dead(self, member: Member, keys: Sequence[str]) -> str | None:
        """Its supervisor ends the jobs once the worker is gone, or no renewal comes; on this machine we do."""
        lost = self.members[member.name]
        run_out, here = lost.sent + self._setup.lease_s + LEASE_MARGIN_S, lost.here
        if keys and (here is None or not await asyncio.to_thread(attach.end_from_outside, here, set(keys))):
            await self._sleep(max(0.0, run_out - self._clock()))
        member.become(State.GONE)
        del self.members[member.name]
        return None

    async def check(self) -> None:
        """Renew leases, every five seconds; workers that do not answer for long are lost."""
        now = self._clock()
        asleep = now - self._last_round > 2 * RENEW_EVERY_S  # this process itself: nobody could answer meanwhile
        if now - self._last_round < RENEW_EVERY_S:
            return
        self._last_round = now
        for member in list(self.members.values()):
            if not member.up:
                continue
            if now - member.renewed > SILENT_S and not asleep:
                self.lose(member, f"it said nothing for {now - member.renewed:.0f} s")
            elif now - self.reserved_at < _RESERVED_S:
                self._tasks.spawn(self._renew(member))

    async def _renew(self, member: AttachedMember) -> None:
        began = member.sent = self._clock()
        # By its number the supervisor knows when it was due, and does not count it from a late arrival.
        number = int((began - self._began) / RENEW_EVERY_S)
        answer = await self._call(member.address, _CALL_S, task.renew, self._setup.run_id, number)
        if isinstance(answer, dict):
            member.renewed = began
            member.uses = {key: (time.time(), *use) for key, use in answer.items()}
        else:
            self._listener.event("renewal-failed", error=repr(answer))

    def uses(self) -> dict[str, tuple[float, ...]]:
        """What attempts used at the last renewal but one, as `cluster.Cluster` has it."""
        return {key: use for member in self.members.values() for key, use in member.uses.items()}

    async def close(self) -> tuple[str, ...]:
        """End this run's jobs and supervisors everywhere. Returns the workers on which that was not seen."""
        self._tasks.cancel()
        members = [member for member in self.members.values() if member.up]
        done = await asyncio.gather(
            *(self._call(member.address, _CALL_S + 10, attach.detach, self._setup.run_id) for member in members)
        )
        lost = [member.name for member in self.members.values() if member.state is State.LOST]
        return (*lost, *(member.name for member, gone in zip(members, done, strict=True) if gone is not True))
