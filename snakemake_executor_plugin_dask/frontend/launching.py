"""Starts the driver's process: for a run, or ahead of it, to get ready while Snakemake does. Imports little."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.kept.place import is_name, root
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.node.private import append_private
from snakemake_executor_plugin_dask.settings import ExecutorSettings

_COMMAND = (sys.executable, "-P", "-m", "snakemake_executor_plugin_dask.driver")


@dataclass(frozen=True, slots=True)
class Launched:
    """A driver's process, which waits for the first message."""

    process: "subprocess.Popen[bytes]"
    sock: socket.socket


def launch(state_dir: str | os.PathLike[str]) -> Launched:
    """For the run with this state directory, into which the process's own output goes."""
    with open(append_private(log_of(state_dir)), "ab") as log:
        return _launch(stdout=log, stderr=log, cwd=state_dir)


def log_of(state_dir: str | os.PathLike[str]) -> Path:
    """The driver's own output."""
    return Path(state_dir, "driver.log")


def launch_ahead(settings: ExecutorSettings | None, environment: Mapping[str, str]) -> Launched | None:
    """For a run that is going to use a cluster that stays, as far as its settings tell; None: that is not to be seen.

    Nothing is written anywhere: the run may find that there is nothing to do. The process ends then, or with Snakemake.
    """
    if settings is None or settings.plan or settings.plan_scripts:
        return None
    if settings.scheduler is not None and not is_name(settings.scheduler):
        return None
    if settings.scheduler is None and settings.keep == "0" and not _there(environment):
        return None
    try:
        # What it says before it knows the run, such as that a module is missing, goes where Snakemake's own words go.
        return _launch("--ahead", stdout=subprocess.DEVNULL, stderr=None, cwd="/")
    except OSError:  # without room for a process; it is tried again with the first job, and told then
        return None


def _there(environment: Mapping[str, str]) -> bool:
    """Whether a cluster is written down."""
    try:
        with os.scandir(root(environment)) as found:
            return any(True for _ in found)
    except OSError:
        return False


def _launch(*arguments: str, **options: Any) -> Launched:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [*_COMMAND, "--fd", str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C and Ctrl-Z are for Snakemake
            **options,
        )
    return Launched(process, ours)
