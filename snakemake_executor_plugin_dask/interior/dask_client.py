"""Calls of a Dask client to its scheduler that have no method of their own."""

from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private

SCHEDULER = Private("distributed.client:Client", "scheduler", "an attached cluster cannot be used")
IDENTITY = Private("distributed.scheduler:Scheduler", "identity", SCHEDULER.lost, arguments=("n_workers",))

NAMES = (SCHEDULER, IDENTITY)


async def workers(client: Any) -> dict[str, dict[str, Any]]:
    """What the scheduler knows of each worker, by address. `Client.scheduler_info` knows five of them."""
    identity = await IDENTITY.of(SCHEDULER.of(client))(n_workers=-1)
    return dict(identity["workers"])


async def call(client: Any, handler: str, **arguments: Any) -> Any:
    """Call what a plugin in the scheduler answers under this name."""
    return await getattr(SCHEDULER.of(client), handler)(**arguments)
