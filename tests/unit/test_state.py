"""The lock that tells living drivers from dead ones, also where the file system knows no locks."""

import dataclasses
import errno
import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.driver import state
from snakemake_executor_plugin_dask.driver.former import this_process
from snakemake_executor_plugin_dask.private import write_private


@pytest.mark.parametrize("locks", [True, False])
def test_dead_runs_are_told_from_living_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool) -> None:
    """Of this process, of one that has ended, and of another host's, of which nothing is known."""
    if not locks:

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(fcntl, "flock", refuse)
    for name in ("alive", "dead", "elsewhere", "unknown"):
        (tmp_path / name).mkdir()
    held = state.Held(tmp_path / "alive")
    state.Held(tmp_path / "dead").release()
    with subprocess.Popen(["true"]) as ended:
        pass
    here = this_process()
    write_private(tmp_path / "dead" / "lock", dataclasses.replace(here, pid=ended.pid, start="1").to_json())
    elsewhere = dataclasses.replace(here, host="another-host", boot="another", start="1")
    write_private(tmp_path / "elsewhere" / "lock", elsewhere.to_json())
    write_private(tmp_path / "unknown" / "lock", b"")
    fates = {path.name: fate for path, fate, _ in state.former_runs(tmp_path)}
    assert fates == {"alive": "alive", "dead": "dead", "elsewhere": "unknown", "unknown": "unknown"}
    held.release()
