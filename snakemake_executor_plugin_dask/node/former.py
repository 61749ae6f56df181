"""Whether a process that left something behind still lives: alive, dead, or unknown. Reads /proc; `judge` is pure.

"Dead" is said only where it is known: of this boot of this machine by the process table, of an earlier boot because
nothing survives one. Of another machine, or another container, nobody here can tell.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from snakemake_executor_plugin_dask.model.byname import by_name
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.node.processes import read_stat

Fate = Literal["alive", "dead", "unknown"]

#: The process namespace of a machine itself, and not of a container on it.
_MACHINE = "pid:[4026531836]"


@by_name
@dataclass(frozen=True, slots=True)
class Process:
    """A process that can be told from every other one. ``start`` is in clock ticks after the boot."""

    host: str
    boot: str
    namespace: str
    pid: int
    start: str

    def to_json(self) -> bytes:
        """As `from_json` reads it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Process | None":
        """None where it is not of this kind, or was cut off."""
        try:
            values = json.loads(data)
            found = cls(**values)
        except (ValueError, TypeError):
            return None
        texts = (found.host, found.boot, found.namespace, found.start)
        return found if type(found.pid) is int and all(isinstance(text, str) for text in texts) else None


def ancestor_with(variable: str, value: str) -> Process | None:
    """The outermost of this process's ancestors that has this in its environment."""
    found, pid, wanted = None, os.getppid(), os.fsencode(f"{variable}={value}")
    while pid > 1 and (stat := read_stat(pid)) is not None:
        try:
            has = wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # another user's: the batch system's
            break
        found = pid if has else found
        pid = stat.ppid
    return None if found is None else this_process(found)


def this_process(pid: int | None = None) -> Process:
    """This one, or another one on this machine."""
    pid = os.getpid() if pid is None else pid
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return Process(os.uname().nodename, boot, os.readlink("/proc/self/ns/pid"), pid, start_time(pid))


def start_time(pid: int) -> str:
    """The start time of a process, which tells it from a later one with the same id; empty if there is none."""
    stat = read_stat(pid)
    return "" if stat is None or stat.dead else str(stat.start)


def judge(former: Process | None, here: Process, start: Callable[[int], str] = start_time) -> Fate:
    """What became of a former process, as it can be told from ``here``."""
    if former is None:
        return "unknown"
    if former.boot == here.boot and former.namespace == here.namespace and (former.boot or former.host == here.host):
        return "alive" if former.start and start(former.pid) == former.start else "dead"
    # Two containers, or clones of one, may bear the same name.
    machine = former.namespace == here.namespace == _MACHINE
    if machine and former.host == here.host and former.boot and here.boot:
        return "dead"
    return "unknown"
