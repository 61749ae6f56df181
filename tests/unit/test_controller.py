"""The life of jobs in the controller, with workers and Dask that only record what they were asked."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import settling
from settling import settle

from snakemake_executor_plugin_dask.driver.cluster import NotNow, Surroundings
from snakemake_executor_plugin_dask.driver.controller import KILL_S, Controller
from snakemake_executor_plugin_dask.driver.dispatch import Dispatch
from snakemake_executor_plugin_dask.driver.jobs import Attempt
from snakemake_executor_plugin_dask.driver.members import Member, Members, State
from snakemake_executor_plugin_dask.driver.own.scaling import Scaling
from snakemake_executor_plugin_dask.driver.pools import Pools
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome, RunSetup, WorkerFacts
from snakemake_executor_plugin_dask.model.messages import Dropped, Enqueue, Finished, Later, QueuedJob, Say, Started
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request

SETUP = RunSetup(
    run_id="abc12345", workdir="/w", umask=0o22, soft_limits=(), environment={}, replace_environment=True,
    python="python",
    snakefile="Snakefile", general_arguments=(), snakemake_version="9", plugin_version="1", stop_grace_s=0.0,
)  # fmt: skip

SLURM = Pool("known", "slurm", 0, 4, cores=4, memory_mb=4000, slurm=())
NEW = (("slurm_partition", "new"),)


@dataclass
class World:
    """What the controller acts on, recorded."""

    controller: Controller
    workers: Any = None
    cluster: Any = None
    scale: Callable[[], None] = lambda: None
    sent: list[Any] = field(default_factory=list)
    submitted: list[tuple[str, JobSpec]] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # the Dask clusters of jobs
    standing: set[str] = field(default_factory=set)  # workers that answer nothing
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    confirmed: str | None = None  # why the death of a lost worker's jobs cannot be known
    alive: dict[str, asyncio.Event] = field(default_factory=dict)  # by lost worker: its jobs are dead once this is set
    now: float = 1000.0
    called_back: list[tuple[str, int]] = field(default_factory=list)
    largest_mb: int = 9000  # of a further pool of the same Slurm resources
    asked: list[Sequence[Request]] = field(default_factory=list)  # for which pools are to be made
    answer: asyncio.Event = field(default_factory=asyncio.Event)  # Slurm does, once this is set
    tried: Callable[[JobSpec], Awaitable[None]] | None = None  # what Dask does first with a job

    def say(self, level: Any, text: str) -> None:
        self.sent.append(Say(level, text))

    def messages(self, kind: type) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind)]

    def worker(self, name: str, cores: int = 4, remaining_s: float | None = None, **facts_too: Any) -> Any:
        pool = self.controller.pools[name.rpartition("-")[0]]
        facts = WorkerFacts(name, "host", 1, 2, cores, 4000, remaining_s=remaining_s, **facts_too)
        process: Any = SimpleNamespace(allocation_id="7")
        member = Member(name, pool, process, State.UP, self.now, address=f"tls://{name}", facts=facts)
        self.workers.members[name] = member
        self.controller.worker_joined(member)
        return member

    def lose(self, member: Any, why: str = "its connection closed") -> None:
        self.workers.lose(member, why)

    def start(self, key: str) -> None:
        self.controller.received({"started": key, "pid": 1, "start": "warm", "start_depth": 3, "start_reason": ""})

    def end(self, key: str, status: str = "succeeded", **fields: Any) -> None:
        outcome = {"key": key, "status": status, "started": 1.0, "ended": 2.0} | fields
        self.controller.received({"ended": outcome})


def job(name: str, number: int = 1, priority: int = 0, *, last: bool = False, **request: Any) -> QueuedJob:
    key = f"{name}-0abc12345-{number}-1.1"
    spec = JobSpec(key, name, str(number), 1, (), 1, f"/log/{name}")
    return QueuedJob.of(spec, Request(**({"cores": 1} | request)), priority, last=last)


def play(
    script: Callable[[World], Awaitable[None]],
    *pools: Pool,
    retries: int = 3,
    template: Pool | None = None,
    kill_s: float = KILL_S,
    state_dir: str = "",
    **setup: Any,
) -> World:
    """Run a script against a new controller."""
    pools = pools or (Pool("local", "local", cores=4, memory_mb=4000),)
    options = Options(pools=pools, lost_worker_retries=retries, slurm_template=template)

    async def run(state_dir: str) -> World:
        world = World(None)  # type: ignore[arg-type]

        async def submit(attempt: Attempt, spec: JobSpec) -> Outcome | None:
            if (tried := world.tried) is not None:
                await tried(spec)
            assert attempt.member is not None
            world.submitted.append((attempt.member.address, spec))
            await asyncio.Event().wait()
            return None

        async def kill(attempt: Attempt, reason: str) -> None:
            world.killed.append(attempt.key)
            if attempt.worker in world.standing:
                await asyncio.Event().wait()

        async def tell_cluster(attempt: Attempt, message: Any) -> None:
            world.told.append((attempt.key, message))

        async def make_pools(requests: Sequence[Request], further: bool) -> tuple[list[Pool], dict[Request, str]]:
            world.asked.append(requests)
            await world.answer.wait()
            refused = {request: "no node holds it" for request in requests if request.cores > 4}
            made = len(refused) < len(requests)
            size = {"memory_mb": world.largest_mb} if further else {}
            name = f"new{len(world.asked)}" if further else "new"
            return [replace(SLURM, name=name, slurm=requests[0].slurm or (), **size)] if made else [], refused

        async def confirm(member: Any, keys: Any) -> str | None:
            if member.name in world.alive:
                await world.alive[member.name].wait()
            world.workers.members.pop(member.name)
            return world.confirmed

        failures: list[BaseException] = []
        around = Surroundings(
            send=world.sent.append,
            say=world.say,
            event=lambda kind, **fields: world.events.append((kind, fields)),
            failed=failures.append,
            state_dir=state_dir,
            clock=lambda: world.now,
        )
        cluster: Any = SimpleNamespace(submit=submit, kill=kill, tell_cluster=tell_cluster, pages=None)
        dispatch = Dispatch(Pools(options, make_pools), around.clock, failures.append)
        world.controller = Controller(replace(SETUP, **setup), options, cluster, dispatch, around, kill_s)
        fleet: Any = Members(world.controller, lambda: world.now)
        fleet.confirm_dead = confirm
        fleet.startup_s = lambda _: 1.0
        fleet.add = lambda *_: None
        fleet.call_back = lambda pool, count: world.called_back.append((pool.name, count))
        cluster.workers = world.workers = fleet
        world.cluster = cluster
        world.scale = Scaling(dispatch, fleet).scale
        await script(world)
        assert not failures
        return world

    with tempfile.TemporaryDirectory() as directory:
        return settling.run(run(state_dir or directory))


def test_a_job_is_sent_when_a_worker_has_room() -> None:
    """A job waits until there is a worker; then it is sent, and told as started and finished once each."""

    async def script(world: World) -> None:
        world.controller.enqueue(Enqueue((job("a"),)))
        await settle()
        assert not world.submitted
        world.worker("local-0")
        await settle()
        ((address, spec),) = world.submitted
        assert (address, spec.key) == ("tls://local-0", "a-0abc12345-1-1.1")
        world.start(spec.key)
        world.start(spec.key)
        world.end(spec.key)
        world.end(spec.key)

    world = play(script)
    assert [message.key for message in world.messages(Started)] == ["a-0abc12345-1-1.1"]
    assert [message.outcome.status for message in world.messages(Finished)] == ["succeeded"]


def test_what_another_run_may_have_done_spends_no_retry() -> None:
    """A worker on which others' jobs ran is lost five times: the job runs on, at last alone, and then it counts."""

    async def script(world: World) -> None:
        ledger, pool = world.controller.ledger, world.controller.pools["local"]
        world.controller.enqueue(Enqueue((job("a"),)))
        for number in range(6):
            member = world.worker(f"local-{number}")
            await settle()
            if number < 2:  # a job of another run is there, too
                state = ledger.states("local")[member.name]
                ledger.hold(f"other-{number}", [state], Request(cores=1), ledger.need(Request(cores=1), pool), 0.0)
            if number < 4:
                assert not world.messages(Finished)
                world.lose(member)
                await settle()
        assert [message.outcome.status for message in world.messages(Finished)] == ["lost"]

    world = play(script, retries=1)
    placed = [fields["workers"] for kind, fields in world.events if kind == "job-placed"]
    assert [sum(cores.values()) for cores in placed] == [1, 1, 4, 4]


