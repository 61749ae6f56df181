"""Files that nobody but the user can read."""

import os
from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Write a file (0600) that nobody else could read at any moment, whatever the umask; replaces one that is there."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)
