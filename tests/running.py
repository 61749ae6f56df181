"""Run a real Snakemake in a directory of its own, look at its processes, wait for conditions."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

GENEROUS_S = 180.0
RUN_S = 400.0  # a whole run, on a machine that others keep busy


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = GENEROUS_S) -> Any:
    """The condition's first true value; AssertionError that names it where there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)
    return value


def slowness() -> float:
    """How many times longer this machine takes just now than an idle one: 1 where nothing else wants its cores.

    By it a test stretches a limit that is a promise about a machine that is not busy.
    """
    began, until = time.monotonic(), time.thread_time() + 0.03
    while time.thread_time() < until:
        pass
    return max(1.0, (time.monotonic() - began) / 0.03)


def pss_mb(pid: int) -> float:
    """A process's memory, shared pages counted by their share, in 10^6 bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(pid)


def processes_of(text: str) -> dict[int, str]:
    """Living processes whose command line or environment holds a text: number to command line."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = Path("/proc", name, "cmdline").read_bytes()
            environment = Path("/proc", name, "environ").read_bytes()
            state = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and (text.encode() in command or text.encode() in environment):
                found[int(name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


class SnakemakeRun:
    """One Snakemake process in its own session, with all that it starts marked by an environment variable."""

    def __init__(self, directory: Path, snakefile: str, *arguments: str, executor: str = "dask") -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "Snakefile").write_text(snakefile)
        self.mark = f"SNAKEMAKE_TEST_MARK={directory}"
        command = [sys.executable, "-m", "snakemake", "--executor", executor, "--scheduler", "firstfit"]
        command += ["--max-jobs-per-timespan", "1000/1s"]
        command += ["--jobs", "500"] if executor == "dask" else ["--cores", "2"]
        self._output = directory / "output.txt"
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, *arguments],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ | dict([self.mark.split("=", 1)]),
            )

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def wait(self, timeout_s: float = RUN_S) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"Snakemake did not end; its output:\n{self.output}") from None

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The event log's complete lines so far."""
        found = []
        for path in sorted(self.directory.glob(".snakemake/dask/*.events.jsonl")):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return [event for event in found if kind is None or event["kind"] == kind]

    def facts(self, number: int = 0) -> dict[str, Any]:
        """Of the worker that joined as the ``number``-th."""
        joined = wait_for(
            lambda: len(self.events("worker-joined")) > number and self.events("worker-joined"), "a worker"
        )
        facts: dict[str, Any] = joined[number]["facts"]
        return facts

    def driver(self) -> int:
        return wait_for(
            lambda: [pid for pid, command in self.processes().items() if "plugin_dask.driver" in command], "the driver"
        )[0]

    def processes(self) -> dict[int, str]:
        return processes_of(self.mark)

    def jobs(self) -> dict[int, str]:
        """Processes of jobs: those that carry a job's key."""
        marked = processes_of("SNAKEMAKE_DASK_JOB=")
        return {pid: command for pid, command in self.processes().items() if pid in marked}

    def expect_gone(self, within_s: float) -> None:
        """Nothing that the run started is alive, so many seconds from now on a machine that is not busy."""
        deadline = time.monotonic() + within_s * slowness()
        while left := self.processes():
            assert time.monotonic() < deadline, f"not gone: {left}"
            time.sleep(0.05)

    def end(self) -> None:
        """For tests' clean-up: by number, and only what carries this run's mark."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def snakemake(directory: Path, snakefile: str, *arguments: str, executor: str = "dask") -> Iterator[SnakemakeRun]:
    """A run that is cleaned up, whatever the test does."""
    run = SnakemakeRun(directory, snakefile, *arguments, executor=executor)
    try:
        yield run
    finally:
        run.end()
        run.process.wait(GENEROUS_S)


#: Each job logs its start and its end with its attempt's key; what ran twice at once, or was lost, can be seen from it.
LOGGED_JOBS = """
rule all:
    input: expand("out/{{i}}.txt", i=range({count}))

rule work:
    output: "out/{{i}}.txt"
    shell:
        '''
        echo "start {{wildcards.i}} $SNAKEMAKE_DASK_JOB $(date +%s.%N)" >> log.txt
        {body}
        echo "end {{wildcards.i}} $SNAKEMAKE_DASK_JOB $(date +%s.%N)" >> log.txt
        echo {{wildcards.i}} > {{output}}
        '''
"""


def logged_jobs(count: int, body: str) -> str:
    """A Snakefile of independent jobs that log themselves; ``body`` is shell text."""
    return LOGGED_JOBS.format(count=count, body=body)


def unless_again(lasts: str) -> str:
    """A body for `logged_jobs` of which each job's first attempt lasts, and those after a file `again` was made do not.

    The file may be made once `lasting` has counted the jobs: one that has only started has yet to look for it.
    """
    return f"test -e again || {{{{ echo >> lasting; {lasts}; }}}}"


def lasting(run: SnakemakeRun) -> int:
    """How many attempts of such jobs have begun to last."""
    path = run.directory / "lasting"
    return path.read_text().count("\n") if path.exists() else 0


def started(run: SnakemakeRun) -> list[str]:
    """The lines of jobs that started so far."""
    path = run.directory / "log.txt"
    return [line for line in path.read_text().splitlines() if line.startswith("start")] if path.exists() else []


def ended(run: SnakemakeRun) -> list[str]:
    """The lines of jobs that ended so far."""
    path = run.directory / "log.txt"
    return [line for line in path.read_text().splitlines() if line.startswith("end")] if path.exists() else []
