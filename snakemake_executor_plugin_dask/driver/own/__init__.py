"""The Dask cluster that a run brings up for itself."""
