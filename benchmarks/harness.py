"""What the benchmarks share: a timed Snakemake run in a directory of its own, and tables of ratios.

Starts processes. A job says when it ran by writing bash's `$EPOCHREALTIME` into its output, which needs no process.
"""

import contextlib
import itertools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

#: Lifts what holds every executor back alike: the ILP scheduler, and the limit of jobs started in a second.
UNLIMITED = ("--scheduler", "firstfit", "--max-jobs-per-timespan", "100000/1s")

#: Independent jobs that write the time.
TRIVIAL = """
rule all:
    input: expand("out/{{i}}", i=range({number}))

rule one:
    output: "out/{{i}}"
    shell: "{command}"
"""

STAMP = "echo $EPOCHREALTIME > {output}"


@dataclass(frozen=True, slots=True)
class Timed:
    """A Snakemake run that succeeded. CPU time is that of Snakemake and all processes it waited for."""

    wall_s: float
    cpu_s: float
    began: float  # epoch, just before the command
    directory: Path
    output: str

    def stamps(self) -> list[float]:
        """When each job wrote its output (epoch), in order."""
        return sorted(float(path.read_text()) for path in (self.directory / "out").iterdir())

    def rate(self) -> float:
        """Jobs a second, from the first one's to the last one's stamp."""
        stamps = self.stamps()
        return (len(stamps) - 1) / (stamps[-1] - stamps[0])

    def interval_s(self) -> float:
        """The median time between two stamps: what a job costs where one runs after the other."""
        stamps = self.stamps()
        return statistics.median(later - former for former, later in itertools.pairwise(stamps))


def snakemake(
    snakefile: str,
    *arguments: str,
    directory: Path,
    environment: Mapping[str, str] | None = None,
    python: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    timeout_s: float = 900.0,
) -> Timed:
    """Run a workflow; RuntimeError with its output if it fails. ``python`` runs instead of ``python -m snakemake``."""
    directory.mkdir(parents=True)
    (directory / "Snakefile").write_text(snakefile)
    for name, text in (files or {}).items():
        (directory / name).write_text(text)
    command = [*(python or (sys.executable, "-m", "snakemake")), *UNLIMITED, *arguments]
    log = directory / "output.txt"
    before, began, started = os.times(), time.time(), time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        with ending(process):
            code = process.wait(timeout_s)
    wall_s, after = time.monotonic() - started, os.times()
    text = log.read_text(errors="replace")
    if code:
        raise RuntimeError(f"{' '.join(command)} in {directory} ended with {code}:\n{text[-3000:]}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Timed(wall_s, cpu_s, began, directory, text)


@contextlib.contextmanager
def ending(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Whatever happens, the run is over afterwards."""
    try:
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def cores() -> int:
    """Of this machine, as far as this process may use them."""
    return len(os.sched_getaffinity(0))


def trivial(number: int, command: str = STAMP, head: str = "") -> str:
    return head + TRIVIAL.format(number=number, command=command)


def median_of(rounds: int, measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(rounds))


def with_commands(directory: Path, slurm_conf: Path) -> str:
    """A PATH on which Slurm's commands find a virtual Slurm by themselves.

    The Slurm executor takes all variables of Slurm away from its jobs, its configuration's among them.
    """
    directory.mkdir()
    for name in ("sbatch", "srun", "squeue", "sinfo", "scancel", "scontrol", "sacct"):
        program = shutil.which(name)
        if program is not None:
            (directory / name).write_text(f'#!/bin/sh\nSLURM_CONF={slurm_conf} exec {program} "$@"\n')
            (directory / name).chmod(0o755)
    return f"{directory}{os.pathsep}{os.environ['PATH']}"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory for runs, removed afterwards; fresh ones are made below it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        yield Path(name)


def fresh(parent: Path) -> Path:
    """The name of a directory that does not exist yet."""
    return parent / f"run{len(list(parent.iterdir()))}"


def row(name: str, value: float, unit: str, ratio: float | None = None, aim: str = "", to: str = "") -> None:
    """One line of a table: a figure, its ratio to another row's, and what is aimed at."""
    against = "" if ratio is None else f"{ratio:9.2f} = {to}"
    print(f"{name:<46}{value:>11.4g} {unit:<10}{against:<34}{aim}", flush=True)


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)
