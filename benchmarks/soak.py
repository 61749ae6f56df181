"""A long run of a realistic workflow under random kills: what was run twice, lost, wrong, or left over.

    ./run bench soak --minutes 10 [--jobs 2000] [--slurm] [--kill-every 15] [--seed N] [--keep DIR]

Kills workers, supervisors and warm processes (on the virtual Slurm also cancels allocations) at random. The worker that
came first is spared, so that what it leaks can be seen. Prints what it found; exit code 1 where anything is wrong.
Starts processes, and ends only its own.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from clusters.slurm import VirtualSlurm
from running import SnakemakeRun

from snakemake_executor_plugin_dask.node.processes import children_of

#: Chains, groups, fan-in, jobs that fail at first, outputs that go when they are needed no more. Each job says when
#: it started, that it lives, and when it ended: what has a line after another attempt's start ran beside it.
SNAKEFILE = '''
SAMPLES = [f"s{n:04}" for n in range(int(config["samples"]))]
TENS = [SAMPLES[n:n + 10] for n in range(0, len(SAMPLES), 10)]

shell.prefix("set -euo pipefail; source ./say.sh; ")

wildcard_constraints:
    s="s[0-9]+"

rule all:
    input: "out/all.txt"

rule source:
    output: temp("work/{s}.source")
    shell: "live source.{wildcards.s}; echo {wildcards.s} | sha256sum > {output}; say end"

rule first:
    input: "work/{s}.source"
    output: temp("work/{s}.first")
    shell: "live first.{wildcards.s}; rev {input} > {output}; say end"

rule flaky:
    input: "work/{s}.first"
    output: "out/{s}.second"
    retries: 2
    resources: turn=lambda wildcards, attempt: attempt
    shell:
        """
        live flaky.{wildcards.s}
        test {resources.turn} -gt 1 || [[ {wildcards.s} != *7 ]]
        sha256sum < {input} > {output}
        say end
        """

rule left:
    input: "out/{s}.second"
    output: "out/{s}.left"
    group: "sides"
    shell: "live left.{wildcards.s}; tr a-f A-F < {input} > {output}; say end"

rule right:
    input: "out/{s}.left"
    output: "out/{s}.right"
    group: "sides"
    shell: "live right.{wildcards.s}; rev {input} > {output}; say end"

rule ten:
    input: lambda wildcards: [f"out/{s}.right" for s in TENS[int(wildcards.n)]]
    output: "out/ten{n}.txt"
    shell: "live ten.{wildcards.n}; cat {input} | sha256sum > {output}; say end"

rule whole:
    input: expand("out/ten{n}.txt", n=range(len(TENS)))
    output: "out/all.txt"
    shell: "live whole; cat {input} > {output}; say end"
'''

SAY = """
say() { echo "$1 $JOB ${SNAKEMAKE_DASK_JOB:-local} $EPOCHREALTIME" >> log.txt; }
live() { JOB=$1; say start; for _ in 1 2 3 4 5; do sleep PAUSE; say lives; done; }
"""

JOBS_OF_A_SAMPLE = 5.1
SLOTS = 6
_WARM_UP = 0.25  # of the run, in which caches fill
_GROWTH_MB = 60


@dataclass
class Findings:
    """What is wrong, and what was seen."""

    wrong: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def expect(self, holds: bool, text: str) -> None:
        (self.seen if holds else self.wrong).append(text)


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one process at one moment. Memory in 10^6 bytes."""

    at: float
    kind: str
    pid: int
    memory_mb: float
    descriptors: int