def test_a_start_may_be_told_with_the_end() -> None:
    """As that of a short job is; it is told to Snakemake and the event log all the same, and once."""

    async def script(world: World) -> None:
        world.worker("local-0")
        world.controller.enqueue(Enqueue((job("a"),)))
        await settle()
        key = world.submitted[0][1].key
        begun = {"started": key, "pid": 1, "start": "warm", "start_depth": 3, "start_reason": ""}
        outcome = {"key": key, "status": "succeeded", "started": 1.0, "ended": 2.0}
        world.controller.received({"ended": outcome, "begun": begun})

    world = play(script)
    told = [type(message) for message in world.sent if isinstance(message, Started | Finished)]
    assert told == [Started, Finished]
    assert [kind for kind, _ in world.events if kind in ("job-started", "job-ended")] == ["job-started", "job-ended"]


def test_no_more_than_fits_runs_at_once() -> None:
    """Five one-core jobs on four cores: the fifth is sent when one of the others ends."""

    async def script(world: World) -> None:
        world.worker("local-0")
        world.controller.enqueue(Enqueue(tuple(job("a", number) for number in range(5))))
        await settle()
        assert len(world.submitted) == 4
        world.end(world.submitted[0][1].key)
        await settle()
        assert len(world.submitted) == 5

    play(script)


