"""What one pipeline needs: whose it is, its commit, its data, and what to compare.

None of the pipelines' code is here. Each is checked out at the commit that the recipe names, and its rules run as they
are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

#: Wrappers are read from a clone of this repository, at the tags that the rules name.
WRAPPERS = "snakemake/snakemake-wrappers"


def plain(path: Path) -> bytes:
    """A file as it is."""
    return path.read_bytes()


@dataclass(frozen=True)
class Recipe:
    """A pipeline of somebody else's."""

    repository: str  # owner and name
    commit: str
    about: str
    rules: tuple[str, ...]  # what is checked out, and has to be the same after the run
    further: tuple[str, ...]  # what is checked out besides
    prepare: Callable[[Path], None]  # puts data and configuration into a fresh checkout
    targets: tuple[str, ...]
    compared: Mapping[str, Callable[[Path], bytes]]  # how to read the files of a pattern
    arguments: tuple[str, ...] = ()
    wrappers: bool = False
    left_out: str = ""
    resources: tuple[str, ...] = ("mem_mb=1400", "runtime=10")
