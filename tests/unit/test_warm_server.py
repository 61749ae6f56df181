"""What the warm process tells of its children, whatever order their words and their ends come in."""

import asyncio
import dataclasses
import errno
import os
import signal
import socket
import subprocess
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import settling
from settling import settle
from supervising import run_setup
from unreadable import OfAnotherVersion

from snakemake_executor_plugin_dask.model.job_messages import (
    Cold,
    Done,
    EndChild,
    Exited,
    Forked,
    Setup,
    Spawned,
    Start,
    Warm,
)
from snakemake_executor_plugin_dask.model.jobs import JobSpec
from snakemake_executor_plugin_dask.model.wire import Channel
from snakemake_executor_plugin_dask.node import processes
from snakemake_executor_plugin_dask.node.processes import Stat, fork
from snakemake_executor_plugin_dask.worker.supervisor import warming
from snakemake_executor_plugin_dask.worker.supervisor.attempt import Attempt
from snakemake_executor_plugin_dask.worker.supervisor.ending import Endings
from snakemake_executor_plugin_dask.worker.supervisor.first import StartedWarm
from snakemake_executor_plugin_dask.worker.supervisor.usage import Monitor, ProcFiles
from snakemake_executor_plugin_dask.worker.warm import child as warm_child
from snakemake_executor_plugin_dask.worker.warm.process import gpu_in_use
from snakemake_executor_plugin_dask.worker.warm.server import Server, Warmth

WARMTH = Warmth(None, 3, None, types.SimpleNamespace(files=(), unfit=lambda _: "", is_command=lambda _: True))  # type: ignore[arg-type]


def spec(key: str) -> JobSpec:
    return JobSpec(key, "rule", "1", 1, (), 1, "/dev/null")


class Stopped:
    """A server that stands still from when a child has its job until that child has ended."""

    def __init__(self) -> None:
        self._told, self._tell = os.pipe()

    def by_child(self) -> None:
        """Called in the child, before it says anything."""
        server = os.getppid()
        os.kill(server, signal.SIGSTOP)
        wait_for(lambda: state_of(server) == "T")
        os.write(self._tell, f"{server} {os.getpid()}".encode())

    def until_it_has_ended(self) -> None:
        server, child = map(int, os.read(self._told, 100).split())
        wait_for(lambda: state_of(child) == "Z")
        os.kill(server, signal.SIGCONT)


def state_of(pid: int) -> str:
    stat = processes.read_stat(pid)
    return "" if stat is None else stat.state


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@contextmanager
def served(
    run_command: Callable[..., None], monkeypatch: Any, warmth: Warmth = WARMTH, **limits: Any
) -> Iterator[Channel]:
    """The supervisor's end of a server whose children do this, whatever job they get."""
    monkeypatch.setattr(warm_child, "run_command", run_command)
    monkeypatch.setattr(warm_child, "run_job", run_command)
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    pid = fork()
    if pid == 0:
        ours.close()
        try:
            Server(theirs, warmth, 1, **limits).serve()
        finally:
            os._exit(0)
    theirs.close()
    channel = Channel(ours)
    assert channel.receive() == Warm(3, "", warmth.dag_reason)
    try:
        yield channel
    finally:
        ours.close()
        os.waitpid(pid, 0)


