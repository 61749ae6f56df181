"""What the nodes of a job's own Dask cluster need to know, where it may not be sent: files that only the user can read.

Over an attached cluster without encryption, in a directory that these nodes share. Writes and reads it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from snakemake_executor_plugin_dask.node.private import read_private, write_private

CERTIFICATE = ("cert.pem", "key.pem")
_ENVIRONMENT = "environment.json"


def make(directory: Path, certificate: tuple[str, str]) -> None:
    """Make the directory, in one of the user's own. Raises OSError."""
    directory.mkdir(mode=0o700)
    for name, text in zip(CERTIFICATE, certificate, strict=True):
        write_private(directory / name, text.encode())


def certificate(directory: Path) -> tuple[str, str]:
    """The certificate and its key. Raises OSError."""
    cert, key = (read_private(directory / name).decode() for name in CERTIFICATE)
    return cert, key


def tell_environment(directory: Path, changes: Sequence[tuple[str, str | None]]) -> None:
    """What the job has changed in its environment. Raises OSError."""
    write_private(directory / _ENVIRONMENT, json.dumps(changes).encode())


def environment(directory: Path) -> tuple[tuple[str, str | None], ...]:
    """What was told. Raises OSError."""
    return tuple((name, value) for name, value in json.loads(read_private(directory / _ENVIRONMENT)))
