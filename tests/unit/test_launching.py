"""A driver's process that is started ahead of its run: when it is, and that it is gone where there is no run."""

import os
from pathlib import Path
from typing import Any, Literal

import pytest
from running import wait_for

from snakemake_executor_plugin_dask.frontend.launching import Ahead, kind_of, launch_ahead
from snakemake_executor_plugin_dask.settings import ExecutorSettings

NAME = "abcdef01"


@pytest.mark.parametrize(
    ("settings", "there", "kind"),
    [
        ({}, False, "own"),
        ({}, True, "kept"),
        ({"keep": "1h"}, False, "kept"),
        ({"scheduler": NAME}, True, "kept"),
        ({"keep": "1h", "plan": True}, False, None),
        ({"keep": "1h", "plan_scripts": "scripts"}, False, None),
        ({"keep": "1h", "scheduler": "tcp://host:8786"}, False, None),
        ({"scheduler": "tcp://host:8786"}, True, None),
    ],
)
def test_the_kind_of_cluster_is_seen_by_the_settings(
    settings: dict[str, Any], there: bool, kind: str | None, tmp_path: Path
) -> None:
    """One that stays wherever it may be one; for a plan, or a cluster of others, nothing is started ahead."""
    if there:
        (tmp_path / "snakemake-dask" / NAME).mkdir(parents=True)
    assert kind_of(ExecutorSettings(**settings), {"XDG_STATE_HOME": str(tmp_path)}) == kind


@pytest.mark.parametrize("kind", ["kept", "own"])
def test_it_ends_by_itself_where_there_is_no_run(
    kind: Literal["kept", "own"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With Snakemake's end of the socket; it has said nothing, and written nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    launched = launch_ahead(kind)
    assert launched is not None
    launched.sock.close()
    assert launched.process.wait(60) == 0
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_one_that_has_read_another_environment_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a workflow sets before its first job holds for Dask, too; the process ends."""
    launched = launch_ahead("own")
    assert launched is not None
    ahead = Ahead("abcdefg1", launched, dict(os.environ))
    assert ahead.take() is launched
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__RETRY__COUNT", "1")
    assert ahead.take() is None
    wait_for(lambda: launched.process.returncode == 0, "it has ended, and no zombie of it is left")


def test_one_that_has_died_is_not_taken() -> None:
    """Nothing of it is left; the run has another one."""
    launched = launch_ahead("own")
    assert launched is not None
    launched.process.kill()
    launched.process.wait(60)
    assert Ahead("abcdefg1", launched, dict(os.environ)).take() is None
    assert launched.sock.fileno() == -1
