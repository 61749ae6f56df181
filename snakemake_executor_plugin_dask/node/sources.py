"""The files that a workflow was read from, and whether they have changed since. Looks at files."""

import os
import time
from collections.abc import Iterable

#: The part of the time that may go into looking.
_LOOKING_SHARE = 0.05


Stamp = tuple[int, int, int, int] | None  # device, inode, time in ns, bytes; None: there is no such file


def stamps(paths: Iterable[str]) -> tuple[tuple[str, Stamp], ...]:
    """Files as they are now."""
    return tuple((path, _stamp(path)) for path in paths)


class Sources:
    """The files that the workflow was read from, as they were then. For any thread."""

    def __init__(self, files: tuple[tuple[str, Stamp], ...]) -> None:
        self.files = files
        self._next_look = 0.0

    def changed(self) -> str | None:
        """The first file that is not as it was. On a slow file system it does not look each time."""
        started = time.monotonic()
        if started < self._next_look:
            return None
        for path, seen in self.files:
            if _stamp(path) != seen:
                return path
        ended = time.monotonic()
        self._next_look = ended + (ended - started) / _LOOKING_SHARE
        return None


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
