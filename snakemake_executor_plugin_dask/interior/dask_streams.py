"""Dask's streams of messages, which collect what is sent for some milliseconds: here nothing waits for more to come.

A job's way to its process and its end's way back pass two of them, and a place that a job has left is empty until then.
What is sent within one turn of the event loop, or while a message is being written, still travels together.
"""

from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private

_LATER = "each job takes some milliseconds longer"

TO_SCHEDULER = Private("distributed.client:Client", "scheduler_comm", _LATER, needed=False)
TO_WORKERS = Private("distributed.scheduler:Scheduler", "stream_comms", _LATER, needed=False)
OF_WORKER = Private("distributed.worker:Worker", "batched_stream", _LATER, needed=False)
INTERVAL = Private("distributed.batched:BatchedSend", "interval", _LATER, needed=False)

NAMES = (TO_SCHEDULER, TO_WORKERS, OF_WORKER, INTERVAL)


class _AtOnce(float):
    """An interval of no length, after which no end of it is waited for.

    A stream adds it to the time of each message that it has written, and would then look whether that has passed, with
    a timer and an exception: that costs as much as the sending.
    """

    def __radd__(self, _now: float) -> Any:
        return None  # "there is no deadline", as a stream has it that has nothing to send


def hurry_stream(stream: Any) -> None:
    """One of Dask's streams."""
    setattr(stream, INTERVAL.name, _AtOnce())


def hurry(streams: Private, holder: Any, address: str | None = None) -> None:
    """A stream of a client, a worker or a scheduler, which has one to the worker at each ``address``."""
    if streams.there() and INTERVAL.there():
        found = streams.of(holder)
        hurry_stream(found if address is None else found[address])
