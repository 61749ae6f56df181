"""The tests that Snakemake provides for every executor plugin."""

import pytest
from snakemake.common.tests import TestWorkflowsLocalStorageBase

from snakemake_executor_plugin_dask import ExecutorSettings


class TestOfficial(TestWorkflowsLocalStorageBase):
    """Snakemake's own workflows for executors, with warm jobs, the default."""

    __test__ = True

    def get_executor(self) -> str:
        return "dask"

    def get_executor_settings(self) -> ExecutorSettings:
        return ExecutorSettings()


@pytest.mark.variant
class TestOfficialCold(TestOfficial):
    """The same with a Snakemake of its own for each job."""

    def get_executor_settings(self) -> ExecutorSettings:
        return ExecutorSettings(job_start="cold")
