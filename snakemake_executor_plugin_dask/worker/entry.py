"""The Snakemake of a cold job whose arguments a command line cannot express. Imports Snakemake; runs the job.

``python -m snakemake_executor_plugin_dask.worker.entry FD ARGUMENT…``: FD is an inherited file descriptor with a
pickled dictionary, argparse destination to value, that is put over what the arguments say. Everything else is as with
``python -m snakemake ARGUMENT…``, of whose `main` this is the long form.
"""

import pickle
import sys
from typing import Any

from snakemake_executor_plugin_dask.interior import snakemake_command_line


def main(argv: list[str]) -> int:
    """Run the job's Snakemake; returns its exit code."""
    overrides = read_overrides(int(argv[0]))
    # What a job's code sees in sys.argv, as if Snakemake's own module had been started.
    sys.argv = snakemake_command_line.job_argv(argv[1:])
    try:
        succeeded = snakemake_command_line.run_cold(argv[1:], overrides)
    except Exception as error:  # noqa: BLE001 - as Snakemake's own main does: print it in its way, and end
        snakemake_command_line.print_error(error)
        return 1
    return 0 if succeeded else 1


def read_overrides(descriptor: int) -> dict[str, Any]:
    """The pickled values; the descriptor is closed."""
    with open(descriptor, "rb") as file:
        overrides: dict[str, Any] = pickle.load(file)
    return overrides


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
