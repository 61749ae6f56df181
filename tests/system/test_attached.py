"""Clusters that run already: followed, shared between runs, never changed."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters.slurm import VirtualSlurm
from running import RUN_S, SnakemakeRun, ended, logged_jobs, processes_of, snakemake, started, wait_for

BIN = Path(sys.executable).parent


class Cluster:
    """`dask scheduler` and `dask worker`, each a process of its own."""

    def __init__(self, directory: Path, *options: str, **environment: str) -> None:
        """``options`` and ``environment`` are for the scheduler and the workers."""
        self.directory = directory
        self.file = directory / "scheduler.json"
        self.options = options
        self.environment = environment
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, name: str, *command: str, stdin: int = subprocess.DEVNULL, **environment: str
    ) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=stdin, stdout=log, stderr=log, cwd=self.directory,
                env=os.environ | self.environment | environment, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def scheduler(self) -> None:
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.file)]
        self.start("scheduler", str(BIN / "dask"), "scheduler", *options, *self.options)
        wait_for(self.file.exists, "the scheduler's file")

    def worker(
        self,
        name: str,
        threads: int,
        *more: str,
        without: Path | None = None,
        registered: bool = True,
        **environment: str,
    ) -> subprocess.Popen[bytes]:
        """``without``: a directory that this worker cannot see, as on another machine.

        ``registered``: wait until the scheduler has it.
        """
        options = ["--nthreads", str(threads), "--memory-limit", "4GB", "--no-dashboard", "--name", name, "--no-nanny"]
        command = [str(BIN / "dask"), "worker", "--scheduler-file", str(self.file), *options, *self.options, *more]
        if without is not None:
            hide = f'mount -t tmpfs none {without} && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", hide, "sh", *command]
        process = self.start(name, *command, **environment)
        log = self.directory / f"{name}.log"
        if registered:
            wait_for(lambda: "Registered to" in log.read_text(), f"worker {name}")
        return process

    def lose_scheduler(self) -> None:
        """Kill it; its workers end by themselves."""
        self.processes[0].kill()
        for process in self.processes:
            process.wait(60)
        self.processes.clear()
        self.file.unlink()

    def end(self) -> None:
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


@contextlib.contextmanager
def cluster_in(directory: Path) -> Iterator[Cluster]:
    """Without a scheduler so far."""
    (directory / "cluster").mkdir()
    cluster = Cluster(directory / "cluster")
    try:
        yield cluster
    finally:
        cluster.end()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler without workers."""
    with cluster_in(tmp_path) as found:
        found.scheduler()
        yield found


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, SnakemakeRun]]:
    """Runs that wait for a minute and more before they end. They do so at the same time, by test."""
    begin = {"kinds": workers_of_different_kinds, "scheduler": a_scheduler_that_stays_away}
    if DASK_CUDA.is_dir():
        begin = {"cuda": local_cuda_cluster} | begin
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(begun(tmp_path_factory.mktemp(name))) for name, begun in begin.items()}


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


def test_two_runs_share_a_cluster(tmp_path: Path, running: Cluster) -> None:
    """Together they never run more than the workers' threads; the cluster is left as it was."""
    workers = [running.worker("one", 2), running.worker("two", 1)]
    arguments = ["--dask-scheduler", str(running.file)]
    # The first ones wait for each other; all last for a while, so that more at once would show.
    body = "until test $(cat ../a/log.txt ../b/log.txt | grep -c start) -ge 3; do sleep 0.1; done; sleep 0.5"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.txt").touch()
    with (
        snakemake(tmp_path / "a", logged_jobs(6, body), *arguments) as a,
        snakemake(tmp_path / "b", logged_jobs(6, body), *arguments) as b,
    ):
        assert a.wait() == 0, a.output
        assert b.wait() == 0, b.output
        assert most_at_once(a.directory / "log.txt", b.directory / "log.txt") == 3
        a.expect_gone(20)
        b.expect_gone(20)
    assert all(worker.poll() is None for worker in workers)
    begun = [run.events("run-started")[0] for run in (a, b)]
    assert not any(processes_of(event["run_id"]) for event in begun)
    assert [event["workdir"] for event in begun] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert all(event["host"] and event["versions"].keys() == {"snakemake", "plugin"} for event in begun)


