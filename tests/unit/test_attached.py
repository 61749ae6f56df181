"""What is known of a cluster that others brought up, before its first job and once a worker is lost."""

import asyncio
import dataclasses
import platform
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import settling
from settling import settle

from snakemake_executor_plugin_dask.backends.attached import (
    Seen,
    check,
    devices_of_worker,
    pool_of_worker,
    resource_names,
    shortcomings,
)
from snakemake_executor_plugin_dask.driver.attached.workers import AttachedWorkers
from snakemake_executor_plugin_dask.driver.members import LEASE_MARGIN_S
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.jobs import RunSetup, WorkerFacts
from snakemake_executor_plugin_dask.node.processes import SUPERVISOR
from snakemake_executor_plugin_dask.worker import attach

SETUP = RunSetup("/work", 0o22, (), {}, True, "python", "abcdefg1", "Snakefile", (), "9.27.1", "0.1.0")
GOOD = Seen("n1", importable=True, plugin="0.1.0", snakemake="9.27.1", workdir=True)


def test_what_fits_is_not_complained_about() -> None:
    """The same versions and the working directory are all that is needed."""
    assert shortcomings([GOOD], SETUP) == ()
    check([], SETUP, "tcp://s:1")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"importable": False}, "cannot be imported by workers on n2, n3; install 0.1.0"),
        ({"plugin": "0.0.9"}, "snakemake-executor-plugin-dask is 0.1.0 here, and another on n2 (0.0.9), n3 (0.0.9)"),
        ({"snakemake": "9.1.0"}, "snakemake is 9.27.1 here, and another on n2 (9.1.0), n3 (9.1.0)"),
        ({"snakemake": ""}, "another on n2 (not installed), n3 (not installed)"),
        ({"workdir": False}, "the working directory /work does not exist on n2, n3; share the file system"),
    ],
)
def test_each_shortcoming_names_its_hosts(changes: dict[str, object], words: str) -> None:
    """What is missing, where, and what to do about it; hosts that are fine are not named."""
    bad = [dataclasses.replace(GOOD, host=host, **changes) for host in ("n3", "n2")]  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError) as caught:
        check([GOOD, *bad], SETUP, "tcp://s:1")
    assert words in str(caught.value)
    assert "n1" not in str(caught.value)


def test_two_workers_of_a_host_may_be_wrong_in_their_own_ways() -> None:
    """Workers on one host may run in different environments, so each one counts."""
    others = [dataclasses.replace(GOOD, snakemake=version) for version in ("9.1.0", "9.27.1")]
    assert "n1 (9.1.0)" in shortcomings(others, SETUP)[0]
    assert "n1 (9.1.0)" in shortcomings(others[::-1], SETUP)[0]


def test_the_directory_is_not_asked_for_where_nothing_is_shared() -> None:
    """Jobs then have directories of their own. A user's own precommand changes nothing."""
    elsewhere = dataclasses.replace(GOOD, workdir=False)
    assert shortcomings([elsewhere], dataclasses.replace(SETUP, scratch="")) == ()
    assert shortcomings([elsewhere], dataclasses.replace(SETUP, precommand="module load x")) != ()


def test_declared_resources_are_counted() -> None:
    """Each worker counts what any of them declares, GPUs apart."""
    workers = [{"GPU": 2, "licence": 1}, {"disk": 10}, {}]
    names = resource_names(workers)
    assert names == ("disk", "licence")
    assert pool_of_worker(workers[0], names, 2).resources == (("disk", 0), ("licence", 1))
    assert pool_of_worker(workers[2], names, 0).gpus == 0


def test_workers_of_a_host_share_its_devices() -> None:
    """A worker has as many GPUs as it declares, else all it sees; never those of a neighbour."""
    four = ("0", "1", "2", "3")
    first = devices_of_worker({"GPU": 2}, four, ())
    assert first == ("0", "1")
    assert devices_of_worker({"gpu": 2}, four, first) == ("2", "3")
    assert devices_of_worker({"GPU": 4}, four, first) == ("2", "3")
    assert devices_of_worker({}, four, ()) == four
    assert devices_of_worker({"GPU": 0}, four, ()) == ()


