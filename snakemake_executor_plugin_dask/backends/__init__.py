"""One small adapter for each way to bring workers up."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake_executor_plugin_dask.backends.base import Backend


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
