"""A job's own Dask cluster, as its supervisor sees it: what its processes need, and what they tell.

The cluster is started by the job itself (`injob`), so it is of the job's processes, and ends with them. Where it lies
on several nodes, each of the others has a part of it: an attempt of its own, whose command is the same `injob` with the
script's Python. Writes a directory that only the user can enter, and removes it with the attempt.

Messages to and from the driver and the cluster's process are the same, as JSON there. From the cluster: ``{"started":
pid}``, with ``python``, ``environment`` and ``modules`` where other parts need them, ``{"failed": why}``, ``{"over":
worker, "text": what it held}``, ``{"retired": part}``, ``{"pages": port}`` of its dashboard, ``{"note": what the user
is to know}``. To it: ``{"gone": part}``, a part was lost with its node, ``{"failed": why}``, one could not start,
``{"retire": part}``, its data is to move elsewhere, and ``over`` from other parts.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.jobs import JobSpec
from snakemake_executor_plugin_dask.node import jobsecrets, mounts
from snakemake_executor_plugin_dask.node.devices import VISIBLE, device_environment
from snakemake_executor_plugin_dask.node.environment import expand, job_environment
from snakemake_executor_plugin_dask.node.private import write_private

_IN_JOB = Path(__file__).parents[2] / "injob"
_BESIDE = ("node/door.py", "interior/dask_listening.py", "interior/dask_beside.py")
_COPIED = (_IN_JOB / "cluster.py", *(_IN_JOB.parent / name for name in _BESIDE))
_PRELOAD = "snakemake_dask_preload.py"  # becomes a module of the job's process
_LOOPBACK = "127.0.0.1"
_LINE_MAX_BYTES = 1 << 25  # an environment is in one of them
_IN_CONTAINER = (
    "a script in a container has Dask workers on its own node only, and here they are on several: ask for fewer or "
    "smaller ones (dask_workers, threads, mem_mb)"
)
_OVER_MOST = 3  # workers over their memory, before the job fails
#: What another node has of its own.
_OF_NODE = {"TMPDIR", "TMP", "TEMP", "PWD", "OLDPWD", "SHLVL", "_", "HOSTNAME"}

Changes = tuple[tuple[str, str | None], ...]


class ClusterOfJob:
    """One attempt's: its directory, its port, and the socket over which it tells."""

    def __init__(self, over: Callable[[str], None], say: Callable[[Mapping[str, Any]], None]) -> None:
        """``over(text)`` is called when too many of its workers were over their memory; ``say`` tells the driver."""
        self._over = over
        self._say = say
        self._overs: list[str] = []
        self._part: int | None = None  # None: the cluster is on this node alone
        self._elsewhere = 0  # so many of its workers are to be on other nodes
        self._given: dict[str, str] = {}  # the job's environment
        self._writers: list[asyncio.StreamWriter] = []
        self.command: list[str] = []  # of a part without the script
        self._secrets: Path | None = None  # see `Spread`
        self.directory = ""
        self._spill = ""
        self._port: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._address = ""
        self.started = False
        self.failed = ""  # why it ended before the job, as far as it could tell

    async def prepare(
        self, spec: JobSpec, cluster: JobCluster, parent: str | None, log: str, base: Mapping[str, str]
    ) -> Changes:
        """What the job's environment must have, once it could start its cluster. Raises OSError.

        ``parent``: where its directory is made; ``base``: the environment of jobs on this worker.
        """
        self.directory = tempfile.mkdtemp(prefix="dask-", dir=parent)
        here = Path(self.directory)
        spread = spec.spread
        self._secrets = None if spread is None or not spread.secrets else Path(spread.secrets)
        certificate = spec.certificate if self._secrets is None else jobsecrets.certificate(self._secrets)
        assert certificate is not None
        for name, text in zip(jobsecrets.CERTIFICATE, certificate, strict=True):
            write_private(here / name, text.encode())
        self._part = None if spread is None else spread.part
        self._elsewhere = 0 if spread is None else spread.workers - cluster.workers
        options = json.loads(cluster.options or "{}")
        spill = expand(str(options.pop("local_directory", "")), base)
        if spill:
            os.makedirs(spill, exist_ok=True)
        self._spill = tempfile.mkdtemp(prefix="snakemake-dask-", dir=spill or self.directory)
        devices, changes = _devices(spec.environment, cluster)
        host = _LOOPBACK if spread is None else spread.host
        self._address = spread.scheduler if spread is not None and spread.part else self._reserve_port(host)
        settings = {
            "workers": cluster.workers,
            "expected": cluster.workers if spread is None else spread.workers,
            "part": self._part,
            "pages": "" if spread is None else spread.pages,
            "lent": spread is not None and spread.lent,
            "host": host,
            "scheduler": self._address,
            "cores": cluster.cores,
            "memory_mb": cluster.memory_mb,
            "gpus": cluster.gpus,
            "enforce": spec.memory_limit_mb is not None,
            "options": options,
            "environment": devices,
            "local_directory": self._spill,
            "log": log,
        }
        write_private(here / "settings.json", json.dumps(settings).encode())
        # Copies: a container does not have this package, but has the directory for temporary files.
        shutil.copyfile(_IN_JOB / "preload.py", here / _PRELOAD)
        for path in _COPIED:
            shutil.copyfile(path, here / path.name)
        listening = socket.socket(socket.AF_UNIX)
        descriptor = os.open(here, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listening.bind(f"/proc/self/fd/{descriptor}/supervisor")  # a socket's path may not be long
        finally:
            os.close(descriptor)
        self._server = await asyncio.start_unix_server(self._listen, sock=listening, limit=_LINE_MAX_BYTES)
        changes = (*changes, *_dask_environment(here, self._address))
        if spread is not None and spread.part:
            of_script = spread.environment if self._secrets is None else jobsecrets.environment(self._secrets)
            changes = (*of_script, *changes)
            (here / "modules.json").write_text(json.dumps(spread.modules))
            self.command = [spread.python, os.fspath(here / "cluster.py"), self.directory]
        self._given = job_environment(base, spec.key, (*spec.environment, *changes))
        return changes

    def _reserve_port(self, host: str) -> str:
        """An address that nobody else is given, and that the scheduler can listen on while it is held here."""
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        self._port = socket.socket(family)
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(address)
        return f"tls://{f'[{host}]' if ':' in host else host}:{self._port.getsockname()[1]}"

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.closing(writer):
            while line := await reader.readline():
                message: dict[str, Any] = json.loads(line)
                self.failed = message.get("failed", self.failed)
                if "started" in message:
                    self.started = True
                    if self._part == 0:
                        self._say_started(message, _peer(writer))
                if message.keys() & {"retired", "pages", "note"}:
                    self._say(message)
                if "over" in message:
                    if self._part:
                        self._say(message)
                    else:
                        self.tell(message)

    def _say_started(self, message: Mapping[str, Any], pid: int) -> None:
        """The other nodes start their parts with the same Python, and with what the job has made of its environment."""
        if mounts.sees_others(pid):  # other parts would not be in its container: it does not grow
            if self._elsewhere:
                self.tell({"failed": _IN_CONTAINER})
            return
        found: dict[str, str] = message["environment"]
        changed: dict[str, str | None] = {
            name: value for name, value in found.items() if self._given.get(name) != value
        }
        changed |= dict.fromkeys(self._given.keys() - found.keys())
        environment = [(name, value) for name, value in changed.items() if name not in _OF_NODE]
        if self._secrets is not None:
            try:
                jobsecrets.tell_environment(self._secrets, environment)
            except OSError as error:
                self.tell({"failed": f"what other nodes need to know could not be written: {error}"})
                return
            environment = []
        modules = message.get("modules", [])
        self._say(
            {"started": self._address, "python": message["python"], "environment": environment, "modules": modules}
        )

    def tell(self, message: Mapping[str, Any]) -> None:
        """What the driver, or another part of the cluster, has to say."""
        if "over" not in message:
            self.failed = message.get("failed", self.failed)
            for writer in self._writers:
                if not writer.is_closing():
                    writer.write(json.dumps(message).encode() + b"\n")
            return
        self._overs.append(message["over"])
        if len(self._overs) >= _OVER_MOST:
            others = ", ".join(self._overs[:-1])
            self._over(f"Dask worker {message['over']}: {message['text']}, as workers {others} had before")

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
        return [directory for directory in (self._spill, self.directory) if directory]


def _peer(writer: asyncio.StreamWriter) -> int:
    """The process at the other end."""
    found = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 3 * 4)
    return int.from_bytes(found[:4], sys.byteorder)


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
