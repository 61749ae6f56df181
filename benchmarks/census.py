"""What each part of a run spends: CPU time and memory of its processes by role, looked at while they live."""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_EVERY_S = 0.2
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_KB = os.sysconf("SC_PAGESIZE") / 1e3

#: By a part of the command line; the first that fits.
ROLES = {
    "stub_warm.py": "jobs",
    "worker.warm": "jobs",
    "worker.supervisor": "supervisor",
    "dask.worker": "worker",
    "dask.driver": "driver",
    "stubbed.py": "Snakemake",
    "-m snakemake ": "Snakemake",
}


@dataclass
class Spent:
    """All processes of a role together, but for memory, which is the most that one of them held."""

    cpu_s: float = 0.0  # with the children that they waited for, where the role is that of jobs
    most_kb: float = 0.0


@dataclass
class _Process:
    role: str
    cpu_s: float = 0.0
    most_kb: float = 0.0


class Census:
    """A context in which this process's descendants are looked at. The last 0.2 s of each may be missing."""

    def __init__(self) -> None:
        self._known: dict[int, _Process] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def by_role(self) -> dict[str, Spent]:
        found = {role: Spent() for role in ROLES.values()}
        for process in self._known.values():
            spent = found[process.role]
            spent.cpu_s += process.cpu_s
            spent.most_kb = max(spent.most_kb, process.most_kb)
        return found

    def _look_on(self) -> None:
        while not self._over.wait(_EVERY_S):
            for pid in _children(os.getpid()):
                self._look(pid)

    def _look(self, pid: int) -> None:
        """At a process and those below it; jobs' own are counted by their parent."""
        try:
            process = self._known.get(pid)
            if process is None:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                role = next((name for part, name in ROLES.items() if part in command), None)
                if role is None:
                    return
                process = self._known[pid] = _Process(role)
            own, waited = _cpu_s(f"/proc/{pid}/stat")
            process.cpu_s = own + waited if process.role == "jobs" else own
            resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            process.most_kb = max(process.most_kb, resident * _PAGE_KB)
            if process.role != "jobs":
                for child in _children(pid):
                    self._look(child)
        except (OSError, IndexError):
            return  # it has ended


def _cpu_s(path: str) -> tuple[float, float]:
    """CPU time of its own, and of the children that it waited for."""
    fields = Path(path).read_text().rpartition(")")[2].split()
    own, waited = (sum(map(int, fields[first : first + 2])) * _TICK_S for first in (11, 13))
    return own, waited


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())
