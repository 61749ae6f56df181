"""Workers asked for, called back and given up, with a cluster and processes that only record."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import settling
from settling import settle

from snakemake_executor_plugin_dask.backends.base import AllocationState, Link, WorkerProcess
from snakemake_executor_plugin_dask.driver.members import Member, State
from snakemake_executor_plugin_dask.driver.own.fleet import Fleet, Step, moved, next_step
from snakemake_executor_plugin_dask.model.jobs import WorkerFacts
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.worker import companions

POOL = Pool("cpu", "slurm", 0, 10, 4, 4000)
LINK = Link("ab12cd34", "tls://x:1", None, None, "/state", None)


class Process(WorkerProcess):
    """One that is submitted at once, or refused."""

    removed: list[str]

    async def start(self) -> None:
        if self.outlook == "unknown":
            self.allocation_id = "7"

    stays = False
    taken = False
    seen = AllocationState("gone", "allocation 7 ended (NonZeroExitCode)")
    error: Exception | None = None  # of its end
    output: Callable[[], str] = staticmethod(lambda: "")
    ends: Callable[[], bool] = staticmethod(lambda: True)

    def output_tail(self) -> str:
        return self.output()

    async def over(self) -> bool:
        return self.ends()

    async def preempted(self) -> bool:
        return self.taken

    async def state(self) -> AllocationState:
        return self.seen

    async def close(self) -> None:
        self.removed.append(self.name)
        await super().close()

    async def kill(self) -> bool:
        if self.error is not None:
            raise self.error
        return not self.stays


@dataclass
class World:
    """A fleet, and what became of its calls."""

    refuse: bool = False
    now: float = 1000.0
    asked: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    left_out: list[tuple[str, ...]] = field(default_factory=list)  # of each that was asked for
    group: tuple[str, ...] = ()  # of a launcher
    errors: dict[str, Exception] = field(default_factory=dict)  # by worker, in the place of what it tells of itself
    joined: list[str] = field(default_factory=list)
    silent: dict[str, float] = field(default_factory=dict)  # of supervisors that have connected
    meanwhile: Callable[[], None] = lambda: None  # happens while a worker is asked what it has
    hosts: tuple[str, ...] = ()  # of each worker, where it holds several
    lost: list[str] = field(default_factory=list)
    started: list[tuple[str, str]] = field(default_factory=list)  # companions, and on which nodes
    ended: list[str] = field(default_factory=list)
    launchers: dict[str, int] = field(default_factory=dict)  # exit codes of those that are over, by companion
    closed: list[str] = field(default_factory=list)  # pools whose nodes get no more companions: why

    def __post_init__(self) -> None:
        listener: Any = SimpleNamespace(
            worker_joined=lambda member: self.joined.append(member.name),
            worker_lost=lambda member, *_, **__: self.lost.append(member.name),
            nodes_closed=lambda _, why: self.closed.append(why),
            fit_elsewhere=lambda _: True,
            pool_failed=lambda _, why: self.failed.append(why),
            pool_given_up=lambda _, why: self.given_up.append(why),
            event=lambda *_, **__: None,
            warn=self.warned.append,
            preempted=lambda member: self.preempted.append(member.name),
            failed=self._raise,
        )
        cluster: Any = SimpleNamespace(
            close=self._close,
            client=self,
            last_seen=dict,
        )
        backends: Any = {"slurm": SimpleNamespace(worker=self._worker)}
        self.leases: Any = SimpleNamespace(
            stop=lambda _: False,
            dead=lambda *_: False,
            answers=lambda _: False,
            last_renewal=lambda _: None,
            silent_s=lambda: dict(self.silent),
            listen_anew=lambda: None,
        )
        self.fleet = Fleet(cluster, self.leases, backends, LINK, 60.0, listener, lambda: self.now, self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _raise(self, error: BaseException) -> None:
        raise error

    def _worker(self, pool: Pool, name: str, link: Link) -> Process:
        process = Process(pool, name, link)
        process.outlook, process.group = "final" if self.refuse else "unknown", self.group
        process.failure = "sbatch: error: invalid account" if self.refuse else None
        process.removed = self.removed
        self.asked.append(name)
        self.left_out.append(pool.left_out)
        return process

    async def _close(self) -> None:
        self.removed.append("scheduler")

    async def run(self, function: Any, *arguments: Any, workers: list[str], **__: Any) -> dict[str, Any]:
        """Dask's client: what a worker tells of itself, and of companions that it has started."""
        (address,) = workers
        name = address.removeprefix("tls://")
        if function is companions.start:
            self.started.append(arguments)  # type: ignore[arg-type]
            return {address: None}
        if function is companions.ended:
            return {address: self.launchers.get(arguments[0])}
        if function is companions.end:
            self.ended += arguments
            return {address: True}
        self.meanwhile()
        hosts = () if "+" in name else self.hosts
        host = dict(self.started).get(name, "n0")
        return {address: self.errors.get(name) or WorkerFacts(address, host, 1, 2, 4, 4000, hosts=hosts)}

    async def retire_workers(self, addresses: list[str], **_: Any) -> None:
        self.retired += addresses

    async def join(self, name: str) -> None:
        await self.fleet.joined(f"tls://{name}", name, "ab12cd34")

    async def ask(self, count: int) -> None:
        self.fleet.add(POOL, count)
        await settle()


