"""``python -m snakemake_executor_plugin_dask.worker.supervisor``: the supervisor's process."""

from snakemake_executor_plugin_dask.worker.supervisor import first

if __name__ == "__main__":
    begun = first.begin()

    from snakemake_executor_plugin_dask.worker.supervisor.process import main

    main(begun)
