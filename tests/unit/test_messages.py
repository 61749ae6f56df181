"""What travels between executor and driver."""

import pickle
import socket
import threading

import pytest

from snakemake_executor_plugin_dask.model.jobs import JobSpec
from snakemake_executor_plugin_dask.model.messages import Dropped, QueuedJob, Started
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.model.wire import Channel


class Interrupted(socket.socket):
    """A socket whose user presses Ctrl-C while half of a message is sent."""

    def sendall(self, data: bytes, flags: int = 0) -> None:  # type: ignore[override]
        super().sendall(data[: len(data) // 2], flags)
        raise KeyboardInterrupt


def test_a_message_comes_as_it_was_sent() -> None:
    """Longer ones than the socket holds, too."""
    ours, theirs = socket.socketpair()
    sent = Dropped(tuple(str(number) for number in range(100_000)))
    sending = threading.Thread(target=Channel(ours).send, args=[sent])
    sending.start()
    assert Channel(theirs).receive() == sent
    sending.join()


def test_half_a_message_is_the_last_one() -> None:
    """After Ctrl-C in the middle of one the other side sees the end, and takes no other for the rest."""
    plain, theirs = socket.socketpair()
    channel = Channel(Interrupted(fileno=plain.detach()))
    with pytest.raises(KeyboardInterrupt):
        channel.send(Started("key"))
    with pytest.raises(BrokenPipeError):
        channel.send(Started("key"))
    with pytest.raises(EOFError):
        Channel(theirs).receive()


def test_a_waiting_job_is_unpacked_as_it_was() -> None:
    """What placement asks for stands beside it."""
    spec = JobSpec("rule-1", "rule", "1", 1, ("--cores", "1"), 1, "/log", call=b"call")
    job = QueuedJob.of(spec, Request(2), 3)
    assert (job.key, job.name, job.priority, pickle.loads(job.packed)) == ("rule-1", "rule", 3, spec)