def play(script: Callable[[World], Awaitable[None]], **settings: Any) -> World:
    async def run() -> World:
        world = World(**settings)
        await script(world)
        return world

    return settling.run(run())


def test_a_few_queue_at_once() -> None:
    """Those that run count as long as none has joined; afterwards only those that queue."""

    async def script(world: World) -> None:
        await world.ask(10)
        assert world.asked == ["cpu-0", "cpu-1", "cpu-2"]
        for member in world.fleet.starting("cpu"):
            member.become(State.RUNNING)
        await world.ask(7)
        assert len(world.asked) == 3
        await world.join("cpu-0")
        await world.ask(7)
        assert world.asked[3:] == ["cpu-3", "cpu-4", "cpu-5"]
        await world.ask(4)
        assert len(world.asked) == 6

    play(script)


def test_the_last_in_the_queue_are_called_back() -> None:
    """What has started is left to join."""

    async def script(world: World) -> None:
        await world.ask(3)
        world.fleet.members["cpu-2"].become(State.RUNNING)
        world.fleet.call_back(POOL, 1)
        await settle()
        assert world.removed == ["cpu-1"]
        world.fleet.call_back(POOL, 5)
        await settle()
        assert world.removed == ["cpu-1", "cpu-0"]
        await world.join("cpu-1")
        assert list(world.fleet.members) == ["cpu-2"]
        assert world.retired == ["tls://cpu-1"], "one that came all the same is turned away"

    play(script)


def test_refusals_give_the_pool_up_soon_unless_workers_are_there() -> None:
    """The second refusal does, and none does while jobs can run on a worker."""

    async def script(world: World) -> None:
        for _ in range(3):
            await world.ask(1)
            world.now += 400.0
        assert len(world.failed) == 1
        assert len(world.given_up) == 1
        assert len(world.asked) == 2

    play(script, refuse=True)

    async def while_others_queue(world: World) -> None:
        await world.ask(3)
        world.now += 400.0
        processes: Any = [member.process for member in world.fleet.members.values()]
        for process in processes:
            process.seen = AllocationState("queued")
        for process in processes[:2]:
            process.outlook, process.seen = "final", AllocationState("gone", "it would never start")
            await world.fleet.check()
            await settle()
            world.now += 400.0
        assert len(world.given_up) == 1
        assert world.removed == ["cpu-0", "cpu-1", "cpu-2"]
        assert not world.fleet.members

    play(while_others_queue)

    async def with_a_worker(world: World) -> None:
        await world.ask(1)
        await world.join("cpu-0")
        world.refuse = True
        for _ in range(9):
            await world.ask(1)
            world.now += 400.0
        assert not world.given_up
        assert len(world.failed) == 9

    play(with_a_worker)


def test_a_worker_that_cannot_be_reached_is_given_back_with_the_reason() -> None:
    """It would count as starting for ever, and jobs would wait for it: a firewall before its port, for instance."""

    async def script(world: World) -> None:
        await world.ask(1)
        await world.join("cpu-0")
        assert not world.fleet.members

    world = play(script, errors={"cpu-0": OSError("Timed out trying to connect to tls://cpu-0 after 30 s")})
    assert world.removed == ["cpu-0"]
    assert len(world.failed) == 1
    assert "Timed out trying to connect" in world.failed[0]
    assert not world.joined


