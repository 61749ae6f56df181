"""A run after a run: a cluster that stays, one for each run, the local executor, and the Slurm executor.

    ./run bench kept [--runs 20] [--jobs 20] [--slurm [--few 20]]

Each run is a workflow of short jobs in a directory of its own. The ways take turns, one run of each after the other.
With ``--slurm`` the clusters are those of the tests' virtual Slurm, and each run without a cluster that stays submits
its allocation anew. The Slurm executor takes part where it is installed.

What a later run's first job waits for beyond the local executor's is, above all, a warm process; how long one takes to
import Snakemake and read the workflow is measured in each round, too, by a process that does just that.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness import TRIVIAL, Timed, heading, row, scratch, snakemake, with_commands

_SNAKEFILE = TRIVIAL.replace('output: "out', 'resources: mem_mb=50, runtime=1\n    output: "out')
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
_SLURM = (
    "--executor slurm --jobs 100 --seconds-between-status-checks 1 --slurm-init-seconds-before-status-checks 1 "
    "--slurm-status-command squeue --default-resources mem_mb=500 slurm_partition=cpu"
).split()
_IDLE_S = 60.0
#: Says when it has done what a warm process must have done before a job can start from it.
_READS = """
import os, pickle, sys, time
from snakemake_executor_plugin_dask.interior import snakemake_command_line, snakemake_kept
with open(sys.argv[1], "rb") as file:
    setup = pickle.load(file)
