"""Make the examples of docs/observe.md and the pictures of documentation, from real runs on this machine.

    ./run pictures [report|questions|loss|watch|dashboard] [DIRECTORY]

Without a word all of them. `report` brings up the tests' virtual Slurm in a temporary directory, takes a partition
down, and runs a workflow in which a job needs more memory than it asks for and an allocation is cancelled. It prints
the terminal's text and writes `report.png`. `questions` runs two thousand jobs there, five of which fail, and prints
what `snakemake-dask` answers while the last ten wait. `loss` prints what a small run on this machine says, one of whose
two workers is killed. `watch` writes `watch.png`, `dashboard` writes `dashboard.png`;
both from runs on this machine alone. Everything that was started is ended.
"""
# ruff: noqa: INP001, T201 - a script that prints

import argparse
import asyncio
import contextlib
import html
import os
import re
import shlex
import shutil
import signal
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

WHAT = ("report", "questions", "loss", "watch", "dashboard")
LIMIT_S = 1200

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

COHORTS = """\
samples = [f"s{n:03}" for n in range(1, 496)]

rule all:
    input:
        expand("counts/{sample}.txt", sample=samples), expand("qc/{sample}.txt", sample=samples),
        expand("calls/{cohort}.txt", cohort=range(1, 11)),

rule trim:
    input: "reads/{sample}.fastq"
    output: "trimmed/{sample}.fastq"
    log: "logs/trim/{sample}.log"
    resources: mem_mb=300, runtime=5
    shell: "cp --sparse=always {input} {output}"

rule align:
    input: "trimmed/{sample}.fastq"
    output: "aligned/{sample}.bam"
    log: "logs/align/{sample}.log"
    resources: mem_mb=600, runtime=10
    shell: "./hold $((20 + $(stat -c %s {input}) * 15 / 1000000)) $(stat -c %s {input}) && touch {output}"

rule count:
    input: "aligned/{sample}.bam"
    output: "counts/{sample}.txt"
    log: "logs/count/{sample}.log"
    resources: mem_mb=300, runtime=5
    shell: "./count {wildcards.sample} >{output} 2>{log}"

rule qc:
    input: "aligned/{sample}.bam"
    output: "qc/{sample}.txt"
    log: "logs/qc/{sample}.log"
    resources: mem_mb=200, runtime=5
    shell: "if [[ {wildcards.sample} == s[13]67 ]]; then ./hold 500 9000000; fi; touch {output}"

rule merge:
    input: lambda wildcards: expand("aligned/{sample}.bam", sample=samples[int(wildcards.cohort)::10])
    output: "merged/{cohort}.bam"
    resources: mem_mb=2500, runtime=20
    shell: "./hold 150 20000000 && touch {output}"

rule call:
    input: "merged/{cohort}.bam"
    output: "calls/{cohort}.txt"
    threads: 4
    resources: mem_mb=5000, runtime=30
    shell: "./hold 700 20000000 && touch {output}"
"""

LOSS = """\
rule all:
    input: expand("aligned/{i}.txt", i=range(1, 9)), "big.txt"

rule align:
    output: "aligned/{i}.txt"
    threads: 2
    resources: mem_mb=900, runtime=10
    shell: "python work.py 6 200 && touch {output}"

rule big:
    output: "big.txt"
    resources: mem_mb=300, runtime=5
    shell: "python work.py 6 600 && touch {output}"
"""

LANES = """\
rule all:
    input:
        expand("aligned/{sample}.{lane}.bam", sample=["liver", "kidney", "skin", "lung"], lane=range(1, 10)),
        "atlas.txt",

rule align:
    output: "aligned/{sample}.{lane}.bam"
    log: "logs/{sample}.{lane}.log"
    resources: mem_mb=300, runtime=5
    shell: "./count {wildcards.sample}{wildcards.lane} 2>{log} && python work.py 20 140 && touch {output}"

rule atlas:
    input: expand("aligned/liver.{lane}.bam", lane=range(1, 7))
    output: "atlas.txt"
    threads: 4
    resources: mem_mb=1500, runtime=10
    shell: "python work.py 10 700 && touch {output}"
"""

HOLD = """\
#!/bin/bash
# Hold $1 MB for a time that grows with $2 bytes.
{ head -c ${1}M /dev/zero; sleep $(($2 / 10000000)).$((1 + $2 / 1000000 % 10)); } | tail -n 1 >/dev/null
"""

COUNT = """\
#!/bin/bash
case $1 in
    s017 | s233 | s410 | skin2) echo "reading aligned/$1.bam" >&2; echo "count: $1: no read has a mate" >&2; exit 3 ;;
esac
echo 1
"""


#: Which samples failed and why, what ran longest, what wasted memory, why the last ten jobs wait.
QUESTIONS = (
    *("status", "jobs --state failed", "explain 49", "jobs --slowest 5", "jobs --wasteful 5"),
    *("jobs --state waiting", "explain 1985"),
)


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
            print(answer(directory, "status"))
            slurm.run("scontrol", "update", "PartitionName=big", "State=UP")
            run.wait(LIMIT_S)
            print(run.output)


