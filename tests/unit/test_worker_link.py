"""What a worker tells of its jobs once their supervisor is gone."""

import asyncio
import errno
import socket
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import settling
from distributed.comm.core import CommClosedError
from settling import settle
from supervising import run_setup
from unreadable import OfAnotherVersion

from snakemake_executor_plugin_dask.model.job_messages import Ended, Ending, Uses
from snakemake_executor_plugin_dask.model.job_messages import Started as Began
from snakemake_executor_plugin_dask.model.jobs import Outcome, WorkerFacts
from snakemake_executor_plugin_dask.model.wire import frame
from snakemake_executor_plugin_dask.node import versions
from snakemake_executor_plugin_dask.worker import attach, client, runs


def test_what_jobs_use_is_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's worker tells the cores at work between two words of the supervisor, and the memory in use, of all jobs."""
    now = [100.0]

    async def tell() -> None:
        ours, theirs = socket.socketpair()
        supervisor: Any = types.SimpleNamespace(open=lambda: asyncio.open_connection(sock=ours))
        link = client.SupervisorLink("run", "local-0", supervisor, print, clock=lambda: now[0])
        monkeypatch.setattr(client, "links", {"run": link})
        await link.open()

        async def told(at: float, **uses: tuple[float, float]) -> list[float]:
            now[0] = at
            theirs.sendall(frame(Uses(uses)))
            await settle()
            return [metric(None) for metric in client.METRICS.values()]

        assert await told(105.0, a=(5.0, 100.0)) == [1.0, 100.0]
        assert await told(110.0, a=(12.5, 120.0), b=(2.5, 80.4)) == [2.0, 200.0]
        assert await told(115.0, b=(2.5, 80.4)) == [0.0, 80.0]
        link.close()
        theirs.close()

    settling.run(tell())


def test_a_short_jobs_start_is_told_with_its_end() -> None:
    """In one message instead of two; the start of a job that runs on is told by itself."""
    told: list[dict[str, Any]] = []

    async def run() -> None:
        ours, theirs = socket.socketpair()
        supervisor: Any = types.SimpleNamespace(open=lambda: asyncio.open_connection(sock=ours))
        link = client.SupervisorLink("run", "local-0", supervisor, told.append)
        await link.open()
        jobs = [asyncio.create_task(link.run(key, b"")) for key in ("short", "long")]
        while link.keys() != {"short", "long"}:  # noqa: ASYNC110 - until both are handed over
            await asyncio.sleep(0)
        theirs.sendall(frame(Ended(Outcome("short", "succeeded"), Began("short", 8, "warm", 3, "", 1.0))))
        await jobs[0]
        theirs.sendall(frame(Began("long", 7, "warm", 3, "", 1.0)))
        while len(told) < 2:  # noqa: ASYNC110 - the link's own clock
            await asyncio.sleep(0.01)
        theirs.sendall(frame(Ended(Outcome("long", "succeeded"))))
        await jobs[1]
        link.close()
        theirs.close()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert [sorted(message.keys() & {"begun", "ended", "started"}) for message in told[:3]] == [
        ["begun", "ended"],
        ["started"],
        ["ended"],
    ]
    assert (told[0]["begun"]["started"], told[1]["started"], told[1]["pid"]) == ("short", "long", 7)


