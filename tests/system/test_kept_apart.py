"""Clusters that stay, and runs that must not take them, or cannot tell whether they live: each says why."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters.slurm import VirtualSlurm
from running import RUN_S, logged_jobs, started, wait_for

import snakemake_executor_plugin_dask
from snakemake_executor_plugin_dask.kept import directory, joining
from snakemake_executor_plugin_dask.node import former
from snakemake_executor_plugin_dask.node.private import write_private

from .kept_clusters import KEEP, SMALL, Clusters, finished, pools_of, snakemake, supervisor_of

pytestmark = pytest.mark.timeout(900)

ONE_JOB = logged_jobs(1, "true")


def test_runs_of_other_code_do_not_share(clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same version, in the same environment, with other files, whose records hold other things: both run."""
    with snakemake(tmp_path / "first", ONE_JOB, *KEEP, *SMALL) as run:
        finished(run)
    (name,) = clusters.names()
    package = Path(snakemake_executor_plugin_dask.__file__).parent
    copy = tmp_path / "path" / package.name
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    options = copy / "model" / "options.py"
    was = options.read_text()
    options.write_text(
        was.replace("    pools: tuple[Pool, ...]\n", "    pools: tuple[Pool, ...]\n    colour: str = 'red'\n")
    )
    assert options.read_text() != was
    with monkeypatch.context() as context:
        context.setenv("PYTHONPATH", str(copy.parent))
        with snakemake(tmp_path / "other", ONE_JOB, *SMALL) as run:
            finished(run)
            assert f"Cluster {name} is up and is not used: it differs in installation: code" in run.output
        with snakemake(tmp_path / "named", ONE_JOB, "--dask-scheduler", name) as run:
            assert run.wait() != 0
            assert f"Cluster {name} was brought up by another installation: installation: code" in run.output
        listed = clusters.command("clusters")
        assert "1 up" in listed.stdout, listed.stderr  # the head answers to commands of other code
    assert len(clusters.heads()) == 1


def test_a_cluster_does_not_grow_once_the_plugin_was_installed_anew(
    clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other files in the same place: no worker is started from them by the former head, and runs say why.

    A later run brings up a cluster of its own. Once the former files are there again, so are the workers.
    """
    installed = an_installation(tmp_path, monkeypatch)
    before = installed.read_bytes()
    with snakemake(tmp_path / "first", logged_jobs(1, "sleep 1000"), *KEEP, *SMALL) as run:
        wait_for(lambda: started(run), "its job", RUN_S)
        (name,), (worker,) = clusters.names(), clusters.workers()
        installed.write_bytes(before + b"\n# of a later state\n")
        os.kill(worker, signal.SIGKILL)
        assert run.wait() != 0
        assert "the plugin's files have been changed since the cluster came up" in run.output
        assert clusters.workers() == []
    with snakemake(tmp_path / "second", ONE_JOB, *KEEP, *SMALL) as run:
        finished(run)
        assert f"Cluster {name} is up and is not used: it differs in installation: code" in run.output
    assert len(clusters.heads()) == 2
    assert len(clusters.workers()) == 1
    installed.write_bytes(before)
    with snakemake(tmp_path / "third", ONE_JOB, *KEEP, *SMALL) as run:
        finished(run)  # a pool that was given up is tried anew with each run
        assert f"Cluster {name}, up for" in run.output
        assert "has no worker yet" in run.output
    assert len(clusters.heads()) == 2


def an_installation(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of the plugin's files, in a copy of the plugin that is used from here on."""
    package = Path(snakemake_executor_plugin_dask.__file__).parent
    copy = directory / "path" / package.name
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(copy.parent))
    return copy / "model" / "options.py"


