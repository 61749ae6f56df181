"""What is asked of a Dask cluster that others brought up: of its scheduler, by a client and in it, and of its workers.

How an adaptive cluster asks its scheduler for its size, and which workers it may close, is documented; that the two
methods can be replaced, so that what a plugin knows counts too, is not.
"""

from collections.abc import Callable
from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private, privates

SCHEDULER = Private("distributed.client:Client", "scheduler", "an attached cluster cannot be used")
IDENTITY = Private("distributed.scheduler:Scheduler", "identity", SCHEDULER.lost, arguments=("n_workers",))
TARGET, TO_CLOSE = privates(
    "distributed.scheduler:Scheduler",
    "an adaptive cluster does not grow for jobs that wait, and may close a worker on which a job is being placed",
    *("adaptive_target", "workers_to_close"),
)
HANDLERS = Private(
    "distributed.core:Server", "handlers", "runs cannot share an attached cluster without overbooking it"
)
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

NAMES = (SCHEDULER, IDENTITY, TARGET, TO_CLOSE, HANDLERS, MEMORY, MANAGER, NTHREADS, STATE)

Method = Callable[..., Any]


# By a client


async def workers(client: Any) -> dict[str, dict[str, Any]]:
    """What the scheduler knows of each worker, by address. `Client.scheduler_info` knows five of them."""
    identity = await IDENTITY.of(SCHEDULER.of(client))(n_workers=-1)
    return dict(identity["workers"])


async def call(client: Any, handler: str, **arguments: Any) -> Any:
    """Call what a plugin in the scheduler answers under this name."""
    return await getattr(SCHEDULER.of(client), handler)(**arguments)


# In the scheduler


def stand_before(scheduler: Any, target: Method, to_close: Method) -> tuple[Method, Method]:
    """Put these in the place of the scheduler's own two methods, which are returned."""
    own = TARGET.of(scheduler), TO_CLOSE.of(scheduler)
    for name, method in ((TARGET, target), (TO_CLOSE, to_close)):
        setattr(scheduler, name.name, method)
        answer(scheduler, name.name, method)
    return own


def answer(scheduler: Any, name: str, handler: Method) -> None:
    """Let clients call a function in the scheduler by this name."""
    HANDLERS.of(scheduler)[name] = handler


# In a worker


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
