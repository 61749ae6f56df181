"""What Snakemake's process does in a run. Imports no Dask; the checks that need it run in a process of their own."""
