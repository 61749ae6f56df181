"""Workers on this machine: child processes of the driver, on loopback. Starts and ends processes.

A worker dies with the driver (`PR_SET_PDEATHSIG`), its supervisor with the worker, and the jobs with the supervisor.
"""

import asyncio
import os
from collections.abc import Callable, Sequence

from snakemake_executor_plugin_dask.backends import spare, worker_command
from snakemake_executor_plugin_dask.backends.base import (
    EXECUTE,
    Backend,
    Execute,
    Link,
    ProcessHere,
    WorkerProcess,
    shown_config,
    shown_link,
    write_worker_config,
)
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.node.devices import Inventory, complaint, take_inventory
from snakemake_executor_plugin_dask.node.processes import kill_worker

CLOSE_S = 5.0  # a worker that was asked to close gets so long
KILL_S = 10.0  # and one that was killed


class LocalWorker(ProcessHere):
    """One worker process on this machine. ``devices``: the GPUs that are its own; None: all that it finds."""

    _LOG_TAIL_BYTES = 2000

    def __init__(
        self,
        pool: Pool,
        name: str,
        link: Link,
        devices: tuple[str, ...] | None = None,
        *,
        execute: Execute = EXECUTE,
        kill_rest: Callable[[str, str, Sequence[str]], bool] = kill_worker,
        kill_s: float = KILL_S,
    ) -> None:
        """``kill_rest``: see `processes.kill_worker`. ``kill_s``: for how long the killed process is waited for."""
        super().__init__(pool, name, link)
        self.devices = devices
        self._execute, self._kill_rest, self._kill_s = execute, kill_rest, kill_s

    async def start(self) -> None:
        try:
            config = write_worker_config(
                self.pool,
                self.name,
                self.link,
                host="127.0.0.1",
                die_with_parent=os.getpid(),
                devices=self.devices,
                local_directory=self.link.state_dir,  # what a killed worker leaves there is cleared with it
            )
            command = worker_command(config, self.link.python)
            if self.devices is None and (taken := spare.take(command, self.log)) is not None:
                self._has(taken)
            else:
                await self._begin(command, execute=self._execute)
        except OSError as error:
            self.failure = f"the worker process could not be started: {error}"

    async def kill(self) -> bool:
        """End the worker, its supervisor and every process of its jobs; True once none of them is left."""
        process = self._process
        if process is None:
            return True
        if process.returncode is None:
            process.kill()
            await self._ends(self._kill_s)  # or the kernel holds it: a frozen cgroup, a file server that hangs
        # The others are signalled in any case, so that what is held does nothing any more once it is released.
        gone = await asyncio.to_thread(self._kill_rest, self.link.state_dir, self.name, tuple(self.link.runs))
        return gone and process.returncode is not None

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._ends(CLOSE_S)  # else kill() follows
        await super().close()


class LocalBackend(Backend):
    """Workers on this machine."""

    on_this_machine = True  # nothing needs to listen beyond loopback

    def __init__(self) -> None:
        self._workers: list[LocalWorker] = []  # those that hold GPUs

    def complete(self, pool: Pool) -> Pool:
        return pool

    def check(self, pool: Pool) -> None:
        if pool.options:
            msg = (
                f"pool {pool.name}: the local backend takes no options, but {', '.join(sorted(pool.options))} "
                "was given; remove it, or name another cluster."
            )
            raise ConfigurationError(msg)
        if pool.nodes is not None:
            msg = f"pool {pool.name}: workers on this machine have one node; remove `nodes`."
            raise ConfigurationError(msg)
        if pool.gpus and (wrong := complaint(pool.gpus, self.inventory(pool), "this machine", pool.workers_max)):
            msg = f"pool {pool.name}: {wrong}"
            raise ConfigurationError(msg)

    def inventory(self, pool: Pool) -> Inventory:
        """The devices that this machine has for the pool."""
        return take_inventory(pool.gpu_vendor)

    def describe(self, pool: Pool) -> str:
        link = shown_link("tls://127.0.0.1:PORT")
        return " ".join(worker_command(shown_config(pool, link), link.python))

    def interface(self, pool: Pool) -> str | None:
        return None

    def worker(self, pool: Pool, name: str, link: Link) -> WorkerProcess:
        if not pool.gpus or pool.workers_max == 1:
            return LocalWorker(pool, name, link, pool.devices)
        # Workers beside each other must not see one another's GPUs.
        alive = [worker for worker in self._workers if not worker.closed]
        held = {device for worker in alive for device in worker.devices or ()}
        free = [device for device in self.inventory(pool).devices if device not in held]
        made = LocalWorker(pool, name, link, tuple(free[: pool.gpus]))
        self._workers = [*alive, made]
        return made
