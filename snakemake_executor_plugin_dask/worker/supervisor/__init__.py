"""The process beside a Dask worker that starts, limits and ends jobs. Standard library, `model` and `node` alone."""
