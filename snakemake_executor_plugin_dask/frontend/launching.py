"""Starts the driver's process: for a run, or ahead of it, to get ready while Snakemake does. Imports little.

Ahead of a run on a cluster that stays the cluster is told, too (`announcing`).
"""

import itertools
import os
import secrets
import socket
import string
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake_executor_plugin_dask.kept.place import is_name, root
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.node.private import append_private
from snakemake_executor_plugin_dask.settings import ExecutorSettings

if TYPE_CHECKING:
    from snakemake_executor_plugin_dask.frontend.announcing import Announced

_JOBS_COUNTED = 1000  # there are no more workers that a run uses at once
_COMMAND = (sys.executable, "-P", "-m", "snakemake_executor_plugin_dask.driver")


@dataclass(frozen=True, slots=True)
class Launched:
    """A driver's process, which waits for the first message."""

    process: "subprocess.Popen[bytes]"
    sock: socket.socket


@dataclass(frozen=True, slots=True)
class Ahead:
    """What was begun before the run's own part in Snakemake's process is there."""

    run_id: str
    launched: Launched | None = None
    announced: "Announced | None" = None

    def close(self, *, taken: bool) -> None:
        """The run is over, or there is none. ``taken``: the process is the run's, which ends it itself."""
        if self.launched is not None and not taken:
            self.launched.sock.close()
        if self.announced is not None:
            self.announced.close()


def new_run_id() -> str:
    """Eight random letters and digits, the last one a digit, since Dask takes letters alone for a rule's name."""
    digits = secrets.choice(string.digits)
    letters = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(7))
    return letters + digits


def get_ready(settings: ExecutorSettings | None, workflow: Any, dag: Any, environment: Mapping[str, str]) -> Ahead:
    """Begin what can be, for a run of the jobs in this graph."""
    run_id = new_run_id()
    jobs = sum(1 for _ in itertools.islice((job for job in dag.needrun_jobs() if not job.is_local), _JOBS_COUNTED))
    launched = launch_ahead(settings, environment) if jobs else None
    if settings is None or launched is None:
        return Ahead(run_id)
    from snakemake_executor_plugin_dask.frontend.announcing import announce  # that process imports meanwhile

    return Ahead(run_id, launched, announce(settings, run_id, workflow.workdir_init, jobs, environment))


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