def fail(error: BaseException) -> None:
    raise error


@pytest.fixture
def supervisor() -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like a supervisor in the process table."""
    command = [sys.executable, "-c", "print(flush=True); input()", SUPERVISOR.decode()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_lost_worker_of_this_machine_is_dead_once_its_supervisor_is_ended(
    supervisor: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked job carries no key that could be seen; while its supervisor lives, it may live, and more may start."""
    looks: list[bool] = []

    def marked(_: Collection[str]) -> list[int]:
        looks.append(supervisor.poll() is None)
        return []

    monkeypatch.setattr(attach, "marked", marked)
    facts = WorkerFacts("one", platform.node(), 1, supervisor.pid, 4, 4000)

    async def run(*_: Any, workers: list[str], **__: Any) -> dict[str, Any]:
        return {workers[0]: facts}

    listener: Any = SimpleNamespace(event=lambda *_, **__: None, worker_joined=lambda _: None)
    now = iter(range(1000))

    async def lose() -> str | None:
        fleet = AttachedWorkers(SimpleNamespace(run=run), SETUP, listener, fail, lambda: float(next(now)))
        await fleet.join("tcp://one", "one", {})
        return await fleet.confirm_dead(fleet.members["one"], ["a-key"])

    assert asyncio.run(lose()) is None
    assert supervisor.wait(30) == -signal.SIGKILL
    assert looks[-1] is False
    assert next(now) < 60, "the lease was not waited for"


def test_the_lease_of_a_silent_worker_counts_from_the_last_renewal_that_was_sent() -> None:
    """It may have waited at a worker that stood still, and arrive after all."""
    now = 1000.0
    sent: list[tuple[float, int]] = []

    async def run(function: Any, *arguments: Any, workers: list[str], **_: Any) -> dict[str, Any]:
        if function is attach.attach:
            return {workers[0]: WorkerFacts("one", "elsewhere", 1, 2, 4, 4000)}
        sent.append((now, arguments[-1]))
        return {workers[0]: OSError("no answer")}

    lost: list[str] = []
    listener: Any = SimpleNamespace(
        event=lambda *_, **__: None,
        worker_joined=lambda _: None,
        worker_lost=lambda _, why, **__: lost.append(why),
    )

    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    async def lose() -> None:
        nonlocal now
        fleet = AttachedWorkers(SimpleNamespace(run=run), SETUP, listener, fail, lambda: now, nap)
        await fleet.join("tcp://one", "one", {})
        while not lost:
            now += 5.5
            fleet.reserved_at = now
            await fleet.check()
            await settle()
        assert await fleet.confirm_dead(fleet.members["one"], ["a-key"]) is None

    settling.run(lose())
    assert naps == [sent[-1][0] + SETUP.lease_s + LEASE_MARGIN_S - now]
    numbers = [number for _, number in sent]
    assert numbers == sorted(set(numbers))


def test_a_worker_that_answers_is_kept_and_tells_what_its_jobs_use() -> None:
    """For as long as it does; each answer to a renewal says what its jobs used."""
    now = 1000.0
    lost: list[str] = []

    async def run(function: Any, *arguments: Any, workers: list[str], **_: Any) -> dict[str, Any]:
        if function is attach.attach:
            return {workers[0]: WorkerFacts("one", "elsewhere", 1, 2, 4, 4000)}
        return {workers[0]: {"a-key": (float(arguments[-1]), 30.0)}}

    listener: Any = SimpleNamespace(
        event=lambda *_, **__: None,
        worker_joined=lambda _: None,
        worker_lost=lambda _, why, **__: lost.append(why),
    )

    async def watch() -> dict[str, tuple[float, ...]]:
        nonlocal now
        workers = AttachedWorkers(SimpleNamespace(run=run), SETUP, listener, fail, lambda: now)
        await workers.join("tcp://one", "one", {})
        for _ in range(20):
            now += 5.5
            workers.reserved_at = now
            await workers.check()
            await settle()
        return workers.uses()

    ((key, (_, cpu_s, memory_mb)),) = settling.run(watch()).items()
    assert not lost
    assert (key, cpu_s, memory_mb) == ("a-key", 22.0, 30.0)
