"""What Snakemake and the driver take while jobs run for long and 100,000 wait; workers and their jobs are made up."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from harness import UNLIMITED, heading, row, scratch, trivial
from many_workers import Hosts, cpu_s, wait
from simulated import FIGURES, HOSTS, SECONDS

from snakemake_executor_plugin_dask.node.state import EVENTS
from snakemake_executor_plugin_dask.observe.events import Tail

HERE = Path(__file__).resolve().parent
_LASTING_S = 36_000
_PAUSE_S = 20.0  # what was begun before is over by then


def wrapper(directory: Path) -> Path:
    """A Python that runs the driver with made-up workers where the driver is asked for."""
    path = directory / "python"
    path.write_text(
        "#!/bin/sh\n"
        'case " $* " in\n'
        '*" snakemake_executor_plugin_dask.driver "*) shift 3\n'
        f'exec {sys.executable} -P {HERE / "simulated.py"} driver "$@" ;;\n'
        "esac\n"
        f'exec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return path


class Progress:
    """How many events of each kind the log of a run holds by now."""

    def __init__(self, directory: Path) -> None:
        self._folder = directory / ".snakemake" / "dask"
        self._tail: Tail | None = None
        self.queued = self.started = 0

    def look(self) -> None:
        if self._tail is None and (logs := [*self._folder.glob(f"*{EVENTS}")]):
            self._tail = Tail(logs[0])
        for line in self._tail.lines() if self._tail is not None else ():
            self.queued += b'"kind":"job-queued"' in line
            self.started += b'"kind":"job-started"' in line

    def full(self, jobs: int, running: int) -> bool:
        self.look()
        return self.queued >= jobs and self.started >= running


def driver_of(pid: int) -> int:
    """The driver among the children of Snakemake's process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"simulated.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise RuntimeError("there is no driver")


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def measure(directory: Path, jobs: int, workers: int, cores: int, seconds: float) -> None:
    os.environ[SECONDS] = str(_LASTING_S)
    hosts = Hosts(directory, max(2, min(10, workers // 5)))
    where = directory / "run"
    where.mkdir()
    (where / "Snakefile").write_text(trivial(jobs))
    environment = os.environ | {
        HOSTS: os.pathsep.join(map(str, hosts.paths)),
        FIGURES: str(directory / "figures.json"),
    }
    command = [
        *(sys.executable, "-P", str(HERE / "stubbed.py"), str(wrapper(directory)), str(directory / "spent.json")),
        *(*UNLIMITED, "--executor", "dask", "--jobs", "unlimited"),
        *("--dask-workers", str(workers), "--dask-worker-cores", str(cores), "--dask-worker-memory", "100MB"),
    ]
    with (directory / "output.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=where, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        progress = Progress(where)

        def full() -> bool:
            if process.poll() is not None:
                raise RuntimeError((directory / "output.txt").read_text(errors="replace")[-3000:])
            return progress.full(jobs, min(jobs, workers * cores))

        wait(full, "all workers full", 1800)
        driver = driver_of(process.pid)
        time.sleep(_PAUSE_S)
        before, began = [cpu_s(process.pid), cpu_s(driver)], time.monotonic()
        time.sleep(seconds)
        after, took = [cpu_s(process.pid), cpu_s(driver)], time.monotonic() - began
        heading(f"{workers:,} workers run {progress.started:,} jobs, {jobs - progress.started:,} wait")
        for name, from_s, to_s, pid in zip(("Snakemake", "driver"), before, after, (process.pid, driver), strict=True):
            row(f"CPU of {name}", (to_s - from_s) / took * 100, "% of a core", aim="below 5")
            row(f"memory of {name}", resident_mb(pid) / jobs * 1e3, "kB a job")
    finally:
        driver = driver_of(process.pid) if process.poll() is None else None
        process.kill()  # the driver then ends by itself
        process.wait()
        hosts.end()
        wait(lambda: not Path(f"/proc/{driver}").exists(), "the driver's end", 120)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=100_000)
    options.add_argument("--workers", type=int, default=50)
    options.add_argument("--cores", type=int, default=64, help="of each worker")
    options.add_argument("--seconds", type=float, default=60.0, help="that are measured")
    chosen = options.parse_args()
    with scratch() as directory:
        measure(directory, chosen.jobs, chosen.workers, chosen.cores, chosen.seconds)


if __name__ == "__main__":
    main()
