"""The state directory of a run, `.snakemake/dask/<run>`: keys, configurations, logs. Makes and clears directories.

`.snakemake` may be open to a group, so all is done by descriptors of directories that were seen to be the user's own. A
living driver holds a lock on its own one, in which it has written which process it is. Where a file system knows no
locks (Lustre without them), the process that it names stands for the lock.
"""

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.node.former import Fate, Process, judge, this_process
from snakemake_executor_plugin_dask.node.private import NotPrivate, open_directory, opened, read_private

#: Below a working directory: a directory for each run, and its event log beside it.
RUNS = Path(".snakemake", "dask")
EVENTS = ".events.jsonl"  # after the run's name
#: Of a cluster's authority, its certificate and its key, in the directory of who has brought it up.
TLS_FILES = ("tls-ca.pem", "tls-cert.pem", "tls-key.pem")

_LOCK = "lock"
#: The file system has no locks, or its lock service does not run.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_KEPT = (".log", ".jsonl")
_RUN = re.compile(r"[a-z0-9]{1,64}")


def check(root: Path) -> None:
    """Raises ConfigurationError where `.snakemake/dask` is there and is not the user's own."""
    try:
        with opened(root):
            pass
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigurationError(_complaint(root, error)) from None


def make(state_dir: Path) -> None:
    """Make a run's directory, and those above it: nobody else can enter them. ConfigurationError."""
    root = state_dir.parent
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with opened(root, make=True) as above:
            os.mkdir(state_dir.name, 0o700, dir_fd=above)
    except OSError as error:
        raise ConfigurationError(_complaint(root, error)) from None


def _complaint(root: Path, error: OSError) -> str:
    if isinstance(error, NotPrivate):
        return (
            f"The run's keys and records have to lie in {root}, which nobody else may write, but {error.strerror}; "
            "remove it, or run the workflow in a directory of your own (--directory)."
        )
    return f"The run's keys and records have to lie in {root}, which cannot be used: {error.strerror or error}."


class Held:
    """A run's own directory while its driver lives, by descriptors: a link put in its place changes nothing."""

    def __init__(self, state_dir: Path) -> None:
        """Lock it. Raises NotPrivate, OSError."""
        self._name = state_dir.name
        self._root = open_directory(state_dir.parent)
        self._run = open_directory(self._name, dir_fd=self._root)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(_LOCK, flags, 0o600, dir_fd=self._run)
        self._lock: int | None = lock
        os.ftruncate(lock, 0)
        os.write(lock, this_process().to_json())
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

    def in_place(self) -> bool:
        """Whether the directory of this name is still the one that is held, which others may have cleared."""
        return _is_in_place(self._root, self._name, self._run)

    def clear(self, *, keep_logs: bool) -> None:
        """As `clear` does."""
        _clear(self._root, self._name, self._run, keep_logs=keep_logs)

    def unlock(self) -> None:
        """Others take this process for gone from now on. May be repeated."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def release(self) -> None:
        """Unlock, and close the directories. Once."""
        self.unlock()
        for descriptor in (self._run, self._root):
            os.close(descriptor)


def clear(state_dir: Path, *, keep_logs: bool) -> None:
    """Remove keys and configurations, and the directory where nothing is left in it. May be repeated.

    With ``keep_logs`` logs and records stay, and the lock with them: it says whose they are.

    Raises NotPrivate, and touches nothing, where it is not the user's own.
    """
    try:
        with opened(state_dir.parent) as root, opened(state_dir.name, dir_fd=root) as run:
            _clear(root, state_dir.name, run, keep_logs=keep_logs)
    except FileNotFoundError:
        pass


def _clear(root: int, name: str, run: int, *, keep_logs: bool) -> None:
    kept = False
    for path, directories, files, directory in os.fwalk(".", topdown=False, dir_fd=run):
        for file in files:
            if keep_logs and file.endswith(_KEPT):
                kept = True
            elif (path, file) != (".", _LOCK):  # which goes last
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file, dir_fd=directory)
        for inner in directories:
            try:
                os.rmdir(inner, dir_fd=directory)
            except NotADirectoryError:  # a link to one
                os.unlink(inner, dir_fd=directory)
            except OSError:
                pass  # logs are left in it
    if kept:
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_LOCK, dir_fd=run)
    if _is_in_place(root, name, run):  # and not another one, which was made since and is still empty
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=root)


def _is_in_place(root: int, name: str, run: int) -> bool:
    try:
        return os.path.samestat(os.stat(name, dir_fd=root, follow_symlinks=False), os.fstat(run))
    except FileNotFoundError:
        return False


def former_runs(root: Path) -> Iterator[tuple[Path, Fate, Process | None]]:
    """The runs whose directories lie in `.snakemake/dask`: what became of each, and which process it was.

    Directories that are not the user's own are passed over. Raises NotPrivate where `.snakemake/dask` itself is not.
    """
    try:
        with opened(root) as above:
            for name in sorted(filter(_RUN.fullmatch, os.listdir(above))):
                try:
                    with opened(name, dir_fd=above) as run:
                        yield root / name, *_fate(run)
                except OSError:
                    continue
    except FileNotFoundError:
        return


def _fate(run: int) -> tuple[Fate, Process | None]:
    try:
        former = Process.from_json(read_private(_LOCK, dir_fd=run))
        lock = os.open(_LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=run)
    except OSError:
        return "unknown", None
    try:
        # Shared: two that look at the same time must not take each other for the living driver.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            return "alive", former
    finally:
        os.close(lock)
    # Not every network file system tells other machines of a lock, so that it is free says little.
    return judge(former, this_process()), former
