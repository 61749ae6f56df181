"""Memory limits that the kernel enforces, by cgroups of version 2, where the user may make them.

Writes to the cgroup file system.

They stand beside the watch (`usage`), which counts exactly and says more: they end what grows faster than one can look.
The kernel counts more than a job's own memory (its Snakemake, page tables), so a job's cgroup gets an allowance.
"""

import contextlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from snakemake_executor_plugin_dask.node import processes

ALLOWANCE_BYTES = 256 * 1024**2
_OWN = "snakemake-dask"  # holds the worker's own processes: whoever hands a controller down may hold none itself
_JOB = "snakemake-job-"


class JobGroups:
    """The cgroups of the jobs of one supervisor."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Make room for them below this process's own cgroup. Raises OSError where that is not possible."""
        own = _own_group(root)
        self._parent = own.parent if own.name == _OWN else own
        if "memory" not in (self._parent / "cgroup.controllers").read_text().split():
            msg = f"{self._parent} has no memory controller"
            raise OSError(msg)
        (self._parent / _OWN).mkdir(exist_ok=True)
        _move((self._parent / "cgroup.procs").read_text().split(), self._parent / _OWN)
        (self._parent / "cgroup.subtree_control").write_text("+memory")
        self._groups: dict[str, Path] = {}
        self._numbers = itertools.count()

    def add(self, key: str, leader: int, limit_bytes: int) -> None:
        """Put a job's processes, and what they start from now on, under a limit. Raises OSError."""
        group = self._parent / f"{_JOB}{os.getpid()}-{next(self._numbers)}"
        group.mkdir()
        self._groups[key] = group
        (group / "memory.max").write_text(str(limit_bytes + ALLOWANCE_BYTES))
        with contextlib.suppress(OSError):  # a kernel without swap
            (group / "memory.swap.max").write_text("0")
        (group / "memory.oom.group").write_text("1")
        tree = processes.tree(processes.process_table(), [leader])
        _move((str(stat.pid) for stat in tree), group)

    def remove(self, key: str) -> bool:
        """All processes of the job are gone; whether the kernel ended it for its memory."""
        group = self._groups.pop(key, None)
        if group is None:
            return False
        try:
            events = dict(line.split() for line in (group / "memory.events").read_text().splitlines())
        except OSError:
            events = {}
        with contextlib.suppress(OSError):  # it is empty, and goes with the allocation
            group.rmdir()
        return int(events.get("oom_kill", 0)) > 0


def _own_group(root: Path) -> Path:
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            path = line.removeprefix("0::").lstrip("/")
            if not path:
                msg = "this process is in the root cgroup, below which a run may make none"
                raise OSError(msg)
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                if (root / mount / path / "cgroup.controllers").exists():
                    return root / mount / path
    msg = "this process is in no cgroup of version 2"
    raise OSError(msg)


def _move(pids: Iterable[str], group: Path) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(pid)
