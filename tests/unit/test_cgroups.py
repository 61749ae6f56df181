"""Cgroups for jobs, with plain files in the place of the kernel's, which enforce nothing: what is written where."""

import os
import subprocess
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.worker.supervisor.cgroups import ALLOWANCE_BYTES, JobGroups


def made(root: Path, own: str = "user/scope", controllers: str = "cpu memory pids") -> Path:
    """A process's own cgroup as the kernel would show it; its directory."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"1:name=systemd:/x\n0::/{own}\n")
    group = root / "sys/fs/cgroup" / own
    group.mkdir(parents=True)
    (group / "cgroup.controllers").write_text(controllers)
    (group / "cgroup.procs").write_text("12\n34\n")
    return group


def test_a_job_gets_a_group_with_its_limit(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The controller is handed down once the own processes are out of the way; a job's tree is put into its group."""
    group = made(tmp_path)
    groups = JobGroups(tmp_path)
    assert (group / "snakemake-dask" / "cgroup.procs").read_text() == "34", "the last one that was moved"
    assert (group / "cgroup.subtree_control").read_text() == "+memory"
    leader = subprocess.Popen(["sleep", "60"])
    request.addfinalizer(leader.wait)
    request.addfinalizer(leader.kill)
    groups.add("align-1", leader.pid, 100_000_000)
    (job,) = group.glob("snakemake-job-*")
    assert int((job / "memory.max").read_text()) == 100_000_000 + ALLOWANCE_BYTES
    assert (job / "memory.oom.group").read_text() == "1"
    assert int((job / "cgroup.procs").read_text()) == leader.pid
    (job / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 1\noom_kill 2\n")
    assert groups.remove("align-1")
    assert not groups.remove("align-1")


def test_a_second_worker_uses_the_same_place(tmp_path: Path) -> None:
    """A process that was moved out of the way makes its groups where the first one does."""
    inner = made(tmp_path, "user/scope/snakemake-dask")
    (inner.parent / "cgroup.controllers").write_text("memory")
    (inner.parent / "cgroup.procs").write_text("")
    JobGroups(tmp_path).add("a", os.getpid(), 1)
    assert len(list(inner.parent.glob("snakemake-job-*"))) == 1


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """Without the controller, or without version 2 at all, there is a reason."""
    made(tmp_path, controllers="cpu")
    with pytest.raises(OSError, match="has no memory controller"):
        JobGroups(tmp_path)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    with pytest.raises(OSError, match="root cgroup"):
        JobGroups(tmp_path)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/a\n")
    with pytest.raises(OSError, match="no cgroup of version 2"):
        JobGroups(tmp_path)
