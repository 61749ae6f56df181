"""``python -P -m snakemake_executor_plugin_dask.driver``: the driver's process, see `first` for its arguments."""

from snakemake_executor_plugin_dask.driver import first

if __name__ == "__main__":
    begun = first.begin()

    from snakemake_executor_plugin_dask.driver.process import main
    from snakemake_executor_plugin_dask.interior.leaving import leave

    leave(main(begun))
