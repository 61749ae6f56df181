"""The driver: the process beside Snakemake that holds Dask's scheduler, the pools and the waiting jobs."""
