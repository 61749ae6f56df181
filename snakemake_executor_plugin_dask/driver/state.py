"""The state directory of a run, `.snakemake/dask/<run>`: keys, configurations, logs. Makes and clears directories.

A living driver holds a lock on its own, so that what dead runs left can be told from what another run beside this one
uses. Where a file system knows no locks (Lustre without them), the process that it names stands for the lock.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from snakemake_executor_plugin_dask.worker.processes import read_stat

_LOCK = "lock"
_HOST = os.uname().nodename
#: The file system has no locks, or its lock service does not run.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_KEPT = (".log", ".jsonl")


def hold(state_dir: Path) -> int:
    """Lock the directory for this process's life; returns the descriptor that holds the lock."""
    descriptor = os.open(state_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    me = read_stat(os.getpid())
    if me is not None:
        os.pwrite(descriptor, f"{_HOST} {me.pid} {me.start}".encode(), 0)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return descriptor


def clear(state_dir: Path, *, keep_logs: bool) -> None:
    """Remove keys and configurations, and the directory where nothing is left in it. May be repeated."""
    for path in sorted(state_dir.rglob("*"), reverse=True):
        if path.is_dir():
            with contextlib.suppress(OSError):  # logs are left in it
                path.rmdir()
        elif not (keep_logs and path.suffix in _KEPT):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        state_dir.rmdir()


def left_by_dead_runs(state_root: Path) -> Iterator[Path]:
    """The state directories below `.snakemake/dask` whose driver does not live."""
    for lock in sorted(state_root.glob(f"*/{_LOCK}")):
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS and _names_dead_process(os.pread(descriptor, 1024, 0)):
                yield lock.parent
        else:
            yield lock.parent
        finally:
            os.close(descriptor)


def _names_dead_process(text: bytes) -> bool:
    """False where the process lives, is another host's, or cannot be told."""
    match text.decode(errors="replace").split():
        case [host, pid, start] if host == _HOST and pid.isdecimal() and start.isdecimal():
            stat = read_stat(int(pid))
            return stat is None or stat.dead or stat.start != int(start)
    return False
