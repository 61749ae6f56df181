"""A worker that is started before its run is known: taken if it is the one that the run wants, else gone."""

import asyncio
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import processes_of, wait_for

from snakemake_executor_plugin_dask.backends.spare import Spare, Taken
from snakemake_executor_plugin_dask.frontend.beginning import begins
from snakemake_executor_plugin_dask.model.jobs import Beginning, RunSetup, SpareWorker

#: Reads what it begins with, says so, and once it is told to go on waits for a signal.
WORKER = """
import signal, socket, sys
from snakemake_executor_plugin_dask.model.wire import Channel
sock = socket.socket(fileno=int(sys.argv[sys.argv.index("--ahead") + 1]))
print(Channel(sock).receive().workdir, flush=True)
if sock.recv(1):
    print("told", flush=True)
    signal.pause()
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Where a worker's configuration is to be; its directory comes with the run."""
    (tmp_path / ".snakemake").mkdir()
    return tmp_path / ".snakemake/dask/abcdefg1/workers/local-0.json"


@pytest.fixture
def beginning() -> Beginning:
    return begins("/somewhere", dict(os.environ), sys.executable)


@pytest.fixture
def command(config: Path) -> list[str]:
    return [sys.executable, "-c", WORKER, os.fspath(config)]


@pytest.fixture
def spare(config: Path, beginning: Beginning, command: list[str]) -> Iterator[Spare]:
    started = Spare(SpareWorker(beginning, os.fspath(config)), command)
    yield started
    started.drop()


def living(config: Path) -> list[int]:
    """The spare workers that have this configuration."""
    return list(processes_of(os.fspath(config)))


def test_nothing_is_written_before_the_run_begins(spare: Spare, config: Path) -> None:
    """Neither its files nor its output; dropped, it is gone."""
    wait_for(lambda: living(config), "the worker")
    assert list(config.parents[3].iterdir()) == []
    spare.drop()
    assert living(config) == []
    assert list(config.parents[3].iterdir()) == []


def test_the_one_that_is_wanted_is_taken(spare: Spare, config: Path, command: list[str]) -> None:
    """It is told to go on; all that it has written, before and after, is in the log; its end is seen."""
    config.parent.mkdir(parents=True, mode=0o700)
    log = config.with_name("local-0.log")
    taken = spare.take(command, log)
    assert taken is not None
    wait_for(lambda: "told" in log.read_text(), "what it writes")
    assert log.read_text() == "/somewhere\ntold\n"
    assert log.stat().st_mode & 0o777 == 0o600
    assert taken.returncode is None
    assert spare.take(command, config.with_name("other.log")) is None
    assert taken.returncode is None

    async def end() -> int:
        waiting = asyncio.create_task(taken.wait())
        await asyncio.sleep(0)
        taken.terminate()
        async with asyncio.timeout(60):
            return await waiting

    assert asyncio.run(end()) == -signal.SIGTERM == taken.returncode


def test_waiting_for_one_can_be_given_up(spare: Spare, config: Path, command: list[str]) -> None:
    """As for asyncio's own processes; then it is killed."""
    config.parent.mkdir(parents=True, mode=0o700)
    taken = spare.take(command, config.with_name("local-0.log"))
    assert isinstance(taken, Taken)
    descriptors = len(os.listdir("/proc/self/fd"))

    async def give_up() -> int:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(taken.wait(), 0.05)
        taken.kill()
        async with asyncio.timeout(60):
            return await taken.wait()

    assert asyncio.run(give_up()) == -signal.SIGKILL
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_another_worker_is_not_taken_for_it(spare: Spare, config: Path, command: list[str]) -> None:
    """It is gone then, and has no log."""
    config.parent.mkdir(parents=True, mode=0o700)
    log = config.with_name("local-1.log")
    assert spare.take([*command, "other"], log) is None
    assert living(config) == []
    assert not log.exists()


def test_one_that_has_died_is_not_taken(spare: Spare, config: Path, command: list[str]) -> None:
    """The run starts another one."""
    config.parent.mkdir(parents=True, mode=0o700)
    (pid,) = wait_for(lambda: living(config), "the worker")
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert spare.take(command, config.with_name("local-0.log")) is None


def test_it_fits_a_run_that_begins_as_it_did(spare: Spare, beginning: Beginning) -> None:
    """Another environment, say, would be that of all jobs."""
    fields = {field.name: getattr(beginning, field.name) for field in dataclasses.fields(Beginning)}
    setup = RunSetup(
        run_id="abcdefg1",
        snakefile="Snakefile",
        general_arguments=(),
        snakemake_version="9",
        plugin_version="1",
        **fields,
    )
    assert spare.fits(setup)
    assert not spare.fits(dataclasses.replace(setup, job_start="cold"))
    assert not spare.fits(dataclasses.replace(setup, environment={}))
    assert not spare.fits(dataclasses.replace(setup, umask=0o777))


def test_a_directory_that_is_not_there(config: Path, beginning: Beginning, command: list[str]) -> None:
    """Or one on a file system that has no files without a name: the worker comes with its run."""
    config.parents[3].rmdir()
    with pytest.raises(OSError, match="No such file"):
        Spare(SpareWorker(beginning, os.fspath(config)), command)
    assert living(config) == []