@pytest.mark.parametrize(("code", "status"), [(1, 1 << 8), (0, 0)])
def test_last_words_of_a_runner_that_has_ended(code: int, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How its command ended is told as it said it, also where it has left before it was listened to."""
    stopped = Stopped()

    def run_command(_warmth: object, spec: JobSpec, channel: Channel) -> None:
        stopped.by_child()
        channel.send(Spawned(spec.key, 12345))
        channel.send(Done(code << 8, 0.5, again=code == 0))
        os._exit(0)

    with served(run_command, monkeypatch) as supervisor:
        for key in ("first", "second"):
            supervisor.send(Start(spec(key)))
            stopped.until_it_has_ended()
            assert supervisor.receive() == Spawned(key, 12345)
            assert supervisor.receive() == Exited(key, status, 0.5)


def test_a_runner_that_dies_of_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shell is told of all the same, and the job's end is the signal."""
    stopped = Stopped()

    def run_command(_warmth: object, spec: JobSpec, channel: Channel) -> None:
        stopped.by_child()
        channel.send(Spawned(spec.key, 12345))
        os.kill(os.getpid(), 9)

    with served(run_command, monkeypatch) as supervisor:
        supervisor.send(Start(spec("job")))
        stopped.until_it_has_ended()
        assert supervisor.receive() == Spawned("job", 12345)
        assert supervisor.receive().status == 9


def test_a_runner_that_is_held_before_it_can_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while it counts as the job's process; what it says later still tells the end, and others go on."""
    released, release = os.pipe()

    def run_command(_warmth: object, spec: JobSpec, channel: Channel) -> None:
        if spec.key == "held":
            os.close(release)
            os.read(released, 1)
        channel.send(Spawned(spec.key, 12345))
        channel.send(Done(0, 0.5, again=True))

    # The others are not so long silent on a busy machine.
    with served(run_command, monkeypatch, silent_s=2.0) as supervisor:
        supervisor.send(Start(spec("held")))
        answer = supervisor.receive()
        assert answer == Forked("held", answer.pid, 0)
        assert answer.pid != 12345
        supervisor.send(Start(spec("other")))
        assert supervisor.receive() == Spawned("other", 12345)
        assert supervisor.receive() == Exited("other", 0, 0.5)
        os.write(release, b"x")
        assert supervisor.receive() == Exited("held", 0, 0.5)
        supervisor.send(Start(spec("third")))
        assert supervisor.receive() == Spawned("third", 12345)
    os.close(released)
    os.close(release)


def test_a_job_that_is_stopped_does_not_wait_for_the_warm_process(tmp_path: Path) -> None:
    """While the workflow is being read, a job that is not wanted any more ends at once."""

    async def stop() -> None:
        loop = asyncio.get_running_loop()
        current = Attempt(spec("job"), loop.create_future(), loop.create_future())
        endings = Endings(Monitor(ProcFiles(), os.getpid()))
        process: Any = types.SimpleNamespace(pid=1234, settled=asyncio.Event())
        keeper = warming.Warming(endings, lambda *_: None, make=lambda *_: process)
        keeper.begin(run_setup(tmp_path, job_start="warm"), {})
        start = asyncio.create_task(keeper.start(current))
        await settle()
        endings.stop(current, "cancelled", "enough")
        async with asyncio.timeout(30):
            assert await start is False
        current.gone.set()
        assert current.killing is not None
        await current.killing

    settling.run(stop())


def test_a_workflow_that_takes_long_to_read_is_waited_for_once(tmp_path: Path) -> None:
    """A job that is first tried without a Snakemake, and then with one, does not wait twice."""

    async def start() -> None:
        loop = asyncio.get_running_loop()
        current = Attempt(spec("job"), loop.create_future(), loop.create_future())
        endings = Endings(Monitor(ProcFiles(), os.getpid()))
        process: Any = types.SimpleNamespace(pid=1234, settled=asyncio.Event())
        said: list[str] = []
        keeper = warming.Warming(endings, lambda *_: None, said.append, make=lambda *_: process, ready_s=0.01)
        keeper.begin(run_setup(tmp_path, job_start="warm"), {})
        assert await keeper.shell(current) is None
        assert await keeper.start(current) is False
        assert len(said) == len(current.notes) == 1
        assert "not read within" in current.start_reason

    asyncio.run(start())


def test_a_kernel_without_pidfds_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No warm process is started that could start no job, and there is a sentence for the user."""
    assert processes.why_cold() == ""
    monkeypatch.delattr(os, "pidfd_open")
    assert "jobs start cold" in processes.why_cold()

    async def begin() -> None:
        endings = Endings(Monitor(ProcFiles(), os.getpid()))
        warming.Warming(endings, lambda *_: None).begin(run_setup(tmp_path, job_start="warm"), {})
        assert not endings.warms

    asyncio.run(begin())


@pytest.mark.parametrize(("state", "talks", "killed"), [("D", False, False), ("S", True, False), ("S", False, True)])
def test_a_warm_process_that_does_not_answer(
    state: str, talks: bool, killed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that the kernel holds, or that tells of others, is waited for: its jobs would end with it. Silence counts."""

    async def start() -> None:
        loop = asyncio.get_running_loop()
        current = Attempt(spec("job"), loop.create_future(), loop.create_future())
        asked: list[int] = []

        class Process:
            pid, ready, gone, settled, killed, words = 1234, True, False, asyncio.Event(), False, 0
            reason = dag_reason = ""

            def start(self, spec: JobSpec) -> None: ...

            def kill(self) -> None:
                self.killed = True
                current.answer.set_result("the warm process ended")

        process: Any = Process()

        def read_stat(pid: int) -> Stat:
            asked.append(pid)
            process.words += talks
            if len(asked) == 3 * warming.LOOKS:
                current.answer.set_result(None)
            return Stat(pid, 1, state, 1, 1, 1)

        process.settled.set()
        monkeypatch.setattr(processes, "read_stat", read_stat)
        endings = Endings(Monitor(ProcFiles(), os.getpid()))
        keeper = warming.Warming(endings, lambda *_: None, make=lambda *_: process, answer_s=0.01)
        keeper.begin(run_setup(tmp_path, job_start="warm"), {})
        assert await keeper.start(current) is not killed
        assert process.killed is killed

    asyncio.run(start())


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ("no process could be forked", ["Some jobs start cold, since: no process could be forked. So each starts a"]),
        ("all jobs start cold", []),
        ("no graph can be built", []),
        ("the warm process ended", []),
    ],
)
def test_why_some_jobs_start_cold_is_told(refusal: str, told: list[str], tmp_path: Path) -> None:
    """With what it costs; what holds for all jobs was told before, and the end of a warm process is an accident."""

    async def start() -> None:
        loop = asyncio.get_running_loop()
        current = Attempt(spec("job"), loop.create_future(), loop.create_future())
        said: list[str] = []

        class Process:
            pid, ready, gone, settled, words = os.getpid(), True, False, asyncio.Event(), 0
            reason, dag_reason = "all jobs start cold", "no graph can be built"

            def start(self, spec: JobSpec) -> None:
                current.answer.set_result(refusal)

        process: Any = Process()
        process.settled.set()
        endings = Endings(Monitor(ProcFiles(), os.getpid()))
        keeper = warming.Warming(endings, lambda *_: None, said.append, make=lambda *_: process)
        keeper.begin(run_setup(tmp_path, job_start="warm"), {})
        assert await keeper.start(current) is False
        assert current.start_reason == refusal
        assert [text[: len(start)] for text, start in zip(said, told, strict=True)] == told

    asyncio.run(start())


