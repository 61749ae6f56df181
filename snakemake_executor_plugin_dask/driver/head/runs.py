"""What the cluster says of its workers, told to every run, and each run's part of the cluster. Acts on workers.

A worker belongs to all runs: it is joined, lost and seen dead once, whatever the number of runs that have jobs on it.
"""

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from snakemake_executor_plugin_dask.driver.cluster import NotNow
from snakemake_executor_plugin_dask.driver.controller import Controller
from snakemake_executor_plugin_dask.driver.dispatch import Dispatch
from snakemake_executor_plugin_dask.driver.jobs import Attempt, State
from snakemake_executor_plugin_dask.driver.members import Listener, Member, Members
from snakemake_executor_plugin_dask.driver.own.cluster import OnCore
from snakemake_executor_plugin_dask.driver.own.core import Core
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome, RunSetup
from snakemake_executor_plugin_dask.model.kept import SILENT_S, Coming
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.wire import receive
from snakemake_executor_plugin_dask.worker import runs as on_worker

_BEGIN_S = 60.0  # modules may come from a slow file system
_END_S = 30.0
_TRIES = 3
_AGAIN_S = 1.0


class AllRuns(Listener):
    """What concerns a worker is told to each run, or decided once for all."""

    def __init__(self, core: Core, dispatch: Dispatch, failed: Callable[[BaseException], None]) -> None:
        self.core = core
        self.dispatch = dispatch
        self._failed = failed
        self.controllers: dict[str, Controller] = {}  # by the run's id
        self._confirming: dict[str, asyncio.Task[str | None]] = {}  # by worker
        self._keys: dict[str, list[str]] = {}  # by lost worker: the attempts that are to be seen dead
        self._judged = weakref.WeakSet[Member]()  # lost workers of which it is known whether that was planned
        self._tasks = Tasks(failed)

    def worker_joined(self, member: Member) -> None:
        self.dispatch.joined(member, self.core.fleet.up(member.pool.name))
        for controller in self._all():
            controller.worker_joined(member)

    def worker_lost(self, member: Member, why: str, *, told: bool = False) -> None:
        self.dispatch.drain(member.name)
        self._keys[member.name] = []
        for controller in self._all():
            controller.worker_lost(member, why, told=told)
        # It begins once each of the runs, whose tasks were spawned before, has asked for its attempts.
        self._confirming[member.name] = self._tasks.spawn(self._confirm(member))

    async def _confirm(self, member: Member) -> str | None:
        try:
            return await self.core.fleet.confirm_dead(member, self._keys.pop(member.name))
        finally:
            self.dispatch.gone(member.name)
            self._confirming.pop(member.name, None)

    async def confirmed(self, name: str, keys: Sequence[str] = ()) -> str | None:
        """Why these attempts on a lost worker may still live; None once they are known to be dead."""
        self._keys.get(name, []).extend(keys)
        confirming = self._confirming.get(name)
        return None if confirming is None else await asyncio.shield(confirming)

    def judged(self, member: Member, jobs: Collection[str], *, planned: bool) -> None:
        """As `Members` has it: one loss, whatever the number of runs that tell of it."""
        if member not in self._judged:
            self._judged.add(member)
            self.core.fleet.judged(member, jobs, planned=planned)

    def first_workers(self, jobs: int) -> list[Member]:
        """Where a run of so many jobs gets ready before its first one."""
        return [member for member in self.core.fleet.workers() if member.up][:jobs]

    def others_on(self, member: Member, run_id: str) -> bool:
        """Whether another run has jobs on a worker."""
        others = [controller for other, controller in self.controllers.items() if other != run_id]
        holdings = [job.attempt.holding for controller in others for job in controller.sent.values()]
        return any(holding is not None and member.name in holding.workers for holding in holdings)

    def fit_elsewhere(self, pool: Pool) -> bool:
        return bool(self.controllers) and all(controller.fit_elsewhere(pool) for controller in self._all())

    def preempted(self, member: Member) -> None:
        for controller in self._all():
            controller.preempted(member)

    def warn(self, text: str) -> None:
        for controller in self._all():
            controller.warn(text)

    def pool_failed(self, pool: Pool, why: str) -> None:
        for controller in self._all():
            controller.pool_failed(pool, why)

    def pool_given_up(self, pool: Pool, why: str) -> None:
        self.dispatch.pools.given_up[pool.name] = why
        for controller in self._all():
            controller.pool_given_up(pool, why)

    def nodes_closed(self, pool: Pool, why: str) -> None:
        self.dispatch.pools.closed[pool.name] = why
        for controller in self._all():
            controller.nodes_closed(pool, why)

    def event(self, kind: str, **fields: Any) -> None:
        for controller in self._all():
            controller.event(kind, **fields)

    def failed(self, error: BaseException) -> None:
        self._failed(error)

    def _all(self) -> list[Controller]:
        return list(self.controllers.values())


