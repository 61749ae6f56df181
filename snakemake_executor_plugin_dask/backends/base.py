"""What every way to bring workers up has in common.

Imports Dask: for the driver (and `--dask-plan`), never for Snakemake.

A backend checks a pool, shows what it would run, and makes one `WorkerProcess` for each worker. Effects belong to
`WorkerProcess.start`, `state` and `kill`; the rest only looks.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from snakemake_executor_plugin_dask.backends.spare import Taken
from snakemake_executor_plugin_dask.batch.allocations import Outlook
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.node.private import append_private, end_of, opened, write_private
from snakemake_executor_plugin_dask.node.processes import how_ended
from snakemake_executor_plugin_dask.node.state import RUNS

#: Starts a process, as `asyncio.create_subprocess_exec` does.
Execute = Callable[..., Awaitable[asyncio.subprocess.Process]]
EXECUTE: Execute = asyncio.create_subprocess_exec


@dataclass(frozen=True, slots=True)
class Link:
    """How a worker reaches the driver. Paths are absolute, and workers can read them."""

    run_id: str  # the run's, or that of a cluster that serves several
    scheduler: str  # Dask's address, as tls://10.0.0.1:39123
    lease: tuple[str, int] | None  # host and port of the driver's lease server; None on an attached cluster
    tls: tuple[str, str, str] | None  # ca, certificate, key
    state_dir: str  # mode 0700
    setup: str | None  # the pickled RunSetup; None: runs come later, and bring it
    death_timeout_s: float = 60.0  # a worker that finds no scheduler for so long ends
    python: str = sys.executable
    runs: set[str] = field(default_factory=set)  # the ids of those whose jobs the worker may have
    code: str = ""  # what `versions.installed_code` must say where a worker or supervisor starts; empty: whatever


@dataclass(frozen=True, slots=True)
class AllocationState:
    """What became of what a worker runs in.

    ``queued``: not started yet, ``reason`` as the batch system gives it. ``running``. ``gone``: ended, failed or
    cancelled, nothing of it runs any more; ``log_tail`` is the end of its own output. ``unknown``: the batch system
    does not answer, ``reason`` says how; never taken for "gone".
    """

    kind: Literal["queued", "running", "gone", "unknown"]
    reason: str = ""
    log_tail: str = ""
    expected: float | None = None  # when a queued one is likely to start, in seconds since the epoch


class WorkerProcess:
    """One worker: the process or allocation that holds it. Started once, then looked at, then closed and killed."""

    def __init__(self, pool: Pool, name: str, link: Link) -> None:
        self.lock = asyncio.Lock()  # held while it is being started: until then nothing can be ended
        self.closed = False
        self.pool = pool
        self.name = name
        self.link = link
        self.failure: str | None = None  # why it could not be started, with the command's own words
        self.outlook: Outlook = "unknown"  # of another try, where this one failed
        self.allocation_id: str | None = None  # of the batch system, or the process id
        self.node = ""  # where it is, or was, as the batch system calls it; empty: not known, or several
        #: Suffixes of the Dask workers' names, where this one process (a launcher) starts several.
        self.group: tuple[str, ...] = ()

    async def start(self) -> None:
        """Start it, or ask the batch system to; on return ``failure`` or ``allocation_id`` is set.

        Never raises, since one submission that fails must not take the others' state along.
        """
        raise NotImplementedError

    async def state(self) -> AllocationState:
        """What became of its allocation. Asked every few seconds until it has joined; may take as long as commands."""
        raise NotImplementedError

    def output_tail(self) -> str:
        """The end of what its allocation has written so far; empty where that is not kept. Reads files."""
        return ""

    async def over(self) -> bool:
        """Whether its allocation has ended, as the batch system says when asked now: then its output is complete."""
        return True

    async def preempted(self) -> bool:
        """Whether the batch system says that it took, or is about to take, its allocation away for others."""
        return False

    async def kill(self) -> bool:
        """End it now, by force; True once it is seen to be gone. May be repeated."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let it end by itself, where it can be told to; `kill` follows."""
        self.closed = True