def test_a_lost_workers_job_runs_again_under_another_key() -> None:
    """The second run has a key and a log of its own; Snakemake hears of one start and one end, under the first key."""

    async def script(world: World) -> None:
        member = world.worker("local-0")
        world.controller.enqueue(Enqueue((job("a"),)))
        await settle()
        world.start(world.submitted[0][1].key)
        world.lose(member)
        await settle()
        world.end(world.submitted[0][1].key)  # a late word of the first run
        world.worker("local-1")
        await settle()
        spec = world.submitted[1][1]
        assert (spec.key, spec.log_path) == ("a-0abc12345-1-1.2", "/log/a.2")
        world.start(spec.key)
        world.end(spec.key)

    world = play(script)
    assert len(world.messages(Started)) == 1
    (finished,) = world.messages(Finished)
    assert (finished.key, finished.runs, finished.outcome.status) == ("a-0abc12345-1-1.1", 2, "succeeded")


def test_what_a_batch_system_says_of_a_lost_worker_is_passed_on() -> None:
    """Once, before its jobs run again; nothing where it says nothing."""

    async def script(world: World) -> None:
        told, silent = world.worker("local-0"), world.worker("local-1")
        told.ended = "*** JOB 7 ON c1 CANCELLED AT 10:00 ***"
        world.lose(told)
        world.lose(silent)
        await settle()

    texts = [message.text for message in play(script).messages(Say)]
    assert [text for text in texts if "whose output" in text] == [
        "Worker local-0 was in allocation 7, whose output ends with: *** JOB 7 ON c1 CANCELLED AT 10:00 ***"
    ]


PREEMPTED = "slurmstepd-c1: error: *** JOB 7 ON c1 CANCELLED AT 10:00 DUE TO PREEMPTION ***"


def test_preempted_workers_cost_no_retry() -> None:
    """However often, and that is said; the loss counts as planned once it is known, and the run goes on."""

    async def script(world: World) -> None:
        world.controller.enqueue(Enqueue((job("a"),)))
        for number in range(6):
            member = world.worker(f"local-{number}")
            await settle()
            member.preempted, member.ended = True, PREEMPTED
            world.lose(member)
            await settle()
        world.worker("local-9")
        await settle()
        world.end(world.submitted[-1][1].key)

    world = play(script, retries=1)
    (finished,) = world.messages(Finished)
    assert (finished.outcome.status, finished.runs) == ("succeeded", 7)
    assert world.controller.counts.lost_workers == 0
    assert len([kind for kind, _ in world.events if kind == "worker-preempted"]) == 6
    texts = [message.text for message in world.messages(Say)]
    assert len([text for text in texts if "which was preempted" in text and PREEMPTED in text]) == 6
    assert len([text for text in texts if "do not count against --dask-lost-worker-retries" in text]) == 1
    assert len([text for text in texts if "5 allocations were preempted so far" in text]) == 1


@pytest.mark.parametrize("preempted", [True, False])
def test_a_jobs_own_word_of_its_loss_waits_for_the_batch_systems(preempted: bool) -> None:
    """It can come before the worker is missed: whether it costs a retry is decided by what the batch system says."""

    async def script(world: World) -> None:
        world.controller.enqueue(Enqueue((job("a"),)))
        fleet: Any = world.workers

        async def asked(_member: Any) -> bool:
            return preempted

        fleet.preempted = asked
        world.worker("local-0")
        await settle()
        world.end(world.submitted[0][1].key, "lost", detail="the worker process ended")
        await settle()

    world = play(script, retries=0)
    assert len(world.submitted) == (2 if preempted else 1)
    assert [message.outcome.status for message in world.messages(Finished)] == ([] if preempted else ["lost"])


def test_a_job_whose_death_is_not_known_is_not_run_again() -> None:
    """Two attempts at once are worse than a failed job, which says why."""

    async def script(world: World) -> None:
        world.confirmed = "the processes on host are frozen"
        member = world.worker("local-0")
        world.controller.enqueue(Enqueue((job("a"),)))
        await settle()
        world.lose(member, "it said nothing for 45 s")
        await settle()
        world.worker("local-1")
        await settle()

    world = play(script)
    assert len(world.submitted) == 1
    (finished,) = world.messages(Finished)
    assert "frozen" in finished.message