class Expected:
    """A run that has said that it is about to come, while its supervisors get ready."""

    def __init__(self, everybody: AllRuns, coming: Coming, leave: Callable[[], None]) -> None:
        """``leave`` ends the connection on which it has said so."""
        self._core, self._run_id = everybody.core, coming.run_id
        self.members = everybody.first_workers(coming.jobs)
        self._leave, self._over = leave, False
        self._beginning = [asyncio.ensure_future(self._begin(member, coming)) for member in self.members]

    async def _begin(self, member: Member, coming: Coming) -> None:
        with contextlib.suppress(Exception):  # the run has its supervisors begun itself, and tells what keeps it
            arguments = (coming.run_id, coming.beginning)
            await self._core.fleet.call(member.address, on_worker.begin_ahead, *arguments, within_s=_BEGIN_S)

    async def wait(self, reader: asyncio.StreamReader, within_s: float = SILENT_S) -> None:
        """Until `leave`; or until what got ready is gone, since the run does not come within the time."""
        with contextlib.suppress(EOFError, TimeoutError):  # its host may be gone without a word
            async with asyncio.timeout(within_s):
                await receive(reader)
        if not self._over:
            await self.begun()
            await asyncio.gather(*map(self._end_on, self.members))
        if not self._over:
            self._core.forget(self._run_id)
        self._leave()

    def leave(self) -> None:
        """It has come, and what got ready is its own; or the cluster ends."""
        self._over = True
        self._leave()

    async def begun(self) -> None:
        """Until none of them is asked for any more."""
        await asyncio.gather(*self._beginning)

    async def _end_on(self, member: Member) -> None:
        if not self._over:  # it came meanwhile
            with contextlib.suppress(Exception):  # those that are left have no lease, and end for that
                await self._core.fleet.call(member.address, on_worker.end, self._run_id, within_s=_END_S)


class _Workers(Members):
    """The fleet as one run sees it."""

    def __init__(self, everybody: AllRuns) -> None:
        self._everybody = everybody
        self._fleet = everybody.core.fleet
        self.members = self._fleet.members

    async def confirm_dead(self, member: Member, keys: Sequence[str]) -> str | None:
        return await self._everybody.confirmed(member.name, keys)

    async def preempted(self, member: Member) -> bool:
        return await self._fleet.preempted(member)

    def judged(self, member: Member, jobs: Collection[str], *, planned: bool) -> None:
        self._everybody.judged(member, jobs, planned=planned)

    def lose(self, member: Member, why: str, *, told: bool = False) -> None:
        self._fleet.lose(member, why, told=told)


