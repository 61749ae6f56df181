"""Make the report of a made-up run of 20,000 jobs, and print its size and time. Exit code 1 above 10 MB."""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import synthetic

from snakemake_executor_plugin_dask.observe.events import read_events
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.report import write_report

LIMIT_MB = 10.0


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
        page_mb = _mb(folder / "report.html")
    return 0 if page_mb < LIMIT_MB else 1


def _mb(path: Path) -> float:
    return path.stat().st_size / 1e6


if __name__ == "__main__":
    sys.exit(main())
