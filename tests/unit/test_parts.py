"""A job's own Dask cluster on several workers, in the controller: its parts are started, ended, lost and replaced."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from settling import settle

from snakemake_executor_plugin_dask.decide import growth
from snakemake_executor_plugin_dask.decide.growth import to_give_back
from snakemake_executor_plugin_dask.driver.cluster import NotNow
from snakemake_executor_plugin_dask.driver.members import Member, State
from snakemake_executor_plugin_dask.driver.own.jobpages import JobPages
from snakemake_executor_plugin_dask.injob.cluster import pages_arguments
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.jobs import JobSpec, WorkerFacts
from snakemake_executor_plugin_dask.model.messages import Enqueue, Finished, QueuedJob, Say
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request, with_cluster

from .test_controller import World, job, play

POOL = Pool("cpu", "slurm", 0, 3, cores=4, memory_mb=4000)
KEY = "mean-0abc12345-1-1.1"
PART = f"{KEY}+1"


def mean() -> QueuedJob:
    """Five cores in all, so that two workers are needed."""
    spec = JobSpec(KEY, "mean", "1", 1, (), 1, "/log/mean", cluster=JobCluster(2, 2))
    return QueuedJob.of(spec, with_cluster(Request(cores=2), JobCluster(2, 2)), 0)


async def asked(world: World) -> None:
    """The job is there, and two workers that hold it together."""
    for name in ("cpu-0", "cpu-1"):
        world.worker(name)
    world.controller.enqueue(Enqueue((mean(),)))
    await settle()


async def begun(world: World) -> tuple[str, str]:
    """The job runs on two workers, and its scheduler listens; returns the script's worker and the other one."""
    await asked(world)
    ((address, spec),) = world.submitted
    assert spec.cluster == JobCluster(1, 2)
    assert spec.spread is not None
    assert (spec.spread.workers, spec.spread.part) == (2, 0)
    world.start(KEY)
    listens(world)
    await settle()
    (_, (other, part)) = world.submitted
    assert part.key == PART
    assert part.spread is not None
    assert (part.spread.scheduler, part.spread.python, part.spread.environment) == ("tls://s:1", "py", (("A", "1"),))
    assert part.spread.modules == ("dask.array",)
    assert part.certificate == spec.certificate
    world.start(PART)
    return address.removeprefix("tls://"), other.removeprefix("tls://")


def listens(world: World) -> None:
    message: dict[str, Any] = {
        "started": "tls://s:1",
        "python": "py",
        "environment": [["A", "1"]],
        "modules": ["dask.array"],
    }
    world.controller.received({"cluster": KEY} | message)


def test_a_job_is_over_once_its_parts_are() -> None:
    """They are ended, and what they held is free; their CPU time counts as the job's."""

    async def script(world: World) -> None:
        await begun(world)
        world.end(KEY, cpu_s=1.0)
        await settle()
        assert world.killed == [PART]
        assert not world.messages(Finished)
        world.end(PART, "cancelled", cpu_s=2.0)
        (finished,) = world.messages(Finished)
        assert (finished.outcome.status, finished.outcome.cpu_s) == ("succeeded", 3.0)
        states = world.controller.ledger.states("cpu").values()
        assert all(state.free == state.total for state in states)

    play(script, POOL)


def test_without_a_client_there_are_no_parts() -> None:
    """A script that starts no cluster ends as any other job."""

    async def script(world: World) -> None:
        await asked(world)
        world.start(KEY)
        world.end(KEY)
        assert len(world.messages(Finished)) == 1
        assert all(not state.held for state in world.controller.ledger.states("cpu").values())

    play(script, POOL)


