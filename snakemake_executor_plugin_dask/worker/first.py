"""What a worker's process does before it imports the rest of itself: reads its configuration, starts the supervisor.

``python -P -m snakemake_executor_plugin_dask.worker --config FILE [--name NAME] [--ahead FD]``. So both get ready at
the same time. Imports little; starts a process.
"""

import argparse
import json
import os
import pickle
import secrets
import signal
import socket
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobs import Beginning, RunSetup
from snakemake_executor_plugin_dask.model.wire import Channel
from snakemake_executor_plugin_dask.node import processes, rank
from snakemake_executor_plugin_dask.node.descriptors import raise_limit
from snakemake_executor_plugin_dask.node.private import read_private
from snakemake_executor_plugin_dask.worker.supervising import SupervisorProcess, write_lease


@dataclass(frozen=True, slots=True)
class Begun:
    """How far the worker is."""

    config: dict[str, Any]
    name: str
    started: float  # by `time.monotonic`
    scratch: str  # a directory for what Dask writes on its own
    directory: Path  # of the configuration
    only: tuple[RunSetup, SupervisorProcess] | None = None  # the run that it is for; None: runs come later
    lease_path: str | None = None  # of that supervisor's connection


@dataclass(frozen=True, slots=True)
class _Spare:
    """What was begun before the run was known."""

    beginning: Beginning
    supervisor: SupervisorProcess
    scratch: str  # the path that the supervisor knows

    def make_scratch(self) -> str:
        os.mkdir(self.scratch, 0o700)
        return self.scratch

    def supervisor_for(self, setup: RunSetup) -> SupervisorProcess | None:
        """The supervisor, told of the run; None where another one is needed, and this one is gone."""
        if self.supervisor.process.poll() is None and Beginning.of(setup) == self.beginning:
            self.supervisor.prepare(setup)
            return self.supervisor
        self.supervisor.end()
        return None


def begin() -> Begun | int:
    """Read the command line and the configuration; the exit code where there is nothing to do."""
    parser = argparse.ArgumentParser(prog="python -m snakemake_executor_plugin_dask.worker")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--name")
    parser.add_argument("--ahead", type=int, metavar="FD", help="a socket that tells when FILE is there")
    known, _ = parser.parse_known_args()  # dask-jobqueue appends arguments of dask's own worker command
    started = time.monotonic()
    spare = None
    if known.ahead is not None and (spare := _get_ready(known.ahead, known.config)) is None:
        return 0
    config: dict[str, Any] = json.loads(read_private(known.config))
    if parent := config.get("die_with_parent"):
        processes.die_with_parent()
        if os.getppid() != parent:  # it went before
            return 1
    if code := config.get("code"):
        from snakemake_executor_plugin_dask.node import versions

        if versions.installed_code() != code:
            own = config.get("own_python")
            sys.stderr.write(f"{versions.of_another_python(sys.executable) if own else versions.REINSTALLED}\n")
            return 1
    raise_limit()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for Snakemake, which ends what has to end
    name = known.name or rank.worker_name(config["name"], os.environ)
    scratch = _scratch(config["local_directory"]) if spare is None else spare.make_scratch()
    directory = known.config.parent
    if config["setup"] is None:
        processes.become_subreaper()
        return Begun(config, name, started, scratch, directory)
    setup: RunSetup = pickle.loads(read_private(config["setup"]))
    if config.get("own_python"):
        setup = replace(setup, python=sys.executable)  # the pool names another one than Snakemake's
    lease_path = _lease_path(directory if spare is None else scratch, name)
    write_lease(lease_path, config, name, setup.run_id)
    supervisor = None if spare is None else spare.supervisor_for(setup)
    if supervisor is None:
        supervisor = SupervisorProcess(setup, lease_path, scratch=scratch)
    return Begun(config, name, started, scratch, directory, (setup, supervisor), lease_path)


def _get_ready(descriptor: int, config: Path) -> _Spare | None:
    """Do what can be done without a configuration, until that is there. None: it does not come."""
    processes.die_with_parent()
    sock = socket.socket(fileno=descriptor)
    try:
        beginning: Beginning = Channel(sock).receive()
    except EOFError:
        return None
    state_dir = config.parent.parent
    scratch = os.fspath(state_dir / f"snakemake-dask-{secrets.token_hex(8)}")
    # Below the scratch directory: should the run go without this worker, its supervisor never finds another one's.
    supervisor = SupervisorProcess(beginning, _lease_path(scratch, config.stem), scratch=scratch)
    from snakemake_executor_plugin_dask.worker.process import import_dask  # it is at work meanwhile

    import_dask()
    with sock:
        if not sock.recv(1):
            return None
    os.chdir(state_dir)
    return _Spare(beginning, supervisor, scratch)


def _lease_path(directory: str | os.PathLike[str], name: str) -> str:
    """As `processes.kill_worker` knows a supervisor by it."""
    return os.path.join(directory, f"lease-{name}.json")


def _scratch(wanted: str | None) -> str:
    """A directory for what Dask writes on its own. It goes with this process or its supervisor."""
    parent = os.path.expanduser(os.path.expandvars(wanted)) if wanted else None  # `$TMPDIR`, say
    if parent is not None:
        os.makedirs(parent, exist_ok=True)
    return tempfile.mkdtemp(prefix="snakemake-dask-", dir=parent)
