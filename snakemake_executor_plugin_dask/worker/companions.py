"""Companions: workers that a wide worker starts on its further nodes, for Dask workers of jobs.

Runs in the wide worker, by `Client.run`. A companion is an ordinary worker on one node; the batch system's launcher
starts it, and it ends with the allocation at the latest.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.node.allocation import batch_system
from snakemake_executor_plugin_dask.node.private import append_private, write_private
from snakemake_executor_plugin_dask.node.rank import RESTARTS

_TERMINATE_S = 5.0  # a companion that was told to end gets so long
_FORCE_S = 15.0  # and its launcher so long to have it ended by force


@dataclass
class Here:
    """What a companion shares with this worker."""

    config: dict[str, Any]
    directory: Path  # for configurations and output
    ends: float | None  # monotonic: when the allocation does; None: no end known


here: Here | None = None
#: Held while a process is made that is not yet known here, or that is to be told from those that are not.
forking = threading.Lock()
_launchers: "dict[str, subprocess.Popen[bytes]]" = {}  # by the companion's name


def log_of(directory: Path, name: str) -> Path:
    """Where the output of a companion and its launcher goes."""
    return directory / f"{name}.log"


async def start(name: str, host: str) -> None:
    """Start one on another node of the allocation. Raises OSError."""
    await asyncio.to_thread(_start, name, host)


def _start(name: str, host: str) -> None:
    assert here is not None
    system = batch_system(os.environ)
    assert system is not None
    assert system.on_node is not None
    command, environment = system.on_node(host, os.environ)
    path = here.directory / f"{name}.json"
    walltime_s = None if here.ends is None else here.ends - time.monotonic()
    config = here.config | {"name": name, "nodes": None, "walltime_s": walltime_s}
    write_private(path, json.dumps(config).encode())
    command += [sys.executable, "-P", "-m", str(__package__), "--config", os.fspath(path), "--name", name]
    with os.fdopen(append_private(log_of(here.directory, name)), "ab") as log, forking:
        _launchers[name] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=here.directory,
            env=environment | {RESTARTS: "0"},  # the step is the plugin's own
            start_new_session=True,
        )


def ended(name: str) -> int | None:
    """The exit code of its launcher; None: it runs."""
    return _launchers[name].poll() if name in _launchers else 0


async def end(name: str) -> bool:
    """End it. False where its launcher had to be killed, and cannot say that it is gone."""
    if (launcher := _launchers.get(name)) is None:
        return True
    for sent, within_s in ((signal.SIGTERM, _TERMINATE_S), (signal.SIGINT, _FORCE_S)):
        if launcher.poll() is None:
            launcher.send_signal(sent)
        if await _over(launcher, within_s):
            _launchers.pop(name, None)
            return True
    launcher.kill()
    return False


async def _over(launcher: "subprocess.Popen[bytes]", within_s: float) -> bool:
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while launcher.poll() is None:
        if loop.time() >= until:
            return False
        await asyncio.sleep(0.05)
    return True


def pids() -> set[int]:
    """Of the launchers that run, or have yet to be waited for: what has another one's number is a stranger."""
    return {launcher.pid for launcher in list(_launchers.values()) if launcher.returncode is None}


def end_all() -> None:
    """This worker ends: so do they, and what is left goes with the allocation."""
    for launcher in _launchers.values():
        if launcher.poll() is None:
            launcher.terminate()
