"""Dask's scheduler with a client in the same process."""

from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private

LISTENERS = Private("distributed.core:Server", "listeners", "the driver cannot reach its own scheduler")
SCHEDULER_COMM = Private(
    "distributed.client:Client", "scheduler_comm", "each job starts some milliseconds later", needed=False
)

NAMES = (LISTENERS, SCHEDULER_COMM)


def inner_address(scheduler: Any) -> str:
    """The scheduler's address for clients in the same process: the second one that it listens on."""
    return str(LISTENERS.of(scheduler)[1].contact_address)


def send_at_once(client: Any) -> None:
    """Do not collect messages to the scheduler, which is in the same process."""
    if SCHEDULER_COMM.there():
        SCHEDULER_COMM.of(client).interval = 0.001
