"""A run after a run: a cluster that stays, one for each run, and the local executor. Ratios of wall time in one call.

    ./run bench kept [--runs 20] [--jobs 20] [--slurm]

Each run is a workflow of short jobs in a directory of its own, one after the other. With ``--slurm`` the clusters are
those of the tests' virtual Slurm, and each run without a cluster that stays submits its allocation anew.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_SNAKEFILE = """
rule all:
    input: expand("out/{{i}}.txt", i=range({jobs}))
rule short:
    output: "out/{{i}}.txt"
    resources: mem_mb=50, runtime=1
    shell: "echo {{wildcards.i}} > {{output}}"
"""
_POOLS = """
pools:
  main:
    cluster: slurm
    workers: 0-1
    cores: 2
    memory: 1800 MB
    walltime: 30m
    options: {queue: big}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run bench kept", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--slurm", action="store_true", help="needs root, and Debian's Slurm")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-kept-", dir="/tmp") as directory, _slurm(options.slurm):
        root = Path(directory)
        os.environ["XDG_STATE_HOME"] = os.fspath(root / "state")
        (root / "pools.yaml").write_text(_POOLS)
        pools = ["--dask-pools", os.fspath(root / "pools.yaml")] if options.slurm else []
        dask = ["--executor", "dask", "--jobs", "100", *pools]
        ways = {
            "local executor": ["--executor", "local", "--cores", "2"],
            "kept": [*dask, "--dask-keep", "1h"],
            "not kept": dask,
        }
        seconds: dict[str, list[float]] = {}
        try:
            for way, arguments in ways.items():
                if way == "not kept":
                    _stop()  # else it would be used
                seconds[way] = [
                    _run(root / f"{way}-{n}".replace(" ", "-"), arguments, options.jobs) for n in range(options.runs)
                ]
        finally:
            _stop()
    base = statistics.median(seconds["local executor"])
    print(f"{options.runs} runs of {options.jobs} jobs, wall time of one run; 1.00 is the local executor's median")
    print(f"{'':16}{'first':>8}{'median':>8}{'slowest later':>15}")
    for way, each in seconds.items():
        later = each[1:] or each
        print(f"{way:16}{each[0] / base:8.2f}{statistics.median(later) / base:8.2f}{max(later) / base:15.2f}")


@contextmanager
def _slurm(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    sys.path.insert(0, os.fspath(Path(__file__).parents[1] / "tests"))
    from clusters.slurm import VirtualSlurm

    with tempfile.TemporaryDirectory(prefix="cluster-", dir="/tmp") as directory:
        cluster = VirtualSlurm(Path(directory))
        try:
            cluster.up()
            os.environ["SLURM_CONF"] = str(cluster.conf)
            yield
        finally:
            cluster.down()


def _run(directory: Path, arguments: Sequence[str], jobs: int) -> float:
    directory.mkdir()
    (directory / "Snakefile").write_text(_SNAKEFILE.format(jobs=jobs))
    command = [sys.executable, "-m", "snakemake", "--scheduler", "firstfit", "--quiet", "all", *arguments]
    began = time.monotonic()
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.monotonic() - began


def _stop() -> None:
    command = [sys.executable, "-m", "snakemake_executor_plugin_dask", "stop", "--all", "--force"]
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
