"""``python -m snakemake_executor_plugin_dask.worker.warm``: the warm process."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # where the supervisor happens to be; each import would look there first

    from snakemake_executor_plugin_dask.worker.warm.process import main

    main()
