"""Where Dask's configuration comes from: it merges files and defaults, and documents no way to see them apart."""

from collections.abc import Mapping
from typing import Any

import dask

from snakemake_executor_plugin_dask.interior.declared import Private

DEFAULTS = Private("dask.config", "defaults", "nobody is told which of their settings are overruled")
COLLECT = Private("dask.config", "collect_yaml", "a site's walltime cannot be told from Dask-Jobqueue's own")
PATHS = Private("dask.config", "paths", COLLECT.lost)

NAMES = (DEFAULTS, COLLECT, PATHS)


def defaults() -> dict[Any, Any]:
    """The configuration as it is where nobody has set anything."""
    found: dict[Any, Any] = dask.config.merge(*DEFAULTS.of(dask.config))
    return found


def files() -> list[tuple[str, Mapping[str, Any]]]:
    """Path and content of each configuration file; the last one wins."""
    found = COLLECT.of(dask.config)(PATHS.of(dask.config), return_paths=True)
    return [(str(path), values) for path, values in found]