def test_the_suspect_is_found_and_innocents_finish() -> None:
    """A job that loses each worker it is on runs alone at last, is named and fails; the one beside it finishes."""

    async def script(world: World) -> None:
        world.controller.enqueue(Enqueue((job("bad"), job("good", 2))))
        for number in range(10):
            member = world.worker(f"local-{number}")
            await settle()
            running = {spec.name: spec for address, spec in world.submitted if address == member.address}
            if "bad" not in running:
                world.end(running["good"].key)
                await settle()
                running = {spec.name: spec for address, spec in world.submitted if address == member.address}
            if "bad" not in running:
                break
            world.lose(member)
            await settle()

    world = play(script, retries=2)
    told = {message.key.split("-")[0]: message for message in world.messages(Finished)}
    assert told["good"].outcome.status == "succeeded"
    assert "likely cause" in told["bad"].message


def test_dropped_jobs_are_told_and_never_started() -> None:
    """After DropWaiting the waiting jobs are named in one message, and those that run finish."""

    async def script(world: World) -> None:
        world.worker("local-0", cores=1)
        world.controller.enqueue(Enqueue((job("a", 1, priority=5), job("a", 2))))
        await settle()
        world.controller.drop_waiting()
        world.end(world.submitted[0][1].key)
        await settle()

    world = play(script)
    assert [message.keys for message in world.messages(Dropped)] == [("a-0abc12345-2-1.1",)]
    assert len(world.submitted) == 1


@pytest.mark.parametrize(("last", "sent"), [(True, 1), (False, 2)])
def test_nothing_takes_the_place_of_the_job_whose_failure_ends_the_run(last: bool, sent: int) -> None:
    """Snakemake starts no more jobs after that, and can say so only once the free place would be taken."""

    async def script(world: World) -> None:
        world.worker("local-0", cores=1)
        world.controller.enqueue(Enqueue((job("a", 1, priority=5, last=last), job("a", 2))))
        await settle()
        world.end(world.submitted[0][1].key, status="failed")
        await settle()

    world = play(script)
    assert len(world.submitted) == sent
    assert [message.keys for message in world.messages(Dropped)] == [("a-0abc12345-2-1.1",)] * last


def test_jobs_that_arrive_after_the_last_start_are_dropped_too() -> None:
    """Snakemake may hand jobs over while it is told to stop: they must not wait for ever."""

    async def script(world: World) -> None:
        world.controller.drop_waiting()
        world.controller.enqueue(Enqueue((job("a", 1),)))
        world.worker("local-0")
        await settle()

    world = play(script)
    assert [message.keys for message in world.messages(Dropped)] == [(), ("a-0abc12345-1-1.1",)]
    assert not world.submitted
    assert not world.controller.jobs


def test_a_lost_run_is_not_told_as_dropped() -> None:
    """A job that waits to run again when no more is started has failed: its outputs may have been touched."""

    async def script(world: World) -> None:
        member = world.worker("local-0")
        world.controller.enqueue(Enqueue((job("a"),)))
        await settle()
        world.start(world.submitted[0][1].key)
        world.lose(member)
        await settle()
        world.controller.drop_waiting()

    world = play(script)
    assert [message.keys for message in world.messages(Dropped)] == [()]
    (finished,) = world.messages(Finished)
    assert finished.outcome.status == "lost"
    assert finished.outcome.detail == (
        "worker local-0 was lost (its connection closed), and it is not run again, since no more jobs are started"
    )


def test_a_pool_that_is_given_up_hands_its_jobs_on() -> None:
    """Jobs go to the next pool that can hold them; those that fit nowhere fail with the reason."""
    pools = (Pool("fast", "slurm", 0, 2, 4, 8000), Pool("slow", "slurm", 0, 2, 4, 4000))

    async def script(world: World) -> None:
        world.controller.enqueue(Enqueue((job("small"), job("large", 2, memory_mb=6000))))
        world.controller.pool_given_up(world.controller.pools["fast"], "sbatch: error: invalid account")
        world.worker("slow-0")
        await settle()

    world = play(script, *pools)
    assert [spec.name for _, spec in world.submitted] == ["small"]
    (finished,) = world.messages(Finished)
    assert finished.outcome.status == "not-started"
    assert "fast" in finished.message
    assert any("invalid account" in message.text for message in world.messages(Say))


def test_a_job_that_is_refused_at_once_has_failed() -> None:
    """The event log tells of it before it tells of its end; else it would count as unfinished, as a retry does."""

    async def script(world: World) -> None:
        world.controller.enqueue(Enqueue((job("large", memory_mb=6000),)))

    world = play(script, Pool("only", "local", 1, 1, 4, 4000))
    assert [kind for kind, _ in world.events if kind.startswith("job-")] == ["job-queued", "job-finished"]


