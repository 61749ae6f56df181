"""`python -m snakemake_executor_plugin_dask`: the same as the command `snakemake-dask`."""

import sys

from snakemake_executor_plugin_dask.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
