"""This machine's cores and memory, as affinity and cgroups limit them."""

import os
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.node.machine import Machine, this_machine

GIB = 2**30


def machine(root: Path, cores: int = 8) -> Machine:
    return this_machine(root, lambda _: range(cores))


@pytest.fixture(name="root")
def a_root(tmp_path: Path) -> Path:
    """A machine of 16 GiB whose process is in no cgroup."""
    write(tmp_path, {"proc/meminfo": "MemTotal:       16777216 kB\nMemFree: 1 kB\n", "proc/self/cgroup": ""})
    return tmp_path


def write(root: Path, files: dict[str, object]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def test_no_cgroup(root: Path) -> None:
    """Without cgroups the affinity and the machine's memory count."""
    found = machine(root, cores=3)
    assert (found.cores, found.memory_mb) == (3, 16 * GIB // 10**6)


def test_nothing_to_read(tmp_path: Path) -> None:
    """Where /proc is not there, the C library knows the memory."""
    assert machine(tmp_path).memory_mb > 0


def test_version_2(root: Path) -> None:
    """The smallest limit of the process's cgroup and its ancestors holds."""
    write(
        root,
        {
            "proc/self/cgroup": "0::/slurm/job_7/step_0",
            "sys/fs/cgroup/slurm/job_7/cpu.max": "250000 100000",
            "sys/fs/cgroup/slurm/job_7/memory.max": 4 * GIB,
            "sys/fs/cgroup/slurm/job_7/step_0/cpu.max": "max 100000",
            "sys/fs/cgroup/slurm/job_7/step_0/memory.max": "max",
            "sys/fs/cgroup/slurm/memory.max": 8 * GIB,
        },
    )
    found = machine(root)
    assert (found.cores, found.memory_mb) == (2, 4 * GIB // 10**6)


def test_version_2_in_a_container(root: Path) -> None:
    """In a container the mount point is the process's own cgroup, whatever path the kernel names."""
    write(
        root,
        {
            "proc/self/cgroup": "0::/../outside",
            "sys/fs/cgroup/cpu.max": "50000 100000",
            "sys/fs/cgroup/memory.max": 2 * GIB,
        },
    )
    found = machine(root)
    assert (found.cores, found.memory_mb) == (1, 2 * GIB // 10**6)


def test_version_1(root: Path) -> None:
    """Controllers of version 1 are mounted apart; a number near 2^63 is no limit."""
    write(
        root,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a/b\n1:name=systemd:/",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": 400_000,
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": 100_000,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1,
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100_000,
            "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": 9223372036854771712,
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": 3 * GIB,
        },
    )
    found = machine(root)
    assert (found.cores, found.memory_mb) == (4, 3 * GIB // 10**6)


def test_this_one() -> None:
    """On a real machine there is a core, some memory, and the loopback interface."""
    found = this_machine()
    assert 1 <= found.cores <= len(os.sched_getaffinity(0))
    assert found.memory_mb > 100
    assert "lo" in found.interfaces
