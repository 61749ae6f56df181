"""Trivial jobs on a virtual Slurm, against the Slurm executor; and what is left of allocations after the last job."""

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path

from harness import fresh, heading, median_of, row, snakemake, trivial, with_commands

POOL = ("--dask-cluster", "slurm", "--dask-workers", "0-3", "--dask-worker-cores", "2", "--dask-worker-memory", "2GB")
POOL += ("--dask-walltime", "30m")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=200)
    options.add_argument("--few", type=int, default=20, help="jobs of the Slurm executor")
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    from clusters.slurm import VirtualSlurm

    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        cluster = VirtualSlurm(directory / "slurm")
        cluster.up()
        (directory / "runs").mkdir()
        environment = {"SLURM_CONF": os.fspath(cluster.conf), "PATH": with_commands(directory / "bin", cluster.conf)}
        unused: list[float] = []

        def ours() -> float:
            timed = snakemake(
                trivial(chosen.jobs), *("--executor", "dask", "--jobs", "10000"), *POOL,
                directory=fresh(directory / "runs"), environment=environment,
            )  # fmt: skip
            while cluster.queue():
                time.sleep(0.2)
            unused.append(time.time() - timed.stamps()[-1])
            return timed.rate()

        def theirs() -> float:
            executor = ("--executor", "slurm", "--jobs", "100", "--seconds-between-status-checks", "1")
            executor += ("--slurm-init-seconds-before-status-checks", "1", "--default-resources", "mem_mb=500")
            executor += ("--slurm-status-command", "squeue")  # this Slurm keeps no accounts
            return snakemake(
                trivial(chosen.few), *executor, directory=fresh(directory / "runs"), environment=environment
            ).rate()

        try:
            heading(f"{chosen.jobs} trivial jobs on a virtual Slurm of three nodes of two cores")
            rate = median_of(chosen.rounds, ours)
            row("dask", rate, "jobs/s")
            if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
                print(
                    "snakemake-executor-plugin-slurm is not installed, so there is nothing to compare with",
                    file=sys.stderr,
                )
            else:
                other = median_of(1, theirs)
                row(f"Slurm executor, {chosen.few} jobs", other, "jobs/s", rate / other, "at least 30", "dask to it")
            row("from the last job's end to an empty queue", max(unused), "s", aim="at most idle timeout + 10")
        finally:
            cluster.down()


if __name__ == "__main__":
    main()
