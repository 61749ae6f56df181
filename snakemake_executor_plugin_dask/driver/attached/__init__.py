"""A run on a Dask cluster that was there before it."""
