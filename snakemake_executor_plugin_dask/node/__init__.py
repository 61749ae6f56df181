"""What a process asks of the machine it runs on: processes, devices, files, allocations, ports. Knows jobs, and no Dask."""
