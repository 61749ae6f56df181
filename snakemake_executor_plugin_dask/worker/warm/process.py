"""The warm process: imports Snakemake, reads this run's workflow, and then serves the supervisor (`server`).

Started by the supervisor as ``python -m snakemake_executor_plugin_dask.worker.warm --fd N``, with the environment that
every job gets. It speaks with the supervisor over the socket N (see `model.job_messages`). It has one thread, because
only then is a fork of it whole. Where reading the workflow fails or leaves threads behind, or its children cannot run
jobs then, it replaces itself by a process that has only imported Snakemake.
"""

import argparse
import contextlib
import dataclasses
import gc
import os
import pickle
import resource
import signal
import socket
import sys
import threading
from typing import Any, NoReturn

from snakemake_executor_plugin_dask.interior.leaving import run_exit_functions
from snakemake_executor_plugin_dask.model.jobs import RunSetup
from snakemake_executor_plugin_dask.model.wire import Channel
from snakemake_executor_plugin_dask.node.processes import fork, set_soft_limit
from snakemake_executor_plugin_dask.node.versions import snakemake_version
from snakemake_executor_plugin_dask.worker.warm.end import Belongings
from snakemake_executor_plugin_dask.worker.warm.reseeding import Randomness
from snakemake_executor_plugin_dask.worker.warm.server import IDLE_CHILDREN, Server, Warmth

#: Lines of /proc/self/status.
_INHERITED = ("Umask:", "Uid:", "Gid:", "Groups:", "SigBlk:", "SigIgn:", "Cpus_allowed:")
#: Native threads that take care of a fork themselves, and that no job misses: jemalloc's, which comes with pyarrow.
_HARMLESS_THREADS = ("jemalloc_bg_thd",)
#: What is open once a GPU was used. The driver's library cannot be used in a fork of a process that has set it up.
_GPU_FILES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/")


def _threads() -> str:
    """What would not survive a fork; empty if nothing."""
    python = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if python:
        return f"reading the workflow left threads behind: {', '.join(python)}"
    # Libraries that can be forked end their threads before it (pthread_atfork), so that a fork shows which cannot.
    pid = fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    names = [name for name in _native_threads() if name not in _HARMLESS_THREADS]
    if names:
        return f"reading the workflow left native threads behind: {', '.join(names)}"
    return ""


def _native_threads() -> list[str]:
    """Names of this process's threads, but for the first one."""
    names = []
    for thread in os.listdir("/proc/self/task"):
        if int(thread) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/comm") as file:  # it may end meanwhile
                names.append(file.read().strip())
    return names


def gpu_in_use(files: tuple[str, ...] = _GPU_FILES) -> str:
    """Why this process cannot be forked, where it has used a GPU: one of these files is open then."""
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            if name.startswith(files):
                return f"reading the workflow opened a GPU ({name}), which no fork of this process could use"
    return ""


class _Start:
    """What this process was at its start, to which it can go back by executing itself again."""

    def __init__(self, sock: socket.socket, idle_children: int) -> None:
        self._directory = os.getcwd()
        self._environment = dict(os.environb)
        self._sock = sock
        self._idle_children = idle_children
        self._soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)

    def again(self, setup: RunSetup, reason: str) -> NoReturn:
        """As a process that only imports Snakemake. ``reason``: why it cannot keep the workflow."""
        run_exit_functions()  # what the workflow has made is removed
        sys.stdout.flush()
        memory = os.memfd_create("setup", 0)
        with open(memory, "wb", closefd=False) as file:
            file.write(pickle.dumps((setup, reason)))
        os.lseek(memory, 0, os.SEEK_SET)
        os.set_inheritable(self._sock.fileno(), True)
        set_soft_limit(resource.RLIMIT_NOFILE, self._soft_limit)
        os.chdir(self._directory)
        arguments = sys.orig_argv[: sys.orig_argv.index("--fd")]
        for name, value in (
            ("--fd", self._sock.fileno()),
            ("--idle-children", self._idle_children),
            ("--depth", 1),
            ("--setup-fd", memory),
        ):
            arguments += [name, str(value)]
        os.execve(sys.executable, arguments, self._environment)


