"""The lock that tells living drivers from dead ones, also where the file system knows no locks."""

import dataclasses
import errno
import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.node.former import this_process
from snakemake_executor_plugin_dask.node.private import write_private


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


def test_who_looks_is_not_taken_for_the_run(tmp_path: Path) -> None:
    """Another command that looks at a dead run at the same moment does not make it a living one."""
    (tmp_path / "dead").mkdir()
    state.Held(tmp_path / "dead").release()
    write_private(tmp_path / "dead" / "lock", dataclasses.replace(this_process(), start="1").to_json())
    with (tmp_path / "dead" / "lock").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert [fate for _, fate, _ in state.former_runs(tmp_path)] == ["dead"]


def test_what_is_kept_says_whose_it_was(tmp_path: Path) -> None:
    """So that a later run can still cancel what this one could not; without anything to keep the directory goes."""
    (tmp_path / "run1").mkdir()
    held = state.Held(tmp_path / "run1")
    for name in ("allocations.jsonl", "key.pem"):
        write_private(tmp_path / "run1" / name, b"")
    held.clear(keep_logs=True)
    held.release()
    assert {path.name for path in (tmp_path / "run1").iterdir()} == {"allocations.jsonl", "lock"}
    assert [(fate, former) for _, fate, former in state.former_runs(tmp_path)] == [("alive", this_process())]
    state.clear(tmp_path / "run1", keep_logs=True)
    assert (tmp_path / "run1" / "lock").exists()
    state.clear(tmp_path / "run1", keep_logs=False)
    (tmp_path / "run2").mkdir()
    held = state.Held(tmp_path / "run2")
    held.clear(keep_logs=True)
    held.release()
    assert not list(tmp_path.iterdir())


def test_a_directory_that_others_have_cleared_and_made_anew_is_left_alone(tmp_path: Path) -> None:
    """A head that was taken for dead removes what is its own, and nothing of the next one's."""
    where = tmp_path / "abc12345"
    where.mkdir(0o700)
    held = state.Held(where)
    assert held.in_place()
    state.clear(where, keep_logs=False)
    assert not where.exists()
    assert not held.in_place()
    where.mkdir(0o700)  # still empty
    assert not held.in_place()
    held.clear(keep_logs=False)
    assert where.is_dir()
    held.release()