class Share(OnCore):
    """One run's part of the cluster."""

    def __init__(
        self,
        everybody: AllRuns,
        setup: RunSetup,
        known_jobs: int,
        expected: Expected | None = None,
        *,
        again_s: float = _AGAIN_S,
    ) -> None:
        """``known_jobs``: so many it has at once. ``expected``: what got ready for it. ``again_s``: between tries."""
        self._expected, self._again_s = expected, again_s
        super().__init__(everybody.core, setup.run_id)
        self._everybody, self._setup = everybody, setup
        self._known_jobs = known_jobs
        self._begun: dict[str, asyncio.Task[None]] = {}  # by worker: its supervisor for this run is being started
        self._failed: dict[str, int] = {}  # by worker: how often in a row it could not be
        self._tasks = Tasks(lambda _: None)  # whoever awaits one of them is told
        self.workers = _Workers(everybody)

    async def start(self, jobs: Controller) -> None:
        self._jobs = jobs
        self._core.hear(self._run_id, self._received)
        self._core.link.runs.add(self._run_id)
        self._everybody.controllers[self._run_id] = jobs
        up = [member for member in self._core.fleet.workers() if member.up]
        for member in up:
            jobs.event("worker-joined", worker=member.name, pool=member.pool.name, waited_s=0.0, facts=member.facts)
        # The supervisors and their warm processes get ready before the first job.
        for member in self._everybody.first_workers(self._known_jobs):
            self._begin(member)

    def _begin(self, member: Member) -> "asyncio.Task[None]":
        if member.name not in self._begun:
            self._begun[member.name] = self._tasks.spawn(self._have_supervisor(member))
        return self._begun[member.name]

    async def _have_supervisor(self, member: Member) -> None:
        try:
            await self._core.fleet.call(member.address, on_worker.begin, self._setup, within_s=_BEGIN_S)
        except BaseException:
            self._begun.pop(member.name, None)
            raise

    def _received(self, message: Mapping[str, Any]) -> None:
        if "ending" in message:  # this run's supervisor alone, and not the worker; the next one is begun after it
            self._begun.pop(message["ending"], None)
        elif "leaving" in message:
            self._begun.pop(message["leaving"], None)
            self._core.leases.forget(self._run_id, message["leaving"])
        else:
            self._jobs.received(message)

    async def submit(self, attempt: Attempt, spec: JobSpec) -> Outcome | None:
        member = attempt.member
        try:
            ready = member is not None and await self._ready(member)
        except Exception as error:
            if member is None or not self._everybody.others_on(member, self._run_id):
                raise  # the worker is given up
            why = f"this run could not begin on worker {member.name}, where other runs have jobs: {error}"
            return Outcome(attempt.key, "not-started", worker=member.name, detail=why)
        if member is None or not ready or attempt.state is not State.SENT or attempt.killed:
            raise NotNow
        outcome = await super().submit(attempt, spec)
        if outcome is not None and outcome.status == "lost":
            self._begun.pop(member.name, None)  # the next one looks anew
        return outcome

    async def _ready(self, member: Member) -> bool:
        """Whether this run has a supervisor there. Raises what kept it from one several times in a row."""
        try:
            await asyncio.shield(self._begin(member))
        except Exception:
            self._failed[member.name] = self._failed.get(member.name, 0) + 1
            if self._failed[member.name] >= _TRIES:
                raise
            await asyncio.sleep(self._again_s)
            return False
        self._failed.pop(member.name, None)
        return True

    async def watch(self) -> None:
        """The head does, for all runs."""

    async def close(self) -> tuple[str, ...]:
        """End the run's jobs and supervisors. A worker where they do not end is given up, with all that runs on it."""
        begun = set(self._begun)
        if self._expected is not None:
            await self._expected.begun()
            begun |= {member.name for member in self._expected.members}
        members = [m for name in begun if (m := self.workers.members.get(name)) is not None and m.up]
        ended = await asyncio.gather(*(self._end_on(member) for member in members))
        lost = [member for member, gone in zip(members, ended, strict=True) if not gone]
        for member in lost:
            self._core.fleet.lose(member, "the supervisor of a run that has ended does not leave it")
        unknown = await asyncio.gather(*(self._everybody.confirmed(member.name) for member in lost))
        self._jobs.abandon()
        self._everybody.controllers.pop(self._run_id, None)
        self._everybody.dispatch.end(self._run_id)
        self._core.forget(self._run_id)
        left = tuple(member.name for member, why in zip(lost, unknown, strict=True) if why is not None)
        if not left:
            self._core.link.runs.discard(self._run_id)
        return left

    async def _end_on(self, member: Member) -> bool:
        try:
            return bool(await self._core.fleet.call(member.address, on_worker.end, self._run_id, within_s=_END_S))
        except Exception:  # noqa: BLE001 - whatever the worker raises, or Dask for it
            return not member.up
