"""How close schedules come to the ideal: workers that join late, and short jobs one after the other."""

import argparse
import contextlib
import heapq
import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Timed, cores, fresh, heading, row, scratch, snakemake, trivial

SPAN = "s=$EPOCHREALTIME; sleep {seconds}; echo $s $EPOCHREALTIME > {{output}}"


class Latecomers(threading.Thread):
    """Stops workers other than the first as soon as they are seen, until ``late_s`` after the first one joined."""

    def __init__(self, directory: Path, late_s: float) -> None:
        super().__init__(daemon=True)
        self._directory = directory
        self._late_s = late_s
        self._over = threading.Event()
        self._stopped: set[int] = set()

    def run(self) -> None:
        joined = 0.0
        while not self._over.wait(0.02):
            if not joined:
                self._stop_new()
                joined = time.monotonic() if events(self._directory, "worker-joined") else 0.0
            elif time.monotonic() - joined >= self._late_s:
                break
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def end(self) -> None:
        self._over.set()
        self.join(10)

    def _stop_new(self) -> None:
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in self._stopped:
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().split(b"\0")
                ours = os.fsencode(self._directory) in b"".join(command)
                if ours and b"snakemake_executor_plugin_dask.worker" in command and not is_first(command):
                    os.kill(int(entry.name), signal.SIGSTOP)
                    self._stopped.add(int(entry.name))


def is_first(command: Sequence[bytes]) -> bool:
    return any(part.endswith((b"-0", b"-0.json")) for part in command)


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    """Of the run in a directory, in order."""
    found = []
    for path in directory.glob(".snakemake/dask/*.events.jsonl"):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event["kind"] == kind:
                    found.append(event)
    return found


def ready_at(directory: Path) -> list[float]:
    """When each worker started its first job (epoch): it joins before, and gets its warm process ready."""
    first: dict[str, float] = {}
    for event in events(directory, "job-started"):
        first.setdefault(event["worker"], event["t"])
    return sorted(first.values())


def spans(timed: Timed) -> list[tuple[float, float]]:
    found = []
    for path in (timed.directory / "out").iterdir():
        start, end = path.read_text().split()
        found.append((float(start), float(end)))
    return sorted(found)


def ideal_s(ready: Sequence[float], slots: int, jobs: int, seconds: float) -> float:
    """Of equal jobs on workers of ``slots`` that are ready at these times: from the first one to the last end."""
    free = [moment for moment in ready for _ in range(slots)]
    heapq.heapify(free)
    for _ in range(jobs):
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return max(free) - min(ready)


def late(directory: Path, seconds: float, late_s: float) -> None:
    own = fresh(directory)
    latecomers = Latecomers(own, late_s)
    latecomers.start()
    try:
        timed = snakemake(
            trivial(12, SPAN.format(seconds=seconds)),
            *("--executor", "dask", "--jobs", "100", "--dask-workers", "4", "--dask-worker-cores", str(cores())),
            directory=own,
        )
    finally:
        latecomers.end()
    ready = ready_at(own)
    took = max(end for _, end in spans(timed)) - ready[0]
    best = ideal_s(ready, cores(), 12, seconds)
    heading(f"12 jobs of {seconds:g} s: one worker of {cores()} cores, and three more that join later")
    joined = events(own, "worker-joined")
    row("the last one joined after the first", joined[-1]["t"] - joined[0]["t"], "s")
    row("and was ready after the first", ready[-1] - ready[0], "s")
    row("makespan", took, "s", took / best, "at most 1.15", "ideal")


def steady(directory: Path, seconds: float, each: int) -> None:
    slots = 2 * cores()
    timed = snakemake(
        trivial(slots * each, SPAN.format(seconds=seconds)),
        *("--executor", "dask", "--jobs", "1000", "--dask-workers", "2", "--dask-worker-cores", str(cores())),
        directory=fresh(directory),
    )
    found = spans(timed)
    took = max(end for _, end in found) - found[0][0]
    aim = {1: "at least 0.90", 5: "at least 0.97", 10: "at least 0.98"}.get(int(seconds), "")
    row(
        f"jobs of {seconds:g} s, {each} for each of {slots} slots", took, "s", each * seconds / took, aim, "ideal to it"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, nargs="*", default=[1, 5, 10])
    options.add_argument("--each", type=int, default=20, help="jobs for each slot")
    options.add_argument("--late", type=float, default=2.0, help="seconds after which three workers join")
    chosen = options.parse_args()
    with scratch() as directory:
        late(directory, 5, chosen.late)
        heading("Sleeping jobs one after the other, from the first one's start to the last one's end")
        for seconds in chosen.seconds:
            steady(directory, seconds, chosen.each)


if __name__ == "__main__":
    main()
