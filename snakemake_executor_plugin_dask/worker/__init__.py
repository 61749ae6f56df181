"""What runs on a worker's node: the Dask worker, the supervisor of job processes, the warm process. Imports nothing."""