def test_a_lost_part_is_replaced() -> None:
    """Once it is known to be dead, and where there is room; the job goes on, and its scheduler is told."""

    async def script(world: World) -> None:
        home, other = await begun(world)
        world.alive[other] = asyncio.Event()
        world.lose(world.workers.members[other])
        world.worker("cpu-2")
        await settle()
        assert world.told == [(KEY, {"gone": 1})]
        assert len(world.submitted) == 2
        assert not world.controller.parts.missing("cpu")
        world.alive[other].set()
        await settle()
        address, part = world.submitted[-1]
        assert (address, part.key) == ("tls://cpu-2", f"{KEY}+2")
        assert not world.messages(Finished)
        assert home in world.workers.members

    play(script, POOL)


def test_a_part_that_may_live_is_told_and_replaced() -> None:
    """Its lease has run out, so it ends once it is not frozen any more; the job's scheduler was told to do without."""

    async def script(world: World) -> None:
        _, other = await begun(world)
        world.confirmed = "the processes on n2 are frozen and cannot be ended from here"
        world.lose(world.workers.members[other])
        world.worker("cpu-2")
        await settle()
        text = "1 Dask worker of mean (job 1) on worker cpu-1 may live: the processes on n2 are frozen"
        assert any(said.text.startswith(text) for said in world.messages(Say))
        assert world.told[0] == (KEY, {"gone": 1})
        address, part = world.submitted[-1]
        assert (address, part.key) == ("tls://cpu-2", f"{KEY}+2")
        world.start(part.key)
        world.end(KEY)
        world.end(part.key, "cancelled")
        assert len(world.messages(Finished)) == 1

    play(script, POOL)


def test_where_there_is_no_room_a_worker_is_asked_for() -> None:
    """Lost Dask workers are counted with what waits."""

    async def script(world: World) -> None:
        _, other = await begun(world)
        world.lose(world.workers.members[other])
        await settle()
        (wanted,) = world.controller.dispatch.wanted("cpu")
        assert (wanted.request.cores, wanted.count) == (2, 1)

    play(script, POOL)


def test_the_loss_of_the_scripts_worker_ends_the_parts_first() -> None:
    """The job runs again once nothing of its earlier attempt lives on any worker."""

    async def script(world: World) -> None:
        home, _ = await begun(world)
        world.lose(world.workers.members[home])
        world.worker("cpu-2")
        await settle()
        assert world.killed == [PART]
        assert len(world.submitted) == 2
        world.end(PART, "cancelled")
        await settle()
        assert world.submitted[-1][1].key == KEY.replace("-1.1", "-1.2")

    play(script, POOL)


def test_a_part_over_its_memory_is_replaced() -> None:
    """With the processes that its Dask workers began; it counts as one of them over its memory."""

    async def script(world: World) -> None:
        await begun(world)
        world.end(PART, "out-of-memory", detail="too much")
        await settle()
        assert [message for _, message in world.told] == [{"over": "1", "text": "too much"}, {"gone": 1}]
        assert world.submitted[-1][1].key == f"{KEY}+2"

    play(script, POOL)


def test_a_part_that_cannot_start_is_told() -> None:
    """The job's scheduler ends then with the reason; a worker over its memory counts with those of other nodes."""

    async def script(world: World) -> None:
        await begun(world)
        world.controller.received({"cluster": PART, "over": "1-0", "text": "too much"})
        world.end(PART, "not-started", detail="no such file", host="n2")
        await settle()
        over, failed = (message for _, message in world.told)
        assert over == {"over": "1-0", "text": "too much"}
        assert failed == {"failed": "its Dask workers on n2 could not go on: no such file"}

    play(script, POOL)


