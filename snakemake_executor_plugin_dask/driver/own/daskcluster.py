"""What Dask has of a run's own cluster: one quiet scheduler and its client.

Workers are the fleet's. Dask's `SpecCluster` has no part in it: it makes workers itself, starts and ends them all
behind one lock, and closes a lost one by itself some seconds later.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import dask
from distributed import Client, Future, SchedulerPlugin

from snakemake_executor_plugin_dask.config.dashboard import scheduler_options
from snakemake_executor_plugin_dask.config.owned import DRIVER_CONFIGURATION, overruled, quieten
from snakemake_executor_plugin_dask.driver import dasktasks
from snakemake_executor_plugin_dask.driver.jobs import Attempt
from snakemake_executor_plugin_dask.driver.own.garbage import Garbage
from snakemake_executor_plugin_dask.driver.own.jobpages import JobPages
from snakemake_executor_plugin_dask.interior import dask_files, dask_scheduler, dask_streams
from snakemake_executor_plugin_dask.interior.dask_http import DashboardScheduler, QuietScheduler, serve_beside
from snakemake_executor_plugin_dask.interior.dask_listening import guard
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.jobs import JobSpec
from snakemake_executor_plugin_dask.model.options import DashboardAddress
from snakemake_executor_plugin_dask.node.door import Door


def _innermost(error: BaseException, stop: type[BaseException]) -> BaseException:
    while error.__cause__ is not None and not isinstance(error, stop):
        error = error.__cause__
    return error


class Ears(SchedulerPlugin):
    """Hears of workers and of their events in the scheduler's own process, without a message to a client."""

    name = "snakemake"

    def __init__(
        self,
        topics: Mapping[str, Callable[[Any], None]],
        worker_added: Callable[[str, str], object],
        worker_removed: Callable[[str], None],
    ) -> None:
        """Who gets the events, by topic, and is told a worker's address and name; all on the event loop."""
        self._topics, self._worker_added, self._worker_removed = topics, worker_added, worker_removed

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """It has joined."""
        dask_streams.hurry(dask_streams.TO_WORKERS, scheduler, worker)
        self._worker_added(worker, str(scheduler.workers[worker].name))

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """It has left, or its connection is lost."""
        self._worker_removed(worker)

    def log_event(self, topic: str, msg: Any) -> None:
        """A worker has told something."""
        if (heard := self._topics.get(topic)) is not None:
            heard(msg)


class _Submitted:
    """A task that the scheduler was given without its client. As much of Dask's future as is needed here."""

    def __init__(self, key: str, cluster: "DaskCluster") -> None:
        self.key = key
        self._cluster = cluster

    @property
    def status(self) -> str:
        return dask_scheduler.status(self._cluster.scheduler, self.key)

    async def result(self) -> Any:
        if self.status == "lost":
            msg = f"Dask's scheduler has forgotten the task {self.key}"
            raise RuntimeError(msg)
        return await Future(self.key, self._cluster.client).result()


class DaskCluster:
    """The scheduler and its client."""

    def __init__(self) -> None:
        self.scheduler: Any = None
        self.client: Any = None
        self.garbage: Garbage  # once it has started
        self._takes_tasks = dask_scheduler.takes_tasks()

    async def start(
        self, security: Any, where: Mapping[str, Any], dashboard: DashboardAddress | None, ears: Ears
    ) -> tuple[str, ...]:
        """Start scheduler and client, and no worker. Returns what of Dask's configuration is overruled.

        ``where``: the host, interface and port at which workers come; None: whichever Dask takes.
        """
        defaults = dask_files.defaults()
        notes = overruled(dask.config.get, lambda key: dask.config.get(key, config=defaults))
        dask.config.set(DRIVER_CONFIGURATION)
        quieten()
        guard(Door)
        # Workers come over TLS; the client is in this process, and needs neither a socket nor encryption.
        listening: dict[str, Any] = {key: [value, None] for key, value in where.items()}
        listening["protocol"] = ["tls://", "inproc://"]
        try:
            self.scheduler = await (QuietScheduler if dashboard is None else DashboardScheduler)(
                security=security, **listening, **scheduler_options(dashboard)
            )
        except (ConfigurationError, RuntimeError, OSError, ValueError) as error:
            reason = _innermost(error, ConfigurationError)
            if isinstance(reason, ConfigurationError):
                raise reason from None
            if not isinstance(reason, OSError | ValueError):
                raise
            asked = ", ".join(f"{key}: {value}" for key, value in where.items() if value is not None)
            msg = f"Dask's scheduler cannot listen ({asked}): {reason}"
            raise ConfigurationError(msg) from error
        self.garbage = Garbage()
        dask_scheduler.calm(self.scheduler)
        self.scheduler.add_plugin(ears)
        self.client = await Client(
            dask_scheduler.inner_address(self.scheduler),
            security=security,
            asynchronous=True,
            set_as_default=False,
        )
        dask_streams.hurry(dask_streams.TO_SCHEDULER, self.client)
        return notes

    def submit(self, run_id: str, attempt: Attempt, spec: JobSpec) -> Any:
        """The attempt's future: on its worker or not at all, and never a second time. `release` follows."""
        if not self._takes_tasks:
            return dasktasks.submit(self.client, run_id, attempt, spec)
        key = dasktasks.task_key(attempt, spec)
        dask_scheduler.start(self.scheduler, key, dasktasks.address(attempt), *dasktasks.call(run_id, spec))
        return _Submitted(key, self)

    def release(self, tasks: Iterable[Any]) -> None:
        """Nothing more is wanted of these."""
        if self._takes_tasks:
            dask_scheduler.forget(self.scheduler, [str(task.key) for task in tasks])
        else:
            for task in tasks:
                task.release()

    @property
    def scheduler_address(self) -> str:
        """Where workers connect to."""
        return str(self.scheduler.address)

    @property
    def dashboard_link(self) -> str:
        """With its secret path, where there is a dashboard."""
        return str(self.scheduler.link)

    def serve_job_pages(self) -> JobPages:
        """Those of jobs' own Dask clusters, beside the dashboard's."""
        pages = JobPages(urlsplit(self.dashboard_link).path.removesuffix("/status"))
        serve_beside(self.scheduler, pages.handlers())
        return pages

    def last_seen(self) -> dict[str, float]:
        """For each worker's name, the time (since the epoch) of its last heartbeat."""
        return {str(state.name): state.last_seen for state in self.scheduler.workers.values()}

    async def close(self) -> None:
        """Close client and scheduler; also before a start, and after one that failed."""
        if self.client is not None:  # else the scheduler did not start
            await self.client.close()
        if self.scheduler is not None:
            await self.scheduler.close()
