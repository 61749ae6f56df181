"""The state directory of a run, `.snakemake/dask/<run>`: keys, configurations, logs. Makes and clears directories.

A living driver holds a lock on its own, so that what dead runs left can be told from what another run beside this one
uses.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_LOCK = "lock"
_KEPT = (".log", ".jsonl")


def hold(state_dir: Path) -> int:
    """Lock the directory for this process's life; returns the descriptor that holds the lock."""
    descriptor = os.open(state_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
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
        except OSError:
            continue
        else:
            yield lock.parent
        finally:
            os.close(descriptor)
