"""One worker in an allocation of a batch system: submitted, looked at in the queue, cancelled. Runs commands."""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake_executor_plugin_dask.backends.base import (
    AllocationState,
    Link,
    WorkerProcess,
)
from snakemake_executor_plugin_dask.batch.allocations import TIMED_OUT, Ran, Record, user_name
from snakemake_executor_plugin_dask.batch.answers import (
    confirmed,
    is_id,
    look,
    outside_allocation,
    unlisted,
)
from snakemake_executor_plugin_dask.batch.meanings import outlook, preempted, what_to_change
from snakemake_executor_plugin_dask.interior import jobqueue
from snakemake_executor_plugin_dask.model.batch_systems import BatchSystem
from snakemake_executor_plugin_dask.model.batch_systems.listings import Seen, bare
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.node import descriptors
from snakemake_executor_plugin_dask.node.private import NotPrivate, read_end

if TYPE_CHECKING:
    from snakemake_executor_plugin_dask.backends.jobqueue import JobqueueBackend

_COMMAND_TIMEOUT_S = 60.0
#: How often the queue is asked at most while nothing hurries: sites ask not to be polled more often.
LOOK_EVERY_S = 10.0
_KILL_LOOK_EVERY_S = 1.0
_KILL_TIMEOUT_S = 60.0
_CANCEL_AGAIN_S = 10.0
#: Slurm gives reasons that mean "never" for a moment, before it has looked closely.
STUCK_S = 12.0
_TAIL_LINES = 20
_TAIL_BYTES = 4096


async def run_command(command: Sequence[str], *, cwd: str | None = None, stdin: str | None = None) -> Ran:
    """Run one of the batch system's commands; one that is missing or does not answer counts as failed, and says so."""
    source = open(stdin, "rb") if stdin else None  # noqa: ASYNC230, SIM115 - a small local file; closed below
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=source or asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, cwd=cwd, env=outside_allocation(os.environ),
        )  # fmt: skip
        descriptors.restore(process.pid)
    except OSError as error:
        return Ran(127, "", f"{command[0]}: {error.strerror}")
    finally:
        if source:
            source.close()
    try:
        out, err = await asyncio.wait_for(process.communicate(), _COMMAND_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return Ran(TIMED_OUT, "", f"{command[0]} did not answer within {_COMMAND_TIMEOUT_S:.0f} s")
    return Ran(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))