class Killer(threading.Thread):
    """Kills something of the run every now and then, and notes what all its processes hold."""

    def __init__(self, run: SnakemakeRun, scratch: Path, every_s: float, seed: int, cancel: "Cancel | None") -> None:
        super().__init__(daemon=True)
        self._run_of = run
        self._scratch = scratch
        self._every_s = every_s
        self._random = random.Random(seed)
        self._cancel = cancel
        self._over = threading.Event()
        self.killed: dict[str, int] = defaultdict(int)
        self.samples: list[Sample] = []
        self.files: list[tuple[float, int]] = []  # in the directory for temporary files, over time

    def run(self) -> None:
        strike = time.monotonic() + self._every_s
        while not self._over.wait(2.0):
            self.samples += samples_of(self._run_of.processes())
            self.files.append((time.time(), sum(1 for _ in self._scratch.rglob("*"))))
            if time.monotonic() >= strike and self._run_of.process.poll() is None:
                strike = time.monotonic() + self._random.uniform(0.5, 1.5) * self._every_s
                self._strike()

    def end(self) -> None:
        self._over.set()
        self.join(30)

    def _strike(self) -> None:
        victims: list[tuple[str, int]] = []
        living = self._run_of.processes()
        joined = self._run_of.events("worker-joined")
        for event in joined[1:]:
            facts = event["facts"]
            # One that has just come up is left to do something first.
            if facts["pid"] in living and time.time() - event["t"] > 5:
                victims += [("worker", facts["pid"]), ("supervisor", facts["supervisor_pid"])]
                warm = [pid for pid in children_of(facts["supervisor_pid"]) if KINDS["warm"] in living.get(pid, "")]
                victims += [("warm process", pid) for pid in warm if children_of(pid)]
        if self._cancel is not None and joined and self._random.random() < 0.3:
            what = self._cancel(self._random, joined[0]["facts"]["allocation_id"])
            if what:
                self.killed[what] += 1
            return
        if victims:
            kind, pid = self._random.choice(victims)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.killed[kind] += 1


#: Cancels one of the allocations, but not the one that is named; says what it did.
Cancel = Callable[[random.Random, str], str]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def samples_of(processes: dict[int, str]) -> list[Sample]:
    found = []
    for pid, command in processes.items():
        kind = next((name for name, part in KINDS.items() if part in command), "")
        with contextlib.suppress(OSError, ValueError, IndexError):
            if kind == "warm" and KINDS["supervisor"] not in processes.get(parent(pid), ""):
                continue  # a job that was forked from it
            if kind:
                memory_mb = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
                found.append(Sample(time.time(), kind, pid, memory_mb, len(os.listdir(f"/proc/{pid}/fd"))))
    return found


KINDS = {
    "driver": "snakemake_executor_plugin_dask.driver",
    "supervisor": "snakemake_executor_plugin_dask.worker.supervisor",
    "warm": "snakemake_executor_plugin_dask.worker.warm",
    "worker": "snakemake_executor_plugin_dask.worker ",
    "Snakemake": "-m snakemake --executor",
}


def soak(
    directory: Path,
    *,
    jobs: int,
    minutes: float,
    kill_every_s: float,
    seed: int,
    arguments: tuple[str, ...] = ("--dask-workers", "3", "--dask-worker-cores", "2"),
    cancel: Cancel | None = None,
) -> Findings:
    """Run the workflow once with the local executor and once under kills, and compare."""
    samples = max(10, round(jobs / JOBS_OF_A_SAMPLE))
    pause = max(0.1, minutes * 60 * SLOTS / (samples * JOBS_OF_A_SAMPLE))
    config = ("--config", f"samples={samples}")
    for name, each in (("local", 0.0), ("dask", pause)):
        (directory / name).mkdir(parents=True)
        (directory / name / "say.sh").write_text(SAY.replace("PAUSE", f"{each / 5:.3f}"))
    findings = Findings()
    local = SnakemakeRun(directory / "local", SNAKEFILE, *config, executor="local")
    try:
        if local.wait(1800) != 0:
            findings.wrong.append(f"the local run failed:\n{local.output[-3000:]}")
            return findings
    finally:
        local.end()
    scratch = directory / "tmp"
    scratch.mkdir()
    before, os.environ["TMPDIR"] = os.environ.get("TMPDIR"), os.fspath(scratch)
    try:
        more = ("--dask-lost-worker-retries", "1000", *arguments)
        run = SnakemakeRun(directory / "dask", SNAKEFILE, *more, *config)
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
    killer = Killer(run, scratch, kill_every_s, seed, cancel)
    began = time.monotonic()
    killer.start()
    try:
        code = run.wait(minutes * 60 * 3 + 1800)
        took_s = time.monotonic() - began
        killer.end()
        findings.expect(code == 0, f"exit code {code}" + ("" if code == 0 else f"\n{run.output[-4000:]}"))
        _look_at_rest(run, scratch, 10.0 if cancel is None else 60.0, findings)
    finally:
        killer.end()
        run.end()
    killed = ", ".join(f"{number} {kind}" for kind, number in sorted(killer.killed.items())) or "nothing"
    findings.expect(bool(killer.killed), f"killed in {took_s:.0f} s: {killed}")
    _look_at_outputs(local.directory, run.directory, findings)
    _look_at_log(run.directory / "log.txt", findings)
    _look_at_samples(killer.samples, findings)
    _look_at_files(killer.files, findings)
    return findings