def test_whether_waiting_jobs_fit_in_another_pool() -> None:
    """All of them, and not in one that was given up."""
    pools = (Pool("fast", "slurm", 0, 2, 4, 8000), Pool("slow", "slurm", 0, 2, 4, 4000))

    async def script(world: World) -> None:
        controller = world.controller
        controller.enqueue(Enqueue((job("small"),)))
        assert controller.fit_elsewhere(controller.pools["fast"])
        controller.enqueue(Enqueue((job("large", 2, memory_mb=6000),)))
        assert not controller.fit_elsewhere(controller.pools["fast"])

    play(script, *pools)


def test_an_undeclared_runtime_gets_one_fresh_allocation() -> None:
    """Ended with its allocation, such a job runs once more in a fresh one; then it fails, and `runtime` is named."""
    pool = Pool("cpu", "slurm", 0, 4, 4, 4000, walltime_s=3600.0)

    async def script(world: World) -> None:
        world.controller.enqueue(Enqueue((job("a"),)))
        world.worker("cpu-0", remaining_s=3590.0)
        await settle()
        spec = world.submitted[0][1]
        assert spec.runtime_limit_s is not None
        assert 3500 < spec.runtime_limit_s < 3590
        world.end(spec.key, "out-of-time")
        await settle()
        world.worker("cpu-1", remaining_s=3590.0)
        await settle()
        world.end(world.submitted[1][1].key, "out-of-time")

    world = play(script, pool)
    assert len(world.submitted) == 2
    (finished,) = world.messages(Finished)
    assert "declare runtime" in finished.message


def test_jobs_that_become_ready_are_known_while_they_may() -> None:
    """A later batch adds to what is known; a failed job takes what waited for it along."""

    async def script(world: World) -> None:
        world.worker("local-0")
        first, second = job("a", 1), job("a", 2)
        keys = (first.key, second.key)
        world.controller.enqueue(Enqueue((first,), (Later(Request(2), keys[:1]),)))
        world.controller.enqueue(Enqueue((second,), (Later(Request(3), keys), Later(Request(4), ("ended before",)))))
        assert world.controller.ahead.of("local") == ((Request(2), 1), (Request(3), 1))
        await settle()
        world.end(keys[0])
        assert world.controller.ahead.of("local") == ((Request(3), 1),)
        world.end(keys[1], "failed")
        assert world.controller.ahead.of("local") == ()

    play(script)


def test_queued_allocations_that_nothing_needs_are_called_back() -> None:
    """After the idle timeout, and at once when no more jobs are to start."""
    pool = Pool("cpu", "slurm", 0, 4, 4, 4000, idle_timeout_s=60.0)

    async def script(world: World) -> None:
        world.worker("cpu-0")
        world.controller.enqueue(Enqueue((job("a", cores=4),)))
        await settle()
        for number in (1, 2):
            name = f"cpu-{number}"
            world.workers.members[name] = Member(name, pool, SimpleNamespace(), State.SUBMITTED, 1000.0)  # type: ignore[arg-type]
        for world.now in (1000.0, 1059.0):
            world.scale()
            assert not world.called_back
        world.controller.enqueue(Enqueue((job("b", cores=4), job("b", 2, cores=4))))
        world.scale()
        world.controller.waiting.discard("b-0abc12345-1-1.1")
        world.controller.waiting.discard("b-0abc12345-2-1.1")
        for world.now in (1060.0, 1119.0):
            world.scale()
            assert not world.called_back, "they were needed meanwhile"
        world.now = 1120.0
        world.scale()
        assert world.called_back == [("cpu", 2)]
        world.now = 1121.0
        world.controller.stopping = True
        world.scale()
        assert len(world.called_back) == 2

    play(script, pool)


def test_a_job_of_the_whole_walltime_is_ended_before_its_allocation() -> None:
    """One warning for a rule; its end is told as the allocation's, and it is not run again."""
    pool = Pool("cpu", "slurm", 0, 4, 4, 4000, walltime_s=3600.0)

    async def script(world: World) -> None:
        world.controller.enqueue(Enqueue((job("a", runtime_s=3600.0), job("a", 2, runtime_s=3600.0))))
        world.worker("cpu-0", remaining_s=3590.0)
        await settle()
        assert [spec.runtime_limit_s for _, spec in world.submitted] == [3560.0, 3560.0]
        world.end(world.submitted[0][1].key, "out-of-time")
        await settle()

    world = play(script, pool)
    assert len([message for message in world.messages(Say) if "leaves no margin" in message.text]) == 1
    (finished,) = world.messages(Finished)
    assert "did not end within the life of a new allocation" in finished.message
    assert len(world.submitted) == 2


