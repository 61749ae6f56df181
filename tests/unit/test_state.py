"""The lock that tells living drivers from dead ones, also where the file system knows no locks."""

import errno
import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.driver import state


@pytest.mark.parametrize("locks", [True, False])
def test_dead_runs_are_told_from_living_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool) -> None:
    """Of this process, of one that has ended, and, without locks, of another host's, of which nothing is known."""
    if not locks:

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(fcntl, "flock", refuse)
    for name in ("alive", "dead", "elsewhere", "unknown"):
        (tmp_path / name).mkdir()
    held = state.hold(tmp_path / "alive")
    os.close(state.hold(tmp_path / "dead"))
    with subprocess.Popen(["true"]) as ended:
        pass
    (tmp_path / "dead" / "lock").write_text(f"{os.uname().nodename} {ended.pid} 1")
    dead = ["dead"]
    if not locks:
        (tmp_path / "elsewhere" / "lock").write_text("another-host 1 1")
        (tmp_path / "unknown" / "lock").write_text("")
    assert [path.name for path in state.left_by_dead_runs(tmp_path)] == dead
    os.close(held)