NO_COMMANDS = dataclasses.replace(
    WARMTH, workflow=types.SimpleNamespace(files=(), unfit=lambda _: "", is_command=lambda _: False)
)


def test_a_child_that_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job is to start cold, with its reason; the next one is tried as well."""
    stopped = Stopped()

    def run_job(_warmth: object, spec: JobSpec, channel: Channel) -> None:
        stopped.by_child()
        channel.send(Cold("first", "something is missing") if spec.key == "first" else Forked(spec.key, os.getpid(), 3))
        os._exit(7)

    with served(run_job, monkeypatch, NO_COMMANDS) as supervisor:
        supervisor.send(Start(spec("first")))
        stopped.until_it_has_ended()
        assert supervisor.receive() == Cold("first", "something is missing")
        supervisor.send(Start(spec("second")))
        stopped.until_it_has_ended()
        answer = supervisor.receive()
        assert answer == Forked("second", answer.pid, 3)
        exited = supervisor.receive()
        assert exited == Exited("second", 7 << 8, exited.cpu_s)


def test_a_workflow_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in the warm process itself, before a child has the job, makes this job start cold and nothing else."""

    def unfit(_spec: JobSpec) -> str:
        raise AttributeError("Rule has no attribute is_shell")

    asked = types.SimpleNamespace(files=(), unfit=unfit)
    with served(lambda *_: None, monkeypatch, dataclasses.replace(WARMTH, workflow=asked)) as supervisor:
        for key in ("first", "second"):
            supervisor.send(Start(spec(key)))
            assert supervisor.receive() == Cold(key, "AttributeError: Rule has no attribute is_shell")