def test_a_runtime_that_is_not_enforced_still_ends_with_the_allocation() -> None:
    """Else the job would be lost with each allocation, and run again without end."""
    pool = Pool("cpu", "slurm", 0, 4, 4, 4000, walltime_s=3600.0)

    async def script(world: World) -> None:
        world.controller.enqueue(Enqueue((job("a", runtime_s=600.0),)))
        for number in range(2):
            world.worker(f"cpu-{number}", remaining_s=3590.0)
            await settle()
            assert world.submitted[number][1].runtime_limit_s == 3560.0
            world.end(world.submitted[number][1].key, "out-of-time")
            await settle()

    world = play(script, pool, enforce_runtime=False)
    (finished,) = world.messages(Finished)
    assert "declares runtime=10m, and its job did not end within the life of two allocations" in finished.message


def test_dasks_own_failure_gives_the_worker_up() -> None:
    """Where Dask fails to run a task, it is not known whether the job has a process: the worker is given up."""

    async def script(world: World) -> None:
        world.worker("local-0")

        async def fail(_: JobSpec) -> None:
            raise RuntimeError("cannot be unpickled")

        world.tried = fail
        world.controller.enqueue(Enqueue((job("a"),)))
        member = world.workers.members["local-0"]
        world.alive["local-0"] = asyncio.Event()
        await settling.until(lambda: member.state is State.LOST)
        assert not world.messages(Finished)

    play(script)


MPI = Pool("mpi", "mpi", workers_min=4, workers_max=4, cores=4, memory_mb=4000)


async def on_two_workers(world: World) -> str:
    """Start a job on two of four workers; returns its key."""
    for number in range(4):
        world.worker(f"mpi-{number}")
    world.controller.enqueue(Enqueue((job("a", cores=8, nodes=2),)))
    await settle()
    key = world.submitted[0][1].key
    world.start(key)
    return key


def test_a_job_that_lost_its_second_worker_ends_on_the_first_before_it_runs_again() -> None:
    """Asked to end is not dead: the first worker's word is waited for, and the second's too."""

    async def script(world: World) -> None:
        key = await on_two_workers(world)
        world.alive["mpi-1"] = asyncio.Event()
        world.lose(world.workers.members["mpi-1"])
        await settle()
        assert world.killed == [key]
        world.end(key, "cancelled")
        await settle()
        assert len(world.submitted) == 1, "what it had on the second worker may live"
        world.alive["mpi-1"].set()
        await settle()
        assert [spec.key for _, spec in world.submitted] == [key, "a-0abc12345-1-1.2"]

    play(script, MPI)


def test_the_first_workers_word_is_waited_for() -> None:
    """Also where the second worker's part is dead at once; a success counts, since its ranks have all ended."""

    async def script(world: World) -> None:
        key = await on_two_workers(world)
        world.lose(world.workers.members["mpi-1"])
        await settle()
        assert len(world.submitted) == 1
        world.end(key, status)
        await settle()

    status = "cancelled"
    assert len(play(script, MPI).submitted) == 2
    status = "succeeded"
    world = play(script, MPI)
    assert len(world.submitted) == 1
    assert [message.outcome.status for message in world.messages(Finished)] == ["succeeded"]


def test_a_job_that_lost_all_its_workers_runs_again_once_the_first_is_known_dead() -> None:
    """Whichever of them is known to be dead first; late words of a lost worker count for nothing."""

    async def script(world: World) -> None:
        key = await on_two_workers(world)
        world.alive["mpi-0"] = asyncio.Event()
        for name in order:
            world.lose(world.workers.members[name])
        await settle()
        world.end(key, "cancelled")
        await settle()
        assert len(world.submitted) == 1
        world.alive["mpi-0"].set()
        await settle()
        assert len(world.submitted) == 2

    order = ("mpi-0", "mpi-1")
    play(script, MPI)
    order = ("mpi-1", "mpi-0")
    play(script, MPI)


def test_a_kill_that_came_before_the_process_is_repeated() -> None:
    """Else a job whose second worker was lost at its very start would run on."""

    async def script(world: World) -> None:
        for number in range(2):
            world.worker(f"mpi-{number}")
        world.controller.enqueue(Enqueue((job("a", cores=8, nodes=2),)))
        await settle()
        key = world.submitted[0][1].key
        world.lose(world.workers.members["mpi-1"])
        await settle()
        world.start(key)
        await settle()
        assert world.killed == [key, key]

    assert not play(script, MPI).messages(Started)


