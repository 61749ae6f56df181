"""What a Dask worker was given, also one that others brought up. Runs in that worker."""

from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private

MEMORY = Private(
    "distributed.worker_memory:WorkerMemoryManager",
    "memory_limit",
    "an attached worker's memory is taken for its host's",
)
MANAGER = Private("distributed.worker:Worker", "memory_manager", MEMORY.lost)
NTHREADS = Private(
    "distributed.worker_state_machine:WorkerState", "nthreads", "a worker's cores, and its jobs at once, cannot be told"
)
STATE = Private("distributed.worker:Worker", "state", NTHREADS.lost)

NAMES = (MEMORY, MANAGER, NTHREADS, STATE)


def memory_bytes(worker: Any) -> int | None:
    """The memory that the worker declares; None: no limit."""
    found: int | None = MEMORY.of(MANAGER.of(worker))
    return found


def threads(worker: Any) -> int:
    """The worker's cores."""
    return int(NTHREADS.of(STATE.of(worker)))


def is_of_dask_cuda(worker: Any) -> bool:
    """Whether dask-cuda brought the worker up: it sees all GPUs, in an order in which its own comes first."""
    return any(type(plugin).__module__.startswith("dask_cuda") for plugin in worker.plugins.values())
