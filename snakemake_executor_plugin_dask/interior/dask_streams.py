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


def hurry_client(client: Any) -> None:
    """What a client tells its scheduler."""
    _hurry(TO_SCHEDULER, client)


def hurry_to_worker(scheduler: Any, address: str) -> None:
    """What a scheduler tells the worker at this address, which has joined."""
    _hurry(TO_WORKERS, scheduler, address)


def hurry_worker(worker: Any) -> None:
    """What a worker tells its scheduler."""
    _hurry(OF_WORKER, worker)


def _hurry(streams: Private, holder: Any, address: str | None = None) -> None:
    if streams.there() and INTERVAL.there():
        found = streams.of(holder)
        setattr(found if address is None else found[address], INTERVAL.name, 0.0)
