"""What starting a job costs, for each executor: overhead, throughput, chains, memory, startup."""

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from census import ROLES, Census
from harness import (
    STAMP,
    Timed,
    cores,
    ending,
    fresh,
    heading,
    median_of,
    row,
    scratch,
    snakemake,
    trivial,
    with_commands,
)
from running import pss_mb

DASK = ("--executor", "dask", "--jobs", "10000")
SUBMIT = '#!/bin/sh\nnohup sh "$1" >/dev/null 2>&1 </dev/null &\necho $!\n'

#: Reading this takes so many seconds of CPU time, and leaves a sample sheet in memory.
SLOW_HEAD = """
import csv, io, time
until = time.process_time() + {seconds}
sheet = "sample,path,count\\n" + "".join(f"s{{n}},/data/s{{n}}.fq,{{n}}\\n" for n in range(50000))
while time.process_time() < until:
    samples = list(csv.DictReader(io.StringIO(sheet)))
"""

CHAIN = """
rule all:
    input: "out/{last}"

rule first:
    output: "out/0"
    shell: "{stamp}"

rule next:
    input: lambda wildcards: f"out/{{int(wildcards.i) - 1}}"
    output: "out/{{i}}"
    shell: "{stamp}"
"""

#: One worker after the other: the second, which nobody could foresee, comes up while nothing else is done.
LATER = """
def later(wildcards):
    checkpoints.first.get()
    return "out/second"

rule all:
    input: later

checkpoint first:
    output: "out/first"
    resources: dask_pool="early"
    shell: "{stamp}"

rule second:
    output: "out/second"
    resources: dask_pool="late"
    shell: "bash age.sh {{output}}"
"""
POOLS = """
pools:
  early: {cluster: local, workers: 0-1, cores: 1, memory: 1GB}
  late: {cluster: local, workers: 0-1, cores: 1, memory: 1GB}
"""
#: For how long the worker above this process has been there.
AGE = r"""
read -r now _ < /proc/uptime
process=$$
until [ $process -le 1 ] || tr '\0' ' ' < /proc/$process/cmdline | grep -q 'dask[.]worker '; do
    process=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$process/status)
done
awk -v now="$now" -v ticks="$(getconf CLK_TCK)" '{print now - $22 / ticks}' /proc/$process/stat > "$1"
"""