def test_a_reservation_refused_while_the_worker_is_lost_starts_nothing() -> None:
    """The worker's end decides what becomes of the job, once."""

    async def script(world: World) -> None:
        refused = asyncio.Event()

        async def refuse(_: JobSpec) -> None:
            world.tried = None
            await refused.wait()
            raise NotNow

        world.tried = refuse
        world.alive["local-0"] = asyncio.Event()
        member = world.worker("local-0")
        world.controller.enqueue(Enqueue((job("a"),)))
        await settle()
        world.lose(member)
        world.worker("local-1")
        refused.set()
        await settle()
        assert not world.submitted
        world.alive["local-0"].set()
        await settle()
        assert [spec.key for _, spec in world.submitted] == ["a-0abc12345-1-1.2"]

    play(script)


def test_an_allocation_that_reached_its_end_is_no_loss() -> None:
    """It is not counted, not warned of, and not held against the job."""
    pool = Pool("cpu", "slurm", 0, 4, 4, 4000, walltime_s=3600.0)

    async def script(world: World) -> None:
        member = world.worker("cpu-0", remaining_s=3590.0)
        world.controller.enqueue(Enqueue((job("a"),)))
        await settle()
        world.now += lived
        world.lose(member)
        await settle()

    lived = 3585.0
    world = play(script, pool)
    assert [fields["planned"] for kind, fields in world.events if kind == "worker-lost"] == [True]
    assert not world.controller.counts.lost_workers
    assert not world.controller.jobs["a-0abc12345-1-1.1"].losses
    lived = 3000.0
    assert play(script, pool).controller.counts.lost_workers == 1


def test_slurm_is_asked_once_for_new_resources_and_holds_nothing_up() -> None:
    """Other jobs start meanwhile; then those that fit go to the new pool, and each other one fails with its reason."""

    async def script(world: World) -> None:
        world.worker("known-0")
        new = [job("new", number, slurm=NEW) for number in range(200)]
        large = job("large", cores=8, slurm=NEW)
        world.controller.enqueue(Enqueue((*new, large, job("known", slurm=()))))
        await settle()
        assert [spec.name for _, spec in world.submitted] == ["known"]
        assert world.asked == [[new[0].request, large.request]]
        world.controller.enqueue(Enqueue((job("late", slurm=NEW),)))
        world.answer.set()
        await settle()
        assert len(world.asked) == 1
        assert len(world.controller.waiting) == 201
        assert [message.key for message in world.messages(Finished)] == [large.key]
        assert world.messages(Finished)[0].message == "no node holds it"
        world.worker("new-0")
        await settle()
        assert len(world.submitted) == 5

    play(script, SLURM, template=SLURM)


def test_a_refusal_is_not_another_jobs() -> None:
    """What came while Slurm was asked for a job that it refuses is asked for by itself."""

    async def script(world: World) -> None:
        world.controller.enqueue(Enqueue((job("large", cores=8, slurm=NEW),)))
        await settle()
        world.controller.enqueue(Enqueue((job("small", slurm=NEW),)))
        world.answer.set()
        await settle()
        assert len(world.asked) == 2
        assert list(world.controller.waiting.classes("new"))

    assert len(play(script, SLURM, template=SLURM).messages(Finished)) == 1


def test_jobs_for_whose_pool_slurm_is_asked_can_be_dropped() -> None:
    """They are told as dropped, and the answer changes nothing."""

    async def script(world: World) -> None:
        world.controller.enqueue(Enqueue((job("a", slurm=NEW),)))
        await settle()
        world.controller.drop_waiting()
        world.answer.set()
        await settle()
        assert not len(world.controller.waiting)

    world = play(script, SLURM, template=SLURM)
    assert [message.keys for message in world.messages(Dropped)] == [("a-0abc12345-1-1.1",)]
    assert not world.messages(Finished)


def test_a_worker_that_stands_still_does_not_hold_the_end_up() -> None:
    """The wait for all jobs is bounded, and over at once where they end, whatever became of the question."""

    async def never_ends(world: World) -> None:
        world.standing = {"local-0"}
        world.worker("local-0")
        world.controller.enqueue(Enqueue((job("a"),)))
        await settle()
        await asyncio.wait_for(world.controller.kill_running(), 60.0)
        assert world.killed == [world.submitted[0][1].key]
        await settle()
        assert len(asyncio.all_tasks()) == 2, "this one and the submission: nothing is asked any more"

    play(never_ends, kill_s=0.05)

    async def ends(world: World) -> None:
        world.standing = {"local-0"}
        world.worker("local-0")
        world.controller.enqueue(Enqueue((job("a"),)))
        await settle()
        ending = asyncio.ensure_future(world.controller.kill_running())
        await settle()
        world.end(world.submitted[0][1].key, "cancelled")
        await asyncio.wait_for(ending, 60.0)

    play(ends, kill_s=1000.0)


