"""A stand-in for the part of NVIDIA's Python packages that dask-cuda imports."""