def main() -> None:
    """Read the workflow and start its jobs, until the supervisor closes its end and the last of them has ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--idle-children", type=int, default=IDLE_CHILDREN)
    parser.add_argument("--workdir", required=True, help="where the workflow works")
    parser.add_argument("--directory", help="the worker's own, which others remove")
    # What it gives itself when it starts again.
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--setup-fd", type=int)
    options = parser.parse_args()
    os.set_inheritable(options.fd, False)
    sock = socket.socket(fileno=options.fd)
    start = _Start(sock, options.idle_children)
    inherited = _inherited()
    os.chdir(options.workdir)
    with Randomness() as randomness:
        from snakemake_executor_plugin_dask.interior import snakemake_command_line
        from snakemake_executor_plugin_dask.worker.warm import child as warm_child

        del warm_child  # its children need it
        snakemake_command_line.import_snakemake()
        try:
            setup, reason = _setup(sock, options.setup_fd)
        except EOFError:  # there is no run
            return
        kept = _keep(setup, min(setup.warm_depth, options.depth, 3), inherited)
    warmth = _prepare(start, kept, randomness)
    warmth = dataclasses.replace(warmth, shallow_reason=reason or warmth.shallow_reason)
    server = Server(sock, warmth, options.idle_children)
    over = False
    with contextlib.suppress(KeyboardInterrupt):
        if warmth.workflow is not None:
            _try_out(start, server, options.directory)
        over = server.serve()
    if warmth.workflow is not None:
        warmth.workflow.discard()
    # Without a supervisor it is in haste: jobs may still run, and end only with this process.
    if over and warmth.belongings is not None:
        run_exit_functions()
        warmth.belongings.flush()
    os._exit(0)


def _setup(sock: socket.socket, setup_fd: int | None) -> tuple[RunSetup, str]:
    """Which run it is, and why it starts again, if it does. Raises EOFError."""
    if setup_fd is None:
        return Channel(sock).receive().setup, ""
    with open(setup_fd, "rb") as file:
        setup, reason = pickle.load(file)
    return setup, reason


def _keep(setup: RunSetup, depth: int, inherited: tuple[Any, ...]) -> tuple[Warmth, str]:
    """What of the run can be kept, while its randomness is watched, and why the process is not to be forked.

    ``inherited``: what the process was at its start.
    """
    from snakemake_executor_plugin_dask.interior import snakemake_command_line, snakemake_kept

    reason = _wrong_setup(setup)
    if reason:
        return Warmth(setup, cold_reason=reason), ""
    if "PYTHONSAFEPATH" not in os.environ:
        # Where `python -m snakemake` has it; after the imports, because a workflow may have a types.py.
        sys.path.insert(0, setup.workdir)
    try:
        parser = snakemake_command_line.Parser(setup)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, a cold job will show it
        reason = f"Snakemake's arguments cannot be read here: {type(error).__name__}: {error}"
        return Warmth(setup, cold_reason=reason), ""
    gc.freeze()  # a hundred thousand objects of Snakemake's, among which no garbage need be looked for
    workflow, unfit = None, ""
    if depth > 1:
        try:
            workflow = snakemake_kept.WarmWorkflow(parser)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code runs here; each job will show its error
            unfit = str(error) or type(error).__name__
    shallow_reason = _prepare_calls(workflow) if workflow is not None and depth > 2 else ""
    # What else a shell would have from this process, nobody else can give it.
    shell = None
    if workflow is not None and not shallow_reason and setup.warm_depth > 3 and _inherited() == inherited:
        shell = workflow.shell()
    depth = min(depth, 2) if shallow_reason else depth
    return Warmth(setup, depth, parser, workflow, shallow_reason=shallow_reason, shell=shell), unfit


def _prepare(start: _Start, kept: tuple[Warmth, str], randomness: Randomness) -> Warmth:
    """Let the process be forked; or have it say why not."""
    warmth, unfit = kept
    if warmth.cold_reason:
        return warmth
    setup, workflow = warmth.setup, warmth.workflow
    belongings = None
    # From here on this process forks and waits for its own children; the workflow's handler would take them.
    child_handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()
    gc.unfreeze()  # so that what is looked for is found
    unfit = unfit or randomness.look()
    if not unfit and workflow is not None:
        try:
            belongings = Belongings(workflow.namespaces())
        except Exception as error:  # noqa: BLE001 - what is private to Snakemake may fail in any way
            unfit = f"{type(error).__name__}: {error}"
    unfit = unfit or _threads() or gpu_in_use()
    if unfit and warmth.depth == 1:
        return Warmth(setup, cold_reason=unfit)
    if unfit:
        start.again(setup, unfit)
    gc.freeze()  # the collector leaves these pages alone, so that they stay shared
    return dataclasses.replace(warmth, randomness=randomness, belongings=belongings, child_handler=child_handler)


def _inherited() -> tuple[Any, ...]:
    """What a process that this one starts has from it, but for the environment and the directory."""
    with open("/proc/self/status") as file:
        status = tuple(line for line in file if line.startswith(_INHERITED))
    limits = (resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_"))
    return status, *limits, os.nice(0)


def _try_out(start: _Start, server: Server, directory: str | None) -> None:
    """Let the server start jobs only as deep as its children could run those of the trial."""
    warmth = server.warmth
    no_calls, no_dag = server.try_out(directory)
    if no_dag and (no_calls or warmth.depth < 3):
        start.again(warmth.setup, warmth.shallow_reason or no_calls or no_dag)
    if server.unlike:
        warmth = dataclasses.replace(warmth, shell=None, shell_reason=f"Snakemake changes {server.unlike}")
    if no_calls:
        warmth = dataclasses.replace(warmth, depth=2, shallow_reason=no_calls, shell=None)
    elif no_dag:
        warmth = dataclasses.replace(warmth, dag_reason=no_dag)
    server.warmth = warmth


def _prepare_calls(workflow: Any) -> str:
    """Make the workflow ready for jobs without a DAG; returns why that cannot be done."""
    try:
        workflow.prepare_calls()
    except Exception as error:  # noqa: BLE001 - what is private to Snakemake may fail in any way
        return f"{type(error).__name__}: {error}"
    workflow.rehearse()
    return ""


def _wrong_setup(setup: RunSetup) -> str:
    if setup.precommand:
        return "a precommand must run before each job"
    if setup.snakemake_version != snakemake_version():
        return f"this worker has Snakemake {snakemake_version()}, and the main process {setup.snakemake_version}"
    return ""
