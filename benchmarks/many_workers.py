"""One driver with few workers and with a thousand: joining, dispatch, losses. Only jobs' processes are made up."""

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from harness import heading, row, scratch
from running import wait_for
from simulated import FIGURES, HOSTS

HERE = Path(__file__).resolve().parent
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
KINDS = 50
EACH = 100  # jobs in a message


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) * _TICK_S


class Hosts:
    """Processes that hold workers."""

    def __init__(self, directory: Path, number: int) -> None:
        self.paths = [directory / f"host{i}" for i in range(number)]
        self.processes = [
            subprocess.Popen([sys.executable, "-P", str(HERE / "simulated.py"), "host", str(path)])
            for path in self.paths
        ]
        wait_for(lambda: all(path.exists() for path in self.paths), "hosts", 120)

    def ask(self) -> list[dict]:
        """What each that lives says of its workers."""
        found = []
        for path, process in zip(self.paths, self.processes, strict=True):
            if process.poll() is None:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(os.fspath(path))
                    sock.sendall(b"{}\n")
                    with sock.makefile() as file:
                        found.append(json.loads(file.readline()))
        return found

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


class Driver:
    """The driver's process, and what it says, as Snakemake's hears it."""

    def __init__(self, directory: Path, hosts: Hosts, workers: int, cores: int) -> None:
        from snakemake_executor_plugin_dask.model.jobs import RunSetup
        from snakemake_executor_plugin_dask.model.messages import Begin
        from snakemake_executor_plugin_dask.model.options import Options
        from snakemake_executor_plugin_dask.model.pools import Pool
        from snakemake_executor_plugin_dask.model.wire import Channel

        state = directory / "state"
        state.mkdir(mode=0o700)
        self.figures = directory / "figures.json"
        ours, theirs = socket.socketpair()
        environment = os.environ | {HOSTS: os.pathsep.join(map(str, hosts.paths)), FIGURES: str(self.figures)}
        command = [sys.executable, "-P", str(HERE / "simulated.py"), "driver", "--fd", str(theirs.fileno())]
        with theirs, (state / "driver.log").open("wb") as log:
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self._socket, self._channel = ours, Channel(ours)
        pool = Pool("default", "slurm", workers, workers, cores, 1000 * cores, idle_timeout_s=3600.0)
        setup = RunSetup(
            run_id="bench123",
            workdir=os.fspath(directory),
            umask=0o22,
            soft_limits=(),
            environment={},
            replace_environment=True,
            python=sys.executable,
            snakefile="Snakefile",
            general_arguments=(),
            snakemake_version="",
            plugin_version="",
        )
        options = Options((pool,), local_by_default=False)
        self._channel.send(Begin(setup, options, os.fspath(state), os.fspath(directory / "events.jsonl")))
        self.finished: dict[str, str] = {}

    def enqueue(self, first: int, number: int, seconds: int) -> None:
        """Jobs of fifty kinds, in messages as Snakemake's process sends them."""
        from snakemake_executor_plugin_dask.model.jobs import JobSpec
        from snakemake_executor_plugin_dask.model.messages import Enqueue, QueuedJob
        from snakemake_executor_plugin_dask.model.requests import Request

        for begin in range(first, first + number, EACH):
            jobs = []
            for i in range(begin, min(begin + EACH, first + number)):
                kind = i % KINDS
                spec = JobSpec(
                    key=f"rule{kind}-bench123-{i}-1.1",
                    name=f"rule{kind}",
                    jobid=str(i),
                    attempt=1,
                    arguments=(),
                    max_threads=seconds,
                    log_path="/dev/null",
                    wildcards=(("sample", str(i)),),
                )
                jobs.append(QueuedJob.of(spec, Request(1 + kind % 4, 200 + 10 * kind, float(60 * (1 + kind % 5)))))
            self._channel.send(Enqueue(tuple(jobs)))

    def hear_until(self, enough, what: str, timeout_s: float) -> None:
        """Read what it says until ``enough()``; that is looked at after each message, and every second."""
        from snakemake_executor_plugin_dask.model.messages import Fatal, Finished, Together

        deadline = time.monotonic() + timeout_s
        while not enough():
            if not select.select([self._socket], [], [], 1.0)[0]:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError(f"{what}: not within {timeout_s:.0f} s")
                continue
            message = self._channel.receive()
            for each in message.messages if isinstance(message, Together) else (message,):
                match each:
                    case Finished(key, outcome):
                        if key in self.finished:
                            raise RuntimeError(f"{key} was reported twice")
                        self.finished[key] = outcome.status
                    case Fatal(text):
                        raise RuntimeError(text)

    def end(self) -> None:
        from snakemake_executor_plugin_dask.model.messages import Stop

        if self.process.poll() is None:
            with contextlib.suppress(BrokenPipeError):
                self._channel.send(Stop(kill=False))
            try:
                self.process.wait(300)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def measure(directory: Path, workers: int, jobs: int, cores: int, seconds: int, lost: bool) -> None:
    heading(f"{workers:,} workers of {cores} cores, {jobs:,} jobs of {KINDS} kinds")
    hosts = Hosts(directory, max(2, min(10, workers // 5)))
    driver = None
    try:
        began = time.monotonic()
        driver = Driver(directory, hosts, workers, cores)
        pid = driver.process.pid
        driver.enqueue(0, 1, 1)  # workers come with the first job
        events = directory / "events.jsonl"

        def joined() -> int:
            return events.read_text().count('"worker-joined"') if events.exists() else 0

        driver.hear_until(lambda: joined() >= workers, "all workers joined", 900)
        row("all joined", time.monotonic() - began, "s", aim="at most 60")
        row("CPU of the driver by then", cpu_s(pid) / workers * 1e3, "ms a worker")
        before, began = cpu_s(pid), time.monotonic()
        time.sleep(20)
        row("CPU of the driver, idle", (cpu_s(pid) - before) / (time.monotonic() - began) * 100, "% of a core")
        before, began = cpu_s(pid), time.monotonic()
        driver.enqueue(1, jobs, seconds)
        if lost:
            driver.hear_until(lambda: len(driver.finished) > jobs // 4, "a quarter of the jobs", 3600)
            at_once = min(len(hosts.processes) // 2, max(1, len(hosts.processes) // 10))
            gone = sum(host["workers"] for host in hosts.ask()[:at_once])
            for process in hosts.processes[:at_once]:
                process.kill()
        driver.hear_until(lambda: len(driver.finished) > jobs, "all jobs", 3600)
        spent, took = cpu_s(pid) - before, time.monotonic() - began
        row("CPU of the driver", spent / jobs * 1e3, "ms a job", aim="at most 1.4")
        row("from the first to the last", took / jobs * 1e3, "ms a job")
        bad = sorted(set(driver.finished.values()) - {"succeeded"})
        if bad:
            raise RuntimeError(f"jobs ended as {bad}")
        figures = json.loads(driver.figures.read_text())
        row("longest placement (CPU)", figures["place_s"] * 1e3, "ms")
        row("longest estimate of demand (CPU)", figures["demand_s"] * 1e3, "ms")
        row("longest garbage collection (CPU)", figures["gc_s"] * 1e3, "ms")
        row("longest silence of the driver's loop", figures["lag_s"], "s")
        if lost:
            row("workers lost at once", gone, "")
        row(
            "longest time between two renewals",
            max(host["longest_s"] for host in hosts.ask()),
            "s",
            aim="a lease has 60",
        )
    finally:
        try:
            if driver is not None:
                driver.end()
        finally:
            hosts.end()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1_000])
    options.add_argument("--jobs", type=int, default=100_000)
    options.add_argument("--cores", type=int, default=64, help="of each worker")
    options.add_argument("--seconds", type=int, default=1, help="that a job takes")
    options.add_argument("--no-losses", action="store_true", help="lose no workers while jobs run")
    chosen = options.parse_args()
    for workers in chosen.workers:
        with scratch() as directory:
            measure(directory, workers, chosen.jobs, chosen.cores, chosen.seconds, not chosen.no_losses)
            shutil.rmtree(directory / "state", ignore_errors=True)


if __name__ == "__main__":
    main()
