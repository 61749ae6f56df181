"""What it takes to know what fifty running jobs use: CPU time of a run's own processes while its jobs sleep.

The worker's supervisor looks at each job's processes, for the limits anyway, and tells the driver with the renewal of
its leases; the driver writes what `snakemake-dask status` and `watch` show. Needs no cluster.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from harness import UNLIMITED, ending, heading, row, scratch
from running import wait_for

from snakemake_executor_plugin_dask.worker.supervisor.usage import ProcFiles

EVERY_S = 5.0  # how often a supervisor tells

SNAKEFILE = """
rule all:
    input: expand("out/{{i}}", i=range({jobs}))

rule one:
    output: "out/{{i}}"
    resources: mem_mb={memory_mb}, runtime=30
    shell: "sleep {seconds}; touch {{output}}"
"""
PARTS = {"supervisor": b".worker.supervisor", "worker": b".worker\0", "driver": b".driver\0"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run bench live", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument(
        "--memory", type=int, default=400, help="MB that each asks for; near a limit it is looked at often"
    )
    chosen = parser.parse_args()
    with scratch() as directory:
        (directory / "Snakefile").write_text(
            SNAKEFILE.format(jobs=chosen.jobs, memory_mb=chosen.memory, seconds=2 * chosen.seconds + 60)
        )
        options = ["--executor", "dask", "--jobs", "1000", "--dask-worker-cores", str(chosen.jobs)]
        with (directory / "output.txt").open("wb") as output:
            run = subprocess.Popen(
                [sys.executable, "-m", "snakemake", *UNLIMITED, *options],
                cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        with ending(run):
            wait_for(lambda: len(list(directory.glob(".snakemake/dask/*.events.jsonl"))) == 1, "the event log")
            (log,) = directory.glob(".snakemake/dask/*.events.jsonl")
            wait_for(lambda: log.read_text().count('"kind":"job-started"') == chosen.jobs, "the jobs' starts")
            time.sleep(10)  # what starting them took is over
            before, began = used(run.pid), time.monotonic()
            time.sleep(chosen.seconds)
            after, took_s = used(run.pid), time.monotonic() - began
            heading(f"{chosen.jobs} jobs that sleep, over {took_s:.0f} s")
            for part in PARTS:
                row(part, 100 * (after[part] - before[part]) / took_s, "%", aim="of a core")
            row("of it for live use", 100 * telling_s(jobs_of(log)) / EVERY_S, "%", aim="of a core: at most 1 %")
            told = subprocess.run(
                [sys.executable, "-m", "snakemake_executor_plugin_dask", "jobs", "--state", "running"],
                cwd=directory, check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
            print(f"{told.splitlines()[0]}\n{told.splitlines()[1]}")


def jobs_of(log: Path) -> list[list[int]]:
    """The processes of each job that was started."""
    leaders = [
        int(event["pid"]) for event in map(json.loads, log.read_text().splitlines()) if event["kind"] == "job-started"
    ]
    return [[leader, *below(leader)] for leader in leaders]


def telling_s(jobs: list[list[int]]) -> float:
    """CPU time of asking once what each of these jobs uses, as the supervisor does."""
    source = ProcFiles()
    began = time.process_time()
    for _ in range(100):
        for processes in jobs:
            sum(source.cpu_s(pid) or 0.0 for pid in processes)
    return (time.process_time() - began) / 100


def used(snakemake: int) -> dict[str, float]:
    """CPU seconds of a run's processes, by part."""
    found = dict.fromkeys(PARTS, 0.0)
    for pid in below(snakemake):
        try:
            command = Path("/proc", str(pid), "cmdline").read_bytes()
            fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        for part, text in PARTS.items():
            if b"snakemake_executor_plugin_dask" + text in command:
                found[part] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def below(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task")
    found = []
    for task in children.iterdir() if children.exists() else ():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *below(child)]
    return found


if __name__ == "__main__":
    main()
