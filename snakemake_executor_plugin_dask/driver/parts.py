"""The parts of jobs' own Dask clusters on other workers than their scripts': started, ended, lost, placed anew.

A part is sent to its worker as an attempt with a key of its own. Its job is over once all its parts are; a part that is
lost takes its Dask workers along, and not the job. Acts through the run's cluster, on the driver's event loop. See
docs/design-details.md, "A job's own Dask cluster".
"""

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from snakemake_executor_plugin_dask.decide.growth import Growing
from snakemake_executor_plugin_dask.decide.ledger import Holding, Ledger, WorkerState
from snakemake_executor_plugin_dask.decide.needs import Need
from snakemake_executor_plugin_dask.decide.placement import Missing, place_missing
from snakemake_executor_plugin_dask.decide.routing import counts_devices
from snakemake_executor_plugin_dask.decide.waiting import Waiting, WaitingClass
from snakemake_executor_plugin_dask.driver.cluster import Cluster, NotNow, Surroundings
from snakemake_executor_plugin_dask.driver.jobs import Attempt, Job, State
from snakemake_executor_plugin_dask.driver.members import Member
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster, Spread
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.model.units import count
from snakemake_executor_plugin_dask.node.certificate import self_signed
from snakemake_executor_plugin_dask.node.devices import device_environment

_LOST_WORD_S = 1.0  # a lost worker is told otherwise, and first
_RETIRE_S = 40.0  # a Dask worker is ended so long after it was to be given back, whatever its scheduler says
_NOT_AGAIN_S = 60.0  # a job grows no more for so long after one of its lent Dask workers ended by itself


@dataclass(slots=True, eq=False)
class Part:
    """So many of a job's Dask workers on one worker."""

    attempt: Attempt  # of its own
    workers: int
    devices: tuple[str, ...]
    lent: bool = False  # beyond what the job started with; its room is held under its own key
    given_back: float | None = None  # since then it has been on its way


@dataclass(slots=True, eq=False)
class _Job:
    """A job's attempt whose Dask cluster lies on several workers, or may grow."""

    job: Job
    spec: JobSpec  # of the script's part
    cluster: JobCluster
    pool: Pool
    parts: dict[str, Part] = field(default_factory=dict)  # by their keys: those that hold room
    number: int = 0  # of parts so far
    missing: int = 0  # Dask workers that were lost
    grows_from: float = 0.0  # not before
    cpu_s: float | None = None  # of parts that ended before the script
    scheduler: Mapping[str, Any] | None = None  # what it told once it listened
    outcome: Outcome | None = None  # of the script: its parts are ended