def test_no_supervisor_comes_from_files_of_a_later_installation(
    clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that needs a further one is told why it cannot have it; another run goes on with those that it has."""
    installed = an_installation(tmp_path, monkeypatch)
    go = tmp_path / "go"
    waits = logged_jobs(1, f'while [ ! -e "{go}" ]; do sleep 0.1; done')
    with (
        snakemake(tmp_path / "hit", waits, *KEEP, *SMALL) as hit,
        snakemake(tmp_path / "spared", waits, *KEEP, *SMALL) as spared,
    ):
        wait_for(lambda: started(hit) and started(spared), "both jobs", RUN_S)
        supervisor = supervisor_of(hit)
        with installed.open("a") as file:
            file.write("\n# of a later state\n")
        os.kill(supervisor, signal.SIGKILL)
        assert hit.wait() != 0
        assert "no run can begin on a worker that is there" in hit.output
        assert len(started(hit)) == 1
        assert len(clusters.processes("worker.supervisor")) == 1
        go.touch()
        finished(spared)
        assert not spared.events("worker-lost")


def test_no_worker_of_another_python_has_other_code(tmp_path: Path) -> None:
    """It is told to install the head's, in that Python."""
    config = tmp_path / "worker.json"
    write_private(config, json.dumps({"name": "main-0", "code": "another", "own_python": True}).encode())
    command = [sys.executable, "-P", "-m", "snakemake_executor_plugin_dask.worker", "--config", os.fspath(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 1
    assert f"the plugin that {sys.executable} has is not the one of the cluster's head" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another group")
def test_runs_of_other_groups_do_not_share(clusters: Clusters, tmp_path: Path) -> None:
    """What a job may read and write is its own run's business: workers of other groups are not taken."""
    with snakemake(tmp_path / "first", ONE_JOB, *KEEP, *SMALL) as run:
        finished(run)
    (name,) = clusters.names()
    before = os.getgroups()
    other = max({*before, 54321}) + 1
    os.setgroups([*before, other])
    try:
        with snakemake(tmp_path / "other", logged_jobs(1, "id -G > groups.txt"), *SMALL) as run:
            finished(run)
            assert f"Cluster {name} is up and is not used: it differs in user: groups" in run.output
            assert str(other) in (run.directory / "groups.txt").read_text().split()
    finally:
        os.setgroups(before)


@pytest.mark.slurm
def test_on_slurm_runs_of_other_accounts_do_not_share(
    slurm: VirtualSlurm, clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run's jobs are charged to its own account, and the second run's cluster stays beside the first one's.

    So does that of a run that asks for another walltime.
    """
    body = """
rule tell:
    output: "account.txt"
    resources: mem_mb=100, runtime=5
    shell: "squeue --noheader --jobs $SLURM_JOB_ID --format %a > {output}"
"""
    file = pools_of(tmp_path, "0-1")
    pools = ("--dask-pools", str(file))
    for account in ("physics", "biology"):
        monkeypatch.setenv("SBATCH_ACCOUNT", account)
        with snakemake(tmp_path / account, body, *pools, *KEEP) as run:
            finished(run)
            assert ("it differs in variables: SBATCH_ACCOUNT physics, biology" in run.output) == (account == "biology")
            assert (run.directory / "account.txt").read_text().strip() == account
    assert len(clusters.heads()) == 2
    assert len(slurm.queue()) == 2
    file.write_text(file.read_text().replace("30m", "20m"))
    with snakemake(tmp_path / "shorter", body, *pools, *KEEP) as run:
        finished(run)
        assert "it differs in pool main: walltime 30m, 20m" in run.output
    assert len(clusters.heads()) == len(slurm.queue()) == 3


@pytest.mark.slurm
def test_on_slurm_a_run_of_longer_jobs_gets_a_new_allocation(
    slurm: VirtualSlurm, clusters: Clusters, tmp_path: Path
) -> None:
    """A worker that stays has less left than the longest job asks for, and no longer counts as new."""
    body = """
rule tell:
    output: "allocation.txt"
    resources: mem_mb=100, runtime=MINUTES
    shell: "echo $SLURM_JOB_ID > {output}"
"""
    file = pools_of(tmp_path, "0-2")
    file.write_text(file.read_text() + "    margin: 1s\n")
    pools = ("--dask-pools", str(file))
    found = []
    for number, minutes in enumerate((5, 30, 5)):
        with snakemake(tmp_path / f"run{number}", body.replace("MINUTES", str(minutes)), *pools, *KEEP) as run:
            finished(run)
        found.append((run.directory / "allocation.txt").read_text().strip())
    assert found[0] != found[1]
    assert found[2] in found[:2]
    assert sorted(line.split()[0] for line in slurm.queue()) == sorted(found[:2])


@pytest.fixture
def written(clusters: Clusters, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """What a cluster that is up has written down of it, copied; and where it lies, once that cluster has ended."""
    with snakemake(tmp_path / "first", ONE_JOB, *KEEP, *SMALL) as run:
        finished(run)
    (name,) = clusters.names()
    where, copy = clusters.root / name, tmp_path / "copy"
    shutil.copytree(where, copy)
    assert clusters.command("stop", name).returncode == 0
    yield copy, where
    if directory.fate(where) == "unknown":  # as nobody else may do
        shutil.rmtree(where)


def put_back(copy: Path, where: Path, **head: str) -> None:
    """The cluster's directory, as if its head were another process."""
    record = directory.read(copy)
    assert record is not None
    process = dataclasses.replace(record.head, **head)
    shutil.copytree(copy, where)
    directory.write(where, dataclasses.replace(record, head=process, address=("192.0.2.1", 9)))
    (where / "lock").unlink()
    write_private(where / "lock", process.to_json())


def test_a_host_that_does_not_answer_is_left_alone_and_named(
    written: tuple[Path, Path], clusters: Clusters, tmp_path: Path
) -> None:
    """Whether a head there lives nobody here can tell: a run that keeps has a cluster beside it, others their own."""
    copy, where = written
    put_back(copy, where, host="elsewhere", boot="00000000-0000-0000-0000-000000000000")
    before = {path.name: path.read_bytes() for path in where.iterdir() if path.is_file()}
    told = f"Cluster {where.name} is on elsewhere, and cannot be reached from here."
    for number in (1, 2):
        with snakemake(tmp_path / f"keeps{number}", ONE_JOB, *KEEP, *SMALL) as run:
            finished(run)
            assert told in run.output
            assert "stays for" in run.output
            assert ("has 1 worker" in run.output) == (number == 2)  # the one beside it is shared
    beside = [name for name in clusters.names() if name != where.name]
    assert len(beside) == 1
    with snakemake(tmp_path / "named", ONE_JOB, "--dask-scheduler", where.name, *SMALL) as run:
        assert run.wait() != 0
        assert told in run.output
    row = next(line for line in clusters.command("clusters").stdout.splitlines() if line.startswith(where.name))
    assert "elsewhere" in row
    assert "does not answer" in row
    stopped = clusters.command("stop", where.name, "--force")
    assert stopped.returncode == 1
    assert f"Cluster {where.name} does not answer from here; stop it on elsewhere." in stopped.stderr
    assert {path.name: path.read_bytes() for path in where.iterdir() if path.is_file()} == before


def test_a_record_of_before_a_reboot_is_cleared_up_after(
    written: tuple[Path, Path], clusters: Clusters, tmp_path: Path
) -> None:
    """Nothing survives one, also where a process of today has the head's number and start."""
    copy, where = written
    put_back(copy, where, boot="00000000-0000-0000-0000-000000000000")
    old = (where / "tls-ca.pem").read_bytes()
    assert directory.fate(where) == "dead"
    with snakemake(tmp_path / "next", ONE_JOB, *KEEP, *SMALL) as run:
        finished(run)
        assert "has no worker yet" in run.output
    assert clusters.names() == [where.name]
    assert (where / "tls-ca.pem").read_bytes() != old


@pytest.mark.slurm
def test_on_slurm_what_was_submitted_before_a_reboot_is_cancelled(
    slurm: VirtualSlurm, clusters: Clusters, tmp_path: Path
) -> None:
    """By the next run: allocations outlive the host of their head."""
    pools = ("--dask-pools", str(pools_of(tmp_path, "1-1")))
    done = clusters.command("start", *KEEP, *pools, "--wait")
    assert done.returncode == 0, done.stderr
    (before,) = slurm.queue()
    (where,) = clusters.root.iterdir()
    clusters.take_host_down()
    process = json.loads((where / "lock").read_text())
    process |= {"boot": "00000000-0000-0000-0000-000000000000", "pid": os.getpid()}
    (where / "lock").write_text(json.dumps(process))
    with snakemake(tmp_path / "next", ONE_JOB, *pools, *KEEP) as run:
        finished(run)
    (after,) = slurm.queue()
    assert after.split()[0] != before.split()[0]


def test_a_head_that_another_host_has_cleared_up_after_ends(clusters: Clusters, tmp_path: Path) -> None:
    """One in an allocation whose end that host was told sooner; what has been made in its place stays as it is."""
    host = os.uname().nodename
    allocation = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": host, "SLURMD_NODENAME": host}
    start = f"{sys.executable} -P -m snakemake_executor_plugin_dask start --dask-keep 1h --dask-worker-cores 1"
    script = f"{start} > {tmp_path}/said 2>&1; touch {tmp_path}/started; exec sleep 1000"
    with subprocess.Popen(["/bin/sh", "-c", script], env=os.environ | allocation) as batch_script:
        try:
            wait_for((tmp_path / "started").exists, "the cluster", RUN_S)
            (where,), (head,) = clusters.root.iterdir(), clusters.heads()
            process = former.this_process(head)
            where.rename(tmp_path / "cleared")
            where.mkdir(0o700)
            wait_for(lambda: former.start_time(head) != process.start, "the end of the head", RUN_S)
            where.rmdir()  # nothing was written there
        finally:
            batch_script.kill()


#: Waits to be told what to do, and is out of the batch script's reach, as a session of tmux is.
SESSION = """#!/bin/bash
touch session-begun
while [ ! -e start ]; do sleep 0.2; done
{python} -P -m snakemake_executor_plugin_dask start --dask-keep 1h --dask-worker-cores 1 > start.out 2>&1
touch started
while [ ! -e leave ]; do sleep 0.2; done
"""
BATCH = """#!/bin/bash
#SBATCH --partition=cpu --output=batch.out --time=10
setsid --fork ./session.sh
sleep 600
"""


def as_another_host_finds_it(where: Path, copy: Path) -> str:
    """What becomes of a head, for whoever sees only what is written down, and can ask the same Slurm."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(where, copy)
    process = json.loads((copy / "lock").read_text()) | {"host": "elsewhere", "boot": "another"}
    (copy / "lock").write_text(json.dumps(process))
    return joining.fate(copy)


@pytest.mark.slurm
@pytest.mark.parametrize("outlives", [False, True], ids=["begins before its end", "begins after its end"])
def test_on_slurm_a_head_in_a_session_that_outlives_its_allocation(
    slurm: VirtualSlurm, clusters: Clusters, tmp_path: Path, *, outlives: bool
) -> None:
    """One that is started before the allocation's end ends with it, and one that is started later lives on.

    So nobody on another host, where the batch system alone can be asked, takes a living head for dead.
    """
    for name, text in (("session.sh", SESSION.format(python=sys.executable)), ("batch.sh", BATCH)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    number = slurm.run("sbatch", "--parsable", f"--chdir={tmp_path}", str(tmp_path / "batch.sh")).strip()
    copy = tmp_path / "copy" / "snakemake-dask" / "abcdef01"
    copy.parent.mkdir(parents=True, mode=0o700)
    try:
        wait_for((tmp_path / "session-begun").exists, "the session")
        if outlives:
            slurm.run("scancel", number)
            wait_for(lambda: not slurm.queue(), "the allocation is gone")
        (tmp_path / "start").touch()
        wait_for((tmp_path / "started").exists, "the cluster")
        said = (tmp_path / "start.out").read_text()
        assert "is up" in said
        assert (f"ends with this allocation of slurm ({number})" in said) is not outlives
        (where,) = clusters.root.iterdir()
        assert as_another_host_finds_it(where, copy) == "unknown"
        if not outlives:
            slurm.run("scancel", number)
            wait_for(lambda: not slurm.queue(), "the allocation is gone")
            wait_for(lambda: not clusters.heads(), f"the head ends with it: {clusters.log()}")
            assert clusters.names() == []
    finally:
        (tmp_path / "leave").touch()