SLEEPERS = """
rule all:
    input: expand("out/{{i}}", i=range({number}))

rule one:
    output: "out/{{i}}"
    resources: cpus_per_task=0, mem_mb=100
    shell: "touch started.{{wildcards.i}}; sleep 600; touch {{output}}"
"""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to start jobs: arguments for one core, and for all of them, and how many jobs are worth the time."""

    name: str
    one_core: tuple[str, ...]
    all_cores: tuple[str, ...]
    jobs: int
    one_by_one: int


def ways(jobs: int, few: int, slurm: bool) -> Iterator[Way]:
    every = str(cores())
    yield Way("local executor", ("--cores", "1"), ("--cores", every), jobs, max(20, jobs // 10))
    yield Way(
        "dask, warm",
        (*DASK, "--dask-worker-cores", "1"),
        (*DASK, "--dask-worker-cores", every),
        jobs,
        max(20, jobs // 10),
    )
    cold = (*DASK, "--dask-job-start", "cold", "--dask-worker-cores")
    yield Way("dask, cold", (*cold, "1"), (*cold, every), few, few)
    if importlib.util.find_spec("snakemake_executor_plugin_cluster_generic") is not None:
        generic = ("--executor", "cluster-generic", "--cluster-generic-submit-cmd", "sh submit.sh")
        generic += ("--seconds-between-status-checks", "1", "--jobs")
        yield Way("cluster-generic", (*generic, "1"), (*generic, every), few, few)
    if slurm:
        executor = ("--executor", "slurm", "--seconds-between-status-checks", "1", "--default-resources", "mem_mb=500")
        executor += ("--slurm-init-seconds-before-status-checks", "1")
        executor += ("--slurm-status-command", "squeue", "--jobs")  # this Slurm keeps no accounts
        yield Way("Slurm executor, virtual Slurm", (*executor, "1"), (*executor, every), few, few)


def bash_s(directory: Path, number: int) -> float:
    """Seconds of one bare `bash -c`."""
    (directory / "out").mkdir(parents=True)
    started = time.monotonic()
    for i in range(number):
        subprocess.run(["bash", "-c", f"set -euo pipefail; echo $EPOCHREALTIME > out/{i}"], cwd=directory, check=True)
    return (time.monotonic() - started) / number


class Bench:
    """All rows on one machine, in one directory."""

    def __init__(self, directory: Path, rounds: int) -> None:
        self._directory = directory
        self._rounds = rounds

    def run(self, snakefile: str, *arguments: str) -> Timed:
        timed = snakemake(
            snakefile, "--latency-wait", "20", *arguments, directory=fresh(self._directory), files={"submit.sh": SUBMIT}
        )
        shutil.rmtree(timed.directory / ".snakemake")
        return timed

    def median(self, measure: Callable[[], float]) -> float:
        return median_of(self._rounds, measure)

    def one_by_one(self, known: list[Way]) -> None:
        heading("One trivial job after the other, on one core: what is above bare bash")
        bare = self.median(lambda: bash_s(fresh(self._directory), 50))
        row("bare bash -c", bare * 1e3, "ms")
        above = {}
        for way in known:
            interval = self.median(lambda way=way: self.run(trivial(way.one_by_one), *way.one_core).interval_s())
            above[way.name] = (interval - bare) * 1e3
            row(way.name, above[way.name], "ms above")
        row("cold to warm", above["dask, cold"], "ms", above["dask, cold"] / above["dask, warm"], "at least 30", "warm")

    def throughput(self, known: list[Way]) -> None:
        heading(f"Trivial jobs on {cores()} cores, from the first one's start to the last one's end")
        rates, runs = {}, {}
        for way in known:
            runs[way.name] = [self.run(trivial(way.jobs), *way.all_cores) for _ in range(self._rounds)]
            rates[way.name] = statistics.median(run.rate() for run in runs[way.name])
        warm = rates["dask, warm"]
        for name, rate in rates.items():
            aim = {"local executor": "at least 0.5; aim 1", "Slurm executor, virtual Slurm": "at least 50"}.get(
                name, ""
            )
            row(name, rate, "jobs/s", warm / rate, aim, "warm to it")
        for what, unit in (("wall_s", "s"), ("cpu_s", "s of CPU time")):
            local, own = (
                statistics.median(getattr(run, what) for run in runs[name]) for name in ("local executor", "dask, warm")
            )
            row("whole run, local executor", local, unit)
            row("whole run, dask, warm", own, unit, own / local, "at most 0.6" if what == "wall_s" else "", "local")

    def cpu(self, jobs: int) -> None:
        """Of so many jobs more, so that nothing of the start is in it."""
        heading(f"CPU time of each of {jobs} more trivial jobs, by process")
        local = self.median(lambda: self._each(jobs, "--cores", str(cores()))["all"])
        rounds = [self._each(jobs, *DASK) for _ in range(self._rounds)]
        row("local executor, all of it", local * 1e3, "ms")
        for name, roles, aim in (
            ("driver, worker and supervisor", ("driver", "worker", "supervisor"), "at most 0.3"),
            ("warm process and its children", ("jobs",), "at most 0.25"),
            ("Snakemake", ("Snakemake",), ""),
            ("all, with the shells", ("all",), ""),
        ):
            spent = statistics.median(sum(each[role] for role in roles) for each in rounds)
            row(name, spent * 1e3, "ms", spent / local, aim, "local")

    def _each(self, jobs: int, *arguments: str) -> dict[str, float]:
        """CPU time of a job, in seconds, of each role and of all."""
        few, many = (self._taken(number, arguments) for number in (jobs // 10, jobs // 10 + jobs))
        return {role: (many[role] - few[role]) / jobs for role in many}

    def _taken(self, jobs: int, arguments: tuple[str, ...]) -> dict[str, float]:
        with Census() as census:
            timed = self.run(trivial(jobs), *arguments)
        return {role: spent.cpu_s for role, spent in census.by_role().items()} | {"all": timed.cpu_s}

    def slow_workflow(self, number: int) -> None:
        heading("A workflow that takes 3 s to read, one job after the other")
        arguments = (*DASK, "--dask-worker-cores", "1")
        small = self.median(lambda: self.run(trivial(number), *arguments).interval_s()) * 1e3
        head = SLOW_HEAD.format(seconds=3)
        large = self.median(lambda: self.run(trivial(number, head=head), *arguments).interval_s()) * 1e3
        row("small workflow", small, "ms a job")
        row("slow workflow", large, "ms a job", large / small, "at most 20 ms more", "small")

    def chain(self, length: int) -> None:
        heading(f"A chain of {length} jobs, each the next one's input")
        snakefile = CHAIN.format(last=length - 1, stamp=STAMP)
        for name, arguments, aim in (
            ("local executor", ("--cores", str(cores())), ""),
            ("dask, warm", DASK, "at most 60"),
        ):
            link = self.median(lambda arguments=arguments: 1 / self.run(snakefile, *arguments).rate())
            row(name, link * 1e3, "ms a link", aim=aim)

    def startup(self, rounds: int) -> None:
        heading("From the command to the first job's process")
        firsts: dict[str, list[float]] = {"local executor": [], "dask": []}
        for _ in range(rounds):
            for name, arguments in (("local executor", ("--cores", str(cores()))), ("dask", DASK)):
                timed = self.run(trivial(1), *arguments)
                firsts[name].append(timed.stamps()[0] - timed.began)
        local, dask = (statistics.median(values) for values in firsts.values())
        row("local executor", local, "s")
        row("dask", dask, "s", dask / local, "at most 2.4", "local")

    def worker(self, rounds: int) -> None:
        heading("From a worker's start to its first job's process")
        imports, firsts = [], []
        command = [sys.executable, "-P", "-c", "import distributed, snakemake"]
        for _ in range(rounds):
            started = time.monotonic()
            subprocess.run(command, check=True)
            imports.append(time.monotonic() - started)
            directory, files = fresh(self._directory), {"pools.yaml": POOLS, "age.sh": AGE}
            snakemake(LATER.format(stamp=STAMP), *DASK, "--dask-pools", "pools.yaml", directory=directory, files=files)
            firsts.append(float((directory / "out/second").read_text()))
        import_s, first_s = statistics.median(imports), statistics.median(firsts)
        row("import distributed, snakemake", import_s, "s")
        row("a worker's first job", first_s, "s", first_s / import_s, "at most 1.5", "import")

    def files(self) -> None:
        heading("System calls that name a file, outside /proc and /sys, in a run of four small jobs")
        local = self._file_calls("--cores", "4")["Snakemake"]
        row("local executor, all of it", local, "")
        found = self._file_calls(*DASK)
        for role in ("Snakemake", "driver", "worker", "supervisor", "jobs"):
            row({"jobs": "warm process"}.get(role, role), found[role], "", found[role] / local, to="local")
        on_worker = sum(found[role] for role in ("worker", "supervisor", "jobs"))
        for base, value in (("local", local), ("Snakemake", found["Snakemake"])):
            aim = "at most 1.2" if base == "Snakemake" else ""
            row("worker, supervisor and warm process", on_worker, "", on_worker / value, aim, base)

    def _file_calls(self, *arguments: str) -> dict[str, int]:
        """Of the processes of each role, without children that only forked."""
        traces = fresh(self._directory)
        traces.mkdir()
        command = ("strace", "-ff", "-s", "200", "-e", "trace=%file", "-o", os.fspath(traces / "of"))
        snakemake(
            trivial(4),
            *arguments,
            directory=fresh(self._directory),
            python=(*command, sys.executable, "-m", "snakemake"),
        )
        found = dict.fromkeys(ROLES.values(), 0)
        for trace in traces.iterdir():
            lines = trace.read_text(errors="replace").splitlines()
            executed = next((line for line in lines if line.startswith("execve(")), "").replace('", "', " ")
            role = next((name for part, name in ROLES.items() if part in executed), None)
            if role is not None:
                found[role] += sum('"/proc' not in line and '"/sys' not in line for line in lines)
        return found

    def memory(self, number: int) -> None:
        heading(f"Memory of {number} jobs that sleep at once on one worker")
        directory = fresh(self._directory)
        directory.mkdir()
        (directory / "Snakefile").write_text(SLEEPERS.format(number=number))
        with (directory / "output.txt").open("wb") as log:
            command = [sys.executable, "-m", "snakemake", "--scheduler", "firstfit", *DASK]
            process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log, start_new_session=True)
            with ending(process):
                deadline = time.monotonic() + 300
                while len(list(directory.glob("started.*"))) < number:
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise RuntimeError((directory / "output.txt").read_text())
                    time.sleep(0.5)
                time.sleep(2)
                held = job_memory_mb(directory)
        row("a job's process, without its shell", statistics.median(held), "MB (PSS)", aim="at most 15")

    def cold_against_bare(self, rounds: int) -> None:
        heading("A cold job against its bare child command, one core")
        timed = self.run(trivial(rounds), *DASK, "--dask-job-start", "cold", "--dask-worker-cores", "1")
        interval = timed.interval_s()
        bare = statistics.median(child_commands_s(fresh(self._directory), rounds, 1))
        row("bare child command", bare, "s")
        row("cold job", interval, "s", interval / bare, "at most 1.1", "bare")

    def against_xargs(self, number: int) -> None:
        heading(f"Jobs of 1 s on {cores()} cores, cold, against xargs with the same child commands")
        snakefile = trivial(number, "sleep 1; " + STAMP)
        timed = self.run(snakefile, *DASK, "--dask-job-start", "cold")
        ours = timed.rate()
        directory = fresh(self._directory)
        child_commands_s(directory, number, cores(), "sleep 1; " + STAMP)
        stamps = sorted(float(path.read_text()) for path in (directory / "out").iterdir())
        theirs = (len(stamps) - 1) / (stamps[-1] - stamps[0])
        row(f"xargs -P {cores()}", theirs, "jobs/s")
        row("dask, cold", ours, "jobs/s", ours / theirs, "at least 0.95", "xargs")


def job_memory_mb(directory: Path) -> list[float]:
    """PSS of the processes that lead jobs' sessions, in runs of a directory."""
    held = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.readlink(entry / "cwd") != os.fspath(directory) or os.getsid(int(entry.name)) != int(entry.name):
                continue
            name = (entry / "cmdline").read_bytes()
            if b"worker.warm" in name and (entry / "task" / entry.name / "children").read_text().split():
                held.append(pss_mb(int(entry.name)))
        except OSError:
            continue
    if len(held) < 2:
        raise RuntimeError("the jobs' processes were not found")
    # The warm process itself has the jobs as children, and holds the most.
    return sorted(held)[:-1]