class Parts:
    """The parts of all running jobs."""

    def __init__(
        self,
        ledger: Ledger,
        waiting: Waiting,
        cluster: Cluster,
        around: Surroundings,
        *,
        over: Callable[[Outcome], None],
        dead: Callable[[Job, str], None],
        room: Callable[[], None],
    ) -> None:
        """``over`` gets a script's outcome again once its parts are gone; ``dead`` gets parts of a job in limbo.

        ``room``: there may be room that was not there before.
        """
        self._ledger, self._waiting, self._cluster = ledger, waiting, cluster
        self._event, self._clock, self._say = around.event, around.clock, around.say
        self._over, self._dead, self._room = over, dead, room
        self._tasks = Tasks(around.failed)
        self._noted: set[str] = set()  # what was said, once for all jobs
        self._jobs: dict[str, _Job] = {}  # by the key of the script's attempt

    def begin(self, job: Job, pool: Pool, holding: Holding, spec: JobSpec) -> JobSpec:
        """Its attempt is about to be sent: what its script's worker gets."""
        if spec.cluster is None:
            return spec
        home = holding.workers[0]
        counts = holding.dask_workers or {home: spec.cluster.workers}
        number = sum(counts.values())
        # On whole nodes it has as many as it can from the start.
        cluster = spec.cluster if pool.nodes is None else dataclasses.replace(spec.cluster, workers=number, most=0)
        spec = dataclasses.replace(spec, cluster=dataclasses.replace(cluster, workers=counts[home]))
        grows = cluster.most > cluster.workers and not pool.kind.found and not cluster.together
        pages = self._cluster.pages
        if len(counts) < 2 and not grows and pages is None:
            return spec
        host = _host(self._cluster.workers.members[home])
        spread = Spread(host, number, pages="" if pages is None else pages.path(spec.key))
        found = _Job(job, dataclasses.replace(spec, spread=spread, certificate=self_signed()), cluster, pool)
        self._jobs[spec.key] = found
        for name, workers in counts.items():
            if name != home:
                self._add(found, name, workers, holding.devices.get(name, ()))
        return found.spec

    def received(self, message: Mapping[str, Any]) -> bool:
        """Whether a worker's message was of a part, or of a job's cluster."""
        if "cluster" in message:
            self._told(message["cluster"], message)
            return True
        key = message.get("started") or message.get("ended", {}).get("key", "")
        found, part = self._find(key)
        if found is None or part is None:
            return False
        if part.attempt.state is State.LIMBO:
            return True  # a lost worker's late word
        if "ended" in message:
            self._gone(found, part, Outcome(**message["ended"]))
        elif part.attempt.state is State.SENT:
            part.attempt.become(State.RUNNING)
            over = found.outcome is not None or found.job.attempt.state is State.LIMBO
            if over or part.given_back is not None:
                self._kill(part)  # asked before, it may have had no process to end
        return True

    def ended(self, attempt: Attempt, outcome: Outcome) -> Outcome | None:
        """A script has ended: what it and its parts have come to. None: parts end first, then ``over`` is called."""
        found = self._jobs.get(attempt.key)
        if found is None:
            return outcome
        if found.outcome is None:
            found.outcome = dataclasses.replace(outcome, cpu_s=_sum(outcome.cpu_s, found.cpu_s))
            self._end(found)
        return None if attempt.key in self._jobs else found.outcome

    def withdrawn(self, attempt: Attempt) -> None:
        """Nothing of it was started: it waits again, and its places are free."""
        found = self._jobs.get(attempt.key)
        if found is not None:
            found.parts.clear()
            self._forget(found)

    def ending(self, attempt: Attempt) -> bool:
        """Whether its script's outcome is known, and its parts are waited for."""
        found = self._jobs.get(attempt.key)
        return found is not None and found.outcome is not None

    def lost_script(self, attempt: Attempt) -> set[str]:
        """Its script's worker was lost: its parts are ended. Returns the keys of those that may live, for ``dead``."""
        found = self._jobs.get(attempt.key)
        return set() if found is None else self._end(found)

    def lost_worker(self, member: Member) -> list[Part]:
        """The parts there, whose Dask workers their jobs are to do without; each is to be given to `confirmed`."""
        lost = [(found, part) for found, part in self._every() if part.attempt.member is member]
        for found, part in lost:
            if part.attempt.state is State.WAITING:
                self._gone(found, part, None)
            elif part.attempt.state is not State.LIMBO:
                part.attempt.become(State.LIMBO)
                self._tell(found, {"gone": part.attempt.number})
        return [part for _, part in lost if part.attempt.state is State.LIMBO]

    def confirmed(self, part: Part, *, unknown: str | None) -> None:
        """Nothing of a part lives any more; ``unknown``: its lease has run out, and this is why that is not seen.

        Such a part was frozen. It ends once it goes on, and the job's scheduler has nothing to do with it.
        """
        found, _ = self._find(part.attempt.key)
        if found is None:
            return
        if unknown and found.outcome is None and found.job.attempt.state is not State.LIMBO:
            self._say(
                "warning",
                f"{count(part.workers, 'Dask worker')} of {found.spec.name} (job {found.spec.jobid}) on worker "
                f"{part.attempt.worker} may live: {unknown}. They get no more work, and others take their place.",
            )
        self._gone(found, part, None)

    def place_missing(self) -> None:
        """Give jobs new Dask workers for those they have lost, where there is room."""
        for found in self._jobs.values():
            if not found.missing or found.outcome is not None or found.job.attempt.state is State.LIMBO:
                continue
            missing = Missing(found.job.queued.key, found.job.queued.request, found.pool, found.missing)
            for place, devices in place_missing(missing, self._waiting, self._ledger, self._clock()):
                found.missing -= place.workers
                part = self._add(found, place.worker, place.workers, devices)
                self._note("placed", found, part)
                self._send(found, part)

    def missing(self, pool: str) -> list[WaitingClass]:
        """What jobs of a pool have lost, for those who count how many workers are needed.

        A job on whole nodes of a wide worker gets others of the same, for which no worker is asked for.
        """
        return [
            WaitingClass(_each(found), fresh=False, count=found.missing, since=self._clock())
            for found in self._jobs.values()
            if found.missing and found.pool.name == pool and found.pool.nodes is None
        ]

    # Lent Dask workers

    def growing(self, pool: str) -> list[Growing]:
        """The jobs of a pool that may have more Dask workers, or have some that are lent."""
        found = []
        for each in self._jobs.values():
            lent = sum(part.lent for part in each.parts.values())
            if each.pool.name != pool or (not lent and each.cluster.most <= each.cluster.workers):
                continue
            may = each.scheduler is not None and each.outcome is None and each.job.attempt.state is State.RUNNING
            may = may and not each.missing and self._clock() >= each.grows_from
            more = each.cluster.most - each.cluster.workers - lent if may else 0
            found.append(Growing(each.spec.key, _each(each), more, lent))
        return found

    def lend(self, key: str, state: WorkerState, need: Need) -> None:
        """A job gets one more Dask worker there; nothing where it is not one of this run's."""
        found = self._jobs.get(key)
        if found is None:
            return
        part = self._add(found, state.name, 1, (), lent=True)
        request = part.attempt.request
        holding = self._ledger.hold(part.attempt.key, [state], request, need, self._clock(), lent=True)
        part.devices = holding.devices.get(state.name, ())
        self._note("placed", found, part)
        self._send(found, part)

    def leaving(self) -> set[str]:
        """The lent Dask workers that are on their way back; ends those that take too long."""
        now = self._clock()
        leaving = {part.attempt.key: part for _, part in self._every() if part.given_back is not None}
        for part in leaving.values():
            if part.given_back is not None and now - part.given_back > _RETIRE_S:
                part.given_back = now
                self._kill(part)
        return set(leaving)

    def give_back(self, key: str) -> None:
        """Others wait for the room of a lent Dask worker: its data moves first. Nothing where it is another run's."""
        found, part = self._find(key)
        if found is None or part is None or part.given_back is not None:
            return
        part.given_back = self._clock()
        if part.attempt.state is State.WAITING:
            self._gone(found, part, None)
        else:
            self._tell(found, {"retire": part.attempt.number})

    def abandon(self) -> None:
        """The run is over: every process of its parts is gone, and nothing is held for them."""
        for found, part in self._every():
            if part.lent:
                self._release(found, part)
        self._jobs.clear()
        self._tasks.cancel()

    # One part

    def _add(self, found: _Job, worker: str, workers: int, devices: tuple[str, ...], *, lent: bool = False) -> Part:
        found.number += 1
        request = _each(found) if lent else found.job.queued.request
        attempt = Attempt(f"{found.spec.key}+{found.number}", found.number, request)
        attempt.member = self._cluster.workers.members[worker]
        part = found.parts[attempt.key] = Part(attempt, workers, devices, lent)
        return part

    def _release(self, found: _Job, part: Part) -> None:
        """What it holds is free."""
        if part.lent:
            self._ledger.release(part.attempt.key, self._clock())
        else:
            self._ledger.release_place(found.job.queued.key, part.attempt.worker, self._clock())

    def _told(self, key: str, message: Mapping[str, Any]) -> None:
        """The scheduler of a job listens, or one of its Dask workers elsewhere was over its memory."""
        found, part = self._find(key)
        if found is None:
            return
        if part is not None:
            self._tell(found, {"over": message["over"], "text": message["text"]})
        elif "retired" in message:
            _, retired = self._find(f"{key}+{message['retired']}")
            if retired is not None:
                self._kill(retired)
        elif "note" in message:
            if message["note"] not in self._noted:
                self._noted.add(message["note"])
                self._say("warning", message["note"])
        elif "pages" in message:
            self._show_pages(found, message["pages"])
        elif "started" in message:
            found.scheduler = message
            for each in list(found.parts.values()):
                self._send(found, each)

    def _show_pages(self, found: _Job, port: int) -> None:
        attempt, certificate, pages = found.job.attempt, found.spec.certificate, self._cluster.pages
        if pages is not None and attempt.member is not None and certificate is not None and found.outcome is None:
            name = f"{found.spec.name} (job {found.spec.jobid})"
            try:
                pages.show(found.spec.key, name, _host(attempt.member), port, certificate)
            except OSError as error:
                if "pages" not in self._noted:
                    self._noted.add("pages")
                    self._say("warning", f"The pages of the Dask cluster of {name} cannot be shown: {error}")

    def _send(self, found: _Job, part: Part) -> None:
        if found.scheduler is None or found.outcome is not None or part.attempt.state is not State.WAITING:
            return
        part.attempt.become(State.SENT)
        self._tasks.spawn(self._follow(found, part, _spec(found, part, found.scheduler)))

    async def _follow(self, found: _Job, part: Part, spec: JobSpec) -> None:
        member = part.attempt.member
        try:
            outcome = await self._cluster.submit(part.attempt, spec)
        except asyncio.CancelledError:
            raise
        except NotNow:
            # Nothing of it was started. In limbo what becomes of it is decided once its worker is known to be dead.
            if part.attempt.state is State.SENT:
                self._gone(found, part, None)
        except Exception as error:  # noqa: BLE001 - as for a job (`Controller._follow`)
            await asyncio.sleep(_LOST_WORD_S)
            if part.attempt.key in found.parts and member is not None:
                self._cluster.workers.lose(member, f"Dask could not run a job's Dask workers on it: {error}")
        else:
            if outcome is not None and part.attempt.state is not State.LIMBO:
                self._gone(found, part, outcome)

    def _gone(self, found: _Job, part: Part, outcome: Outcome | None) -> None:
        """No process of it is left. ``outcome`` None: its worker was lost."""
        if found.parts.pop(part.attempt.key, None) is None:
            return  # told twice
        if part.attempt.state is not State.WAITING:
            part.attempt.become(State.LOST if outcome is None else State.ENDED)
        job = found.job
        self._release(found, part)
        if (freed := part.attempt.freed) is not None:
            freed()
        self._room()
        if job.attempt.state is State.LIMBO:
            self._forget(found)
            self._dead(job, part.attempt.key)
            return
        if found.outcome is not None:
            if outcome is not None:
                found.outcome = dataclasses.replace(
                    found.outcome,
                    cpu_s=_sum(found.outcome.cpu_s, outcome.cpu_s),
                    peak_memory_mb=_sum(found.outcome.peak_memory_mb, outcome.peak_memory_mb),
                )
            self._forget(found)
            if not found.parts:
                self._over(found.outcome)
            return
        if outcome is not None:
            found.cpu_s = _sum(outcome.cpu_s, found.cpu_s)
        if part.lent:
            self._note("returned" if part.given_back is not None else "lost", found, part)
            if part.given_back is None:
                found.grows_from = self._clock() + _NOT_AGAIN_S
                if outcome is not None and outcome.status == "out-of-memory":
                    self._tell(found, {"over": str(part.attempt.number), "text": outcome.detail})
            self._tell(found, {"gone": part.attempt.number})
        elif outcome is not None and outcome.status in ("failed", "not-started"):
            where = f"its Dask workers on {outcome.host or part.attempt.worker}"
            self._tell(found, {"failed": f"{where} could not go on: {outcome.detail}"})
        else:
            self._note("lost", found, part)
            if outcome is not None and outcome.status == "out-of-memory":  # with processes that its Dask workers began
                self._tell(found, {"over": str(part.attempt.number), "text": outcome.detail})
            self._tell(found, {"gone": part.attempt.number})
            found.missing += part.workers

    def _note(self, what: str, found: _Job, part: Part) -> None:
        cores = part.workers * found.cluster.cores
        self._event(
            f"dask-workers-{what}", key=found.spec.key, worker=part.attempt.shown, number=part.workers, cores=cores
        )

    def _end(self, found: _Job) -> set[str]:
        """End all parts of a job; returns the keys of those that may live."""
        for part in list(found.parts.values()):
            if part.attempt.state is State.WAITING:
                del found.parts[part.attempt.key]
                self._release(found, part)
            elif part.attempt.state is not State.LIMBO:
                self._kill(part)
        self._forget(found)
        return set(found.parts)

    def _forget(self, found: _Job) -> None:
        if self._cluster.pages is not None:
            self._cluster.pages.hide(found.spec.key)
        if not found.parts:
            self._jobs.pop(found.spec.key, None)

    def _kill(self, part: Part) -> None:
        if part.attempt.member is not None and part.attempt.member.up:
            why = "its job has ended" if part.given_back is None else "others wait for its room"
            self._tasks.spawn(self._cluster.kill(part.attempt, why))

    def _tell(self, found: _Job, message: Mapping[str, Any]) -> None:
        attempt = found.job.attempt
        if attempt.member is not None and attempt.member.up:
            self._tasks.spawn(self._cluster.tell_cluster(attempt, message))

    def _find(self, key: str) -> tuple[_Job | None, Part | None]:
        found = self._jobs.get(key)
        if found is not None:
            return found, None
        found = self._jobs.get(key.rpartition("+")[0])
        return found, None if found is None else found.parts.get(key)

    def _every(self) -> Iterator[tuple[_Job, Part]]:
        for found in list(self._jobs.values()):
            for part in list(found.parts.values()):
                yield found, part