def _look_at_rest(run: SnakemakeRun, scratch: Path, within_s: float, findings: Findings) -> None:
    ended = time.monotonic()
    while (living := run.processes()) and time.monotonic() < ended + within_s:
        time.sleep(0.2)
    took = f" {time.monotonic() - ended:.1f} s after Snakemake's end"
    findings.expect(not living, f"processes left{took}: {living or 'none'}")
    # Any Snakemake makes a directory there when it starts; one of a cold start that is killed cannot remove it.
    killed = [path for path in scratch.glob("snakemake????????") if not any(path.iterdir())]
    left = [os.fspath(path.relative_to(scratch)) for path in scratch.rglob("*") if path not in killed]
    findings.expect(
        not left, f"temporary files left: {left[:10] or 'none'}; empty directories of killed Snakemakes: {len(killed)}"
    )
    # Of an attempt that failed, those of its lost runs stay, too (`….log.2`).
    logs = {path.name.partition(".log")[0] for path in (run.directory / ".snakemake/dask_logs").glob("*/*.log*")}
    failed = {event["key"] for event in run.events("job-finished")}
    findings.expect(
        len(logs) <= len(failed), f"{len(failed)} attempts failed, logs left of {len(logs)}: {sorted(logs)[:3]}"
    )
    state = run.directory / ".snakemake" / "dask"
    kept = [path.name for path in state.iterdir() if not path.name.endswith(".events.jsonl")]
    findings.expect(not kept, f"state directories left: {kept or 'none'}")