def test_lent_dask_workers_come_and_go() -> None:
    """On the script's own worker, too: their room is given back once their data has moved, to a job that waits."""

    async def script(world: World) -> None:
        await lent(world, most=9)
        _, *parts = (spec for _, spec in world.submitted)
        assert [part.key for part in parts] == [f"{KEY}+1", f"{KEY}+2"]
        assert all(part.spread is not None and part.spread.lent for part in parts)
        world.controller.enqueue(Enqueue((job("other", cores=1),)))
        await settle()
        assert world.told == [(KEY, {"retire": 2})]
        world.controller.received({"cluster": KEY, "retired": 2})
        await settle()
        assert world.killed == [f"{KEY}+2"]
        world.end(f"{KEY}+2", "cancelled", cpu_s=4.0)
        await settle()
        assert world.submitted[-1][1].name == "other"
        assert world.told[1:] == [(KEY, {"gone": 2})]
        world.end(KEY, cpu_s=1.0)
        world.end(f"{KEY}+1", "cancelled", cpu_s=2.0)
        world.end(world.submitted[-1][1].key)
        finished = world.messages(Finished)
        assert [each.outcome.cpu_s for each in finished] == [7.0, None]
        assert all(not state.held for state in world.controller.ledger.states("cpu").values())

    play(script, POOL)


def test_a_lent_dask_worker_that_cannot_move_is_ended() -> None:
    """After a while, whatever its scheduler does; one that fails leaves the job alone, which grows no more for long."""

    async def script(world: World) -> None:
        await lent(world, most=2)
        world.controller.enqueue(Enqueue((job("other", cores=2),)))
        await settle()
        world.now += 50.0
        world.controller.dispatch.lend()
        await settle()
        assert world.killed == [PART]
        world.end(PART, "cancelled")
        await settle()
        world.end(world.submitted[-1][1].key)
        world.now += 10.0
        world.controller.dispatch.lend()
        await settle()
        world.end(f"{KEY}+2", "failed")
        world.now += 10.0
        world.controller.dispatch.lend()
        await settle()
        assert world.submitted[-1][1].key == f"{KEY}+2"
        world.now += 100.0
        world.controller.dispatch.lend()
        await settle()
        assert world.submitted[-1][1].key == f"{KEY}+3"
        assert not [message for _, message in world.told if "failed" in message]

    play(script, POOL)


def test_a_part_that_could_not_be_sent_costs_no_worker() -> None:
    """Nothing of it was started: it is placed anew, and what else is on that worker goes on."""

    async def script(world: World) -> None:
        refused = 0

        async def refuse(spec: JobSpec) -> None:
            nonlocal refused
            if "+" in spec.key and not refused:
                refused += 1
                raise NotNow

        world.tried = refuse
        await asked(world)
        world.start(KEY)
        listens(world)
        await settle()
        assert refused == 1
        assert [spec.key for _, spec in world.submitted] == [KEY, f"{KEY}+2"]
        assert all(member.up for member in world.workers.members.values())
        world.end(KEY)
        world.end(f"{KEY}+2", "cancelled")
        assert len(world.messages(Finished)) == 1
        assert all(not state.held for state in world.controller.ledger.states("cpu").values())

    play(script, POOL)


def test_a_job_that_was_refused_leaves_no_parts() -> None:
    """Another run was first: the loss of a worker where a part of it was to be concerns nobody afterwards."""

    async def script(world: World) -> None:
        async def refuse(_: JobSpec) -> None:
            for name in ("cpu-0", "cpu-1"):
                world.controller.ledger.drain(name)  # so that the job waits
            raise NotNow

        world.tried = refuse
        await asked(world)
        assert not world.submitted
        for name in ("cpu-0", "cpu-1"):
            world.lose(world.workers.members[name])
        await settle()
        assert [kind for kind, _ in world.events].count("worker-lost") == 2

    play(script, POOL)


def test_a_lent_dask_worker_that_could_not_be_sent_is_given_back() -> None:
    """Its room is free at once, and the worker goes on."""

    async def script(world: World) -> None:
        async def refuse(spec: JobSpec) -> None:
            if "+" in spec.key:
                raise NotNow

        world.tried = refuse
        await lent(world, most=2)
        assert [spec.key for _, spec in world.submitted] == [KEY]
        (state,) = world.controller.ledger.states("cpu").values()
        assert list(state.held) == [KEY]
        assert all(member.up for member in world.workers.members.values())

    play(script, POOL)


