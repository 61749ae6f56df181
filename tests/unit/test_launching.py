"""A driver's process that is started ahead of its run: when it is, and that it is gone where there is no run."""

from pathlib import Path
from typing import Any

import pytest

from snakemake_executor_plugin_dask.frontend.launching import launch_ahead
from snakemake_executor_plugin_dask.settings import ExecutorSettings

NAME = "abcdef01"


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        ({}, False),
        ({"keep": "1h", "plan": True}, False),
        ({"keep": "1h", "plan_scripts": "scripts"}, False),
        ({"keep": "1h", "scheduler": "tcp://host:8786"}, False),
        ({"scheduler": "tcp://host:8786"}, True),
    ],
)
def test_it_is_not_started_where_no_cluster_that_stays_can_be_meant(
    settings: dict[str, Any], there: bool, tmp_path: Path
) -> None:
    """Without one that is up, for a plan, or for a cluster of others."""
    if there:
        (tmp_path / "snakemake-dask" / NAME).mkdir(parents=True)
    assert launch_ahead(ExecutorSettings(**settings), {"XDG_STATE_HOME": str(tmp_path)}) is None


@pytest.mark.parametrize(("settings", "there"), [({"keep": "1h"}, False), ({}, True), ({"scheduler": NAME}, True)])
def test_it_ends_by_itself_where_there_is_no_run(
    settings: dict[str, Any], there: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With Snakemake's end of the socket; it has said nothing, and written nothing."""
    if there:
        (tmp_path / "snakemake-dask" / NAME).mkdir(parents=True)
    launched = launch_ahead(ExecutorSettings(**settings), {"XDG_STATE_HOME": str(tmp_path)})
    assert launched is not None
    launched.sock.close()
    assert launched.process.wait(60) == 0
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.rglob("*")] == (["snakemake-dask", NAME] if there else [])
