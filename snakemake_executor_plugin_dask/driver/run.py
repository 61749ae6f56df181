"""One run: its jobs, the cluster that it holds, and what it says and writes of them."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from snakemake_executor_plugin_dask.driver.cluster import Cluster, Surroundings
from snakemake_executor_plugin_dask.driver.controller import Controller
from snakemake_executor_plugin_dask.driver.dispatch import Dispatch
from snakemake_executor_plugin_dask.driver.outbox import Outbox
from snakemake_executor_plugin_dask.driver.pools import Pools, made_by_slurm
from snakemake_executor_plugin_dask.driver.shown import Shown
from snakemake_executor_plugin_dask.model.messages import Begin, Say
from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.observe.observer import Observer

MakeCluster = Callable[[Begin, Surroundings], Cluster]


def _make_cluster(begin: Begin, around: Surroundings) -> Cluster:
    """The one that the options ask for: one of others, or an own one."""
    if begin.options.scheduler is not None:
        from snakemake_executor_plugin_dask.driver.attached.cluster import AttachedCluster

        return AttachedCluster(begin, around)
    from snakemake_executor_plugin_dask.driver.own.cluster import OwnCluster

    return OwnCluster(begin, around)


class Run:
    """Everything that lives as long as a run."""

    def __init__(self, begin: Begin, send: Callable[[object], None], make: MakeCluster = _make_cluster) -> None:
        self._begin = begin
        self._outbox = Outbox(send, lambda: len(self.controller.waiting) > 0)
        self._send = self._outbox.send
        self._observer = Observer(
            begin.event_log, begin.options.report, lambda level, text: self._send(Say(level, text))
        )
        self.say, self.note = self._observer.say, self._observer.note
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held = state.Held(Path(begin.state_dir))
        around = Surroundings(
            send=self._send,
            say=self.say,
            event=self._observer.event,
            failed=self._failed,
            state_dir=begin.state_dir,
        )
        self.cluster = make(begin, around)
        pools = Pools(begin.options, made_by_slurm(begin.options.slurm_template))
        dispatch = Dispatch(pools, around.clock, around.failed)
        self.controller = Controller(begin.setup, begin.options, self.cluster, dispatch, around)
        self._shown = Shown(self.controller, self.cluster.uses)

    async def start(self) -> None:
        """Have the cluster ready. ConfigurationError where that cannot be; `close` follows all the same."""
        self._observer.started(self._begin.setup, self._begin.options, self._begin.jobs)
        await self.cluster.start(self.controller)

    async def watch(self) -> None:
        """Once a second."""
        await self.cluster.watch()
        if not self.controller.stopping:
            now = time.monotonic()
            self._observer.look(self._shown.blockers(now), now, self._shown.uses())

    def show_status(self) -> None:
        """Print the whole picture."""
        now = time.monotonic()
        self._send(Say("info", self._observer.show(self._shown.blockers_now(now), now)))

    async def close(self, *, failed: bool = False) -> tuple[str, ...]:
        """Give everything back. Returns what could not be seen to be gone."""
        left = await self.cluster.close()
        counts = self.controller.counts
        summary = {"jobs": counts.jobs, "attempts": counts.attempts, "lost_workers": counts.lost_workers}
        line = self._observer.finish(summary=summary, left=left)
        if counts.attempts:
            self._send(Say("info", line))
        self._outbox.flush()
        self._held.clear(keep_logs=failed or bool(left))
        self._held.release()
        return left

    def _failed(self, error: BaseException) -> None:
        """An error of the driver's own, where nobody waits for a result: the run ends with it."""
        if not self.broken.done():
            self.broken.set_exception(error)
