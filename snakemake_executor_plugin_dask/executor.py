"""The executor as Snakemake's registry loads it, in each of its processes.

A shell around `session`, which is loaded when it is used.
"""

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.settings import ExecMode

if TYPE_CHECKING:
    from snakemake_executor_plugin_dask.frontend.session import Session


class Executor(RealExecutor):  # type: ignore[misc]
    """Runs Snakemake's jobs on the run's Dask cluster."""

    _session: "Session"

    def __post_init__(self) -> None:
        from snakemake_executor_plugin_dask.frontend.launching import get_ready

        ahead = get_ready(self.executor_settings, self.workflow, self.dag, os.environ)
        # It gets ready while this imports.
        from snakemake_executor_plugin_dask.frontend.session import Session

        self._session = Session(self, ahead)

    def run_jobs(self, jobs: Iterable[Any]) -> None:
        """Snakemake's scheduler calls it with all that it selected at once; returns before any of them has started."""
        self._session.run_jobs(jobs)

    def run_job(self, job: Any) -> None:
        """The interface demands it; Snakemake calls `run_jobs`."""
        self._session.run_jobs([job])

    def cancel(self) -> None:
        """Ctrl-C, or an error in Snakemake itself: end what runs, give everything back."""
        self._session.end(kill=True)

    def shutdown(self) -> None:
        """Snakemake's regular end, and its end after an error; may come after `cancel`."""
        self._session.end(kill=False)

    def handle_job_success(self, job: Any) -> None:
        """The job's outputs were found."""
        super().handle_job_success(job)
        self._session.job_accepted(job)

    def handle_job_error(self, job: Any) -> None:
        """The job failed, or its outputs did."""
        super().handle_job_error(job)
        self._session.job_failed(job)

    @property
    def cores(self) -> int:
        """Asked for by the base class alone: each job's Snakemake gets the cores that the job holds."""
        return 1

    def get_exec_mode(self) -> ExecMode:
        """Jobs have a Snakemake of their own."""
        return ExecMode.REMOTE

    def get_python_executable(self) -> str:
        """Workers have the same installation."""
        return sys.executable