def child_commands_s(directory: Path, number: int, at_once: int, command: str = STAMP) -> list[float]:
    """Run the child commands that the plugin would start, by `xargs`; seconds of each."""
    from system.warm_harness import plan

    (directory / "out").mkdir(parents=True)
    (directory / "Snakefile").write_text(trivial(number, command))
    setup, specs = plan(directory)
    lines = []
    for n, spec in enumerate(specs):
        arguments = [setup.python, "-m", "snakemake", *spec.arguments, *setup.general_arguments]
        path = directory / f"child{n}"
        quoted = " ".join("'" + part.replace("'", "'\\''") + "'" for part in arguments)
        path.write_text(f"s=$EPOCHREALTIME; {quoted} >/dev/null 2>&1 || exit 255; echo $s $EPOCHREALTIME > time{n}\n")
        lines.append(os.fspath(path))
    subprocess.run(
        ["xargs", "-P", str(at_once), "-n", "1", "bash"], input="\n".join(lines), text=True, cwd=directory, check=True
    )
    times = [[float(value) for value in path.read_text().split()] for path in directory.glob("time*")]
    return [later - former for former, later in times]


@contextmanager
def virtual_slurm(directory: Path, wanted: bool) -> Iterator[bool]:
    """A real Slurm of virtual nodes, where it and the Slurm executor are installed and it is wanted."""
    found = importlib.util.find_spec("snakemake_executor_plugin_slurm") is not None
    if not wanted or not found or shutil.which("slurmctld", path=os.environ["PATH"] + ":/usr/sbin") is None:
        yield False
        return
    from clusters.slurm import VirtualSlurm

    cluster = VirtualSlurm(directory / "slurm")
    cluster.up()
    before = dict(os.environ)
    os.environ["SLURM_CONF"] = os.fspath(cluster.conf)
    os.environ["PATH"] = with_commands(directory / "bin", cluster.conf)
    try:
        yield True
    finally:
        os.environ.clear()
        os.environ.update(before)
        cluster.down()


