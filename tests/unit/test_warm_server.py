"""What the warm process tells of its children, whatever order their words and their ends come in."""

import os
import socket
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from snakemake_executor_plugin_dask.jobs import JobSpec
from snakemake_executor_plugin_dask.messages import Channel
from snakemake_executor_plugin_dask.worker import warm, warm_child

WARMTH = warm.Warmth(None, 3, None, types.SimpleNamespace(files=(), is_command=lambda _: True))  # type: ignore[arg-type]


def spec(key: str) -> JobSpec:
    return JobSpec(key, "rule", "1", 1, (), 1, "/dev/null")


class Late(warm.Server):
    """Looks at its children only once the one that got a job has ended."""

    def _start(self, spec: JobSpec) -> None:
        super()._start(spec)
        for child in self._children.values():
            if child.key is not None:
                os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)


@contextmanager
def served(server: type[warm.Server], run_command: Callable[..., None], monkeypatch: Any) -> Iterator[Channel]:
    """The supervisor's end of a server whose runners do this."""
    monkeypatch.setattr(warm_child, "run_command", run_command)
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            server(theirs, WARMTH, 1).serve()
        finally:
            os._exit(0)
    theirs.close()
    channel = Channel(ours)
    assert channel.receive() == ("ready", 3)
    try:
        yield channel
    finally:
        ours.close()
        os.waitpid(pid, 0)


@pytest.mark.parametrize(("code", "status"), [(1, 1 << 8), (0, 0)])
def test_last_words_of_a_runner_that_has_ended(code: int, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How its command ended is told as it said it, also where it has left before it was listened to."""

    def run_command(_warmth: object, spec: JobSpec, channel: Channel) -> None:
        channel.send(("spawned", 12345))
        channel.send(("done", code << 8, 0.5, code == 0))
        os._exit(0)

    with served(Late, run_command, monkeypatch) as supervisor:
        for key in ("first", "second"):
            supervisor.send(("start", spec(key)))
            assert supervisor.receive() == ("spawned", key, 12345)
            assert supervisor.receive() == ("exited", key, status, 0.5)


def test_a_runner_that_dies_of_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shell is told of all the same, and the job's end is the signal."""

    def run_command(_warmth: object, spec: JobSpec, channel: Channel) -> None:
        channel.send(("spawned", 12345))
        os.kill(os.getpid(), 9)

    with served(Late, run_command, monkeypatch) as supervisor:
        supervisor.send(("start", spec("job")))
        assert supervisor.receive() == ("spawned", "job", 12345)
        assert supervisor.receive()[:3] == ("exited", "job", 9)