def test_a_worker_that_is_given_back_while_it_joins_does_not_come_up() -> None:
    """What it tells of itself arrives when it is none of the fleet any more."""

    async def script(world: World) -> None:
        await world.ask(1)
        world.meanwhile = lambda: world.fleet.give_back("cpu-0", "not needed any more")
        await world.join("cpu-0")
        await settle()
        assert not world.fleet.members

    world = play(script)
    assert not world.joined
    assert not world.failed


def test_a_silent_rank_takes_no_working_ones_along() -> None:
    """The launcher stays as long as one of its workers works."""

    async def script(world: World) -> None:
        await world.ask(1)
        await world.join("cpu-0-0")
        await world.join("cpu-0-1")
        assert list(world.fleet.members) == ["cpu-0-0"]
        assert world.retired == ["tls://cpu-0-1"]
        assert not world.removed

    world = play(script, group=("-0", "-1"), errors={"cpu-0-1": OSError("no route to host")})
    assert len(world.failed) == 1


def test_a_launcher_whose_leases_ran_out_makes_room_for_the_next() -> None:
    """Its workers are known to be dead then, and are given back as others are."""

    async def script(world: World) -> None:
        await world.ask(1)
        for name in list(world.fleet.members):
            await world.join(name)
        world.now += 100.0  # no connection was there, and the lease counts from the loss
        for member in list(world.fleet.members.values()):
            world.fleet.lose(member, "its connection closed")
            assert await world.fleet.confirm_dead(member, ["key"]) is None
        await settle()
        assert not world.fleet.members
        assert set(world.removed) == {"cpu-0"}
        await world.ask(1)
        assert world.asked == ["cpu-0", "cpu-1"]

    play(script, group=("-0", "-1"))


@pytest.mark.parametrize(
    ("written", "ended", "heard"), [(0, 60, True), (6, 60, True), (7, 5, True), (6, 1, False), (60, 90, False)]
)
def test_the_batch_systems_last_words_are_waited_for(written: float, ended: float, heard: bool) -> None:
    """Until its allocation is over, and a little longer, where these seconds after the loss words or end come."""

    async def script(world: World) -> None:
        await world.ask(1)
        await world.join("cpu-0")
        member, lost = world.fleet.members["cpu-0"], world.now
        process: Any = member.process
        process.output = lambda: "*** JOB 7 ON c1 CANCELLED AT 10:00 ***" if world.now >= lost + written else ""
        process.ends = lambda: world.now >= lost + ended
        world.fleet.lose(member, "its connection closed")
        assert await world.fleet.confirm_dead(member, []) is None
        assert bool(member.ended) is heard
        assert world.now - lost < 12

    play(script)


def test_what_was_not_seen_to_be_gone_is_told_at_the_end() -> None:
    """Also where it was given back long before."""

    async def script(world: World) -> None:
        await world.ask(2)
        stays: Any = world.fleet.members["cpu-0"].process
        stays.stays = True
        for name in ("cpu-0", "cpu-1"):
            await world.join(name)
            world.fleet.give_back(name, "idle")
        await settle()
        assert [(name, member.state) for name, member in world.fleet.members.items()] == [("cpu-0", State.STUCK)]
        assert await world.fleet.close() == ("cpu-0",)

    play(script)