def test_workers_come_and_go(tmp_path: Path, running: Cluster) -> None:
    """A worker that joins is used; the jobs of one that goes run again on the others."""
    first = running.worker("one", 1)
    body = "while ! test -e go; do sleep 0.1; done"
    with snakemake(tmp_path / "a", logged_jobs(2, body), "--dask-scheduler", str(running.file)) as run:
        wait_for(lambda: len(started(run)) == 1, "the first job started")
        running.worker("two", 1)
        wait_for(lambda: len(started(run)) == 2, "the second job started on the newcomer")
        os.killpg(first.pid, signal.SIGKILL)
        wait_for(lambda: run.events("worker-lost"), "the loss of the first worker")
        (run.directory / "go").touch()
        assert run.wait() == 0, run.output
        assert len(started(run)) == 3


KINDS = """
rule all:
    input: "licence.txt", "plain.txt", "big.txt", "huge.txt"

rule plain:
    output: "plain.txt"
    shell: "touch {output}"

rule licence:
    output: "licence.txt"
    resources: licence=1
    shell: "touch {output}"

rule big:
    output: "big.txt"
    threads: 2
    shell: "touch {output}"

rule huge:
    output: "huge.txt"
    resources: mem_mb=9000
    shell: "touch {output}"
"""


@contextlib.contextmanager
def workers_of_different_kinds(directory: Path) -> Iterator[SnakemakeRun]:
    """A run of which one job is left that fits nowhere."""
    with cluster_in(directory) as cluster:
        cluster.scheduler()
        cluster.worker("plain", 1)
        cluster.worker("lic", 1, "--resources", "licence=1")
        # All but there, so that it can join within the minute that the jobs wait.
        preload, join = directory / "preload.py", directory / "join"
        preload.write_text(f"import os, time\nwhile not os.path.exists({str(join)!r}):\n    time.sleep(0.1)\n")
        cluster.worker("larger", 2, "--preload", str(preload), registered=False)
        arguments = ["--dask-scheduler", str(cluster.file), "--keep-going", "--cores", "8"]
        with snakemake(directory / "a", KINDS, *arguments) as run:
            for rule in ("big asks for 2 cores", "huge asks for 1 core, mem_mb=9000"):
                said = f"Rule {rule}, which no worker of the cluster can hold now: its jobs wait 1m for a worker that"
                wait_for(lambda said=said: f"{said} can" in run.output, said)  # type: ignore[misc]
            join.touch()
            wait_for((run.directory / "big.txt").exists, "the larger job on the newcomer")
            yield run


def test_workers_of_different_kinds(patient: dict[str, SnakemakeRun]) -> None:
    """A job goes where it fits; one that fits nowhere waits for a larger worker, which is said, and fails then."""
    run = patient["kinds"]
    assert run.wait() == 1, run.output
    assert "mem_mb=9000 is more than the 4000 MB usable on a worker" in run.output
    assert "--set-resources huge:mem_mb=4000" in run.output
    outcomes = {event["outcome"]["key"].split("-")[0]: event["outcome"] for event in run.events("job-ended")}
    assert outcomes["licence"]["worker"] == "lic"
    assert outcomes["big"]["worker"] == "larger"
    assert run.output.count("Rule big asks") == 1, run.output


ADAPTIVE = """
import os, sys
from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=0, threads_per_worker=1, memory_limit="2GB", dashboard_address=None) as cluster:
        cluster.adapt(minimum=0, maximum=3, interval="500ms")
        with open(sys.argv[1] + ".new", "w") as file:
            file.write('{"address": "%s"}' % cluster.scheduler_address)
        os.rename(sys.argv[1] + ".new", sys.argv[1])
        input()
"""

ADAPTIVE_SLURM = """
import os, sys
from dask_jobqueue import SLURMCluster

if __name__ == "__main__":
    options = dict(queue="cpu", cores=1, memory="900MB", walltime="00:10:00", interface="lo")
    with SLURMCluster(log_directory=sys.argv[2], scheduler_options=dict(dashboard=False), **options) as cluster:
        cluster.adapt(minimum_jobs=0, maximum_jobs=3, interval="500ms")
        with open(sys.argv[1] + ".new", "w") as file:
            file.write('{"address": "%s"}' % cluster.scheduler_address)
        os.rename(sys.argv[1] + ".new", sys.argv[1])
        input()
"""


