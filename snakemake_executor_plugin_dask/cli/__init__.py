"""The command `snakemake-dask`, for people: reads event logs, and prints."""