@pytest.mark.parametrize(
    ("link", "kill"),
    [(client.SupervisorLink, (client, "kill_descendants")), (attach.AttachedLink, (attach, "kill_marked"))],
)
def test_jobs_are_lost_once_their_processes_are_gone(
    link: type[client.SupervisorLink], kill: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that the kernel holds is waited for, without holding up the worker; no new job comes meanwhile."""
    told: list[dict[str, Any]] = []
    tries: list[int] = []
    held, go_on = threading.Event(), threading.Event()

    def kill_jobs(_: object) -> bool:
        tries.append(len(tries))
        if len(tries) == 2:
            held.set()
            assert go_on.wait(30)
        return len(tries) == 3

    monkeypatch.setattr(*kill, kill_jobs)

    async def lose() -> None:
        ours, theirs = socket.socketpair()
        supervisor: Any = types.SimpleNamespace(
            open=lambda: asyncio.open_connection(sock=ours), process=types.SimpleNamespace(poll=lambda: -9)
        )
        worker = link("run", "local-0", supervisor, told.append)
        await worker.open()
        job = asyncio.create_task(worker.run("job", b""))
        await settle()
        theirs.close()
        assert await asyncio.to_thread(held.wait, 30)
        assert not worker.lost.is_set()
        assert told == [{"leaving": "local-0"}]
        go_on.set()
        outcome = await job
        assert (outcome.status, len(tries)) == ("lost", 3)
        assert "SIGKILL" in outcome.detail

    settling.run(lose())


def test_jobs_are_lost_whatever_stands_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler hears nothing any more, or processes cannot be looked for at once: nobody waits for ever."""
    tries: list[int] = []

    def kill_jobs(_: object) -> bool:
        tries.append(len(tries))
        if len(tries) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return True

    def tell(_: object) -> None:
        raise CommClosedError

    monkeypatch.setattr(client, "kill_descendants", kill_jobs)

    async def lose() -> Outcome:
        ours, theirs = socket.socketpair()
        process = types.SimpleNamespace(poll=lambda: -9)
        supervisor: Any = types.SimpleNamespace(open=lambda: asyncio.open_connection(sock=ours), process=process)
        worker = client.SupervisorLink("run", "local-0", supervisor, tell, again_s=0)
        await worker.open()
        job = asyncio.create_task(worker.run("job", b""))
        await settle()
        theirs.close()
        return await job

    assert settling.run(lose()).status == "lost"
    assert len(tries) == 2


def test_a_supervisor_that_is_not_understood_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was started from other files than the worker, say. Its jobs are lost, and not waited for for ever."""
    monkeypatch.setattr(client, "kill_descendants", lambda _: True)
    killed: list[bool] = []

    async def lose() -> Outcome:
        ours, theirs = socket.socketpair()
        process = types.SimpleNamespace(poll=lambda: -9, kill=lambda: killed.append(True))
        supervisor: Any = types.SimpleNamespace(open=lambda: asyncio.open_connection(sock=ours), process=process)
        worker = client.SupervisorLink("run", "local-0", supervisor, lambda _: None)
        await worker.open()
        job = asyncio.create_task(worker.run("job", b""))
        await settle()
        theirs.sendall(frame(OfAnotherVersion()))
        outcome = await job
        theirs.close()
        return outcome

    outcome = settling.run(lose())
    assert killed == [True]
    assert outcome.status == "lost"
    assert "a message of it could not be handled: ModuleNotFoundError" in outcome.detail


def test_the_next_supervisor_is_begun_after_one_that_is_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that was begun ahead, and whose lease ran out as the run came: it would lose each job."""
    told: list[dict[str, Any]] = []
    started: list[socket.socket] = []
    monkeypatch.setattr(attach, "kill_marked", lambda _: True)
    monkeypatch.setattr(runs, "kill_descendants", lambda *_, **__: True)
    monkeypatch.setattr(client, "links", {})

    class Supervisor:
        def __init__(self, *_: Any, **__: Any) -> None:
            self._ours, theirs = socket.socketpair()
            started.append(theirs)
            self.process = types.SimpleNamespace(pid=1, returncode=None, poll=lambda: 0, wait=lambda: 0)

        async def open(self) -> Any:
            return await asyncio.open_connection(sock=self._ours)

    monkeypatch.setattr(runs, "SupervisorProcess", Supervisor)
    config: dict[str, Any] = {"lease": ("here", 1), "tls": {}, "code": versions.installed_code()}
    worker: Any = types.SimpleNamespace(log_event=lambda _, event: told.append(dict(client.of_event(event))))
    facts = WorkerFacts("cpu-0", "n1", 1, 2, 4, 4000)
    monkeypatch.setattr(runs, "serving", runs.Serving("cpu-0", config, tmp_path, str(tmp_path), facts, worker))
    setup = run_setup(tmp_path)

    async def play() -> None:
        await runs.begin(setup)
        await runs.begin(setup)
        assert len(started) == 1
        started[0].sendall(frame(Ending()))
        await settle()
        again = asyncio.ensure_future(runs.begin(setup))
        await settle()
        assert len(started) == 1
        started[0].close()
        await again
        assert len(started) == 2
        assert told == [{"ending": "cpu-0"}, {"leaving": "cpu-0"}]
        started[1].close()
        await client.links[setup.run_id].lost.wait()

    settling.run(play())
