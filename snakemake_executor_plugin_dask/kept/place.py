"""Where clusters that stay are written down, and which texts are names of them. Imports next to nothing."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

_NAME = re.compile(r"[0-9a-f]{7}[0-9]")


def root(environment: Mapping[str, str]) -> Path:
    """The directory of all clusters of the user."""
    given = environment.get("XDG_STATE_HOME", "")
    base = Path(given) if given.startswith("/") else Path(os.path.expanduser("~"), ".local", "state")
    return base / "snakemake-dask"


def log_of(directory: str | Path) -> Path:
    """What the head of the cluster in this directory logs."""
    return Path(directory, "head.log")


def is_name(scheduler: str) -> bool:
    """Whether `--dask-scheduler` names a cluster that stays, and neither an address nor a file."""
    return _NAME.fullmatch(scheduler) is not None and not os.path.exists(scheduler)
