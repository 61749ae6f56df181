"""Versions of what is installed here, as workers and runs compare them. Reads the package's files."""

import contextlib
import hashlib
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: Of a cluster whose processes were started from other files than lie there now, and would not understand these.
REINSTALLED = (
    "the plugin's files have been changed since the cluster came up, so no worker of it can start any more, and no run "
    "can begin on a worker that is there"
)


def of_another_python(python: str) -> str:
    """Why no worker starts in an environment of its own, in which the plugin is another one than the cluster's."""
    return (
        f"the plugin that {python} has is not the one of the cluster's head, file by file; install the same version "
        "there, or remove `python` from the pool's options and from jobqueue.yaml"
    )


def snakemake_version() -> str:
    """Read from the package's metadata, since importing Snakemake takes most of a second."""
    return _version("snakemake")


def plugin_version() -> str:
    """Version of this package, as installed."""
    return _version("snakemake-executor-plugin-dask")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def installed_code() -> str:
    """Tells this package's files, as they lie there now, from others, which may bear the same version. OSError."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    # Files may come and go meanwhile, as they do while another version is installed. `Path.rglob` raises then.
    found = [Path(folder, name) for folder, _, names in os.walk(package) for name in names if name.endswith(".py")]
    for path in sorted(found):
        with contextlib.suppress(FileNotFoundError):
            digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
