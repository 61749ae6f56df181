"""What tests of clusters that stay share: the user's state directory, its clusters, and runs that leave these."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters.slurm import one_pool
from running import GENEROUS_S, SnakemakeRun, processes_of, wait_for

from snakemake_executor_plugin_dask.kept import joining
from snakemake_executor_plugin_dask.model.kept import Ask, Told
from snakemake_executor_plugin_dask.model.wire import frame, receive

KEEP = ("--dask-keep", "1h")
#: Two cores, whatever this machine has, so that it is known how many jobs run at once.
SMALL = ("--dask-worker-cores", "2", "--dask-worker-memory", "2 GB")


class Clusters:
    """What is written down of this test's clusters, and their processes."""

    def __init__(self, state: Path) -> None:
        self.root = state / "snakemake-dask"
        self.state = state

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []

    def processes(self, what: str = "") -> list[int]:
        return [pid for pid, command in processes_of(str(self.state)).items() if what in command]

    def heads(self) -> list[int]:
        return self.processes("plugin_dask.driver.head")

    def watchdogs(self) -> list[int]:
        return self.processes("plugin_dask.kept.watchdog")

    def take_host_down(self) -> None:
        """As far as heads are concerned: nothing on it is left that could clear up after them."""
        for pid in (*self.watchdogs(), *self.heads()):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.heads() and not self.watchdogs(), "the heads are gone")

    def workers(self) -> list[int]:
        return self.processes("plugin_dask.worker --config")

    def command_line(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "snakemake_executor_plugin_dask", *arguments]

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = self.command_line(*arguments)
        return subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=GENEROUS_S, check=False
        )

    def told(self) -> Told:
        """What the head of the only cluster says of it."""

        async def ask() -> Told:
            (where,) = self.root.iterdir()
            link = await joining.connect(where)
            assert link is not None
            reader, writer = link
            writer.write(frame(Ask()))
            told: Told = await receive(reader)
            writer.close()
            return told

        return asyncio.run(ask())

    def end(self) -> None:
        """After it nothing of any cluster is left, also where this fails."""
        try:
            done = self.command("stop", "--all", "--force")
            assert done.returncode == 0, f"{done.stdout}{done.stderr}{self.log()}"
            wait_for(lambda: not self.processes(), f"no process: {processes_of(str(self.state))}")
            assert self.names() == []
        finally:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self.root.glob("*/head.log"))


@contextlib.contextmanager
def snakemake(directory: Path, snakefile: str, *arguments: str) -> Iterator[SnakemakeRun]:
    """A run that is ended, whatever the test does; the cluster that it may have brought up stays for the fixture."""
    run = SnakemakeRun(directory, snakefile, *arguments)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait(GENEROUS_S)


def in_each_python(directory: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Every Python that is started from here on runs this text first."""
    path = directory / "path"
    path.mkdir()
    (path / "sitecustomize.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(path))


def finished(run: SnakemakeRun) -> SnakemakeRun:
    assert run.wait() == 0, run.output
    return run


def supervisor_of(run: SnakemakeRun) -> int:
    """Of a run with a job on a single worker."""
    wait_for(lambda: run.events("job-started"), "the event of its start")
    run_id = run.events("job-started")[0]["key"].split("-")[1].lstrip("0")
    (pid,) = (
        pid for pid, command in processes_of(run_id).items() if "worker.supervisor" in command and run_id in command
    )
    return pid


def pools_of(directory: Path, workers: str, cores: int = 1) -> Path:
    path = directory / "pools.yaml"
    path.write_text(one_pool(workers, walltime="30m", cores=cores))
    return path
