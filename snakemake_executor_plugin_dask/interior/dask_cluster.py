"""Dask's `SpecCluster` with workers that were made by somebody else, and the client beside its scheduler."""

from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private

_CLUSTER = "distributed.deploy.spec:SpecCluster"
CORRECT_STATE = Private(_CLUSTER, "_correct_state", "no worker is ever started")
WORKER_SPEC = Private(_CLUSTER, "worker_spec", "no worker is ever started")
LISTENERS = Private("distributed.core:Server", "listeners", "the driver cannot reach its own scheduler")
SCHEDULER_COMM = Private(
    "distributed.client:Client", "scheduler_comm", "each job starts some milliseconds later", needed=False
)

NAMES = (CORRECT_STATE, WORKER_SPEC, LISTENERS, SCHEDULER_COMM)


def inner_address(cluster: Any) -> str:
    """The scheduler's address for clients in the same process: the second one that it listens on."""
    return str(LISTENERS.of(cluster.scheduler)[1].contact_address)


def send_at_once(client: Any) -> None:
    """Do not collect messages to the scheduler, which is in the same process."""
    if SCHEDULER_COMM.there():
        SCHEDULER_COMM.of(client).interval = 0.001


async def add(cluster: Any, process: Any) -> None:
    """Have the cluster start a worker that is made already; it makes workers itself, from a class and options."""
    WORKER_SPEC.of(cluster)[process.name] = {
        "cls": lambda *_, **__: process,
        "options": {"name": process.name},
        **({"group": list(process.group)} if process.group else {}),
    }
    await CORRECT_STATE.of(cluster)()


def extend_group(cluster: Any, name: str, suffix: str) -> None:
    """One Dask worker more belongs to this one, and is to be closed with it."""
    WORKER_SPEC.of(cluster)[name]["group"].append(suffix)


async def remove(cluster: Any, name: str) -> None:
    """Have the cluster close a worker, if it has it."""
    if WORKER_SPEC.of(cluster).pop(name, None) is not None:
        await CORRECT_STATE.of(cluster)()
