"""Runs on a real Slurm with accounting: limits, accounts, another cluster, preemption. `./run tests accounting`.

Not part of the default run: it needs a database, and takes minutes.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters.accounting import AccountedSlurm
from clusters.daemons import brought_up
from running import ended, logged_jobs, snakemake, started, wait_for

pytestmark = [pytest.mark.accounting, pytest.mark.timeout(600), pytest.mark.xdist_group("accounting")]

RUN_S = 400.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[AccountedSlurm]:
    """One for all tests."""
    yield from brought_up(AccountedSlurm)


@pytest.fixture
def slurm(cluster: AccountedSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[AccountedSlurm]:
    """With its variables set; nothing is left in either queue."""
    for name, value in cluster.variables.items():
        monkeypatch.setenv(name, value)
    wait_for(cluster.all_idle, "all nodes idle", 120)
    yield cluster
    left = cluster.run("squeue", "--noheader", "--clusters=virtual,second", "--format=%A").split()
    assert not [word for word in left if word.isdigit()], "allocations were left behind"


def pools(directory: Path, options: str, workers: str = "0-3") -> str:
    path = directory / "pools.yaml"
    path.write_text(
        f"pools:\n  main: {{cluster: slurm, workers: {workers}, cores: 2, memory: 1500 MB, walltime: 10m, "
        f"options: {{queue: cpu, {options}}}}}\n"
    )
    return str(path)


def test_a_limit_on_submitted_jobs(slurm: AccountedSlurm, tmp_path: Path) -> None:
    """A user's QOS takes one job at a time: the one worker does all the work, and the pool is not given up."""
    file = pools(tmp_path, 'job_extra_directives: ["--qos=few"]')
    with snakemake(tmp_path / "a", logged_jobs(12, "sleep 3"), "--dask-pools", file) as run:
        assert run.wait(RUN_S) == 0, run.output
        assert "QOSMaxSubmitJobPerUserLimit" in run.output
        assert not run.events("pool-given-up")
        assert len(run.events("worker-joined")) == 1
        run.expect_gone(30)


def test_an_account_that_is_required(slurm: AccountedSlurm, tmp_path: Path) -> None:
    """One that does not exist, or that a partition does not take, is told before anything is submitted."""
    file = pools(tmp_path, "account: nope")
    with snakemake(tmp_path / "a", logged_jobs(1, "true"), "--dask-pools", file) as run:
        assert run.wait(RUN_S) != 0
        assert "name an account of yours" in run.output, run.output
        assert not run.events("allocation-submitted")


def test_the_other_cluster(slurm: AccountedSlurm, tmp_path: Path) -> None:
    """`clusters` of a rule: submitted, watched and given back there."""
    snakefile = """
rule all:
    input: "here.txt", "there.txt"
rule here:
    output: "here.txt"
    resources: mem_mb=300, runtime=5
    shell: "echo $SLURM_CLUSTER_NAME $SLURMD_NODENAME > {output}"
rule there:
    output: "there.txt"
    resources: mem_mb=300, runtime=5, clusters="second"
    shell: "echo $SLURM_CLUSTER_NAME $SLURMD_NODENAME > {output}"
"""
    with snakemake(tmp_path / "a", snakefile, "--dask-cluster", "slurm", "--dask-workers", "0-1") as run:
        assert run.wait(RUN_S) == 0, run.output
        assert (run.directory / "there.txt").read_text().split() == ["second", "s1"]
        assert (run.directory / "here.txt").read_text().split()[0] == "virtual"
        run.expect_gone(30)


def test_preempted(slurm: AccountedSlurm, tmp_path: Path) -> None:
    """An urgent job takes the nodes: what ran there runs again, though no lost worker is forgiven, and why is said."""
    file = pools(tmp_path, 'job_extra_directives: ["--qos=normal"]', workers="0-1")
    body = "while ! test -e go; do sleep 0.1; done"
    arguments = ("--dask-pools", file, "--dask-lost-worker-retries", "0")
    with snakemake(tmp_path / "a", logged_jobs(1, body), *arguments) as run:
        for preempted in (1, 2):
            wait_for(lambda count=preempted: len(started(run)) == count, "the job started", 180)
            slurm.run("sbatch", "--qos=urgent", "--nodes=3", "--exclusive", "--partition=cpu", "--output=/dev/null",
                      "--wrap=sleep 5", "--time=2")  # fmt: skip
            wait_for(lambda count=preempted: len(run.events("worker-preempted")) == count, "the word of it", 120)
        (run.directory / "go").touch()
        assert run.wait(RUN_S) == 0, run.output
        assert len(started(run)) == 3
        assert len(ended(run)) == 1
        assert "DUE TO PREEMPTION" in run.output, run.output
        assert run.output.count("do not count against --dask-lost-worker-retries") == 1, run.output
        assert run.events("run-ended")
        assert "lost" not in run.events("run-ended")[0]["summary"]
        run.expect_gone(30)


def test_a_pools_file_knows_accounts(slurm: AccountedSlurm, tmp_path: Path) -> None:
    """Partitions that take only accounts of others are left out; where one of the user's is needed, it is named."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake_executor_plugin_dask", "pools", "--from-slurm"],
        cwd=tmp_path, env=slurm.environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "# Left out: partition big (it is for the accounts operators)." in done.stdout
    assert '"queue": "gpu", "account": "chemistry"' in done.stdout
    file = tmp_path / "pools.yaml"
    file.write_text(done.stdout)
    (tmp_path / "Snakefile").write_text('rule all:\n    output: "a"\n    resources: gpu=1\n    shell: ":"\n')
    command = [sys.executable, "-m", "snakemake", "--executor", "dask", "--jobs", "9", "--dask-pools", str(file)]
    plan = subprocess.run(
        [*command, "--dask-plan"],
        cwd=tmp_path, env=slurm.environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert plan.returncode == 0, plan.stderr
    assert "#SBATCH -A chemistry" in plan.stdout
