"""This machine's cores and memory, as affinity and cgroups limit them. Standard library only; reads /proc and /sys."""

import os
import socket
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath

from snakemake_executor_plugin_dask.model.frozen import dataclass

_MB = 10**6


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process may use. Memory in 10^6 bytes."""

    cores: int
    memory_mb: int
    interfaces: tuple[str, ...] = ()  # names of the network interfaces


def this_machine(root: Path = Path("/"), affinity: Callable[[int], Collection[int]] = os.sched_getaffinity) -> Machine:
    """Look at the machine; ``root`` is where `proc` and `sys` are found."""
    groups = list(_cgroups(root))
    cores = len(affinity(0))
    for quota in filter(None, map(_cpu_quota, groups)):
        cores = min(cores, max(1, int(quota)))
    limits = [_memory_total_bytes(root), *filter(None, map(_memory_limit_bytes, groups))]
    return Machine(cores, min(limits) // _MB, tuple(name for _, name in socket.if_nameindex()))


def _cgroups(root: Path) -> Iterator[Path]:
    """Directories of the cgroups that this process is in, each with its ancestors: a limit of any of them holds.

    Inside a container the path that the kernel names may not be visible; the mount point then is the process's group.
    """
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        else:
            mounts = [root / "sys/fs/cgroup" / name for name in controllers.split(",") if name in ("cpu", "memory")]
            mounts += [root / "sys/fs/cgroup" / controllers]
        for mount in mounts:
            inner = PurePosixPath(path.lstrip("/"))
            if ".." not in inner.parts:
                for part in (inner, *inner.parents):
                    if part != PurePosixPath():
                        yield mount / part
            yield mount


def _cpu_quota(group: Path) -> float | None:
    """CPUs that the cgroup grants, as a fraction; None without a limit."""
    text = _text(group / "cpu.max")
    if text is not None:
        quota, _, period = text.partition(" ")
    else:
        quota, period = _text(group / "cpu.cfs_quota_us") or "", _text(group / "cpu.cfs_period_us") or ""
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:
        return int(quota) / int(period)
    return None


def _memory_limit_bytes(group: Path) -> int | None:
    """Bytes that the cgroup grants; None without a limit (version 1 then shows a number near 2**63)."""
    text = _text(group / "memory.max") or _text(group / "memory.limit_in_bytes") or ""
    return int(text) if text.isdecimal() and 0 < int(text) < 2**60 else None


def _memory_total_bytes(root: Path) -> int:
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
