"""Whose a process is that has lost its parent."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from snakemake_executor_plugin_dask.model.jobs import JobSpec
from snakemake_executor_plugin_dask.node import processes
from snakemake_executor_plugin_dask.node.environment import JOB
from snakemake_executor_plugin_dask.node.processes import job_key, read_stat
from snakemake_executor_plugin_dask.worker.supervisor.attempt import Attempt
from snakemake_executor_plugin_dask.worker.supervisor.ending import Endings
from snakemake_executor_plugin_dask.worker.supervisor.usage import Monitor, ProcFiles

Start = Callable[[str | None], int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a child in a session of its own, with an attempt's key in its environment or without; its number."""
    with ExitStack() as ends:

        def start(key: str | None) -> int:
            environment = {} if key is None else {JOB: key}
            child = subprocess.Popen(["/bin/sleep", "100"], env=environment, start_new_session=True)
            ends.callback(child.wait)
            ends.callback(child.kill)
            while job_key(child.pid) != key:  # until its program is executed
                time.sleep(0.01)
            return child.pid

        yield start


def test_what_a_dead_warm_process_left_is_found(start: Start) -> None:
    """A job's process of which it could not tell any more carries that job's key; another job's is left alone."""

    async def look() -> None:
        endings = Endings(Monitor(ProcFiles(), os.getpid()))
        loop = asyncio.get_running_loop()
        for key in ("untold", "other"):
            spec = JobSpec(key, "rule", "1", 1, (), 1, "/log")
            endings.attempts[key] = Attempt(spec, loop.create_future(), loop.create_future())
        endings.attempts["other"].start_ticks = 1
        others, untold, bare = start("other"), start("untold"), start(None)
        found = endings.left_by_warm({"untold"})
        assert {untold, bare} <= set(found), "the one without a key may be a fork that has executed nothing yet"
        assert others not in found

    asyncio.run(look())


def test_one_look_serves_all_that_are_to_be_ended(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process table is read a few times, however many attempts end at once."""
    count, reads = 40, 0
    read = processes.process_table

    def counted() -> dict[int, processes.Stat]:
        nonlocal reads
        reads += 1
        return read()

    monkeypatch.setattr(processes, "process_table", counted)

    async def end() -> None:
        endings = Endings(Monitor(ProcFiles(), os.getpid()))
        loop = asyncio.get_running_loop()
        for number in range(count):
            key = f"job-{number}"
            current = Attempt(JobSpec(key, "rule", "1", 1, (), 1, "/log"), loop.create_future(), loop.create_future())
            current.pid = start(key)
            current.start_ticks = read_stat(current.pid).start
            endings.attempts[key] = endings.leaders[current.pid] = current
        attempts = list(endings.attempts.values())
        for current in attempts:
            endings.stop(current, "cancelled", "enough", grace_s=0.0)
        async with asyncio.timeout(60):
            while not all(current.leader.done() for current in attempts):
                endings.reap()
                await asyncio.sleep(0.01)
            for current in attempts:
                await endings.clear(current)
                current.gone.set()
            await attempts[0].killing
        assert {current.verdict for current in attempts} == {("cancelled", "enough")}

    asyncio.run(end())
    assert reads < count / 2


def test_a_runner_that_its_job_stops_goes_on_whoever_it_is() -> None:
    """The shell was gone before anybody had looked who had started it; other jobs' processes stay as they are."""
    warm = subprocess.Popen(
        ["bash", "-c", "sleep 1000 & echo $!; sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True
    )
    assert warm.stdout is not None
    runner, other = (int(warm.stdout.readline()) for _ in range(2))

    async def wake() -> None:
        endings = Endings(Monitor(ProcFiles(), os.getpid()))
        loop = asyncio.get_running_loop()
        for key, pid, is_command in (("short", 2**22 + 1, True), ("long", other, False)):
            current = Attempt(JobSpec(key, "rule", "1", 1, (), 1, "/log"), loop.create_future(), loop.create_future())
            current.pid, current.is_command = pid, is_command
            warm_process: Any = SimpleNamespace(pid=warm.pid)
            current.warm = warm_process if is_command else None
            endings.attempts[key] = endings.leaders[current.pid] = current
        endings.wake_stopped()

    try:
        for pid in (runner, other):
            os.kill(pid, signal.SIGSTOP)
            while (stat := read_stat(pid)) is not None and stat.state != "T":
                time.sleep(0.001)
        asyncio.run(wake())
        states = [read_stat(pid).state for pid in (runner, other)]  # type: ignore[union-attr]
        assert states[0] != "T"
        assert states[1] == "T"
    finally:
        for pid in (runner, other, warm.pid):
            os.kill(pid, signal.SIGKILL)
        warm.stdout.close()
        warm.wait()


def test_a_shell_that_outlives_its_runner_is_ended(start: Start) -> None:
    """The end of a runner is told as the job's end; the shell is then ended before the attempt is over."""

    async def end() -> None:
        endings = Endings(Monitor(ProcFiles(), os.getpid()))
        loop = asyncio.get_running_loop()
        current = Attempt(JobSpec("job", "rule", "1", 1, (), 1, "/log"), loop.create_future(), loop.create_future())
        current.pid = start("job")
        current.start_ticks = read_stat(current.pid).start
        endings.attempts["job"] = endings.leaders[current.pid] = current
        current.leader.set_result(signal.SIGKILL)
        clearing = asyncio.create_task(endings.clear(current))
        async with asyncio.timeout(30):
            while (stat := read_stat(current.pid)) is not None:
                assert not clearing.done(), "the shell still lives"
                if stat.dead:
                    endings.reap()
                await asyncio.sleep(0.01)
            await clearing

    asyncio.run(end())