class ProcessHere(WorkerProcess):
    """One whose process is a child of the driver's: the worker itself, or a launcher of several."""

    _LOG_TAIL_BYTES: ClassVar[int]
    _process: asyncio.subprocess.Process | Taken | None = None

    @property
    def log(self) -> Path:
        """Where its own output goes, and that of what it starts."""
        return Path(self.link.state_dir, "workers", f"{self.name}.log")

    async def _begin(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, execute: Execute = EXECUTE
    ) -> asyncio.subprocess.Process:
        """Start the process, and set ``allocation_id``. Raises OSError."""
        with os.fdopen(append_private(self.log), "ab") as log:
            process = await execute(
                *command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.link.state_dir,
                env=environment,
                start_new_session=True,
            )
        self._has(process)
        return process

    def _has(self, process: asyncio.subprocess.Process | Taken) -> None:
        self._process = process
        self.allocation_id = str(process.pid)

    async def _ends(self, within_s: float) -> bool:
        """Whether the process ends within the time, which is waited for."""
        assert self._process is not None
        try:
            await asyncio.wait_for(self._process.wait(), within_s)
        except TimeoutError:
            return False
        return True

    def _why_ended(self, code: int) -> str:
        """The reason for an end with this exit code, which is negative for a signal."""
        return how_ended(code)

    async def state(self) -> AllocationState:
        if self._process is None:
            return AllocationState("gone", reason=self.failure or "never started")
        code = self._process.returncode
        if code is None:
            return AllocationState("running")
        return AllocationState("gone", self._why_ended(code), end_of(self.log, self._LOG_TAIL_BYTES))


class Backend(Protocol):
    """One way to bring workers up.

    Beside these methods, where a backend has them: ``notes(pool)``, sentences for the user; ``place(pool) ->
    SchedulerPlace``, where the site lets the scheduler listen; ``on_this_machine``, whether its workers all are here.
    """

    def complete(self, pool: Pool) -> Pool:
        """The pool, with what the backend's own configuration (Dask's) says filled in where the user set nothing."""
        ...

    def check(self, pool: Pool) -> None:
        """Raises ConfigurationError where the pool cannot work. Only looks: runs before anything is started."""
        ...

    def describe(self, pool: Pool) -> str:
        """The batch script or the command of one worker, for `--dask-plan`."""
        ...

    def interface(self, pool: Pool) -> str | None:
        """The network interface that the workers are to use, where options or Dask's configuration name one."""
        ...

    def worker(self, pool: Pool, name: str, link: Link) -> WorkerProcess:
        """One worker, not started yet."""
        ...


def worker_config(pool: Pool, name: str, link: Link, **more: Any) -> dict[str, Any]:
    """The worker's configuration; ``more`` adds or replaces entries. ``cores: None``: what the node really has."""
    tls = None if link.tls is None else dict(zip(("ca", "cert", "key"), link.tls, strict=True))
    return {
        "cluster": link.run_id,
        "scheduler": link.scheduler,
        "lease": None if link.lease is None else list(link.lease),
        "tls": tls,
        "name": name,
        "cores": pool.cores,
        "memory_mb": pool.memory_mb,
        "gpus": pool.gpus,
        "gpu_vendor": pool.gpu_vendor,
        "nodes": pool.nodes,
        "walltime_s": pool.walltime_s,
        "death_timeout_s": link.death_timeout_s,
        "local_directory": None,
        "interface": None,
        "own_python": False,
        "setup": link.setup,
        "code": link.code,
    } | more


def _config_path(link: Link, name: str) -> Path:
    return Path(link.state_dir, "workers", f"{name}.json")


def shown_link(scheduler: str) -> Link:
    """As `Backend.describe` shows it, where there is no run yet."""
    return Link("RUN", scheduler, lease=None, tls=None, state_dir=str(RUNS / "RUN"), setup=None)


def shown_config(pool: Pool, link: Link) -> Path:
    """The configuration of the pool's first worker, in what `Backend.describe` shows."""
    return _config_path(link, f"{pool.name}-0")


def write_worker_config(pool: Pool, name: str, link: Link, **more: Any) -> Path:
    """Write the configuration to ``<state_dir>/workers/<name>.json`` (0600); raises OSError."""
    path = _config_path(link, name)
    make_private(path.parent)
    write_private(path, json.dumps(worker_config(pool, name, link, **more)).encode())
    return path


def make_private(directory: Path) -> None:
    """Make a directory in one of the user's own, for the user alone. Raises NotPrivate, OSError."""
    with opened(directory.parent) as above, opened(directory.name, make=True, dir_fd=above):
        pass
