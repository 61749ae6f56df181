"""What a worker finds out about itself."""

import time

import pytest

from snakemake_executor_plugin_dask.worker.__main__ import _remaining_s


@pytest.mark.parametrize("walltime_s", [None, 600.0])
def test_an_end_that_is_over_is_not_this_allocations(walltime_s: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell may outlive the allocation that it was started in, and its variables."""
    now = time.monotonic()
    for end in ("1000", "", "soon"):
        monkeypatch.setenv("SLURM_JOB_END_TIME", end)
        assert _remaining_s({"walltime_s": walltime_s}, now) == pytest.approx(walltime_s, abs=100)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3600))
    assert _remaining_s({"walltime_s": walltime_s}, now) == pytest.approx(3600, abs=100)
