"""Make the example of docs/observe.md and the pictures of documentation, from real runs on this machine.

    ./run pictures report [DIRECTORY]
    ./run pictures dashboard [DIRECTORY]

`report` brings up the tests' virtual Slurm in a temporary directory, takes a partition down, and runs a workflow in
which a job needs more memory than it asks for and an allocation is cancelled. It prints the terminal's text and writes
`report.png`. `dashboard` runs a hundred jobs here and writes `dashboard.png`. Both need Chromium; the first also
`slurm-wlm` and `munge`. Everything that was started is ended.
"""
# ruff: noqa: INP001, T201 - a script that prints

import argparse
import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [os.fspath(ROOT / "tests"), os.fspath(ROOT)]

from clusters.slurm import VirtualSlurm  # noqa: E402
from running import SnakemakeRun, snakemake, wait_for  # noqa: E402
from system.browser import browser  # noqa: E402

LIMIT_S = 420

POOLS = """\
pools:
  small:
    cluster: slurm
    workers: 0-2
    cores: 2
    memory: 2 GB
    walltime: 30m
    options: {queue: cpu}
  large:
    cluster: slurm
    workers: 0-1
    cores: 4
    memory: 6 GB
    walltime: 1h
    options: {queue: big}
"""

WORK = """\
import sys, time
seconds, megabytes = float(sys.argv[1]), int(sys.argv[2])
held = bytearray(megabytes * 10**6)
held[::4096] = b"x" * len(held[::4096])
until = time.monotonic() + seconds
while time.monotonic() < until:
    started = time.process_time()
    while time.process_time() < started + 0.01:
        pass
    time.sleep(0.05)
"""

WATCHED = """\
samples = [f"s{i:02}" for i in range(1, 19)]

rule all:
    input: "assembly.txt", "model.txt"

rule trim:
    output: "trimmed/{sample}.txt"
    resources: mem_mb=300, runtime=5
    shell: "python work.py 6 120 && touch {output}"

rule align:
    input: "trimmed/{sample}.txt"
    output: "aligned/{sample}.txt"
    resources: mem_mb=900, runtime=10
    shell: "python work.py 12 200 && touch {output}"

rule assemble:
    input: expand("aligned/{sample}.txt", sample=samples[:6])
    output: "assembly.txt"
    retries: 2
    resources: mem_mb=lambda wildcards, attempt: 600 * attempt, runtime=10
    shell: "echo reading {wildcards}; python work.py 15 800 && touch {output}"

rule train:
    input: expand("aligned/{sample}.txt", sample=samples[6:])
    output: "model.txt"
    threads: 4
    resources: mem_mb=4000, runtime=20
    shell: "python work.py 20 700 && touch {output}"
"""

MANY = """\
rule all:
    input:
        expand("called/{i}.txt", i=range(24)), expand("counted/{i}.txt", i=range(24)), "report.txt"

rule trim:
    output: "trimmed/{i}.txt"
    shell: "sleep 1.$((RANDOM % 10)) && touch {output}"

rule align:
    priority: 1
    input: "trimmed/{i}.txt"
    output: "aligned/{i}.txt"
    threads: 2
    shell: "sleep 2.$((RANDOM % 10)) && touch {output}"

rule call:
    priority: 2
    input: "aligned/{i}.txt"
    output: "called/{i}.txt"
    shell: "sleep 1.$((RANDOM % 10)) && touch {output}"

rule count:
    priority: 2
    input: "aligned/{i}.txt"
    output: "counted/{i}.txt"
    shell: "sleep 0.$((RANDOM % 10)) && touch {output}"

rule report:
    input: expand("called/{i}.txt", i=range(24))
    output: "report.txt"
    shell: "sleep 2 && touch {output}"
"""


@contextlib.contextmanager
def virtual_slurm() -> Iterator[VirtualSlurm]:
    """A Slurm that this process's commands find."""
    directory = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    slurm = VirtualSlurm(directory)
    try:
        slurm.up()
        os.environ["SLURM_CONF"] = str(slurm.conf)
        yield slurm
    finally:
        slurm.down()
        shutil.rmtree(directory, ignore_errors=True)


def expect(run: SnakemakeRun, condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; RuntimeError if the run ends before."""
    wait_for(lambda: condition() or run.process.poll() is not None, what, LIMIT_S)
    if run.process.poll() is not None:
        raise RuntimeError(run.output)


def watched_run(directory: Path) -> None:
    """The run of docs/observe.md."""
    (directory / "work.py").write_text(WORK)
    (directory / "pools.yaml").write_text(POOLS)
    arguments = ("--dask-pools", "pools.yaml", "--dask-report", "report.html", "--jobs", "100")
    with virtual_slurm() as slurm:
        slurm.run("scontrol", "update", "PartitionName=big", "State=DOWN")
        with snakemake(directory, WATCHED, *arguments) as run:
            expect(
                run, lambda: len([e for e in run.events("job-started") if e["key"].startswith("align")]) > 6, "align"
            )
            first = slurm.run("squeue", "--noheader", "--states=RUNNING", "--format=%A").split()[0]
            slurm.run("scancel", first)
            expect(run, lambda: "(train) waits for" in run.output, "the word that it waits")
            print(status(directory))
            slurm.run("scontrol", "update", "PartitionName=big", "State=UP")
            run.wait(LIMIT_S)
            print(run.output)


def status(directory: Path) -> str:
    """What a second terminal shows."""
    command = (sys.executable, "-m", "snakemake_executor_plugin_dask", "status", os.fspath(directory))
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


async def picture_of_report(report: Path) -> None:
    async with browser() as page:
        await page.open(report.as_uri(), width=1100, height=900)
        heading = "[...document.querySelectorAll('h2')].find(e => e.textContent.startsWith('Asked for'))"
        bottom = await page.evaluate(f"{heading}.closest('section').getBoundingClientRect().top")
        await page.open(report.as_uri(), width=1100, height=int(bottom) - 8)
        await page.screenshot(HERE / "report.png")


async def picture_of_dashboard(link: str) -> None:
    async with browser() as page:
        await page.open(link, width=1200, height=640)
        await asyncio.sleep(20)  # the page fills as jobs run
        await page.screenshot(HERE / "dashboard.png")


def dashboard_run(directory: Path) -> None:
    """A hundred jobs on four workers here, and the page that Dask shows of them."""
    workers = ("--dask-workers", "4", "--dask-worker-cores", "2", "--dask-worker-memory", "2 GB")
    arguments = (*workers, "--dask-dashboard", "auto")
    with snakemake(directory, MANY, *arguments) as run:
        expect(run, lambda: run.events("job-started"), "a job")
        link = wait_for(lambda: list(directory.glob(".snakemake/dask/*/dashboard")), "the link")[0].read_text().strip()
        asyncio.run(picture_of_dashboard(link))
        print(run.output[-2000:])


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run pictures", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("report", "dashboard"))
    parser.add_argument("directory", nargs="?", type=Path, help="where the run takes place, and stays")
    chosen = parser.parse_args()
    what, keep = chosen.what, chosen.directory
    directory = keep or Path(tempfile.mkdtemp(prefix="pictures-", dir="/tmp"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        if what == "report":
            watched_run(directory)
            asyncio.run(picture_of_report(directory / "report.html"))
        else:
            dashboard_run(directory)
    finally:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
