"""``python -P -m snakemake_executor_plugin_dask.worker``: the worker's process, see `first` for its arguments."""

import sys

from snakemake_executor_plugin_dask.worker import first

if __name__ == "__main__":
    begun = first.begin()
    if isinstance(begun, int):
        sys.exit(begun)

    from snakemake_executor_plugin_dask.interior.leaving import leave
    from snakemake_executor_plugin_dask.worker.process import main

    leave(main(begun))
