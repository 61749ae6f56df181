"""How batch systems list their jobs, as far as several do it alike. Pure."""

import re
import time
from typing import Literal

from snakemake_executor_plugin_dask.model.frozen import dataclass

Kind = Literal["queued", "running", "gone", "unknown"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the queue says of one allocation. ``stuck``: it is queued and will never start by itself."""

    kind: Kind
    reason: str = ""
    stuck: bool = False
    expected: float | None = None  # when it is likely to start, in seconds since the epoch
    nodes: str = ""  # that it has or had, as the batch system writes them
    again: str = ""  # it is gone, and the batch system has submitted it once more by itself, under this id


def states(*, queued: str, running: str, gone: str) -> dict[str, Kind]:
    """What a batch system's words for a job's state mean."""
    table: dict[str, Kind] = {}
    table |= dict.fromkeys(queued.split(), "queued")
    table |= dict.fromkeys(running.split(), "running")
    table |= dict.fromkeys(gone.split(), "gone")
    return table


def bare(allocation_id: str) -> str:
    """The number in an id such as ``123.server`` or ``Moab.123``."""
    found = re.search(r"\d+", allocation_id)
    return found.group() if found else allocation_id


def blocks(out: str) -> dict[str, dict[str, str]]:
    """A block for each job, as PBS, Torque and OAR print it: `Job Id: 12.server` and lines of `name = value`."""
    found: dict[str, dict[str, str]] = {}
    block: dict[str, str] = {}
    for line in out.splitlines():
        if head := re.match(r"Job_?\s?Id:\s*(\S+)", line):
            block = found.setdefault(bare(head.group(1)), {})
        elif " = " in line:
            name, _, value = line.partition(" = ")
            block.setdefault(name.strip(), value.strip())
    return found


def local_time(text: str) -> float | None:
    """Seconds since the epoch; None: the batch system cannot say (N/A), or SLURM_TIME_FORMAT asks for other words."""
    try:
        return time.mktime(time.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
