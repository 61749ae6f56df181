"""The worker's part in Dask: the submitted function, and the link to the supervisor.

A Dask task is the coroutine `run_job`: it hands a job to the supervisor and waits for the outcome, on the worker's
event loop and without a thread. Starts and ends are told as Dask events as soon as they are known, since a result takes
two more messages.
"""

import asyncio
import contextlib
import dataclasses
import os
import pickle
import platform
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from snakemake_executor_plugin_dask.model.job_messages import (
    Ended,
    Ending,
    Kill,
    Leave,
    OfCluster,
    Renew,
    Said,
    Start,
    Started,
    Uses,
)
from snakemake_executor_plugin_dask.model.jobs import Outcome, WorkerFacts
from snakemake_executor_plugin_dask.model.wire import frame, receive, unframed
from snakemake_executor_plugin_dask.node.processes import how_ended, kill_descendants
from snakemake_executor_plugin_dask.worker.supervising import SupervisorProcess

_AGAIN_S = 1.0  # until what the system did not let this process do is tried again

Report = Callable[[dict[str, Any]], None]
_OF_OUTCOME = tuple(field.name for field in dataclasses.fields(Outcome))

#: As `event_topic`, of all runs of a cluster that stays, whose events say which run they are of: Dask keeps the last
#: events of each topic for ever.
EVERY_RUN = "snakemake-runs"


def event_topic(run_id: str) -> str:
    """The topic of the Dask events that tell of jobs started and ended."""
    return f"snakemake-{run_id}"


