"""What a supervisor does before it imports the rest of itself: takes the run's setup, and starts the warm process.

So the two get ready at the same time. Imports little; starts a process.
"""

import argparse
import contextlib
import os
import select
import socket
import sys
from collections.abc import Mapping
from typing import Any

from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.job_messages import Ahead, Setup
from snakemake_executor_plugin_dask.model.jobs import Beginning, RunSetup
from snakemake_executor_plugin_dask.model.wire import Channel
from snakemake_executor_plugin_dask.node import processes
from snakemake_executor_plugin_dask.node.environment import base_environment


@dataclass(frozen=True, slots=True)
class StartedWarm:
    """A warm process that was just started. ``report``: see `processes.spawn`."""

    pid: int
    report: int
    sock: socket.socket


@dataclass(frozen=True, slots=True)
class Begun:
    """How far the supervisor is."""

    worker: socket.socket
    lease_config: str | None
    scratch: str | None
    message: Any = None  # the worker's first one, where it was there already
    warm: StartedWarm | None = None  # by that message


def begin() -> Begun:
    """Read the command line, and the worker's first message where that has come."""
    parser = argparse.ArgumentParser(prog="python -m snakemake_executor_plugin_dask.worker.supervisor")
    parser.add_argument("--fd", type=int, required=True, help="socket to the worker")
    parser.add_argument("--lease-config", help="JSON: host, port, ca, cert, key, worker")
    parser.add_argument("--scratch", help="directory of the worker, removed at the end")
    options = parser.parse_args()
    worker = socket.socket(fileno=options.fd)
    worker.set_inheritable(False)
    message, warm = None, None
    with contextlib.suppress(EOFError):  # that is read once more
        if select.select([worker], [], [], 0)[0]:
            message = Channel(worker).receive()
    beginning: Beginning | None = None
    if isinstance(message, Setup) and wants_warm(message.setup):
        beginning = message.setup
    elif isinstance(message, Ahead) and not processes.why_cold():
        beginning = message.beginning
    if beginning is not None:
        with contextlib.suppress(OSError):  # it is tried again, and told, once there is somebody to tell
            warm = spawn_warm(beginning, jobs_environment(beginning, os.environ), options.scratch)
    return Begun(worker, options.lease_config, options.scratch, message, warm)


def wants_warm(setup: RunSetup) -> bool:
    """Whether the run is to have a warm process here."""
    return setup.job_start == "warm" and not setup.precommand and not processes.why_cold()


def jobs_environment(run: Beginning, own: Mapping[str, str]) -> dict[str, str]:
    """What all jobs of the run have here; ``own``: the supervisor's."""
    environment = base_environment(run.environment, run.replace_environment, own)
    if not os.path.isabs(run.python):
        # Software is not shared with the main process: its name means the Python that this worker runs with.
        path = environment.get("PATH", os.defpath)
        environment["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), path))
    return environment


def spawn_warm(beginning: Beginning, environment: Mapping[str, str], directory: str | None) -> StartedWarm:
    """Start a warm process, with a directory for files of its own. Raises OSError where that cannot be done."""
    ours, theirs = socket.socketpair()
    # Not from the workflow's directory, which would shadow modules; without -P, which jobs would see in sys.flags.
    command = [beginning.python, "-m", "snakemake_executor_plugin_dask.worker.warm", "--workdir", beginning.workdir]
    command += [] if directory is None else ["--directory", directory]
    command += ["--fd", str(theirs.fileno())]
    try:
        launch = processes.Launch(
            command,
            environment,
            "/",
            umask=beginning.umask,
            soft_limits=beginning.soft_limits,
            keep=(theirs.fileno(),),
        )
        return StartedWarm(*processes.spawn(launch), ours)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
