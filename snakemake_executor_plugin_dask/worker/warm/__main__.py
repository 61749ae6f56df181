"""``python -m snakemake_executor_plugin_dask.worker.warm``: the warm process."""

from snakemake_executor_plugin_dask.worker.warm.process import main

if __name__ == "__main__":
    main()
