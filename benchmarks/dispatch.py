"""How fast jobs go from Snakemake to a worker and back, with a stub in place of the job's process."""

import argparse
import json
import statistics
import sys
from pathlib import Path

from harness import Timed, cores, fresh, heading, row, scratch, snakemake, trivial

HERE = Path(__file__).resolve().parent


def wrapper(directory: Path) -> Path:
    """A Python that runs the stub where the warm process is asked for."""
    path = directory / "python"
    path.write_text(
        "#!/bin/sh\n"
        'case " $* " in\n'
        f'*" snakemake_executor_plugin_dask.worker.warm "*) exec {sys.executable} -P {HERE / "stub_warm.py"} "$@" ;;\n'
        "esac\n"
        f'exec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return path


def stubbed(directory: Path, jobs: int, workers: int) -> tuple[Timed, dict[str, float]]:
    """A run whose jobs are stubs, and what `stubbed.py` noted of it. ``directory`` is for both."""
    directory.mkdir(exist_ok=True)
    runs = directory / "runs"
    runs.mkdir(exist_ok=True)
    figures = directory / "figures.json"
    timed = snakemake(
        trivial(jobs),
        *("--executor", "dask", "--jobs", "100000"),
        *("--dask-workers", str(workers), "--dask-worker-cores", str(cores())),
        directory=fresh(runs),
        python=(sys.executable, "-P", str(HERE / "stubbed.py"), str(wrapper(directory)), str(figures)),
    )
    spent: dict[str, float] = json.loads(figures.read_text())
    return timed, spent


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=1000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--workers", type=int, default=2, help="of all cores each")
    chosen = options.parse_args()
    rates, own, whole = [], [], []
    with scratch() as directory:
        for _ in range(chosen.rounds):
            timed, spent = stubbed(directory, chosen.jobs, chosen.workers)
            rates.append(timed.rate())
            own.append(spent["in_executor_s"] / spent["jobs"] * 1e3)
            whole.append((spent["to_s"] - spent["from_s"]) / spent["jobs"] * 1e3)
    heading(f"Dispatch: {chosen.jobs} jobs whose process is a stub, {chosen.workers} workers")
    row("jobs through the whole path", statistics.median(rates), "jobs/s", aim="at least 200")
    row("Snakemake's main thread, all of it", statistics.median(whole), "ms a job", aim="at most 3")
    row("of it in the executor", statistics.median(own), "ms a job")


if __name__ == "__main__":
    main()
