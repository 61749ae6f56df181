"""A made-up run of 20,000 jobs: its report, `status`, `jobs` and `watch`. Exit code 1 for a report above 10 MB."""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import synthetic

from snakemake_executor_plugin_dask.cli.screen import Pace, screen
from snakemake_executor_plugin_dask.cli.watch import Followed
from snakemake_executor_plugin_dask.node.state import EVENTS
from snakemake_executor_plugin_dask.observe.events import read_events
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.report import write_report

LIMIT_MB = 10.0
_LOOKS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=40)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep event log and reports there")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "synthetic.events.jsonl"
        log.unlink(missing_ok=True)
        synthetic.write(log, chosen.jobs, chosen.workers)
        start = time.perf_counter()
        model = RunModel(read_events(log))
        print(f"event log: {_mb(log):6.1f} MB, read in {time.perf_counter() - start:.1f} s")
        for ending in ("html", "tsv", "json"):
            path = folder / f"report.{ending}"
            start = time.perf_counter()
            write_report(model, path)
            print(f".{ending}: {_mb(path):6.1f} MB, made in {time.perf_counter() - start:.1f} s")
        print(f"memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB at most")
        for command in (("status",), ("jobs", "--slowest", "10"), ("jobs",)):
            print(f"{' '.join(command)}: {_command_cpu_s(*command, str(log)):.1f} s of CPU time")
        first_s, look_s = _watched(log, folder / f"begun{EVENTS}")
        print(f"watch, a third of the log: {first_s:.1f} s of CPU time, then {look_s * 1e3:.1f} ms every second")
        page_mb = _mb(folder / "report.html")
    return 0 if page_mb < LIMIT_MB else 1


def _command_cpu_s(*arguments: str) -> float:
    """CPU time of `snakemake-dask`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "snakemake_executor_plugin_dask", *arguments]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _watched(log: Path, begun: Path) -> tuple[float, float]:
    """CPU time of `watch`'s first look at a run that has come so far that most jobs wait, and of each further one."""
    lines = log.read_bytes().splitlines(keepends=True)
    begun.write_bytes(b"".join(lines[: len(lines) // 3]))
    before = time.process_time()
    followed = Followed(begun)
    followed.look()
    first_s, pace, before = time.process_time() - before, Pace(), time.process_time()
    for _ in range(_LOOKS):
        screen(followed.model, followed.model.now, pace, 120, 50)
        followed.look()
    return first_s, (time.process_time() - before) / _LOOKS


def _mb(path: Path) -> float:
    return path.stat().st_size / 1e6


if __name__ == "__main__":
    sys.exit(main())