def test_jobs_that_need_a_graph_where_none_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """They start cold, with the reason that the trial has shown; jobs that need none do not."""

    def run_job(_warmth: object, spec: JobSpec, channel: Channel) -> None:
        channel.send(Forked(spec.key, os.getpid(), 3))
        os._exit(0)

    with served(run_job, monkeypatch, dataclasses.replace(NO_COMMANDS, dag_reason="no graph")) as supervisor:
        supervisor.send(Start(spec("group")))
        assert supervisor.receive() == Cold("group", "no graph")
        supervisor.send(Start(dataclasses.replace(spec("single"), call=b"")))
        assert isinstance(supervisor.receive(), Forked)


def test_a_gpu_that_was_opened() -> None:
    """Its device file stays open, whatever library did it; a fork of such a process could not use it."""
    assert gpu_in_use(("/dev/full",)) == ""
    with open("/dev/full"):
        assert "opened a GPU (/dev/full)" in gpu_in_use(("/dev/full",))


def test_a_process_that_cannot_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is left to a cold start, the reason is told, and the warm process lives on."""

    def fails() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    with served(lambda *_: None, monkeypatch, fork=fails) as supervisor:
        for key in ("first", "second"):
            supervisor.send(Start(spec(key)))
            assert supervisor.receive() == Cold(key, "no process could be forked (Resource temporarily unavailable)")


def test_a_job_of_a_runner_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner that waits for outputs can be told to end, by its job: another one is not meant."""

    def run_command(_warmth: object, spec: JobSpec, channel: Channel) -> None:
        channel.send(Spawned(spec.key, 12345))
        signal.pause()

    with served(run_command, monkeypatch) as supervisor:
        supervisor.send(Start(spec("job")))
        assert supervisor.receive() == Spawned("job", 12345)
        supervisor.send(EndChild("former"))
        supervisor.send(EndChild("job"))
        assert supervisor.receive().status == signal.SIGKILL


def test_a_warm_process_that_is_not_understood_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was started from other files than its supervisor, say: its job is not waited for for ever."""
    # It looks for what the warm process has left among its own children, where those of other tests may be.
    monkeypatch.setattr(processes, "children_of", lambda _: [])
    process = subprocess.Popen(["sleep", "300"])

    async def play() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        report, other = os.pipe()
        os.close(other)
        said: list[str] = []
        endings = Endings(Monitor(ProcFiles(), os.getpid()))
        keeper = warming.Warming(endings, lambda *_: None, said.append)
        setup = run_setup(tmp_path, job_start="warm", python="/no/python")
        keeper.begin(setup, {}, StartedWarm(process.pid, report, ours))
        channel = Channel(theirs)
        assert await asyncio.to_thread(channel.receive) == Setup(setup)
        channel.send(Warm(3, "", "", None, ""))
        current = Attempt(spec("job"), loop.create_future(), loop.create_future())
        endings.attempts["job"] = current
        starting = asyncio.ensure_future(keeper.start(current))
        assert isinstance(await asyncio.to_thread(channel.receive), Start)
        channel.send(OfAnotherVersion())
        assert await asyncio.to_thread(process.wait, 60) == -signal.SIGKILL
        endings.warms.pop(process.pid).reaped.set()  # who waits for children here is the test
        async with asyncio.timeout(60):
            assert await starting is False
        assert current.start_reason == "the warm process ended"
        assert any("a message of it could not be handled: ModuleNotFoundError" in text for text in said)
        channel.close()

    try:
        asyncio.run(play())
    finally:
        process.kill()
        process.wait()
