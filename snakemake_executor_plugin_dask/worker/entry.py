"""The Snakemake of a cold job whose arguments a command line cannot express. Imports Snakemake; runs the job.

``python -m snakemake_executor_plugin_dask.worker.entry FD ARGUMENT…``: FD is an inherited file descriptor with a
pickled dictionary, argparse destination to value, that is put over what the arguments say. Everything else is as with
``python -m snakemake ARGUMENT…``, of whose `main` this is the long form.
"""

import os
import pickle
import sys
from collections.abc import Mapping
from typing import Any


def main(argv: list[str]) -> int:
    """Run the job's Snakemake; returns its exit code."""
    overrides = read_overrides(int(argv[0]))
    arguments = argv[1:]
    from snakemake import cli
    from snakemake.exceptions import print_exception

    # What a job's code sees in sys.argv, as if Snakemake's own module had been started.
    sys.argv = [os.path.join(os.path.dirname(cli.__file__), "__main__.py"), *arguments]
    try:
        parser, namespace = cli.parse_args(arguments)
        override(namespace, overrides)
        succeeded = cli.args_to_api(namespace, parser)
    except Exception as error:  # noqa: BLE001 - as Snakemake's own main does: print it in its way, and end
        print_exception(error)
        return 1
    return 0 if succeeded else 1


def read_overrides(descriptor: int) -> dict[str, Any]:
    """The pickled values; the descriptor is closed."""
    with open(descriptor, "rb") as file:
        overrides: dict[str, Any] = pickle.load(file)
    return overrides


def override(namespace: Any, overrides: Mapping[str, Any]) -> None:
    """Put values over those that the arguments gave. A name that Snakemake does not know raises AttributeError."""
    for name, value in overrides.items():
        if not hasattr(namespace, name):
            msg = (
                f"Snakemake's command line has no argument with the destination «{name}»: what the plugin sends "
                "with a job does not fit the version of Snakemake on this worker; install that of the main process."
            )
            raise AttributeError(msg)
        setattr(namespace, name, value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
