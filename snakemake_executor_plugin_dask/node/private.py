"""Directories and files that nobody but the user can change. Opens, reads and writes them.

Whoever may write in a directory above ours can put a link, or a directory of their own, in its place at any time. So a
directory is opened without following a link and looked at by its descriptor, and what is done in it is done by that
descriptor; a file is opened without following a link, and its owner is looked at before it is believed.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class NotPrivate(PermissionError):
    """A directory or a file is a link, another user's, or others can write it; ``strerror`` says which."""

    def __init__(self, path: str | os.PathLike[str], what: str) -> None:
        super().__init__(errno.EPERM, what, os.fspath(path))


def open_directory(path: str | os.PathLike[str], *, make: bool = False, dir_fd: int | None = None) -> int:
    """A descriptor of a directory of this user's that nobody else can write. Raises NotPrivate, OSError.

    With ``make`` it is made where it is missing, and nobody else can enter it (0700), whatever the umask.
    """
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700, dir_fd=dir_fd)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise NotPrivate(path, "it is a link, or no directory") from None
        raise
    try:
        _check(os.fstat(descriptor), path)
        if make:
            os.fchmod(descriptor, 0o700)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], *, make: bool = False, dir_fd: int | None = None) -> Iterator[int]:
    """`open_directory` for a while."""
    descriptor = open_directory(path, make=make, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_private(path: "Path", data: bytes) -> None:
    """Write a file (0600) that nobody else could read at any moment, whatever the umask; replaces one that is there.

    Its directory has to be the user's own. Raises NotPrivate, OSError.
    """
    with opened(path.parent) as directory:
        temporary = f".{path.name[:100]}.{os.urandom(8).hex()}"
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise


def append_private(path: "Path") -> int:
    """A descriptor that appends to a file (0600) in a directory of the user's own. Raises NotPrivate, OSError."""
    with opened(path.parent) as directory:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path.name, flags, 0o600, dir_fd=directory)
    try:
        _check(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_private(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> bytes:
    """What a file holds that only this user can have written. Raises NotPrivate, OSError."""
    descriptor = _open_file(path, os.O_RDONLY, dir_fd)
    with os.fdopen(descriptor, "rb") as file:
        _check(os.fstat(descriptor), path)
        return file.read()


def open_own(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """A descriptor of a plain file of this user's, and no link to one; others may be allowed to write it.

    Raises NotPrivate, OSError.
    """
    descriptor = _open_file(path, flags, None)
    try:
        _check_own(os.fstat(descriptor), path)
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_end(path: str | os.PathLike[str], most_bytes: int) -> tuple[bytes, bool]:
    """The end of a file as `open_own` takes it, and whether something stands before it. Raises NotPrivate, OSError."""
    with open(open_own(path), "rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - most_bytes)
        file.seek(start)
        return file.read(most_bytes), start > 0


def end_of(path: str | os.PathLike[str], most_bytes: int) -> str:
    """The end of a file as text, without space around it; empty where it cannot be read, or is not the user's own."""
    try:
        return read_end(path, most_bytes)[0].decode(errors="replace").strip()
    except OSError:
        return ""


def _check_own(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise NotPrivate(path, "it is no plain file")
    if found.st_uid != os.geteuid():
        raise NotPrivate(path, f"it belongs to another user (number {found.st_uid})")
    if found.st_nlink > 1:
        raise NotPrivate(path, "it has a second name (a hard link)")


def _open_file(path: str | os.PathLike[str], flags: int, dir_fd: int | None) -> int:
    try:
        # Without O_NONBLOCK somebody's pipe would be waited for.
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotPrivate(path, "it is a link, or no plain file") from None
        raise


def _check(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise NotPrivate(path, "it is no plain file")
    if found.st_uid != os.geteuid():
        raise NotPrivate(path, f"it belongs to another user (number {found.st_uid})")
    if found.st_mode & 0o022:
        raise NotPrivate(path, f"other users can write it (mode {stat.S_IMODE(found.st_mode):o})")