def test_a_lent_dask_worker_given_back_before_it_started_is_ended_as_it_starts() -> None:
    """Its worker knew nothing to end when it was asked."""

    async def script(world: World) -> None:
        await lent(world, most=2)
        world.controller.enqueue(Enqueue((job("other", cores=2),)))
        await settle()
        world.controller.received({"cluster": KEY, "retired": 1})
        await settle()
        assert world.killed == [PART]
        world.start(PART)
        await settle()
        assert world.killed == [PART, PART]

    play(script, POOL)


def test_room_is_asked_back_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where jobs come one by one, not for each; the look of every second sees to the rest."""

    async def script(world: World) -> None:
        await lent(world, most=4)
        looked: list[float] = []

        def counted(*arguments: Any) -> list[str]:
            looked.append(world.now)
            return to_give_back(*arguments)

        monkeypatch.setattr(growth, "to_give_back", counted)
        for number in range(3):
            world.controller.enqueue(Enqueue((job("other", number, cores=1),)))
            await settle()
        assert len(looked) == 1
        assert world.told == [(KEY, {"retire": 2})]
        world.controller.dispatch.lend()
        await settle()
        assert world.told[1:] == [(KEY, {"retire": 1})]

    play(script, POOL)


def test_what_is_lent_to_a_run_is_its_own() -> None:
    """No other run shares the worker for it, so its loss counts."""

    async def script(world: World) -> None:
        await lent(world, most=2)
        (state,) = world.controller.ledger.states("cpu").values()
        assert set(state.held) == {KEY, PART}
        assert all(world.controller.owns(key) for key in state.held)
        assert not world.controller.owns("other-0abc12345-1-1.1+1")
        world.end(KEY)
        assert world.controller.owns(PART)  # until it has ended

    play(script, POOL)


def test_parts_that_end_after_their_script_was_lost_are_not_lost_ones() -> None:
    """The attempt is over: its scheduler is told nothing, and nothing takes their place."""

    async def script(world: World) -> None:
        home, _ = await begun(world)
        world.lose(world.workers.members[home])
        await settle()
        world.end(PART, "cancelled")
        await settle()
        assert not [kind for kind, _ in world.events if kind == "dask-workers-lost"]
        assert not world.controller.parts.missing("cpu")
        assert not world.told

    play(script, POOL)


def test_pages_that_cannot_be_shown_are_told_once() -> None:
    """The run goes on without them."""

    class Unshown(JobPages):
        def show(self, *_: Any) -> None:
            raise OSError(28, "No space left on device")

    async def script(world: World) -> None:
        world.cluster.pages = Unshown("/secret")
        await begun(world)
        for _ in range(2):
            world.controller.received({"cluster": KEY, "pages": 1})
        (said,) = world.messages(Say)
        assert "mean (job 1) cannot be shown: [Errno 28] No space left" in said.text

    play(script, POOL)


def test_there_are_no_pages_at_an_ipv6_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask refuses such an address; the job goes on without, and says so."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    told: list[dict[str, Any]] = []
    keeper: Any = SimpleNamespace(tell=told.append)
    assert not pages_arguments({"pages": "/secret/job/a", "host": "fd00::1"}, keeper)
    (message,) = told
    assert "IPv6" in message["note"]


async def lent(world: World, *, most: int) -> None:
    """A job runs on one worker, and was lent Dask workers there."""
    world.worker("cpu-0")
    cluster = JobCluster(1, 1, most=most)
    spec = JobSpec(KEY, "mean", "1", 1, (), 1, "/log/mean", cluster=cluster)
    world.controller.enqueue(Enqueue((QueuedJob.of(spec, with_cluster(Request(cores=1), cluster), 0),)))
    await settle()
    world.start(KEY)
    listens(world)
    world.now += 10.0
    world.controller.dispatch.lend()
    await settle()


WIDE = Pool("wide", "slurm", 0, 1, cores=4, memory_mb=4000, nodes=3)
HOSTS = ("n0", "n1", "n2")


def companion(world: World, name: str, host: str) -> Any:
    """One of the wide worker comes up."""
    wide = world.workers.members["wide-0"]
    facts = WorkerFacts(name, host, 1, 2, 4, 4000)
    process: Any = SimpleNamespace(node=host)
    member = Member(name, WIDE, process, State.UP, world.now, address=f"tls://{name}", facts=facts, wide=wide)
    world.workers.members[name] = member
    world.controller.worker_joined(member)
    return member


def placed_on(world: World, key: str) -> list[str]:
    return [address.removeprefix("tls://") for address, spec in world.submitted if spec.key.startswith(key)]


def test_parts_on_the_nodes_of_a_wide_worker() -> None:
    """A job waits for companions; a lost one's Dask workers are placed on another node, and both are the wide one's."""

    async def script(world: World) -> None:
        world.worker("wide-0", hosts=HOSTS)
        world.controller.enqueue(Enqueue((mean(),)))
        await settle()
        assert not world.submitted
        lost = companion(world, "wide-0+1", "n1")
        await settle()
        world.start(KEY)
        listens(world)
        await settle()
        assert placed_on(world, KEY) == ["wide-0", "wide-0+1"]
        world.start(PART)
        world.lose(lost)
        await settle()
        assert set(map(str, world.told)) == {str((KEY, {"gone": 1}))}
        assert not world.controller.dispatch.wanted("wide"), "no further worker would help"
        companion(world, "wide-0+2", "n2")
        await settle()
        assert placed_on(world, KEY)[2:] == ["wide-0+2"]
        world.end(KEY)
        await settle()
        world.end(f"{KEY}+2", "cancelled")
        (finished,) = world.messages(Finished)
        assert finished.outcome.status == "succeeded"
        state = world.controller.ledger.state("wide-0")
        assert state.free == state.total

    world = play(script, WIDE)
    told = {kind: fields for kind, fields in world.events if "worker" in fields}
    assert told["job-placed"]["workers"] == {"wide-0": 5}
    assert {told[kind]["worker"] for kind in ("dask-workers-lost", "dask-workers-placed", "node-closed")} == {"wide-0"}
    assert "worker-lost" not in told
    assert any("Node n1 of worker wide-0 was lost" in said.text for said in world.messages(Say))


def test_a_script_on_a_lost_companion_runs_again() -> None:
    """Where the first node was held by another job; that one goes on."""

    async def script(world: World) -> None:
        world.worker("wide-0", hosts=HOSTS)
        world.controller.enqueue(Enqueue((job("ranks", cores=4, mpi=True), mean())))
        await settle()
        home = companion(world, "wide-0+1", "n1")
        companion(world, "wide-0+2", "n2")
        await settle()
        assert placed_on(world, KEY) == ["wide-0+1"]
        world.start(KEY)
        world.lose(home)
        companion(world, "wide-0+3", "n1")
        await settle()
        assert placed_on(world, "mean-0abc12345-1-1.2") == ["wide-0+3"] or placed_on(world, "mean-0abc12345-1-1.2") == [
            "wide-0+2"
        ]
        assert not world.messages(Finished)
        assert not world.killed

    play(script, WIDE)


def test_without_companions_such_jobs_fail_with_the_reason() -> None:
    """Those that wait; an MPI job of the same pool starts."""

    async def script(world: World) -> None:
        world.worker("wide-0", hosts=HOSTS)
        world.controller.enqueue(Enqueue((mean(), job("ranks", cores=4, mpi=True))))
        await settle()
        world.controller.nodes_closed(WIDE, "on n1, of worker wide-0, srun: error")
        await settle()
        (finished,) = world.messages(Finished)
        assert finished.outcome.status == "not-started"
        assert "the nodes of its workers take no Dask workers: on n1" in finished.message
        assert placed_on(world, "ranks") == ["wide-0"]

    play(script, WIDE)
