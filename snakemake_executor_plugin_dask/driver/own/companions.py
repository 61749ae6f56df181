"""Companions of a wide worker as the fleet sees them: workers on its further nodes, which it starts and ends itself."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.backends.base import AllocationState, Link, WorkerProcess
from snakemake_executor_plugin_dask.driver.members import Member
from snakemake_executor_plugin_dask.node.private import end_of
from snakemake_executor_plugin_dask.node.processes import how_ended
from snakemake_executor_plugin_dask.worker import companions

_CALL_S = 30.0  # a worker answers within so long, or not at all
_LOG_TAIL_BYTES = 2000

#: Calls a function on a worker, with its arguments. Raises what that raises; TimeoutError, OSError.
Call = Callable[..., Awaitable[Any]]


class Companion(WorkerProcess):
    """One, in the allocation of its wide worker."""

    def __init__(self, wide: Member, name: str, host: str, link: Link, call: Call) -> None:
        super().__init__(wide.pool, name, link)
        self.wide, self.node, self._call = wide, host, call

    async def start(self) -> None:
        self.allocation_id = self.wide.process.allocation_id
        try:
            await self._ask(companions.start, self.name, self.node)
        except Exception as error:  # noqa: BLE001 - whatever the worker raises, or Dask for it
            self.failure = f"it could not be started: {error}"

    async def state(self) -> AllocationState:
        if not self.wide.up:
            return AllocationState("gone", reason=f"worker {self.wide.name} is gone")
        try:
            code = await self._ask(companions.ended, self.name)
        except Exception as error:  # noqa: BLE001 - as above
            return AllocationState("unknown", reason=str(error))
        if code is None:
            return AllocationState("running")
        log = companions.log_of(Path(self.link.state_dir, "workers"), self.name)
        return AllocationState("gone", f"its launcher ended ({how_ended(code)})", end_of(log, _LOG_TAIL_BYTES))

    async def preempted(self) -> bool:
        return await self.wide.process.preempted()

    async def kill(self) -> bool:
        """By its wide worker; where that is gone, the end of the allocation is waited for."""
        if not self.wide.up:
            return await self.wide.process.kill()
        try:
            return bool(await self._ask(companions.end, self.name))
        except Exception:  # noqa: BLE001 - as above
            return False

    async def _ask(self, function: Callable[..., Any], *arguments: str) -> Any:
        return await self._call(self.wide.address, function, *arguments, within_s=_CALL_S)
