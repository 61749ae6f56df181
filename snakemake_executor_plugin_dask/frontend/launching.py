"""Starts the driver's process: for a run, or ahead of it, to get ready while Snakemake does. Imports little.

It imports Dask meanwhile, but for a run on a cluster that stays, which has no need of it. Ahead of one of these the
cluster is told, too (`announcing`).
"""

import contextlib
import itertools
import os
import secrets
import socket
import string
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from snakemake_executor_plugin_dask.frontend.beginning import begins
from snakemake_executor_plugin_dask.kept.place import is_name, root
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobs import SpareWorker
from snakemake_executor_plugin_dask.model.wire import Channel
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

    def drop(self) -> None:
        """It is not needed: it ends, and leaves no zombie for as long as Snakemake's process goes on."""
        self.sock.close()
        threading.Thread(target=self.process.wait, name="dask-ahead", daemon=True).start()


@dataclass(frozen=True, slots=True)
class Ahead:
    """What was begun before the run's own part in Snakemake's process is there."""

    run_id: str
    launched: Launched | None = None
    environment: Mapping[str, str] | None = None  # that the process has read; None: it has not
    announced: "Announced | None" = None

    def take(self) -> Launched | None:
        """The process, if it can be that of the run. It ends otherwise."""
        if self.launched is None:
            return None
        other = self.environment is not None and self.environment != os.environ
        if other or self.launched.process.poll() is not None:
            self.launched.drop()
            return None
        return self.launched

    def close(self, *, taken: bool) -> None:
        """The run is over, or there is none. ``taken``: the process is the run's, which ends it itself."""
        if self.launched is not None and not taken:
            self.launched.drop()
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
    kind = kind_of(settings, environment) if jobs else None
    if settings is None or kind is None:
        return Ahead(run_id)
    launched, announced = launch_ahead(kind), None
    if kind == "own" and launched is not None:
        with contextlib.suppress(OSError):  # it has ended, which is told where the run takes it
            Channel(launched.sock).send(_spare(settings, run_id, workflow.workdir_init, environment))
    if kind == "kept":
        from snakemake_executor_plugin_dask.frontend.announcing import announce  # that process imports meanwhile

        announced = announce(settings, run_id, workflow.workdir_init, jobs, environment)
    # Dask reads its configuration while it is imported.
    return Ahead(run_id, launched, dict(environment) if kind == "own" else None, announced)


def launch(state_dir: str | os.PathLike[str]) -> Launched:
    """For the run with this state directory, into which the process's own output goes."""
    with open(append_private(log_of(state_dir)), "ab") as log:
        return _launch(stdout=log, stderr=log, cwd=state_dir)


def log_of(state_dir: str | os.PathLike[str]) -> Path:
    """The driver's own output."""
    return Path(state_dir, "driver.log")


def kind_of(settings: ExecutorSettings | None, environment: Mapping[str, str]) -> Literal["kept", "own"] | None:
    """Which kind of cluster a run is going to use, as far as its settings tell.

    "kept": one that stays, if not even that; "own": one of its own. None: another one, or there is no run.
    """
    if settings is None or settings.plan or settings.plan_scripts:
        return None
    if settings.scheduler is not None:
        return "kept" if is_name(settings.scheduler) else None
    return "own" if settings.keep == "0" and not _there(environment) else "kept"


def state_dir(run_id: str) -> Path:
    """Where what a run has of its own is written, in the directory that Snakemake works in."""
    return Path(".snakemake", "dask", run_id).absolute()


def _spare(
    settings: ExecutorSettings, run_id: str, workdir: str | os.PathLike[str], environment: Mapping[str, str]
) -> SpareWorker | None:
    """The first worker of the run, if it is one on this machine as far as the settings tell, and starts jobs warm."""
    local = settings.cluster in (None, "local") and settings.pools in (None, "none") and not settings.worker_gpus
    if not local or settings.job_start != "warm":
        return None
    beginning = begins(os.fspath(workdir), environment, sys.executable)
    return SpareWorker(beginning, os.fspath(state_dir(run_id) / "workers" / "local-0.json"))


def launch_ahead(kind: Literal["kept", "own"]) -> Launched | None:
    """For a run that is about to come. None: there is no room for a process.

    Nothing is written anywhere: the run may find that there is nothing to do. The process ends then, or with Snakemake.
    """
    # What it says before it knows the run, such as that a module is missing, goes where Snakemake's own words go; but
    # where it is Dask that has something to say, it says it again.
    said = None if kind == "kept" else subprocess.DEVNULL
    try:
        return _launch("--ahead", kind, stdout=subprocess.DEVNULL, stderr=said, cwd="/")
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
