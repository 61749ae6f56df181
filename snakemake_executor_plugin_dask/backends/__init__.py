"""One small adapter for each way to bring workers up."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake_executor_plugin_dask.backends.base import Backend

WORKER_MODULE = "snakemake_executor_plugin_dask.worker"


def worker_command(config: str | os.PathLike[str], python: str) -> list[str]:
    """The command line of a worker; it holds no secret, since other users of the node can read it.

    It starts in a directory that is not its own (of logs, of the workflow), and imports nothing from there.
    """
    return [python, "-P", "-m", WORKER_MODULE, "--config", os.fspath(config)]


def backend_for(cluster: str) -> "Backend":
    """The adapter for a pool's ``cluster``; what it needs beyond Dask is imported only here."""
    if cluster == "local":
        from snakemake_executor_plugin_dask.backends.local import LocalBackend

        return LocalBackend()
    if cluster == "cuda":
        from snakemake_executor_plugin_dask.backends.cuda import CudaBackend

        return CudaBackend()
    if cluster == "mpi":
        from snakemake_executor_plugin_dask.backends.mpi import LauncherBackend

        return LauncherBackend()
    from snakemake_executor_plugin_dask.backends.jobqueue import JobqueueBackend

    return JobqueueBackend(cluster)