class SupervisorLink:
    """One run's jobs on this worker."""

    def __init__(
        self,
        run_id: str,
        worker: str,
        supervisor: SupervisorProcess,
        report: Report,
        clock: Callable[[], float] = time.monotonic,
        again_s: float = _AGAIN_S,
    ) -> None:
        self.run_id = run_id
        self._clock, self._again_s = clock, again_s
        self.worker = worker
        self.supervisor = supervisor
        self._report = report
        self._waiting: dict[str, asyncio.Future[Ended]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self.ending = False  # its supervisor takes no more jobs; `lost` is set once it is gone
        self.lost = asyncio.Event()
        self._why_lost = ""
        #: What each job used a moment ago: CPU time in seconds, memory in 10^6 bytes. Told every few seconds.
        self.uses: Mapping[str, tuple[float, float]] = {}
        self._told = clock()
        self.cores_at_work = 0.0  # in all jobs, between the last two times

    def _note_uses(self, uses: Mapping[str, tuple[float, float]]) -> None:
        now = self._clock()
        used_s = sum(max(0.0, cpu_s - self.uses.get(key, (0.0, 0.0))[0]) for key, (cpu_s, _) in uses.items())
        self.cores_at_work = used_s / max(1.0, now - self._told)
        self.uses, self._told = uses, now

    async def open(self) -> None:
        """Hear the supervisor from now on. Called once, before all else."""
        reader, self._writer = await self.supervisor.open()
        self._reading = asyncio.create_task(self._read(reader))

    async def run(self, key: str, start: bytes, *, certify: bool = False) -> Outcome:
        """Start the job and wait for its end; "lost", and all its processes dead, where the supervisor is gone.

        ``start`` is the `wire.frame` of its `Start`, which nobody here reads. ``certify``: it lacks the certificate of
        its own Dask cluster.
        """
        if self.lost.is_set():
            return self._lost(key)
        waited: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._waiting[key] = waited
        if certify:
            from snakemake_executor_plugin_dask.node.certificate import self_signed

            spec = unframed(start).spec
            start = frame(Start(dataclasses.replace(spec, certificate=self_signed())))
        self._write(start)
        ended = await waited
        if not self.lost.is_set():
            # Told here, so that it travels in one message with the end of the task.
            self._tell_if_heard(self._end(ended))
        return ended.outcome

    def _end(self, ended: Ended) -> dict[str, Any]:
        """What is told of a job's end, and of its start, where that was not told."""
        told: dict[str, Any] = {"ended": _plain(ended.outcome)}
        return told if ended.begun is None else told | {"begun": self._begun(ended.begun)}

    def _begun(self, begun: Started) -> dict[str, Any]:
        how = {"start": begun.start, "start_depth": begun.depth, "start_reason": begun.reason}
        return {"started": begun.key, "pid": begun.pid, "time": begun.time, "worker": self.worker, **how}

    def keys(self) -> set[str]:
        """The attempts that run, or wait for their start."""
        return set(self._waiting)

    def stop(self) -> None:
        """Ask the supervisor to end its jobs and leave; `lost` is set once it has."""
        if not self.lost.is_set():
            self.send(Leave())

    def close(self) -> None:
        """Ask the supervisor to leave, and hear it no more. May be repeated."""
        if self._writer is not None and not self.lost.is_set():
            self.send(Leave())
            self._writer.close()

    def send(self, message: object) -> None:
        """Tell the supervisor; see `model.job_messages` for what it takes."""
        self._write(frame(message))

    def _write(self, data: bytes) -> None:
        assert self._writer is not None
        if not self._writer.is_closing():
            self._writer.write(data)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                self._received(await receive(reader))
        except EOFError:
            pass
        except Exception as error:  # noqa: BLE001 - jobs whose ends are not heard would be waited for for ever
            self._why_lost = f"a message of it could not be handled: {error!r}; "
            self.supervisor.process.kill()
        await self._supervisor_gone()

    def _received(self, message: object) -> None:
        match message:
            case Started():
                self._tell_if_heard(self._begun(message))
            case Uses():
                self._note_uses(message.by_key)
            case Ending():
                self.ending = True
                self._tell_if_heard({"ending": self.worker})
            case Said():
                self._tell_if_heard({"said": message.text})
            case OfCluster():
                self._tell_if_heard({"cluster": message.key, **message.message})
            case Ended(outcome, begun):
                outcome = dataclasses.replace(outcome, worker=self.worker, allocation=self._allocation())
                ended = Ended(outcome, begun)
                future = self._waiting.pop(outcome.key, None)
                if future is not None and not future.done():
                    future.set_result(ended)
                else:
                    self._tell_if_heard(self._end(ended))
            case _:
                pass

    async def _supervisor_gone(self) -> None:
        self._tell_if_heard({"leaving": self.worker})  # before the jobs, which must not come back to it
        # A process that the kernel holds may outlive the signal. Until it is gone its job must not run again.
        while not await self._jobs_gone():
            pass
        self.lost.set()
        for key, future in self._waiting.items():
            outcome = self._lost(key)
            self._tell_if_heard({"ended": _plain(outcome)})
            if not future.done():
                future.set_result(Ended(outcome))
        self._waiting.clear()

    def _tell_if_heard(self, message: dict[str, Any]) -> None:
        """What happens to jobs goes on here, whether the scheduler is still there or not."""
        with contextlib.suppress(OSError):
            self._report(message)

    async def _jobs_gone(self) -> bool:
        try:
            return await self._kill_jobs()
        except OSError as error:  # such as too many open files, for a moment
            sys.stderr.write(f"The processes of jobs could not be looked for: {error}\n")
            await asyncio.sleep(self._again_s)
            return False

    async def _kill_jobs(self) -> bool:
        """False where some of their processes are alive after a while."""
        # Its jobs' leaders died with it; whatever they had started is now this process's child.
        return await asyncio.to_thread(kill_descendants, os.getpid())

    def _allocation(self) -> str:
        known = described.get(self.run_id)
        return "" if known is None else known.allocation_id or ""

    def _lost(self, key: str) -> Outcome:
        ended = self._why_lost + how_ended(self.supervisor.process.poll())
        return Outcome(
            key=key,
            status="lost",
            worker=self.worker,
            host=platform.node(),
            allocation=self._allocation(),
            detail=f"the worker's supervisor process ended ({ended})",
        )


def as_event(message: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of jobs, as a Dask event: packed, for text that is not UTF-8 would end the worker's connection."""
    return {"packed": pickle.dumps(dict(message))}


def of_event(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is told of jobs."""
    message: Mapping[str, Any] = pickle.loads(event["packed"])
    return message


def _plain(outcome: Outcome) -> dict[str, Any]:
    """As the message of its end holds it. Its fields are plain, and need no copies as `asdict` makes them."""
    return {name: getattr(outcome, name) for name in _OF_OUTCOME}


links: dict[str, SupervisorLink] = {}

#: What Dask's page of workers is to show beside figures of Dask's own process: of all runs' jobs.
METRICS: dict[str, Callable[[Any], float]] = {
    "jobs: cores at work": lambda _: round(sum(link.cores_at_work for link in links.values()), 1),
    "jobs: memory in MB": lambda _: round(
        sum(memory_mb for link in links.values() for _, memory_mb in link.uses.values())
    ),
}


async def run_job(run_id: str, key: str, start: bytes, certify: bool = False) -> Outcome:
    """The Dask task: one attempt of one job. Its arguments are those of `SupervisorLink.run`."""
    link = links.get(run_id)
    if link is None:  # its supervisor has ended while the job was on its way
        return Outcome(key, "lost", host=platform.node(), detail="the worker's supervisor process ended")
    return await link.run(key, start, certify=certify)


async def kill_job(run_id: str, key: str, reason: str) -> None:
    """End a job's processes; its outcome follows."""
    if run_id in links:
        links[run_id].send(Kill(key, reason))


async def tell_cluster(run_id: str, key: str, message: Mapping[str, Any]) -> None:
    """Tell an attempt's own Dask cluster."""
    if run_id in links:
        links[run_id].send(OfCluster(key, message))


async def renew(run_id: str, number: int) -> Mapping[str, tuple[float, float]]:
    """Renew the leases of a run's jobs on this worker (where the supervisor has no connection of its own).

    Returns what the jobs used at the renewal before, see `SupervisorLink.uses`.
    """
    if run_id not in links:
        return {}
    links[run_id].send(Renew(number))
    return links[run_id].uses


async def facts(run_id: str) -> WorkerFacts:
    """What this worker knows of itself."""
    return described[run_id]


described: dict[str, WorkerFacts] = {}