def digests(directory: Path) -> dict[str, str]:
    """Of all files that the workflow keeps."""
    return {
        os.fspath(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for name in ("out", "work")
        for path in (directory / name).rglob("*")
        if path.is_file()
    }


def _look_at_outputs(local: Path, other: Path, findings: Findings) -> None:
    expected, found = digests(local), digests(other)
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    findings.expect(
        not differing, f"{len(expected)} outputs, different from the local run's: {differing[:10] or 'none'}"
    )


def _look_at_log(path: Path, findings: Findings) -> None:
    """One at a time: nothing is heard of an attempt once a later one of the same job has started."""
    attempts: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    starts: dict[tuple[str, str], int] = defaultdict(int)
    ended: set[str] = set()
    for line in path.read_text().splitlines():
        what, job, key, at = line.split()
        attempts[job][key].append(float(at))
        starts[job, key] += what == "start"
        if what == "end":
            ended.add(job)
    twice = sorted(attempt for attempt, number in starts.items() if number != 1)
    findings.expect(not twice, f"{len(starts)} attempts, not started exactly once: {twice[:5] or 'none'}")
    together = []
    for job, by_key in attempts.items():
        spans = sorted((min(times), max(times), key) for key, times in by_key.items())
        together += [(job, one[2], other[2]) for one, other in itertools.pairwise(spans) if one[1] > other[0]]
    number = sum(len(by_key) for by_key in attempts.values())
    findings.expect(not together, f"{len(attempts)} jobs in {number} attempts, two at once: {together[:5] or 'none'}")
    lost = sorted(attempts.keys() - ended)
    findings.expect(not lost, f"jobs that never ended: {lost[:10] or 'none'}")


def _look_at_samples(samples: list[Sample], findings: Findings) -> None:
    """What lives all the time must not grow; what is killed and replaced stays within bounds."""
    if not samples:
        findings.wrong.append("no process was seen")
        return
    begin, end = samples[0].at, samples[-1].at
    for kind in KINDS:
        of_kind = [sample for sample in samples if sample.kind == kind]
        if not of_kind:
            findings.wrong.append(f"no {kind} was seen")
            continue
        memory_mb, descriptors = _most(of_kind)
        text = f"{kind}: at most {memory_mb:.0f} MB, {descriptors} descriptors"
        findings.expect(memory_mb < 500 and descriptors < 150, text)
        by_pid: dict[int, list[Sample]] = defaultdict(list)
        for sample in of_kind:
            by_pid[sample.pid].append(sample)
        lasting = [of_one for of_one in by_pid.values() if of_one[-1].at - of_one[0].at > 0.5 * (end - begin)]
        for of_one in lasting:
            since = of_one[0].at + _WARM_UP * (end - begin)
            early = _most([sample for sample in of_one if sample.at <= since])
            late = _most([sample for sample in of_one if sample.at > since])
            grown_mb, more = late[0] - early[0], late[1] - early[1]
            life_s = of_one[-1].at - of_one[0].at
            text = f"one {kind} that lived for {life_s:.0f} s: {grown_mb:+.0f} MB and {more:+} descriptors"
            findings.expect(grown_mb < _GROWTH_MB and more < 25, f"{text} after the first {since - of_one[0].at:.0f} s")
        if not lasting and kind != "warm":
            findings.wrong.append(f"no {kind} lived through the run, so nothing is known of what it leaks")


def _most(samples: list[Sample]) -> tuple[float, int]:
    return max(sample.memory_mb for sample in samples), max(sample.descriptors for sample in samples)


def _look_at_files(files: list[tuple[float, int]], findings: Findings) -> None:
    """Temporary files must not pile up while the run goes on."""
    early = max((number for _, number in files[: max(1, round(len(files) * _WARM_UP))]), default=0)
    most = max((number for _, number in files), default=0)
    findings.expect(most - early < 30, f"temporary files in the run: at most {most}, in its first quarter {early}")


@contextlib.contextmanager
def virtual_slurm(directory: Path) -> Iterator[tuple[VirtualSlurm, Cancel]]:
    """A Slurm for the run, and the way to cancel one of its allocations."""
    cluster = VirtualSlurm(directory / "slurm")
    cluster.up()
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = os.fspath(cluster.conf)

    def cancel(chance: random.Random, spared: str) -> str:
        running = [number for line in cluster.queue() if " RUNNING " in line and (number := line.split()[0]) != spared]
        if not running:
            return ""
        cluster.run("scancel", chance.choice(running), check=False)
        return "allocation cancelled"

    try:
        yield cluster, cancel
    finally:
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
        cluster.down()


SLURM = (
    "--dask-cluster",
    "slurm",
    "--dask-workers",
    "0-3",
    "--dask-worker-cores",
    "2",
    "--dask-worker-memory",
    "2GB",
    "--dask-walltime",
    "30m",
)


def main() -> int:
    options = argparse.ArgumentParser(prog="./run bench soak", description=(__doc__ or "").split("\n")[0])
    options.add_argument("--minutes", type=float, default=10.0, help="at least so long, by longer jobs")
    options.add_argument("--jobs", type=int, default=2000)
    options.add_argument("--kill-every", type=float, default=15.0, metavar="SECONDS")
    options.add_argument("--seed", type=int, default=int(time.time()))
    options.add_argument("--slurm", action="store_true", help="on a virtual Slurm, with allocations cancelled too")
    options.add_argument("--keep", type=Path, metavar="DIR", help="run there, and leave everything to be looked at")
    chosen = options.parse_args()
    directory = chosen.keep or Path(tempfile.mkdtemp(prefix="soak-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(f"seed {chosen.seed}, in {directory}", flush=True)
    more = {"jobs": chosen.jobs, "minutes": chosen.minutes, "kill_every_s": chosen.kill_every, "seed": chosen.seed}
    if chosen.slurm:
        with virtual_slurm(directory) as (cluster, cancel):
            findings = soak(directory, **more, arguments=SLURM, cancel=cancel)
            left = cluster.queue()
            findings.expect(not left, f"allocations left: {left or 'none'}")
    else:
        findings = soak(directory, **more)
    for text in findings.seen:
        print(f"  {text}")
    for text in findings.wrong:
        print(f"WRONG: {text}")
    if not findings.wrong and chosen.keep is None:
        shutil.rmtree(directory)
    return 1 if findings.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
