"""The machine a process runs on: processes, devices, files, allocations, ports. Knows jobs, and no Dask."""
