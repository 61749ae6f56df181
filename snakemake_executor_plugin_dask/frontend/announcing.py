"""Tells a cluster that stays that a run is about to come, as soon as Snakemake makes the executor. Imports little.

Workers there get a supervisor and a warm process for the run, which import what they need while Snakemake's process
does, and the driver's process starts. What is said binds nobody: the run is the same without, and begins later.
"""

import contextlib
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from snakemake_executor_plugin_dask.config.configure import configure_here
from snakemake_executor_plugin_dask.frontend.beginning import begins
from snakemake_executor_plugin_dask.kept import directory, recognise
from snakemake_executor_plugin_dask.kept.place import is_name
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.kept import Coming
from snakemake_executor_plugin_dask.model.wire import frame
from snakemake_executor_plugin_dask.settings import ExecutorSettings

_CONNECT_S = 5.0


class Announced:
    """A connection to the head, on which it was told, if it could be. For as long as it stands, the run may come."""

    def __init__(self, where: Path, address: tuple[str, int], coming: Coming) -> None:
        self._where, self._address, self._coming = where, address, coming
        self._closed = False
        self._socket: socket.socket | None = None
        # A head that does not answer holds nobody up.
        threading.Thread(target=self._tell, name="dask-announcing", daemon=True).start()

    def _tell(self) -> None:
        with contextlib.suppress(OSError):  # the run, when it comes, finds out what is the matter
            plain = socket.create_connection(self._address, timeout=_CONNECT_S)
            self._socket = directory.tls(self._where).wrap_socket(plain)
            self._socket.sendall(frame(self._coming))
        if self._closed:
            self.close()

    def close(self) -> None:
        """The run is over, or does not come."""
        self._closed = True
        if self._socket is not None:
            self._socket.close()


def announce(
    settings: ExecutorSettings, run_id: str, workdir: str, jobs: int, environment: Mapping[str, str]
) -> Announced | None:
    """Tell the cluster that the run is going to use. None: there is none, or it has nothing to get ready."""
    try:
        name = settings.scheduler if settings.scheduler and is_name(settings.scheduler) else None
        options, _ = configure_here(replace(settings, scheduler=None) if name else settings)
        options = recognise.named(name, options, environment) if name else options
        there = recognise.going_to(options, environment)
    except (ConfigurationError, OSError):  # told where the run is configured
        return None
    if there is None or options.job_start != "warm":
        return None
    where, record = there
    return Announced(where, record.address, Coming(run_id, begins(workdir, environment, sys.executable), jobs))
