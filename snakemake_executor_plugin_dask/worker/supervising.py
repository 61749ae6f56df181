"""The supervisor's process as its worker starts it. Imports little, since it is started before all else."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake_executor_plugin_dask.model.job_messages import Ahead, Setup
from snakemake_executor_plugin_dask.model.jobs import Beginning, RunSetup
from snakemake_executor_plugin_dask.model.wire import frame
from snakemake_executor_plugin_dask.node.private import write_private
from snakemake_executor_plugin_dask.node.processes import become_subreaper

if TYPE_CHECKING:
    import asyncio


def write_lease(path: str | os.PathLike[str], config: Mapping[str, Any], worker: str, run_id: str) -> None:
    """Write the configuration of a supervisor's connection to the driver; ``config`` is the worker's."""
    host, port = config["lease"]
    lease = {"host": host, "port": port, "worker": worker, "run": run_id, **config["tls"]}
    write_private(Path(path), json.dumps(lease).encode())


class SupervisorProcess:
    """The supervisor's process as its parent sees it: started early, attached to the event loop later."""

    def __init__(
        self,
        run: Beginning | None,
        lease: str | None,
        environment: dict[str, str] | None = None,
        *,
        subreaper: bool = True,
        scratch: str | None = None,
    ) -> None:
        """Start it. ``run``: a `Beginning` where its `Setup` follows; None where others tell it.

        ``lease`` is the path of the configuration of its connection to the driver.

        ``scratch`` is a directory that it removes at its end.
        """
        if subreaper:
            become_subreaper()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "snakemake_executor_plugin_dask.worker.supervisor"]
        command += ["--fd", str(theirs.fileno())]
        if lease is not None:
            command += ["--lease-config", lease]
        if scratch is not None:
            command += ["--scratch", scratch]
        with theirs:
            self.process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=tempfile.gettempdir(),
                env=environment,
                start_new_session=True,
            )
        self._socket = ours
        if run is not None:
            ours.sendall(frame(Setup(run) if isinstance(run, RunSetup) else Ahead(run)))

    def prepare(self, setup: RunSetup) -> None:
        """Tell one that was started ahead which run it is for. Before `open`."""
        self._socket.sendall(frame(Setup(setup)))

    def end(self) -> None:
        """Have one that is not needed end, with what it has started. Before `open`."""
        self._socket.close()
        self.process.wait()

    async def open(self) -> "tuple[asyncio.StreamReader, asyncio.StreamWriter]":
        """Its socket, for the event loop that runs now. Called once."""
        import asyncio

        return await asyncio.open_connection(sock=self._socket)
