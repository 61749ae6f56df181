"""What a run asks of its cluster, whoever brought that up, and what the parts of a run act through. Contracts alone.

`own/` is the cluster that a run brings up, `attached/` one of others. A run holds one of them and does not know which.
All of it is called on the driver's event loop.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from snakemake_executor_plugin_dask.driver.jobs import Attempt
from snakemake_executor_plugin_dask.driver.members import Members
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome
from snakemake_executor_plugin_dask.model.messages import Level

if TYPE_CHECKING:
    from snakemake_executor_plugin_dask.driver.controller import Controller
    from snakemake_executor_plugin_dask.driver.own.jobpages import JobPages


class NotNow(Exception):
    """A worker has no room for this attempt any more: another run took it first."""


#: Shows a sentence to the user, and keeps it in the event log.
Say = Callable[[Level, str], None]


@dataclass
class Surroundings:
    """What a run's parts act through. None of it waits or raises."""

    send: Callable[[object], None]  # to Snakemake
    say: Say
    event: Callable[..., None]  # adds one to the event log, by its kind and fields; never raises for the file
    failed: Callable[[BaseException], None]  # an error of the driver's own: the run ends with it
    state_dir: str
    clock: Callable[[], float] = time.monotonic


class Cluster(Protocol):
    """Workers, and the way of a run's attempts to them."""

    workers: Members  # from `start` on

    @property
    def pages(self) -> "JobPages | None":
        """Where the pages of jobs' own Dask clusters are shown, from `start` on; None: nowhere."""

    async def start(self, jobs: "Controller") -> None:
        """Be ready for `submit`. Called once, before all else; ConfigurationError where it cannot be.

        From then on the cluster tells ``jobs`` of its workers (`members.Listener`), and of what these say of attempts
        (`Controller.received`).
        """

    async def submit(self, attempt: Attempt, spec: JobSpec) -> Outcome | None:
        """Run it on the attempt's worker, or nowhere, and at most once; waits for its end.

        Called once each time that an attempt is sent, and cancelled by nobody but the cluster. Returns the outcome;
        None where it was told otherwise, or will be. Raises NotNow where nothing of it was started, since there was no
        room; whatever else it raises says that Dask itself failed, and that the attempt may live.
        """

    async def kill(self, attempt: Attempt, reason: str) -> None:
        """Ask the attempt's worker to end it; returns once that was heard, which a worker that hangs never does.

        May be repeated. An attempt without a process is not remembered, and may still start.
        """

    async def tell_cluster(self, attempt: Attempt, message: Mapping[str, Any]) -> None:
        """Tell the attempt's own Dask cluster (`worker/supervisor/jobcluster.py`), where it lies on several workers."""

    def scale(self) -> None:
        """Ask for as many workers as the waiting jobs need, as far as the cluster can be asked.

        Called five times a second and when jobs have come. Takes at most a twentieth of the time.
        """

    async def watch(self) -> None:
        """Notice what nobody tells: what is silent, gone, or cannot be reached. Called once a second, one at a time."""

    def uses(self) -> Mapping[str, Sequence[float]]:
        """What attempts used when that was last told, by key: when (epoch), CPU time in s, memory in 10^6 bytes."""

    async def close(self) -> tuple[str, ...]:
        """End what runs, and give all back that this run has brought up. Called once, also after a failed `start`.

        Bounded in time. Returns the names of the workers that could not be seen to be gone.
        """
