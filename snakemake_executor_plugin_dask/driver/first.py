"""What a driver's process does before it imports the rest of itself: has a worker on this machine get ready, too.

``python -P -m snakemake_executor_plugin_dask.driver --fd N [--ahead KIND]``. Imports little; starts a process.
"""

import argparse
import signal
import socket
import sys
from typing import Literal

from snakemake_executor_plugin_dask.backends import spare, worker_command
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobs import SpareWorker
from snakemake_executor_plugin_dask.model.wire import Channel


@dataclass(frozen=True, slots=True)
class Begun:
    """How far the driver is."""

    sock: socket.socket  # to Snakemake's process
    ahead: Literal["kept", "own"] | None = None  # the run is not known yet, but its kind of cluster


def begin() -> Begun:
    """Read the command line, and Snakemake's first message where the process was started ahead of an own cluster."""
    parser = argparse.ArgumentParser(prog="python -m snakemake_executor_plugin_dask.driver")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--ahead", choices=["kept", "own"], help="the run is not known yet, but its kind of cluster")
    options = parser.parse_args()
    # Ctrl-C and a terminal's end reach Snakemake, which says what has to end; so does SIGTERM.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # unlike an ignored signal, it is not handed on to launchers
    sock = socket.socket(fileno=options.fd)
    if options.ahead == "own":
        try:
            wanted: SpareWorker | None = Channel(sock).receive()
        except EOFError:
            sys.exit(0)  # there is no run
        if wanted is not None:
            spare.get_ready(wanted, worker_command(wanted.config, sys.executable))
    return Begun(sock, options.ahead)
