"""What running jobs use now: a small file beside the event log, written anew every few seconds. Writes and reads it.

It is no part of the log, which would grow with every look: `use.json` in the run's own directory, gone with that.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from snakemake_executor_plugin_dask.node.private import read_private, write_private
from snakemake_executor_plugin_dask.node.state import EVENTS
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.records import Attempt, Use

_NAME = "use.json"


def place(log: str | os.PathLike[str]) -> Path:
    """Of the run whose event log this is."""
    path = Path(log)
    return path.with_name(path.name.removesuffix(EVENTS)) / _NAME


def encoded(running: Iterable[Attempt]) -> bytes:
    """What is in the file."""
    jobs = {
        each.key: [round(each.now.at, 1), each.now.cpu_s, each.now.cores, each.now.memory_mb]
        for each in running
        if each.now is not None
    }
    return json.dumps(jobs, separators=(",", ":")).encode("ascii")


def write(log: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file. One that cannot be written is left as it is: who looks sees from its times how old it is."""
    with contextlib.suppress(OSError):
        write_private(place(log), data)


def look(log: str | os.PathLike[str], model: RunModel) -> None:
    """Let the model's running jobs have what the file says of them."""
    for key, use in read(log).items():
        if key in model.running:
            model.running[key].now = use


def read(log: str | os.PathLike[str]) -> dict[str, Use]:
    """By attempt's key; empty where there is nothing to read, or what is there makes no sense."""
    try:
        found = json.loads(read_private(place(log)))
        return {key: Use(float(at), float(cpu_s), cores, float(mb)) for key, (at, cpu_s, cores, mb) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