def grows_and_shrinks(tmp_path: Path, cluster: Cluster, text: str) -> None:
    """Six jobs bring up three workers; when one long job is left the others are closed, and it runs on."""
    script = cluster.directory / "adaptive.py"
    script.write_text(text)
    process = cluster.start(
        "adaptive", sys.executable, "-P", str(script), str(cluster.file), str(cluster.directory), stdin=subprocess.PIPE
    )
    wait_for(cluster.file.exists, "the scheduler's file")
    body = "while ! test -e go && ! test {wildcards.i} -lt 5 -a -e others; do sleep 0.1; done"
    with snakemake(tmp_path / "a", logged_jobs(6, body), "--dask-scheduler", str(cluster.file)) as run:
        wait_for(lambda: len(started(run)) == 3, "three jobs at once", 240)
        (run.directory / "others").touch()
        # Whichever of the jobs does not listen to the file is the last one.
        wait_for(lambda: len(ended(run)) == 5, "all but one ended", 240)
        wait_for(lambda: len(run.events("worker-lost")) >= 2, "idle workers closed", 120)
        assert len(started(run)) == 6, "a worker was closed that held a job"
        (run.directory / "go").touch()
        assert run.wait() == 0, run.output
        assert len(started(run)) == 6
        assert not any(event["jobs"] for event in run.events("worker-lost")), run.output
        assert "was lost" not in run.output
    assert process.stdin is not None
    process.stdin.close()
    process.wait(60)


def test_an_adaptive_cluster_follows_the_jobs(tmp_path: Path) -> None:
    """Dask's own `LocalCluster`, which sees nothing of the jobs that wait in the plugin."""
    directory = tmp_path / "cluster"
    directory.mkdir()
    cluster = Cluster(directory)
    try:
        grows_and_shrinks(tmp_path, cluster, ADAPTIVE)
    finally:
        cluster.end()


@pytest.mark.slurm
@pytest.mark.variant
def test_an_adaptive_slurm_cluster_follows_the_jobs(tmp_path: Path, slurm: VirtualSlurm) -> None:
    """dask-jobqueue's `SLURMCluster`, whose workers come through the queue."""
    directory = tmp_path / "cluster"
    directory.mkdir()
    cluster = Cluster(directory)
    try:
        grows_and_shrinks(tmp_path, cluster, ADAPTIVE_SLURM)
    finally:
        cluster.end()
        slurm.run("scancel", "--user", str(os.getuid()), check=False)
        wait_for(lambda: not slurm.queue(), "an empty queue")


@contextlib.contextmanager
def a_scheduler_that_stays_away(directory: Path) -> Iterator[SnakemakeRun]:
    """A run whose scheduler was lost and came back with another worker, and was lost again."""
    with cluster_in(directory) as cluster:
        cluster.scheduler()
        cluster.worker("one", 1)
        body = "while ! test -e go{wildcards.i}; do sleep 0.1; done"
        with snakemake(directory / "a", logged_jobs(3, body), "--dask-scheduler", str(cluster.file)) as run:
            wait_for(lambda: len(started(run)) == 1, "the first job started")
            cluster.lose_scheduler()
            wait_for(lambda: "The Dask scheduler at tcp://" in run.output, "the loss is said")
            cluster.scheduler()
            cluster.worker("two", 1)
            wait_for(lambda: len(started(run)) == 2, "a job on the new worker", 180)
            (run.directory / f"go{started(run)[1].split()[1]}").touch()
            wait_for(lambda: len(started(run)) == 3, "the second job started")
            assert "it closed its connection while 1 job ran on its workers. The run goes on, and" in run.output, (
                run.output
            )
            assert "Worker one was lost" not in run.output
            cluster.lose_scheduler()
            yield run