def cohorts_run(directory: Path) -> None:
    """The questions of docs/observe.md: two thousand jobs, five that fail, and ten that wait for a partition."""
    (directory / "reads").mkdir()
    for number in range(1, 496):
        with (directory / "reads" / f"s{number:03}.fastq").open("wb") as reads:
            reads.truncate(number * 7919 % 97 * 1_000_000 // 4)
    for name, text in (("hold", HOLD), ("count", COUNT)):
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    (directory / "pools.yaml").write_text(POOLS.replace("0-2", "0-3").replace("2 GB", "3 GB"))
    with virtual_slurm() as slurm:
        slurm.run("scontrol", "update", "PartitionName=big", "State=DOWN")
        with snakemake(directory, COHORTS, "--dask-pools", "pools.yaml", "--keep-going") as run:
            expect(run, lambda: "(call) waits for" in run.output or "(call) wait for" in run.output, "ten that wait")
            for question in QUESTIONS:
                print(answer(directory, question))
            slurm.run("scontrol", "update", "PartitionName=big", "State=UP")
            run.wait(LIMIT_S)


def loss_run(directory: Path) -> None:
    """The small excerpts of docs/observe.md: two workers here, one of which is killed; a job that needs more memory."""
    (directory / "work.py").write_text(WORK)
    workers = ("--dask-workers", "2", "--dask-worker-cores", "2", "--dask-worker-memory", "2 GB", "--keep-going")
    with snakemake(directory, LOSS, *workers, "--dask-report", "report.html") as run:
        expect(run, lambda: len(run.events("job-started")) > 1, "two jobs")
        expect(run, lambda: run.events("waiting"), "jobs that wait")
        print(answer(directory, "status"))
        expect(run, lambda: len(run.events("job-ended")) > 1, "two jobs that ended")
        expect(run, lambda: len(run.events("job-started")) > len(run.events("job-ended")), "one that runs")
        os.kill(run.facts(0)["pid"], signal.SIGKILL)
        run.wait(LIMIT_S)
        print(run.output)
    page = (directory / "report.html").read_text()
    print("\n".join(html.unescape(block) for block in re.findall(r"set-resources:.*?(?=</pre>)", page, re.DOTALL)))


def answer(directory: Path, command: str, columns: int = 130) -> str:
    """What a second terminal of this width shows."""
    line = f"stty cols {columns} && snakemake-dask {command}"
    found = subprocess.run(
        ("script", "--quiet", "--return", "--command", line, "/dev/null"),
        cwd=directory, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    return f"$ snakemake-dask {command}\n{found.stdout}"


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


def watch_run(directory: Path) -> str:
    """What `snakemake-dask watch` shows in a terminal, with its colours as escape sequences."""
    (directory / "work.py").write_text(WORK)
    (directory / "count").write_text(COUNT)
    (directory / "count").chmod(0o755)
    workers = ("--dask-workers", "2", "--dask-worker-cores", "4", "--dask-worker-memory", "4 GB", "--keep-going")
    tmux = ("tmux", "-L", f"pictures-{os.getpid()}", "-f", "/dev/null")
    with snakemake(directory, LANES, *workers) as run:
        expect(run, lambda: run.events("job-started"), "a job")
        command = f"snakemake-dask watch {shlex.quote(os.fspath(directory))}"
        subprocess.run([*tmux, "new-session", "-d", "-x", "112", "-y", "25", command], check=True)

        def shown() -> str:
            text = subprocess.run(
                [*tmux, "capture-pane", "-p", "-e"], check=True, capture_output=True, text=True
            ).stdout
            whole = "Failed: " in text and "wait for cores" in text
            return text if whole and len(re.findall(r"\d MB of 300 MB", text)) > 4 else ""

        try:
            expect(run, shown, "what running jobs use, and the one that failed")
            return shown()
        finally:
            subprocess.run([*tmux, "kill-server"], check=False)


def page_of(screen: str) -> str:
    """A terminal's screen as a page."""
    styles = {"1": "font-weight:bold", "2": "opacity:.6", "31": "color:#b3202c"}
    on: dict[str, str] = {}
    text, *rest = re.split(r"\x1b\[([\d;]*)m", html.escape(screen.rstrip("\n")))
    for codes, part in zip(rest[::2], rest[1::2], strict=True):
        for code in codes.split(";"):
            if code in ("", "0"):
                on.clear()
            elif code == "39":  # the terminal's own colour
                on.pop("31", None)
            elif code in styles:
                on[code] = styles[code]
        text += f"<span style='{';'.join(on.values())}'>{part}</span>"
    body = f"<pre style='font:13px/1.35 monospace;margin:0'>{text}</pre>"
    return f"<meta charset=utf-8><body style='margin:14px;background:#fff'>{body}"


async def picture_of_screen(screen: str, directory: Path) -> None:
    (directory / "screen.html").write_text(page_of(screen))
    async with browser() as page:
        await page.open((directory / "screen.html").as_uri(), width=930, height=460)
        await page.screenshot(HERE / "watch.png")


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
    parser.add_argument("what", nargs="?", choices=WHAT, help="all of them unless given")
    parser.add_argument("directory", nargs="?", type=Path, help="where the run takes place, and stays")
    chosen = parser.parse_args()
    for what in (chosen.what,) if chosen.what else WHAT:
        make(what, chosen.directory)
    return 0


def make(what: str, keep: Path | None) -> None:
    directory = keep or Path(tempfile.mkdtemp(prefix="pictures-", dir="/tmp"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        if what == "report":
            watched_run(directory)
            asyncio.run(picture_of_report(directory / "report.html"))
        elif what == "questions":
            cohorts_run(directory)
        elif what == "loss":
            loss_run(directory)
        elif what == "watch":
            asyncio.run(picture_of_screen(watch_run(directory), directory))
        else:
            dashboard_run(directory)
    finally:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