def test_a_list_of_nodes_that_cannot_be_written_fails_its_job_alone() -> None:
    """A full disk, or one that went away, ends no run."""

    async def script(world: World) -> None:
        world.worker("local-0")
        world.controller.enqueue(Enqueue((job("wide", 1, mpi=True), job("other", 2))))
        await settle()
        (failed,) = world.messages(Finished)
        assert failed.outcome.status == "not-started"
        assert "no directory" in failed.outcome.detail
        assert [spec.name for _, spec in world.submitted] == ["other"]
        assert world.controller.ledger.holding(job("wide", 1).key) is None

    play(script, state_dir="/dev/null")


def test_fewer_gpus_than_declared_are_told_and_no_job_waits_for_them() -> None:
    """What fits runs on what there is; what cannot fails with both counts, before any job has started."""
    pool = Pool("gpu", "slurm", 0, 4, cores=4, memory_mb=4000, gpus=4)
    told = "4 GPUs for each worker were asked for, but g1 has 2 (CUDA_VISIBLE_DEVICES=0,1 grants 0, 1); ask for 2."

    async def script(world: World) -> None:
        world.controller.enqueue(Enqueue((job("all", 1, gpus=4), job("one", 2, gpus=1))))
        for number in range(2):
            world.worker(f"gpu-{number}", devices=("0", "1"), too_few=told)
        await settle()
        assert not world.messages(Started)

    world = play(script, pool)
    assert [say.text for say in world.messages(Say) if "asked for" in say.text] == [f"Pool gpu: {told}"]
    (failed,) = world.messages(Finished)
    assert failed.key.startswith("all-")
    assert "4 GPUs is more than the 2 of a worker" in failed.message
    assert [spec.name for _, spec in world.submitted] == ["one"]


def test_a_job_is_bound_near_to_its_devices() -> None:
    """Within the share of the cores that are nearest to them; jobs without devices are not bound."""
    pool = Pool("gpu", "slurm", 0, 1, cores=4, memory_mb=4000, gpus=2)

    async def script(world: World) -> None:
        world.controller.enqueue(Enqueue((job("a", 1, gpus=1), job("b", 2, gpus=1), job("c", 3))))
        world.worker("gpu-0", devices=("0", "1"), near=((0, 1), (2, 3)))
        await settle()

    world = play(script, pool)
    assert sorted(spec.affinity for _, spec in world.submitted) == [(), (0, 1), (2, 3)]


def test_a_larger_request_gets_a_further_pool() -> None:
    """A retry with more memory than the pool for its resources holds; the small ones stay where they are."""

    async def script(world: World) -> None:
        world.answer.set()
        world.controller.enqueue(Enqueue((job("small"), job("large", 2, memory_mb=6000, slurm=()))))
        wanted = {"small": "known", "large": "new1"}
        await settling.until(lambda: {each.queued.name: each.pool for each in world.controller.jobs.values()} == wanted)
        world.controller.enqueue(Enqueue((job("larger", 3, memory_mb=9999),)))
        await settling.until(lambda: bool(world.messages(Finished)))
        (finished,) = world.messages(Finished)
        assert finished.outcome.status == "not-started"
        assert "pool new2: mem_mb=9999 is more than the 8700 MB usable on a worker" in finished.message
        assert list(world.controller.pools) == ["known", "new1"], "a pool that holds no job is of no use"

    play(script, SLURM, template=SLURM)


@pytest.mark.parametrize("cluster", ["local", "cuda", "mpi"])
def test_jobs_beside_snakemake_run_as_long_as_its_allocation(cluster: str) -> None:
    """A runtime that is longer than what is left of it keeps no job waiting; its end is told as that."""

    async def script(world: World) -> None:
        world.worker("here-0", remaining_s=600.0)
        world.now += 100.0
        world.controller.enqueue(Enqueue((job("long", runtime_s=7200.0), job("short", 2, runtime_s=60.0))))
        await settling.until(lambda: len(world.submitted) == 2)
        limits = {spec.name: spec.runtime_limit_s for _, spec in world.submitted}
        assert limits == {"long": 470.0, "short": 60.0}
        (said,) = world.messages(Say)
        assert "Rule long asks for runtime=2h, and the allocation in which Snakemake runs ends in 8m20s" in said.text
        (key,) = [spec.key for _, spec in world.submitted if spec.name == "long"]
        world.end(key, "out-of-time")
        (finished,) = world.messages(Finished)
        assert "start Snakemake in a longer one" in finished.message

    play(script, Pool("here", cluster, cores=4, memory_mb=4000))
