"""A job's own Dask cluster, as its supervisor sees it: what its processes need, and what they tell.

The cluster is started by the job itself (`injob`), so it is of the job's processes, and ends with them. Writes a
directory that only the user can enter, and removes it with the attempt.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.jobs import JobSpec
from snakemake_executor_plugin_dask.node.devices import VISIBLE, device_environment
from snakemake_executor_plugin_dask.node.environment import expand
from snakemake_executor_plugin_dask.node.private import write_private

_IN_JOB = Path(__file__).parents[2] / "injob"
_PRELOAD = "snakemake_dask_preload.py"  # becomes a module of the job's process

Changes = tuple[tuple[str, str | None], ...]


class ClusterOfJob:
    """One attempt's: its directory, its port, and the socket over which it tells."""

    def __init__(self, over: Callable[[str], None]) -> None:
        """``over(text)`` is called when too many of its workers were over their memory."""
        self._over = over
        self._directory = ""
        self._spill = ""
        self._port: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._address = ""
        self.started = False
        self.failed = ""  # why it ended before the job, as far as it could tell

    async def prepare(
        self, spec: JobSpec, cluster: JobCluster, parent: str | None, log: str, base: Mapping[str, str], workdir: str
    ) -> Changes:
        """What the job's environment must have, once it could start its cluster. Raises OSError.

        ``parent``: where its directory is made; ``base``: the environment of jobs on this worker.
        """
        self._directory = tempfile.mkdtemp(prefix="dask-", dir=parent)
        here = Path(self._directory)
        assert spec.certificate is not None
        for name, text in zip(("cert.pem", "key.pem"), spec.certificate, strict=True):
            write_private(here / name, text.encode())
        options = json.loads(cluster.options or "{}")
        spill = expand(str(options.pop("local_directory", "")), base)
        if spill:
            os.makedirs(spill, exist_ok=True)
        self._spill = tempfile.mkdtemp(prefix="snakemake-dask-", dir=spill or self._directory)
        devices, changes = _devices(spec.environment, cluster)
        settings = {
            "workers": cluster.workers,
            "cores": cluster.cores,
            "memory_mb": cluster.memory_mb,
            "enforce": spec.memory_limit_mb is not None,
            "port": self._reserve_port(),
            "options": options,
            "environment": devices,
            "local_directory": self._spill,
            "log": log,
            "workdir": workdir,
        }
        write_private(here / "settings.json", json.dumps(settings).encode())
        # Copies: a container does not have this package, but has the directory for temporary files.
        shutil.copyfile(_IN_JOB / "preload.py", here / _PRELOAD)
        shutil.copyfile(_IN_JOB / "cluster.py", here / "cluster.py")
        listening = socket.socket(socket.AF_UNIX)
        descriptor = os.open(here, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listening.bind(f"/proc/self/fd/{descriptor}/supervisor")  # a socket's path may not be long
        finally:
            os.close(descriptor)
        self._server = await asyncio.start_unix_server(self._listen, sock=listening)
        self._address = f"tls://127.0.0.1:{settings['port']}"
        return (*changes, *_dask_environment(here, self._address))

    def _reserve_port(self) -> int:
        """A port that nobody else is given, and that the scheduler can listen on while it is held here."""
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        return int(self._port.getsockname()[1])

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            while line := await reader.readline():
                message: dict[str, Any] = json.loads(line)
                self.started = self.started or "started" in message
                self.failed = message.get("failed", self.failed)
                if over := message.get("over"):
                    self._over(over)

    def why(self, words: str) -> str:
        """Of a job that failed, and wrote ``words`` last: what its cluster has to do with it; empty: nothing."""
        if self.failed:
            return f"its Dask cluster ended: {self.failed}"
        if not self.started and self._address in words:
            return (
                "its Dask cluster was never started, since Dask in the job's environment is too old for it: a Client() "
                "starts it with distributed 2022.3 or later"
            )
        return ""

    def close(self) -> list[str]:
        """Take no more messages; returns the directories to be removed."""
        if self._server is not None:
            self._server.close()
        if self._port is not None:
            self._port.close()
        return [directory for directory in (self._spill, self._directory) if directory]


def _devices(environment: Changes, cluster: JobCluster) -> tuple[list[dict[str, str]], Changes]:
    """What each worker's environment has to say of the job's GPUs, and the script's, which holds none of them."""
    given = dict(environment)
    found = next(((vendor, name) for vendor, name in VISIBLE.items() if given.get(name)), None)
    if found is None or not cluster.gpus:
        return [{}] * cluster.workers, ()
    vendor, name = found
    every, each = (given[name] or "").split(","), cluster.gpus
    own = [{name: ",".join(every[index * each : (index + 1) * each])} for index in range(cluster.workers)]
    return own, device_environment((), vendor)


def _dask_environment(directory: Path, address: str) -> Changes:
    """Dask's own settings, by which a bare `Client()` reaches this cluster."""
    cert, key = os.fspath(directory / "cert.pem"), os.fspath(directory / "key.pem")
    tls = "DASK_DISTRIBUTED__COMM__TLS__"
    roles = [
        (f"{tls}{role}__{what}", path)
        for role in ("CLIENT", "SCHEDULER", "WORKER")
        for what, path in (("CERT", cert), ("KEY", key))
    ]
    return (
        ("DASK_SCHEDULER_ADDRESS", address),
        ("DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION", "true"),
        (f"{tls}CA_FILE", cert),
        *roles,
        ("DASK_DISTRIBUTED__CLIENT__PRELOAD", os.fspath(directory / _PRELOAD)),
    )
