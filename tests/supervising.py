"""The worker's end of a supervisor's socket pair, for tests: starts a real supervisor and talks to it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from running import wait_for

from snakemake_executor_plugin_dask.model.job_messages import Ended, Setup, Start, Started
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome, RunSetup
from snakemake_executor_plugin_dask.model.wire import Channel
from snakemake_executor_plugin_dask.node import processes, versions

PATIENCE_S = 60.0
RUN_ID = f"t{os.getpid():07}"  # several processes run tests at the same time, and each ends what carries its own


def run_setup(workdir: Path, **changes: Any) -> RunSetup:
    """What a run on this machine would send; jobs start cold unless told otherwise."""
    values: dict[str, Any] = {
        "run_id": RUN_ID,
        "workdir": str(workdir),
        "umask": 0o022,
        "soft_limits": (),
        "environment": dict(os.environ),
        "replace_environment": True,
        "python": sys.executable,
        "snakefile": str(workdir / "Snakefile"),
        "general_arguments": (),
        "snakemake_version": version("snakemake"),
        "plugin_version": versions.plugin_version(),
        "job_start": "cold",
        "stop_grace_s": 2.0,
    }
    return RunSetup(**{**values, **changes})


class FakeWorker:
    """Starts a supervisor, sends it messages, and collects its answers."""

    def __init__(self, directory: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self.directory = directory
        self._sock, theirs = socket.socketpair()
        self._channel = Channel(self._sock)
        self.stderr = directory / "supervisor.err"
        with theirs, self.stderr.open("wb") as err:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "snakemake_executor_plugin_dask.worker.supervisor"),
                    *("--fd", str(theirs.fileno()), *options),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=err,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
        self.outcomes: dict[str, Outcome] = {}
        self.ended_at: dict[str, float] = {}
        self.started: dict[str, int] = {}
        self.others: list[object] = []
        self._count = 0

    def send(self, message: object) -> None:
        self._channel.send(message)

    def start(self, command: str, name: str = "job", **changes: Any) -> str:
        """Start a job that is a shell script, without Snakemake; returns its key."""
        self._count += 1
        script = self.directory / f"{name}-{self._count}.sh"
        script.write_text("#!/bin/bash\n" + command + "\n")
        script.chmod(0o700)
        return self.submit(name, script=str(script), **changes)

    def submit(self, name: str = "job", **changes: Any) -> str:
        """Start a job; returns its key."""
        self._count += 1
        key = f"{name}-{RUN_ID}-{self._count}-1.1"
        values: dict[str, Any] = {
            "key": key,
            "name": name,
            "jobid": str(self._count),
            "attempt": 1,
            "arguments": (),
            "max_threads": 1,
            "log_path": str(self.directory / "logs" / f"{key}.log"),
        }
        self.send(Start(JobSpec(**{**values, **changes})))
        return key

    def outcome(self, key: str, patience_s: float = PATIENCE_S) -> Outcome:
        """Wait for a job's outcome."""
        self._until(lambda: key in self.outcomes, patience_s, f"no outcome of {key}")
        return self.outcomes[key]

    def wait_started(self, key: str) -> int:
        """Wait until a job was started; returns the number of its first process."""
        self._until(lambda: key in self.started, PATIENCE_S, f"{key} did not start")
        return self.started[key]

    def _until(self, condition: Callable[[], bool], patience_s: float, problem: str) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                message = self._channel.receive()
            except TimeoutError:
                raise AssertionError(f"{problem} within {patience_s} s; {self.stderr.read_text()}") from None
            except EOFError:
                raise AssertionError(f"{problem}: the supervisor left; {self.stderr.read_text()}") from None
            self._take(message)

    def _take(self, message: object) -> None:
        match message:
            case Started(key, pid):
                self.started[key] = pid
            case Ended(outcome, begun):
                if begun is not None:
                    self.started[begun.key] = begun.pid
                self.outcomes[outcome.key] = outcome
                self.ended_at[outcome.key] = time.time()
            case _:
                self.others.append(message)

    def close(self) -> None:
        """The worker's end: end of file for the supervisor."""
        self._channel.close()

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)


@contextmanager
def fake_worker(directory: Path, setup: RunSetup | None = None, *options: str, **keywords: Any) -> Iterator[FakeWorker]:
    """A supervisor that has been given a run; whatever is left of it is ended afterwards."""
    worker = FakeWorker(directory, *options, **keywords)
    worker.send(Setup(setup or run_setup(directory)))
    try:
        yield worker
    finally:
        worker.close()
        try:
            worker.process.wait(PATIENCE_S)
        finally:
            processes.kill_descendants(worker.process.pid)
            worker.process.kill()
            worker.process.wait()
            processes.send(marked_processes(), signal.SIGKILL)


def marked_processes(key: str = f"-{RUN_ID}-") -> list[int]:
    """Living processes that carry a key of the tests' run."""
    return [
        stat.pid
        for stat in processes.process_table().values()
        if not stat.dead and key in (processes.job_key(stat.pid) or "")
    ]


def alive(pid: int) -> bool:
    stat = processes.read_stat(pid)
    return stat is not None and not stat.dead


def pids_in(path: Path, count: int) -> list[int]:
    """Wait until a job has written so many process numbers to a file."""
    return wait_for(
        lambda: path.exists() and len(found := path.read_text().split()) >= count and [int(item) for item in found],
        f"{path} never held {count} numbers",
    )
