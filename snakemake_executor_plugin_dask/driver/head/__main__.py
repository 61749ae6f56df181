"""The head's process: ``python -P -m snakemake_executor_plugin_dask.driver.head``, a pickled `kept.Start` on its input.

Started by the first run that wants a cluster to stay, or by `snakemake-dask start`, and lives on after it. However it
ends, workers and allocations are given back first. Exit codes: 0; 1 after an error, whose traceback is in its log.
"""

import asyncio
import contextlib
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from snakemake_executor_plugin_dask.interior import checks
from snakemake_executor_plugin_dask.kept.place import log_of
from snakemake_executor_plugin_dask.kept.watchdog import Watchdog
from snakemake_executor_plugin_dask.model.either import either
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.kept import Start
from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.node.descriptors import raise_limit
from snakemake_executor_plugin_dask.node.own_log import bound_log, write_line


def main() -> int:
    """Serve until the cluster is over. Returns the exit code; 1 where its record stays, for it ended with an error."""
    start: Start = pickle.load(sys.stdin.buffer)
    sys.stdin.close()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    bound_log()
    raise_limit()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # it holds keys
    directory = Path(start.kept.directory)
    held = state.Held(directory)
    watchdog = Watchdog(directory)
    failed = asyncio.run(_serve(start, held))
    if not failed:
        _forget(held)
    held.release()
    watchdog.dismiss()
    return int(failed)


def _forget(held: state.Held) -> None:
    """Remove what is written down of the cluster, by descriptors: the next one may have been made already."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):  # NFS keeps a file that is open, and the directory with it
        os.dup2(nowhere, number)
    held.clear(keep_logs=False)
    held.unlock()
    held.clear(keep_logs=False)  # and the lock, with the directory


def _log(text: str) -> None:
    with contextlib.suppress(OSError):  # the cluster outlives a full disk
        write_line(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", sys.stdout)


async def _serve(start: Start, held: state.Held) -> bool:
    """Returns whether something is left to look at."""
    interior = checks.of_dask()
    if interior.refusal:
        _log(f"error: {interior.refusal}")
        return True
    from snakemake_executor_plugin_dask.driver.head.head import Head

    head = Head(start, _log, held.in_place)
    bound_log()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, head.end, "its head was told to end (SIGTERM)")
    failed = False
    try:
        await head.start()
        _log(f"Cluster {start.kept.name} is up, process {os.getpid()}.")
        for done in await either(head.tick(), head.broken, head.over):
            done.result()
    except ConfigurationError as error:
        _log(f"error: {error}")
        failed = True
    except Exception as error:  # noqa: BLE001 - whatever it is, all is given back
        traceback.print_exc()
        head.end(f"its head failed ({error!r}; more is in {log_of(start.kept.directory)})")
        failed = True
    left = await head.close()
    for worker in left:
        _log(f"error: Worker {worker} may still be running.")
    return failed or bool(left)


if __name__ == "__main__":
    sys.exit(main())
