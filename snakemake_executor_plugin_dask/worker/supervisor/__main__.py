"""``python -m snakemake_executor_plugin_dask.worker.supervisor``: the supervisor's process."""

from snakemake_executor_plugin_dask.worker.supervisor.process import main

if __name__ == "__main__":
    main()