def main() -> None:
    parts = (
        "one_by_one",
        "throughput",
        "cpu",
        "slow_workflow",
        "chain",
        "startup",
        "worker",
        "files",
        "memory",
        "cold_against_bare",
        "against_xargs",
    )
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=500)
    options.add_argument("--few", type=int, default=20, help="jobs where each takes seconds")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--slurm", action="store_true", help="with the Slurm executor on a virtual Slurm")
    options.add_argument("--only", nargs="+", choices=parts, default=parts)
    chosen = options.parse_args()
    with scratch() as directory, virtual_slurm(directory, chosen.slurm) as slurm:
        (directory / "runs").mkdir()
        bench = Bench(directory / "runs", chosen.rounds)
        known = list(ways(chosen.jobs, chosen.few, slurm))
        for part in chosen.only:
            match part:
                case "one_by_one":
                    bench.one_by_one(known)
                case "throughput":
                    bench.throughput(known)
                case "cpu":
                    bench.cpu(chosen.jobs)
                case "slow_workflow":
                    bench.slow_workflow(max(20, chosen.jobs // 10))
                case "chain":
                    bench.chain(50)
                case "startup":
                    bench.startup(max(5, chosen.rounds) if chosen.rounds > 1 else 1)
                case "worker":
                    bench.worker(max(5, chosen.rounds) if chosen.rounds > 1 else 1)
                case "files" if shutil.which("strace") is None:
                    print("files: left out, since there is no strace")
                case "files":
                    bench.files()
                case "memory":
                    bench.memory(50)
                case "cold_against_bare":
                    bench.cold_against_bare(max(5, chosen.few // 2))
                case "against_xargs":
                    bench.against_xargs(chosen.few)


if __name__ == "__main__":
    main()