os.chdir(setup.workdir)
snakemake_kept.WarmWorkflow(snakemake_command_line.Parser(setup))
print(time.time(), flush=True)
os._exit(0)
"""
KEPT, NOT_KEPT, LOCAL, SLURM = "kept", "not kept", "local executor", "Slurm executor"


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run bench kept", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--slurm", action="store_true", help="needs root, and Debian's Slurm")
    parser.add_argument("--few", type=int, help="runs of the Slurm executor (default: as many as of the others)")
    chosen = parser.parse_args()
    with scratch() as root, _slurm(root, wanted=chosen.slurm) as environment:
        (root / "pools.yaml").write_text(_POOLS)
        dask = ["--executor", "dask", "--jobs", "10000"]
        dask += ["--dask-pools", os.fspath(root / "pools.yaml")] if chosen.slurm else []
        ways = {
            LOCAL: ["--executor", "local", "--cores", "2"],
            KEPT: [*dask, "--dask-keep", "1h"],
            NOT_KEPT: dask,
        }
        rounds = dict.fromkeys(ways, chosen.runs)
        if chosen.slurm and importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
            print("snakemake-executor-plugin-slurm is not installed, and takes no part", file=sys.stderr)
        elif chosen.slurm:
            ways[SLURM], rounds[SLURM] = _SLURM, chosen.few or chosen.runs
        found: dict[str, list[Timed]] = {way: [] for way in ways}
        reading = list[float]()
        setup = _setup(root, chosen.jobs)
        # One that keeps nothing would use the other's.
        states = {way: {"XDG_STATE_HOME": os.fspath(root / f"state of {way}")} for way in ways}
        try:
            for number in range(chosen.runs):
                reading.append(_reading_s(setup))
                for way, arguments in ways.items():
                    if number < rounds[way]:
                        directory = root / f"{way} {number}".replace(" ", "-")
                        snakefile = _SNAKEFILE.format(number=chosen.jobs, command="echo $EPOCHREALTIME > {output}")
                        variables = {**environment, **states[way]}
                        found[way].append(snakemake(snakefile, *arguments, directory=directory, environment=variables))
            memory_mb, percent = _idle(root / f"state of {KEPT}")
        finally:
            _stop({**environment, **states[KEPT]})
        _tell(found, chosen.runs, chosen.jobs)
        _tell_beyond(found, reading)
        heading("The head, idle")
        row("memory (RSS)", memory_mb, "MB", aim="at most 120 MB")
        row(f"of a core, over {_IDLE_S:.0f} s", percent, "%", aim="at most 0.5 %")


def _tell(found: Mapping[str, list[Timed]], runs: int, jobs: int) -> None:
    for what, seconds in (
        ("wall time of a run", {way: [each.wall_s for each in some] for way, some in found.items()}),
        (
            "from the command to the first job's output",
            {way: [each.stamps()[0] - each.began for each in some] for way, some in found.items()},
        ),
        (
            "until the first job has a place (of the local executor: its output), before a warm process starts",
            {
                way: [(each.stamps()[0] if way == LOCAL else _placed(each)) - each.began for each in some]
                for way, some in found.items()
                if way != SLURM
            },
        ),
    ):
        base = statistics.median(seconds[LOCAL])
        print(f"\n{runs} runs of {jobs} jobs: {what}; ratios to the local executor's median, {base:.2f} s")
        print(f"{'':16}{'first':>8}{'median later':>14}{'slowest later':>15}{'median - local':>16}")
        for way, each in seconds.items():
            later = each[1:] or each
            median = statistics.median(later)
            print(f"{way:16}{each[0] / base:8.2f}{median / base:14.2f}{max(later) / base:15.2f}{median - base:14.2f} s")


def _tell_beyond(found: Mapping[str, list[Timed]], reading: Sequence[float]) -> None:
    """What is left of a later run's way to its first job without the local executor's, and without the warm process's.

    Round by round, so that what keeps the machine busy for a while is in both.
    """
    firsts = {way: [each.stamps()[0] - each.began for each in found[way]] for way in (KEPT, LOCAL)}
    beyond = [kept - local for kept, local in zip(firsts[KEPT], firsts[LOCAL], strict=True)][1:]
    left = [each - read for each, read in zip(beyond, reading[1:], strict=True)]
    heading("A later run on a cluster that stays, from the command to its first job")
    row("beyond what the local executor takes", statistics.median(beyond), "s")
    row("to import Snakemake and read the workflow", statistics.median(reading), "s")
    row("what is left, median of the rounds", statistics.median(left), "s", aim="at most 0.3 s")
    # On a machine that others use the quickest of each is nearest to what it takes by itself.
    row("what is left, by the quickest of each", min(firsts[KEPT][1:]) - min(firsts[LOCAL]) - min(reading), "s")


def _setup(root: Path, jobs: int) -> Path:
    """A file with what a warm process of such a run is told."""
    from system.warm_harness import planned

    directory = root / "planned"
    directory.mkdir()
    setup, _ = planned(directory, _SNAKEFILE.format(number=jobs, command="true"))
    path = root / "setup.pickle"
    path.write_bytes(pickle.dumps(setup))
    return path


def _reading_s(setup: Path) -> float:
    began = time.time()
    command = [sys.executable, "-P", "-c", _READS, os.fspath(setup)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout) - began


def _placed(run: Timed) -> float:
    """When its first job was placed on a worker."""
    (log,) = run.directory.glob(".snakemake/dask/*.events.jsonl")
    events = map(json.loads, log.read_text().splitlines())
    return next(float(event["t"]) for event in events if event["kind"] == "job-placed")


@contextlib.contextmanager
def _slurm(root: Path, *, wanted: bool) -> Iterator[Mapping[str, str]]:
    """The variables by which runs find it."""
    if not wanted:
        yield {}
        return
    from clusters.slurm import VirtualSlurm

    cluster = VirtualSlurm(root / "slurm")
    try:
        cluster.up()
        yield {"SLURM_CONF": os.fspath(cluster.conf), "PATH": with_commands(root / "bin", cluster.conf)}
    finally:
        cluster.down()


def _idle(state: Path) -> tuple[float, float]:
    """Of the head: memory in MB, and what it takes of a core in percent."""
    (head,) = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if _is_head(Path("/proc", pid), state)]
    began, before = time.monotonic(), _cpu_s(head)
    time.sleep(_IDLE_S)
    percent = 100 * (_cpu_s(head) - before) / (time.monotonic() - began)
    pages = int(Path("/proc", head, "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, percent


def _is_head(process: Path, state: Path) -> bool:
    with contextlib.suppress(OSError):
        if b"plugin_dask.driver.head" in (process / "cmdline").read_bytes():
            return os.fsencode(state) in (process / "environ").read_bytes()
    return False


def _cpu_s(pid: str) -> float:
    fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stop(environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "snakemake_executor_plugin_dask", "stop", "--all", "--force"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})


if __name__ == "__main__":
    main()
