"""Clusters that run already: followed, shared between runs, never changed."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import logged_jobs, processes_of, snakemake, started, wait_for

BIN = Path(sys.executable).parent


class Cluster:
    """`dask scheduler` and `dask worker`, each a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "scheduler.json"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
                env=os.environ | environment, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def scheduler(self) -> None:
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.file)]
        self.start("scheduler", str(BIN / "dask"), "scheduler", *options)
        wait_for(self.file.exists, "the scheduler's file")

    def worker(self, name: str, threads: int, *more: str, **environment: str) -> subprocess.Popen[bytes]:
        options = ["--nthreads", str(threads), "--memory-limit", "4GB", "--no-dashboard", "--name", name, "--no-nanny"]
        command = [str(BIN / "dask"), "worker", "--scheduler-file", str(self.file), *options, *more]
        process = self.start(name, *command, **environment)
        log = self.directory / f"{name}.log"
        wait_for(lambda: "Registered to" in log.read_text(), f"worker {name}")
        return process

    def end(self) -> None:
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler without workers."""
    directory = tmp_path / "cluster"
    directory.mkdir()
    found = Cluster(directory)
    found.scheduler()
    yield found
    found.end()


def most_at_once(*logs: Path) -> int:
    """How many of the logged jobs ran at the same time."""
    moments = []
    for log in logs:
        for line in log.read_text().splitlines():
            what, _, _, when = line.split()
            moments.append((float(when), 1 if what == "start" else -1))
    running = most = 0
    for _, step in sorted(moments):
        running += step
        most = max(most, running)
    return most


def test_two_runs_share_a_cluster(tmp_path: Path, cluster: Cluster) -> None:
    """Together they never run more than the workers' threads; the cluster is left as it was."""
    workers = [cluster.worker("one", 2), cluster.worker("two", 1)]
    arguments = ["--dask-scheduler", str(cluster.file)]
    with (
        snakemake(tmp_path / "a", logged_jobs(6, "sleep 1"), *arguments) as a,
        snakemake(tmp_path / "b", logged_jobs(6, "sleep 1"), *arguments) as b,
    ):
        assert a.wait(180) == 0, a.output
        assert b.wait(180) == 0, b.output
        assert most_at_once(a.directory / "log.txt", b.directory / "log.txt") == 3
        a.expect_gone(20)
        b.expect_gone(20)
    assert all(worker.poll() is None for worker in workers)
    assert not any(processes_of(run.events("run-started")[0]["run_id"]) for run in (a, b))


def test_workers_come_and_go(tmp_path: Path, cluster: Cluster) -> None:
    """A worker that joins is used; the jobs of one that goes run again on the others."""
    first = cluster.worker("one", 1)
    with snakemake(
        tmp_path / "a", logged_jobs(2, "test -e again || sleep 60"), "--dask-scheduler", str(cluster.file)
    ) as run:
        wait_for(lambda: len(started(run)) == 1, "the first job started")
        cluster.worker("two", 1)
        wait_for(lambda: len(started(run)) == 2, "the second job started on the newcomer")
        (run.directory / "again").touch()
        os.killpg(first.pid, signal.SIGKILL)
        assert run.wait(180) == 0, run.output
        assert len(started(run)) == 3


def test_no_secrets_without_encryption(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over tcp:// only what `envvars:` names travels, and that is said."""
    cluster.worker("one", 1)
    monkeypatch.setenv("DECLARED", "yes")
    monkeypatch.setenv("SECRET", "no")
    text = 'envvars: "DECLARED"\nrule all:\n    output: "env.txt"\n    shell: "env > {output}"\n'
    with snakemake(tmp_path / "a", text, "--dask-scheduler", str(cluster.file)) as run:
        assert run.wait() == 0, run.output
        names = {line.partition("=")[0] for line in (run.directory / "env.txt").read_text().splitlines()}
        assert "DECLARED" in names
        assert "SECRET" not in names
        assert "jobs get only the variables of `envvars:`" in run.output


def test_a_worker_without_the_directory_is_named(tmp_path: Path, cluster: Cluster) -> None:
    """What a worker lacks is told with its host before the first job."""
    plugin = tmp_path / "empty"
    plugin.mkdir()
    # A package of the plugin's name that is none: this worker cannot import what it needs.
    (plugin / "snakemake_executor_plugin_dask.py").write_text("raise ImportError\n")
    cluster.worker("one", 1, PYTHONPATH=str(plugin))
    with snakemake(tmp_path / "a", logged_jobs(1, ":"), "--dask-scheduler", str(cluster.file)) as run:
        assert run.wait() != 0
        assert not started(run)
        assert os.uname().nodename in run.output


@pytest.mark.mpi
@pytest.mark.skipif(shutil.which("dask-mpi", path=str(BIN)) is None, reason="dask-mpi is an extra of the test machine")
def test_dask_mpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mpirun -n 4 dask-mpi`: the jobs may use MPI although their workers are ranks."""
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MPI4PY_MPIABI", "openmpi")  # mpi4py as a wheel fits several libraries
    directory = tmp_path / "cluster"
    directory.mkdir()
    cluster = Cluster(directory)
    try:
        command = ["mpirun.openmpi", "-n", "4", "--bind-to", "none", str(BIN / "dask-mpi")]
        options = ["--scheduler-file", str(cluster.file), "--worker-class", "distributed.Worker", "--no-dashboard"]
        cluster.start("mpi", *command, *options)
        wait_for(cluster.file.exists, "the scheduler's file")
        body = "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun.openmpi -n 1 true"
        with snakemake(tmp_path / "a", logged_jobs(4, body), "--dask-scheduler", str(cluster.file)) as run:
            assert run.wait(180) == 0, run.output
    finally:
        cluster.end()
