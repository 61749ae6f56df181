"""Snakemake executor plugin that runs jobs on a Dask cluster it brings up itself.

Snakemake imports every installed plugin in each of its processes, a job's own included, and so do the small processes
beside each worker. The three names that Snakemake's plugin registry asks for are therefore loaded only when asked for,
and nothing here imports Dask.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snakemake_executor_plugin_dask.executor import Executor
    from snakemake_executor_plugin_dask.settings import ExecutorSettings, common_settings

__all__ = ["Executor", "ExecutorSettings", "common_settings"]


def __getattr__(name: str) -> Any:
    if name == "Executor":
        from snakemake_executor_plugin_dask.executor import Executor

        return Executor
    if name in ("ExecutorSettings", "common_settings"):
        from snakemake_executor_plugin_dask import settings

        return getattr(settings, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