def test_one_that_fails_keeps_no_other_from_being_given_back(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is in the log, it is told as left, and the scheduler is closed all the same."""

    async def script(world: World) -> None:
        await world.ask(2)
        broken: Any = world.fleet.members["cpu-0"].process
        broken.error = KeyError("7")
        assert await world.fleet.close() == ("cpu-0",)

    assert play(script).removed == ["cpu-0", "cpu-1", "scheduler"]
    assert "cpu-0" in caplog.text


def test_a_worker_that_is_given_back_while_it_is_submitted_is_ended_after_that() -> None:
    """Before, there is no allocation yet that could be cancelled."""

    async def script(world: World) -> None:
        await world.ask(1)
        process = world.fleet.members["cpu-0"].process
        async with process.lock:  # as its start has it
            world.fleet.give_back("cpu-0", "not needed any more")
            await settle()
            assert not world.removed
            assert not world.fleet.starting("cpu"), "it counts no more"
        await settle()
        assert world.removed == ["cpu-0"]
        assert not world.fleet.members

    play(script)


LONG_AGO = 900.0  # of `next_step`'s now


@pytest.mark.parametrize(
    ("state", "target", "more", "step"),
    [
        (State.ASKED, State.UP, {}, None),
        (State.SUBMITTED, State.UP, {}, Step.LOOK),
        (State.SUBMITTED, State.UP, {"looked": 999.0}, None),
        (State.RUNNING, State.UP, {}, Step.LOOK),
        (State.UP, State.UP, {}, None),
        (State.UP, State.UP, {"silent_s": 46.0}, Step.LOSE),
        (State.LOST, State.UP, {"silent_s": 46.0}, None),
        (State.LOST, State.GONE, {}, Step.END),
        (State.LOST, State.GONE, {"shared": True}, Step.FORGET),
        (State.UP, State.GONE, {"silent_s": 46.0}, Step.END),
        (State.ASKED, State.GONE, {}, Step.END),
        (State.LEAVING, State.GONE, {}, None),
        (State.STUCK, State.GONE, {}, None),
    ],
)
def test_what_follows_from_what_a_worker_is_and_should_be(
    state: State, target: State, more: dict[str, Any], step: Step | None
) -> None:
    """A lost worker waits for the word that its jobs are dead; one that leaves is left alone."""
    process: Any = None
    member = Member("cpu-0", POOL, process, state, LONG_AGO, target, looked=more.get("looked", LONG_AGO))
    found = next_step(member, shared=more.get("shared", False), silent_s=more.get("silent_s", 0.0), now=1000.0)
    assert found is step


def test_no_state_follows_that_cannot() -> None:
    """A lost worker is not up again: its jobs may run elsewhere by then."""
    process: Any = None
    member = Member("cpu-0", POOL, process, State.UP, 0.0)
    member.become(State.LOST)
    with pytest.raises(ValueError, match="cpu-0 cannot become up after lost"):
        member.become(State.UP)


def test_a_supervisor_that_never_connects_is_noticed() -> None:
    """Its worker has joined, and a while is over."""

    async def script(world: World) -> None:
        await world.ask(2)
        await world.join("cpu-0")
        await world.join("cpu-1")
        world.silent["cpu-0"] = 1.0
        assert world.fleet.unreached() is None
        world.now += 21.0
        unreached = world.fleet.unreached()
        assert unreached is not None
        assert unreached.name == "cpu-1"
        world.silent["cpu-1"] = 0.0
        assert world.fleet.unreached() is None

    play(script)


def test_an_expected_start_is_told_again_where_it_moves() -> None:
    """By more than a minute, and more than a tenth of the wait; queues change all the time."""
    assert moved(None, 5000.0, 0.0)
    assert moved(5000.0, None, 0.0)
    assert not moved(None, None, 0.0)
    assert not moved(5000.0, 5400.0, 0.0)
    assert moved(5000.0, 5700.0, 0.0)
    assert not moved(100.0, 150.0, 0.0)
    assert moved(100.0, 170.0, 0.0)


async def look(world: World, name: str) -> None:
    """At an allocation that has ended; the next one may be asked for then."""
    world.now += 400.0
    await world.fleet.check()
    await settle()
    assert name not in world.fleet.members
    world.now += 400.0


def test_a_node_that_fails_each_time_is_left_out() -> None:
    """Of the second next allocation, with one warning; taken again once others fail as well."""

    async def script(world: World) -> None:
        for number, node in enumerate(("c1", "c1", "c2", "c1")):
            await world.ask(1)
            world.fleet.members[f"cpu-{number}"].process.node = node
            await look(world, f"cpu-{number}")

    world = play(script)
    assert world.left_out == [(), (), ("c1",), ()]
    assert [text.partition(":")[0] for text in world.warned] == [
        "Node c1 is left out of later allocations of pool cpu",
        "Node c1 is used again by pool cpu.",
    ]


def test_what_is_preempted_before_it_joins_is_no_failure() -> None:
    """It counts neither for the pool nor for the node."""

    async def script(world: World) -> None:
        for number in range(7):
            await world.ask(1)
            process: Any = world.fleet.members[f"cpu-{number}"].process
            process.taken, process.node = True, "c1"
            await look(world, f"cpu-{number}")

    world = play(script)
    assert len(world.preempted) == 7
    assert not world.failed
    assert not world.given_up
    assert world.left_out == [()] * 7


def test_a_lost_worker_counts_for_its_node_unless_it_was_planned() -> None:
    """Losses on one node; on the other one as many, which were cancelled from outside or planned."""

    async def script(world: World) -> None:
        for _ in range(2):
            await world.ask(3)
            for name in list(world.fleet.members):
                await world.join(name)
            bad, cancelled, planned = world.fleet.up("cpu")
            for member, node in ((bad, "c1"), (cancelled, "c2"), (planned, "c3")):
                assert member.facts is not None
                member.facts = replace(member.facts, host=node)
                member.become(State.LOST)
                del world.fleet.members[member.name]
            cancelled.ended = "*** JOB 7 ON c2 CANCELLED AT 10:00 ***"
            world.fleet.judged(bad, ["a"], planned=False)
            world.fleet.judged(cancelled, ["b"], planned=False)
            world.fleet.judged(planned, ["c"], planned=True)
        await world.ask(1)

    world = play(script)
    assert world.left_out[-1] == ("c1",)
    assert "others work elsewhere" in world.warned[0]


async def wide(world: World) -> None:
    """A worker with three nodes is up."""
    await world.ask(1)
    await world.join("cpu-0")


THREE = ("n0", "n1", "n2")


def test_a_wide_worker_starts_a_companion_on_each_further_node() -> None:
    """Once, and they count as no workers; they go with it, and nobody is told of a loss."""

    async def script(world: World) -> None:
        await wide(world)
        for _ in range(2):
            world.fleet.open_nodes("cpu-0")
            await settle()
        assert world.started == [("cpu-0+1", "n1"), ("cpu-0+2", "n2")]
        await world.join("cpu-0+1")
        assert world.joined == ["cpu-0", "cpu-0+1"]
        assert [member.name for member in world.fleet.up("cpu")] == ["cpu-0"]
        assert not world.fleet.starting("cpu")
        world.fleet.give_back("cpu-0", "idle")
        await settle()
        assert not world.fleet.members
        assert not world.lost
        assert world.removed == ["cpu-0"]

    play(script, hosts=THREE)


def test_a_lost_companion_is_started_anew_and_takes_nothing_along() -> None:
    """Once its processes are dead; another one has another name."""

    async def script(world: World) -> None:
        await wide(world)
        world.fleet.open_nodes("cpu-0")
        await settle()
        for name in ("cpu-0+1", "cpu-0+2"):
            await world.join(name)
        member = world.fleet.members["cpu-0+1"]
        world.fleet.lose(member, "its connection closed")
        world.fleet.open_nodes("cpu-0")
        await settle()
        assert len(world.started) == 2, "its processes may live"
        assert await world.fleet.confirm_dead(member, ["key"]) is None
        await settle()
        assert set(world.ended) == {"cpu-0+1"}
        world.fleet.open_nodes("cpu-0")
        await settle()
        assert world.started[2:] == [("cpu-0+3", "n1")]
        assert world.lost == ["cpu-0+1"]
        assert not world.removed

    play(script, hosts=THREE)


def test_companions_are_lost_with_their_wide_worker() -> None:
    """Their jobs are: they are known to be dead once the allocation is gone."""

    async def script(world: World) -> None:
        await wide(world)
        world.fleet.open_nodes("cpu-0")
        await settle()
        await world.join("cpu-0+1")
        member, companion = world.fleet.members["cpu-0"], world.fleet.members["cpu-0+1"]
        world.fleet.lose(member, "its connection closed")
        assert await world.fleet.confirm_dead(member, []) is None
        assert world.lost == ["cpu-0", "cpu-0+1"]
        assert await world.fleet.confirm_dead(companion, ["key"]) is None
        await settle()
        assert not world.ended, "the worker that could end it is gone"
        assert not world.fleet.members

    play(script, hosts=THREE)


def test_three_tries_to_start_companions_are_enough() -> None:
    """There is time between two of them, and the reason is told."""

    async def script(world: World) -> None:
        await wide(world)
        world.launchers = {f"cpu-0+{number}": 1 for number in range(1, 20)}
        for _ in range(5):
            world.fleet.open_nodes("cpu-0")
            await settle()
            for _ in range(2):
                world.now += 3.0
                await world.fleet.check()
                await settle()
        assert len(world.started) == 6
        assert len(world.warned) == 2
        (why,) = world.closed
        assert "on n1, of worker cpu-0, its launcher ended (exit code 1)" in why
        assert list(world.fleet.members) == ["cpu-0"]

    play(script, hosts=THREE)