class QueueView:
    """What the batch system says of all allocations of this run, asked in one call that all share."""

    def __init__(
        self,
        system: BatchSystem,
        where: str | None,
        run: Callable[..., Any],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._system, self._where = system, where
        self._run, self._clock, self._sleep = run, clock, sleep
        self._lock = asyncio.Lock()
        self._asked = float("-inf")  # when the last answer's question was put
        self._answers: dict[str, Seen] = {}
        self.ids: set[str] = set()

    async def look(self, allocation_id: str, max_age_s: float, not_before: float) -> Seen:
        """The state, from an answer not older than ``max_age_s``, nor from before ``not_before`` (monotonic)."""
        self.ids.add(allocation_id)
        async with self._lock:
            age = self._clock() - self._asked
            if age > max_age_s or self._asked < not_before or allocation_id not in self._answers:
                if age < _KILL_LOOK_EVERY_S:
                    await self._sleep(_KILL_LOOK_EVERY_S - age)
                ids = sorted({*self.ids, allocation_id})  # it may have been seen to be gone meanwhile
                self._asked = self._clock()
                done = await self._run(self._system.query(ids, user_name(), self._where))
                self._answers = look(self._system, ids, *done)
                again = unlisted(self._system, ids, done.code, done.out)
                if again and self._system.confirm is not None:
                    done = await self._run(self._system.confirm(again, self._where))
                    self._answers |= confirmed(self._system, again, *done)
            return self._answers[allocation_id]


class Allocation(WorkerProcess):
    """One worker, in an allocation of its own."""

    def __init__(self, backend: "JobqueueBackend", pool: Pool, name: str, link: Link, view: QueueView) -> None:
        super().__init__(pool, name, link)
        self._backend = backend
        self._view = view
        self._record = Record(link.state_dir)
        self._submitted = float("-inf")
        self._gone: AllocationState | None = None
        self._stuck_since: float | None = None
        self._submission: asyncio.Task[None] | None = None
        self._refused = False  # by the submit command

    async def start(self) -> None:
        # Shielded: a submission that is cut off would leave an allocation whose id nobody knows.
        self._submission = asyncio.ensure_future(self._submit())
        await asyncio.shield(self._submission)

    async def _submit(self) -> None:
        await self._submit_once()
        if self._refused and self.pool.left_out:
            # Perhaps only nodes that are left out could hold it.
            self.pool = replace(self.pool, left_out=())
            self._refused, self.failure, self.outlook = False, None, "unknown"
            await self._submit_once()

    async def _submit_once(self) -> None:
        job_name = allocation_name(self.pool, self.link)
        where = self._backend.where(self.pool)
        try:
            job, script = self._backend.write(self.pool, self.name, self.link)
            self._record.submitting(self.name, job_name, self._backend.system.name, where)
            try:
                number = await jobqueue.submit(job, os.fspath(script))
            except Unanswered:
                found = await self._backend.find(script, where)
                if found is None:
                    raise
                number = found
            self.allocation_id = self._backend.checked_id(number)
            self._record.submitted(self.name, number)
        except SubmitError as error:
            self._refused = True
            advice = what_to_change(self._backend.system, str(error))
            self.failure = str(error) + (f"; {advice}" if advice else "")
            self.outlook = outlook(self._backend.system, str(error))
            self._record.gone(self.name)
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            self.failure = str(error)
            self.outlook = outlook(self._backend.system, str(error))
        self._submitted = self._backend.clock()

    async def state(self) -> AllocationState:
        if self.allocation_id is None:
            return AllocationState("gone", self.failure or "it was never submitted")
        if self._gone is not None:
            return self._gone
        seen = await self._look(self._backend.look_every_s, self._submitted)
        if seen.nodes:
            self.node = seen.nodes if re.fullmatch(r"[\w.-]+", seen.nodes) else ""
        if seen.kind == "gone":
            return self._went(seen.reason)
        if seen.stuck:
            return await self._stuck(seen.reason)
        self._stuck_since = None
        return AllocationState(seen.kind, seen.reason, expected=seen.expected)

    async def _look(self, max_age_s: float, not_before: float) -> Seen:
        """What the queue says; where the batch system has submitted it once more by itself, that one is followed."""
        while True:
            assert self.allocation_id is not None
            seen = await self._view.look(self.allocation_id, max_age_s, not_before)
            if not (seen.kind == "gone" and is_id(self._backend.system, seen.again)):
                return seen
            self._view.ids.discard(self.allocation_id)
            self.allocation_id = seen.again
            self._record.submitted(self.name, seen.again)

    async def _stuck(self, reason: str) -> AllocationState:
        """It would wait for ever, and count as an allocation that may still come: cancelled, if it stays so."""
        now = self._backend.clock()
        self._stuck_since = now if self._stuck_since is None else self._stuck_since
        if now - self._stuck_since < self._backend.stuck_s:
            return AllocationState("queued", reason)
        advice = what_to_change(self._backend.system, reason)
        self.outlook = "final"
        why = f"it would never start: {reason}" + (f"; {advice}" if advice else "")
        return await self._cancel(why) or AllocationState("unknown", f"{why}, and could not be cancelled")

    async def over(self) -> bool:
        if self.allocation_id is None or self._gone is not None:
            return True
        return (await self._look(_KILL_LOOK_EVERY_S, self._backend.clock())).kind == "gone"

    async def preempted(self) -> bool:
        if self.allocation_id is None:
            return False
        if preempted(await asyncio.to_thread(self.output_tail)):
            return True
        command = self._backend.system.preempted
        if command is None:
            return False
        done = await self._backend.run(command(self.allocation_id, self._backend.where(self.pool)))
        return done.code == 0 and self._backend.system.was_preempted(done.out)

    async def kill(self) -> bool:
        if self._submission is not None:
            await self._submission
        if self.allocation_id is None:
            return True
        return await self._cancel("it was cancelled") is not None

    async def _cancel(self, why: str) -> AllocationState | None:
        """Cancel the allocation. Returns how it ended, once the queue says that it is gone; None: not in time."""
        deadline = self._backend.clock() + _KILL_TIMEOUT_S
        told, cancelled = None, float("-inf")  # the id that was cancelled last, and when
        while self._gone is None:
            if told != self.allocation_id or self._backend.clock() - cancelled >= _CANCEL_AGAIN_S:
                told, cancelled = self.allocation_id, self._backend.clock()
                # Whether it worked is asked of the queue.
                await self._backend.run(self._backend.cancel_command(self.pool, str(told)))
            seen = await self._look(_KILL_LOOK_EVERY_S, cancelled)
            if seen.kind == "gone":
                return self._went(why)
            if self._backend.clock() >= deadline:
                return None
            await self._backend.sleep(_KILL_LOOK_EVERY_S)
        return self._gone

    def output_tail(self) -> str:
        directory = self._backend.log_directory(self.pool, self.link)
        return log_tail(directory, str(self.allocation_id)) if self.allocation_id is not None else ""

    def _went(self, reason: str) -> AllocationState:
        if self._gone is None:
            number = str(self.allocation_id)
            self._record.gone(self.name)
            self._view.ids.discard(number)
            tail = self.output_tail()
            what = f"allocation {number} ended" + (f" ({reason})" if reason else "")
            unopened = self._backend.system.unopened
            if not tail and unopened and re.search(unopened, reason, re.IGNORECASE):
                where = self._backend.log_directory(self.pool, self.link)
                what += f" and wrote nothing: its output file in {where} could probably not be opened there"
            self._gone = AllocationState("gone", what, tail)
        return self._gone


class SubmitError(RuntimeError):
    """The submit command failed, and said so: nothing was queued."""


class Unanswered(RuntimeError):
    """The submit command failed in a way that may pass, and may have queued an allocation all the same."""


def allocation_name(pool: Pool, link: Link) -> str:
    """By which users and clean-up find it in the queue."""
    return f"snakemake-{link.run_id}-{pool.name}"


def log_tail(directory: Path, allocation_id: str) -> str:
    """The end of the allocation's own output: at most 20 lines and 4 kB of each of its files."""
    number = bare(allocation_id)
    # A number of its own, or after the letters that PBS and Grid Engine put before it: `name.o123`.
    own = re.compile(rf"(?:(?<![A-Za-z0-9])|\.p?[oe]){re.escape(number)}(?![A-Za-z0-9])")
    parts = []
    for path in sorted(directory.glob(f"*{number}*")):
        if not own.search(path.name):
            continue
        try:
            lines = read_end(path, _TAIL_BYTES)[0].decode(errors="replace").strip().splitlines()[-_TAIL_LINES:]
        except NotPrivate as error:
            lines = [f"({path} is not shown: {error.strerror})"]
        except OSError:
            continue  # removed meanwhile
        if lines:
            parts.append("\n".join(lines))
    return "\n".join(parts)