def _spec(found: _Job, part: Part, scheduler: Mapping[str, Any]) -> JobSpec:
    spec, member, number = found.spec, part.attempt.member, part.attempt.number
    assert member is not None
    cluster = dataclasses.replace(found.cluster, workers=part.workers)
    environment = device_environment(part.devices, found.pool.gpu_vendor) if counts_devices(found.pool) else ()
    return JobSpec(
        key=part.attempt.key,
        name=spec.name,
        jobid=spec.jobid,
        attempt=spec.attempt,
        arguments=(),
        max_threads=cluster.cores,
        log_path=f"{spec.log_path}.dask-{number}",
        memory_limit_mb=None if spec.memory_limit_mb is None else part.workers * (cluster.memory_mb or 0),
        environment=tuple(environment),
        cluster=cluster,
        spread=Spread(
            _host(member),
            part.workers,
            part=number,
            scheduler=scheduler["started"],
            python=scheduler["python"],
            environment=tuple((name, value) for name, value in scheduler["environment"]),
            modules=tuple(scheduler["modules"]),
            lent=part.lent,
        ),
        certificate=spec.certificate,
    )


def _each(found: _Job) -> Request:
    """One Dask worker, as a job would ask for it."""
    request, cluster = found.job.queued.request, found.cluster
    return dataclasses.replace(
        request,
        cores=cluster.cores,
        memory_mb=None if request.memory_mb is None else cluster.memory_mb,
        gpus=cluster.gpus,
        extra=(),
        cluster=None,
    )


def _sum(one: float | None, other: float | None) -> float | None:
    """Of what is known."""
    return other if one is None else one + (other or 0.0)


def _host(member: Member) -> str:
    """By which other nodes reach a worker: Dask's own address of it."""
    return member.address.rpartition("://")[2].rpartition(":")[0].strip("[]")