def test_a_scheduler_that_comes_back(patient: dict[str, SnakemakeRun]) -> None:
    """Killed, and started again with a worker: that is said in one sentence, and the run goes on.

    The second time it stays away: the run ends, and one sentence says what became of the jobs.
    """
    run = patient["scheduler"]
    assert run.wait() == 1, run.output
    output = " ".join(run.output.split())
    assert "was lost, and is not back with workers after 90 s: the 1 job on its workers ended with it" in output
    assert "ended with it, and 1 more waited; bring the cluster up" in output
    assert "Traceback" not in output
    run.expect_gone(20)


def test_no_secrets_without_encryption(tmp_path: Path, running: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over tcp:// only what `envvars:` names travels, and that is said."""
    running.worker("one", 1)
    monkeypatch.setenv("DECLARED", "yes")
    monkeypatch.setenv("SECRET", "no")
    text = 'envvars: "DECLARED"\nrule all:\n    output: "env.txt"\n    shell: "env > {output}"\n'
    with snakemake(tmp_path / "a", text, "--dask-scheduler", str(running.file)) as run:
        assert run.wait() == 0, run.output
        names = {line.partition("=")[0] for line in (run.directory / "env.txt").read_text().splitlines()}
        assert "DECLARED" in names
        assert "SECRET" not in names
        assert "jobs get only the variables of `envvars:`" in run.output


def test_what_workers_lack_is_told_before_the_first_job(tmp_path: Path, running: Cluster) -> None:
    """The package, the same Snakemake and the working directory: each is missed by name, and on which host."""
    broken, old = tmp_path / "broken", tmp_path / "old"
    broken.mkdir()
    # A package of the plugin's name that is none: this worker cannot import what it needs.
    (broken / "snakemake_executor_plugin_dask.py").write_text("raise ImportError\n")
    (old / "snakemake-8.0.0.dist-info").mkdir(parents=True)
    (old / "snakemake-8.0.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: snakemake\nVersion: 8.0.0\n"
    )
    workdir = tmp_path / "home" / "a"
    running.worker("good", 1)
    running.worker("one", 1, PYTHONPATH=str(broken), SLURMD_NODENAME="n1")
    running.worker("two", 1, PYTHONPATH=str(old), SLURMD_NODENAME="n2")
    workdir.mkdir(parents=True)
    running.worker("three", 1, without=tmp_path / "home", SLURMD_NODENAME="n3")
    with snakemake(workdir, logged_jobs(1, ":"), "--dask-scheduler", str(running.file)) as run:
        assert run.wait() != 0
        assert not started(run)
        output = " ".join(run.output.split())
        assert "snakemake-executor-plugin-dask cannot be imported by workers on n1; install" in output, output
        assert "here, and another on n2 (8.0.0); install the same version" in output
        assert f"the working directory {workdir} does not exist on n3; share the file system" in output
        run.expect_gone(15)


def test_newcomers_are_looked_at_too(tmp_path: Path, running: Cluster) -> None:
    """One that joins during the run and cannot run its jobs is told, and not used."""
    workdir = tmp_path / "home" / "a"
    workdir.mkdir(parents=True)
    running.worker("one", 1)
    body = "while ! test -e go; do sleep 0.1; done"
    with snakemake(workdir, logged_jobs(2, body), "--dask-scheduler", str(running.file)) as run:
        wait_for(lambda: len(started(run)) == 1, "the first job started")
        running.worker("two", 1, without=tmp_path / "home", SLURMD_NODENAME="n3")
        wait_for(lambda: "Worker two at tcp://" in run.output, "the second worker is refused")
        assert "does not exist on n3" in run.output
        (workdir / "go").touch()
        assert run.wait() == 0, run.output
        assert {event["worker"] for event in run.events("worker-joined")} == {"one"}


def test_a_lost_supervisor_takes_no_neighbour_along(tmp_path: Path, running: Cluster) -> None:
    """Two workers on one host: when the one's supervisor dies, the other's job goes on, and the one is used again."""
    for name in ("one", "two"):
        running.worker(name, 1)
    body = "while ! test -e go; do sleep 0.1; done"
    with snakemake(tmp_path / "a", logged_jobs(2, body), "--dask-scheduler", str(running.file)) as run:
        wait_for(lambda: len(started(run)) == 2, "both jobs started")
        lost = run.facts(0)
        os.kill(lost["supervisor_pid"], signal.SIGKILL)
        wait_for(lambda: len(started(run)) == 3, "the lost job started again, where only the same worker has room")
        (run.directory / "go").touch()
        assert run.wait() == 0, run.output
        outcomes = [event["outcome"] for event in run.events("job-ended")]
        assert [outcome["worker"] for outcome in outcomes if outcome["status"] == "lost"] == [lost["name"]]
        assert len(started(run)) == 3
        assert len(ended(run)) == 2


def test_encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `tls://` with Dask's own configuration, from its file: jobs have Snakemake's environment, secrets included."""
    directory = tmp_path / "cluster"
    directory.mkdir()
    files = certificates(directory)
    (directory / "tls.yaml").write_text(
        json.dumps({"distributed": {"comm": {"require-encryption": True, "tls": files}}})
    )
    monkeypatch.setenv("DASK_CONFIG", str(directory))
    monkeypatch.setenv("SECRET", "kept")
    cluster = Cluster(directory, "--protocol", "tls")
    try:
        cluster.scheduler()
        address = json.loads(cluster.file.read_text())["address"]
        assert address.startswith("tls://")
        cluster.worker("one", 2)
        with snakemake(
            tmp_path / "a", logged_jobs(3, "echo $SECRET >> secret.txt"), "--dask-scheduler", address
        ) as run:
            assert run.wait() == 0, run.output
            assert (run.directory / "secret.txt").read_text() == "kept\n" * 3
            assert "not encrypted" not in run.output
            run.expect_gone(15)
        # Another authority's certificate opens nothing.
        monkeypatch.setenv("DASK_CONFIG", str(tmp_path / "other"))
        with snakemake(tmp_path / "b", logged_jobs(1, ":"), "--dask-scheduler", address) as run:
            assert run.wait() != 0
            assert "needs Dask's TLS configuration" in run.output
            assert not started(run)
    finally:
        cluster.end()


def certificates(directory: Path) -> dict[str, Any]:
    """Keys in files, as Dask's configuration names them."""
    from distributed.security import Security

    security = Security.temporary()
    texts = {"ca": security.tls_ca_file, "cert": security.tls_client_cert, "key": security.tls_client_key}
    for name, text in texts.items():
        (directory / f"{name}.pem").write_text(text)
    pair = {"cert": str(directory / "cert.pem"), "key": str(directory / "key.pem")}
    return {"ca-file": str(directory / "ca.pem"), "scheduler": pair, "worker": pair, "client": pair}


RESERVING = """
import asyncio, sys
from distributed import Client
from snakemake_executor_plugin_dask.driver.attached.shared import PLUGIN_NAME, SharedLeasesPlugin, packed
from snakemake_executor_plugin_dask.model.amounts import Amounts

async def main():
    async with Client(sys.argv[1], asynchronous=True) as client:
        await client.register_plugin(SharedLeasesPlugin(), name=PLUGIN_NAME)
        ask = client.scheduler.snakemake_leases
        worker = next(iter((await client.scheduler.identity())["workers"]))
        await ask(what="renew", run="dead", length_s=6.0, keys=[])
        held = packed({worker: Amounts(cores=1)})
        print(await ask(what="reserve", run="dead", key="job", amounts=held, capacity=held), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def test_what_a_killed_run_held_comes_back(tmp_path: Path, running: Cluster) -> None:
    """Nobody gives it back, and it is kept until the time is over within which that run's jobs die."""
    running.worker("one", 1)
    address = json.loads(running.file.read_text())["address"]
    other = running.start("other", sys.executable, "-P", "-c", RESERVING, address)
    log = running.directory / "other.log"
    wait_for(lambda: "True" in log.read_text(), "the other run has its reservation")
    reserved = time.time()
    other.kill()
    with snakemake(tmp_path / "a", logged_jobs(1, ":"), "--dask-scheduler", str(running.file)) as run:
        assert run.wait() == 0, run.output
        began = float(started(run)[0].split()[3])
        assert began > reserved + 5


STORAGE = """
rule all:
    input: "all.txt"

rule common:
    output: "common.txt"
    shell: "echo common > {output}"

rule part:
    input: "common.txt"
    output: "parts/{i}.txt"
    shell: "cat {input} > {output}; pwd >> {output}"

rule together:
    input: expand("parts/{i}.txt", i=range(3))
    output: "all.txt"
    script: "scripts/together.py"
"""


def test_no_shared_file_system(tmp_path: Path, running: Cluster) -> None:
    """Workers that see nothing of Snakemake's directory: sources, inputs and outputs go through the storage.

    Each job has a directory of its own, of which nothing is left.
    """
    workdir, store = tmp_path / "home" / "a", tmp_path / "store"
    (workdir / "scripts").mkdir(parents=True)
    store.mkdir()
    script = workdir / "scripts" / "together.py"
    script.write_text('open(snakemake.output[0], "w").write("".join(open(name).read() for name in snakemake.input))\n')
    (workdir / "Snakefile").write_text(STORAGE)
    subprocess.run(["git", "init", "--quiet"], cwd=workdir, check=True)  # Snakemake deploys what git knows
    subprocess.run(["git", "add", "."], cwd=workdir, check=True)
    scratch = tmp_path / "scratch"
    running.worker("one", 3, "--local-directory", str(scratch), without=tmp_path / "home")
    options = ["--shared-fs-usage", "none", "--default-storage-provider", "fs", "--default-storage-prefix", str(store)]
    with snakemake(workdir, STORAGE, *options, "--dask-scheduler", str(running.file)) as run:
        assert run.wait() == 0, run.output
        lines = (store / "all.txt").read_text().splitlines()
        assert lines[::2] == ["common"] * 3
        assert len(set(lines[1::2])) == 3
        assert all(line.startswith(str(scratch)) for line in lines[1::2])
        assert not (workdir / "all.txt").exists()
        assert {event["start"] for event in run.events("job-started")} == {"cold"}
        run.expect_gone(20)
    assert not list(scratch.rglob("snakemake-*"))


@pytest.mark.mpi
@pytest.mark.variant
@pytest.mark.skipif(shutil.which("dask-mpi", path=str(BIN)) is None, reason="dask-mpi is an extra of the test machine")
def test_dask_mpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mpirun -n 4 dask-mpi`: the jobs may use MPI although their workers are ranks."""
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MPI4PY_MPIABI", "openmpi")  # mpi4py as a wheel fits several libraries
    directory = tmp_path / "cluster"
    directory.mkdir()
    cluster = Cluster(directory)
    try:
        command = ["mpirun.openmpi", "-n", "4", "--oversubscribe", "--bind-to", "none", str(BIN / "dask-mpi")]
        options = ["--scheduler-file", str(cluster.file), "--worker-class", "distributed.Worker", "--no-dashboard"]
        cluster.start("mpi", *command, *options)
        wait_for(cluster.file.exists, "the scheduler's file")
        body = "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun.openmpi -n 1 true"
        with snakemake(tmp_path / "a", logged_jobs(4, body), "--dask-scheduler", str(cluster.file)) as run:
            assert run.wait() == 0, run.output
    finally:
        cluster.end()


RUNNER = """
import subprocess, sys
from dask_jobqueue.slurm import SLURMRunner
from distributed import Client

options = dict(nthreads=1, memory_limit="1GB", local_directory="/tmp")
with SLURMRunner(scheduler_file={file!r}, worker_options=options) as runner:
    with Client(runner) as client:
        client.wait_for_workers(2)
        sys.exit(subprocess.call({command}))
"""

IN_SLURM = """
rule all:
    input: expand("out/{i}.txt", i=range(4))

# Each lasts for a while, so that both workers get some.
rule work:
    output: "out/{i}.txt"
    resources: mpi="srun", tasks=1
    shell:
        "echo $SLURMD_NODENAME > {output}; "
        "timeout 60 {resources.mpi} -n 1 printenv SLURMD_NODENAME >> {output}; sleep 1"
"""


@pytest.mark.slurm
@pytest.mark.variant
def test_slurm_runner(tmp_path: Path, slurm: VirtualSlurm) -> None:
    """dask-jobqueue's runner, by `srun` on several nodes: its client's rank starts Snakemake, which attaches.

    Jobs run on the nodes of the workers, and an `srun` of their own works there.
    """
    (tmp_path / "Snakefile").write_text(IN_SLURM)
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "snakemake", "--executor", "dask", "--jobs", "500", "--dask-scheduler", str(file)]
    (tmp_path / "runner.py").write_text(RUNNER.format(file=str(file), command=command))
    batch = tmp_path / "batch.sh"
    batch.write_text(
        f"#!/bin/bash\n#SBATCH --nodes=3 --ntasks=4 --output={tmp_path}/batch.out --time=5\n"
        f"cd {tmp_path}; srun --kill-on-bad-exit=0 {sys.executable} runner.py\n"
    )
    slurm.run("sbatch", "--wait", str(batch), check=False, timeout_s=RUN_S)
    output = (tmp_path / "batch.out").read_text()
    assert "4 of 5 steps (80%) done" in output or "5 of 5 steps (100%) done" in output, output
    found = [(tmp_path / f"out/{number}.txt").read_text().split() for number in range(4)]
    assert all(outer == inner for outer, inner in found), output
    events = [
        json.loads(line)
        for path in tmp_path.glob(".snakemake/dask/*.events.jsonl")
        for line in path.read_text().splitlines()
    ]
    hosts = {event["facts"]["host"] for event in events if event["kind"] == "worker-joined"}
    assert {line[0] for line in found} == hosts
    assert len(hosts) == 2, output


CUDA = """
from dask_cuda import LocalCUDACluster
from distributed import Client

if __name__ == "__main__":
    with LocalCUDACluster(
        dashboard_address=None,
        resources={{"GPU": 1}},
        device_memory_limit=None,
        memory_limit="1GB",
    ) as cluster:
        with Client(cluster) as client:
            client.write_scheduler_file({file!r})
            input()
"""

GPU_JOBS = """
rule all:
    input: expand("gpu/{i}.txt", i=range(8)), "cpu.txt", "two.txt"

rule two:
    output: "two.txt"
    resources: gpu=2
    shell: "touch {output}"

# Each holds its device for a while, so that two on one device would show.
rule gpu:
    output: "gpu/{i}.txt"
    resources: gpu=1
    shell:
        "b=$(date +%s.%N); sleep 1; echo $CUDA_VISIBLE_DEVICES $b $(date +%s.%N) > {output}; nproc >> {output}"

rule cpu:
    output: "cpu.txt"
    shell: "echo sees:$CUDA_VISIBLE_DEVICES > {output}"
"""

DASK_CUDA = BIN.parent / "dask-cuda"


@contextlib.contextmanager
def local_cuda_cluster(directory: Path) -> Iterator[SnakemakeRun]:
    """A run on it that has just begun."""
    standins = Path(__file__).parents[1] / "clusters" / "nvml"
    with cluster_in(directory) as cluster:
        (cluster.directory / "bring_up.py").write_text(CUDA.format(file=str(cluster.file)))
        path = f"{DASK_CUDA}:{standins}"
        cluster.start("cuda", sys.executable, "bring_up.py", stdin=subprocess.PIPE, PYTHONPATH=path)
        wait_for(cluster.file.exists, "the scheduler's file")
        with snakemake(directory / "a", GPU_JOBS, "--dask-scheduler", str(cluster.file), "--keep-going") as run:
            yield run


@pytest.mark.skipif(not DASK_CUDA.is_dir(), reason="dask-cuda is an extra of the test machine")
def test_local_cuda_cluster(patient: dict[str, SnakemakeRun]) -> None:
    """dask-cuda's own cluster, on stand-ins for four devices: a job sees the one that its worker stands for alone.

    No device is held twice, a job without `gpu` sees none, and one on two is told not to fit.
    """
    run = patient["cuda"]
    assert run.wait() == 1, run.output
    assert "2 GPUs is more than the 1 of a worker" in run.output
    assert not (run.directory / "two.txt").exists()
    devices = {fact["facts"]["devices"][0] for fact in run.events("worker-joined")}
    assert devices == {"0", "1", "2", "3"}
    spans = sorted(
        (device, float(began), float(over))
        for device, began, over, _ in (path.read_text().split() for path in run.directory.glob("gpu/*"))
    )
    assert {device for device, _, _ in spans} <= devices
    for (device, _, over), (following, began, _) in itertools.pairwise(spans):
        assert device != following or over <= began
    assert (run.directory / "cpu.txt").read_text() == "sees:\n"
