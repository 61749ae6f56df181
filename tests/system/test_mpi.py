"""Workers that an MPI launcher starts: with Open MPI and MPICH here, with `srun` on virtual nodes of Slurm."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from clusters.slurm import VirtualSlurm
from running import RUN_S, ended, logged_jobs, snakemake, started, wait_for

LAUNCHERS = ["mpirun.openmpi", "mpiexec.hydra"]


def with_variants(*launchers: str, run: str) -> pytest.MarkDecorator:
    """By the one launcher in the default run, by all others in `./run tests variants`."""
    marks = {name: () if name == run else (pytest.mark.variant,) for name in launchers}
    return pytest.mark.parametrize("launcher", [pytest.param(name, marks=marks[name]) for name in launchers])


#: Small jobs, jobs on two nodes that call a launcher themselves, and several wide ones. They could block each other, as
#: each holds its cores for a while.
MIXED = """
rule all:
    input: expand("small/{{i}}", i=range(6)), expand("wide/{{i}}", i=range(4)), expand("mpi/{{i}}", i=range(2))

rule small:
    output: "small/{{i}}"
    shell:
        "env | sort > {{output}}; sleep 0.5; test -z ${{{{SLURM_JOB_ID:-}}}} || "
        "timeout 60 srun bash -c 'echo srun on $SLURMD_NODENAME' >> {{output}}"

rule wide:
    output: "wide/{{i}}"
    resources: nodes=2
    shell: "echo $SNAKEMAKE_DASK_HOSTS > {{output}}; sleep 0.5"

rule mpi:
    output: "mpi/{{i}}"
    resources: mpi="{launcher}", tasks={tasks}, nodes=2
    shell:
        "timeout 60 {{resources.mpi}} -n {{resources.tasks}} bash -c 'echo rank "
        "${{{{OMPI_COMM_WORLD_RANK:-${{{{PMI_RANK:-$SLURM_PROCID}}}}}}}} "
        "node ${{{{SLURMD_NODENAME:-here}}}}' > {{output}}"
"""


@pytest.fixture(autouse=True)
def _root_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open MPI refuses to run as root unless it is told twice; tests in containers run as root."""
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    monkeypatch.setenv("OMPI_MCA_rmaps_base_oversubscribe", "1")


def ranks(path: Path) -> list[str]:
    """The rank of each line of an MPI job's output."""
    return sorted(line.split()[1] for line in path.read_text().splitlines() if line.startswith("rank"))


def mpi_arguments(launcher: str, workers: int = 3) -> list[str]:
    """A pool of so many workers on this machine."""
    return ["--dask-cluster", "mpi", "--dask-workers", str(workers), "--dask-options", f"{{launcher: {launcher}}}"]


@pytest.mark.mpi
@with_variants(*LAUNCHERS, run="mpirun.openmpi")
def test_three_ranks_on_this_machine(tmp_path: Path, launcher: str) -> None:
    """Each worker has its share of the machine; jobs see nothing of the launcher, and may use it themselves."""
    with snakemake(tmp_path, MIXED.format(launcher=launcher, tasks=2), *mpi_arguments(launcher)) as run:
        assert run.wait() == 0, run.output
        facts = [event["facts"] for event in run.events("worker-joined")]
        assert sorted(fact["name"] for fact in facts) == ["mpi-0-0", "mpi-0-1", "mpi-0-2"]
        assert {fact["cores"] for fact in facts} == {max(1, len(os.sched_getaffinity(0)) // 3)}
        for number in range(2):
            assert ranks(tmp_path / f"mpi/{number}") == ["0", "1"]
        environment = (tmp_path / "small/0").read_text()
        names = {line.partition("=")[0] for line in environment.splitlines()}
        assert not {name for name in names if name.startswith(("PMI", "PMIX", "OMPI_COMM", "HYDI", "ORTE"))}
        assert "OMPI_MCA_rmaps_base_oversubscribe" in names  # the user's own
        run.expect_gone(15)


@pytest.mark.mpi
def test_five_ranks_on_the_local_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An MPI job of more ranks than this machine has cores runs, where Snakemake's own executor lacks slots for it.

    Snakemake runs in an allocation whose end is known here: a job that asks for more time than is left runs, too.
    """
    monkeypatch.delenv("OMPI_MCA_rmaps_base_oversubscribe")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3600))
    snakefile = """
rule all:
    input: "ranks", "long"
rule ranks:
    output: "ranks"
    resources: mpi="mpirun.openmpi", tasks=5
    shell: "{resources.mpi} -n {resources.tasks} bash -c 'echo rank $OMPI_COMM_WORLD_RANK' > {output}"
rule long:
    output: "long"
    resources: runtime=7200
    shell: "touch {output}"
"""
    with snakemake(tmp_path, snakefile, "--dask-worker-cores", "2") as run:
        assert run.wait() == 0, run.output
        assert ranks(tmp_path / "ranks") == ["0", "1", "2", "3", "4"]
        assert "Rule long asks for runtime=5d, and the allocation in which Snakemake runs ends in" in run.output


@pytest.mark.mpi
def test_more_than_two_nodes_hold_is_refused(tmp_path: Path) -> None:
    """What a node really has is known once the workers are there; a job that cannot fit then fails, and is not left."""
    with snakemake(tmp_path, MIXED.format(launcher="mpirun", tasks=4000), *mpi_arguments("mpirun.openmpi")) as run:
        assert run.wait() != 0
        assert "mpi" in run.output
        assert "4,000 cores" in run.output or "2,000 cores" in run.output, run.output
        run.expect_gone(15)


@pytest.mark.mpi
@with_variants(*LAUNCHERS, run="mpiexec.hydra")
def test_a_killed_worker_takes_nobody_along(tmp_path: Path, launcher: str) -> None:
    """The other workers' jobs go on, and the same launcher has a worker again where one died."""
    body = "while ! test -e go; do sleep 0.1; done"
    with snakemake(tmp_path, logged_jobs(3, body), *mpi_arguments(launcher)) as run:
        wait_for(lambda: len(started(run)) == 3, "three jobs started")
        os.kill(run.facts(1)["pid"], signal.SIGKILL)
        wait_for(lambda: run.events("worker-lost"), "the loss of the worker")
        # Only once its first attempt is known to be dead: that one could still see the file, and end well.
        wait_for(lambda: len(started(run)) == 4, "the lost job again")
        (tmp_path / "go").touch()
        assert run.wait() == 0, run.output
        lost = {event["worker"] for event in run.events("worker-lost")}
        assert lost == {run.facts(1)["name"]}
        assert len(started(run)) == 4
        assert len(ended(run)) == 3
        assert [e["worker"] for e in run.events("worker-joined")][3:] in ([], [f"{run.facts(1)['name']}-again1"])
        run.expect_gone(15)


@pytest.mark.mpi
def test_a_launcher_that_is_ended_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes all its workers along; they come up again, and only the jobs that ran run again. Nothing is left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    body = "test {wildcards.i} = 0 || while ! test -e go; do sleep 0.1; done"
    with snakemake(tmp_path, logged_jobs(3, body), *mpi_arguments("mpirun.openmpi")) as run:
        wait_for(lambda: len(started(run)) == 3 and len(ended(run)) == 1, "three jobs started, and one ended")
        (allocation,) = run.events("allocation-submitted")
        os.kill(int(allocation["allocation"]), signal.SIGTERM)
        wait_for(lambda: len(run.events("worker-joined")) >= 5, "workers of a second launcher")
        (tmp_path / "go").touch()
        assert run.wait() == 0, run.output
        assert len(run.events("allocation-submitted")) == 2
        assert len(started(run)) == 5
        assert len(ended(run)) == 3
        run.expect_gone(15)
        assert not list(temporary.glob("snakemake-dask*"))


@pytest.mark.mpi
def test_a_launcher_that_fails_is_told_with_its_words(tmp_path: Path) -> None:
    """What the launcher printed is in Snakemake's output."""
    options = "{launcher: 'mpirun.openmpi --no-such-option'}"
    with snakemake(
        tmp_path, logged_jobs(1, ":"), "--dask-cluster", "mpi", "--dask-workers", "2", "--dask-options", options
    ) as run:
        assert run.wait() != 0
        assert "no-such-option" in run.output.partition("Error in rule")[0], run.output
        run.expect_gone(15)


@pytest.mark.mpi
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_snakemake_as_ranks_ends_at_once(tmp_path: Path, launcher: str) -> None:
    """Started by a launcher, each Snakemake says how to start it, and none has locked the directory."""
    (tmp_path / "Snakefile").write_text(logged_jobs(1, ":"))
    command = [launcher, "-n", "2", sys.executable, "-m", "snakemake", "--executor", "dask", "--jobs", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "started as one of 2 ranks" in done.stdout + done.stderr
    assert not list(tmp_path.glob(".snakemake/locks/*"))
    assert not (tmp_path / "log.txt").exists()


BATCH = """#!/bin/bash
#SBATCH --nodes=3 --ntasks-per-node=2 --partition=cpu --output={directory}/batch.out --time=10
cd {directory}
{python} -m snakemake --executor dask --dask-cluster mpi --jobs 500 {arguments}
"""


@pytest.mark.mpi
@pytest.mark.slurm
@with_variants("srun", "mpirun.openmpi", "mpiexec.hydra", run="srun")
def test_three_nodes_of_slurm(tmp_path: Path, slurm: VirtualSlurm, launcher: str) -> None:
    """A worker on each node of a batch script's allocation, and MPI jobs on exactly the nodes that they hold."""
    (tmp_path / "Snakefile").write_text(MIXED.format(launcher=launcher, tasks=4))
    script = tmp_path / "batch.sh"
    script.write_text(BATCH.format(directory=tmp_path, python=sys.executable, arguments=""))
    slurm.run("sbatch", "--wait", str(script), check=False, timeout_s=RUN_S)
    output = (tmp_path / "batch.out").read_text()
    events = [
        json.loads(line)
        for path in tmp_path.glob(".snakemake/dask/*.events.jsonl")
        for line in path.read_text().splitlines()
    ]
    joined = {event["worker"]: event["facts"]["host"] for event in events if event["kind"] == "worker-joined"}
    assert sorted(joined.values()) == ["c1", "c2", "c3"], output
    held = [{joined[worker] for worker in e["workers"]} for e in events if e["kind"] == "job-placed"]
    for number in range(2):
        text = (tmp_path / f"mpi/{number}").read_text()
        assert ranks(tmp_path / f"mpi/{number}") == ["0", "1", "2", "3"], output
        if launcher != "mpiexec.hydra":  # Hydra hands its own environment on, this variable of the node included
            assert {line.split()[3] for line in text.splitlines() if line.startswith("rank")} in held
    for number in range(4):
        hosts = (tmp_path / f"wide/{number}").read_text().strip().split(",")
        assert len(set(hosts)) == 2, output
    for number in range(6):
        lines = (tmp_path / f"small/{number}").read_text().splitlines()
        (node,) = [line.partition("=")[2] for line in lines if line.startswith("SLURMD_NODENAME=")]
        assert f"srun on {node}" in lines, output
        assert {"SLURM_CPUS_ON_NODE=1", "SLURM_NNODES=1"} <= set(lines)
    assert shutil.which(launcher)


ONE_NODE = """
launchers = ["srun", "mpirun.openmpi", "mpiexec.hydra"]

rule all:
    input: expand("mpi/{launcher}", launcher=launchers)

rule mpi:
    output: "mpi/{launcher}"
    resources: mpi=lambda wildcards: wildcards.launcher, tasks=2
    shell:
        "timeout 60 {resources.mpi} -n {resources.tasks} bash -c 'echo rank "
        "${{OMPI_COMM_WORLD_RANK:-${{PMI_RANK:-$SLURM_PROCID}}}}' > {output}"
"""


@pytest.mark.mpi
@pytest.mark.slurm
def test_one_node_of_slurm(tmp_path: Path, slurm: VirtualSlurm) -> None:
    """In an allocation of one node launchers work, too: Slurm's knows the node by its own name alone."""
    (tmp_path / "Snakefile").write_text(ONE_NODE)
    script = tmp_path / "batch.sh"
    text = BATCH.format(directory=tmp_path, python=sys.executable, arguments="--keep-going")
    script.write_text(text.replace("--nodes=3", "--nodes=1"))
    slurm.run("sbatch", "--wait", str(script), check=False, timeout_s=RUN_S)
    output = (tmp_path / "batch.out").read_text()
    for launcher in ["srun", "mpirun.openmpi", "mpiexec.hydra"]:
        assert (tmp_path / "mpi" / launcher).exists(), output
        assert ranks(tmp_path / "mpi" / launcher) == ["0", "1"], output


RANKS_FIRST = """#!/bin/bash
#SBATCH --nodes=3 --ntasks-per-node=2 --partition=cpu --output={directory}/batch.out --time=10
cd {directory}
srun --ntasks=3 {python} -m snakemake --executor dask --jobs 2 >ranks.out 2>&1
ls .snakemake/locks >locks.out 2>&1
{python} -m snakemake --executor dask --dask-cluster mpi --jobs 500
"""


@pytest.mark.mpi
@pytest.mark.slurm
def test_mistakes_and_deaths_on_three_nodes(tmp_path: Path, slurm: VirtualSlurm) -> None:
    """Snakemake as ranks of `srun` ends at once, without a lock; a killed worker takes no other node's along."""
    (tmp_path / "Snakefile").write_text(logged_jobs(6, "while ! test -e go; do sleep 0.1; done"))
    script = tmp_path / "batch.sh"
    script.write_text(RANKS_FIRST.format(directory=tmp_path, python=sys.executable))
    slurm.run("sbatch", str(script))

    def events(kind: str) -> list[dict[str, Any]]:
        found = []
        for path in tmp_path.glob(".snakemake/dask/*.events.jsonl"):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return [event for event in found if event["kind"] == kind]

    wait_for(lambda: len(events("job-started")) == 6, "six jobs on three nodes")
    victim = events("worker-joined")[1]["facts"]
    os.kill(victim["pid"], signal.SIGKILL)
    wait_for(lambda: events("worker-lost"), "the loss of the worker")
    (tmp_path / "go").touch()
    wait_for(lambda: not slurm.queue(), "the end of the batch script", 180)
    output = (tmp_path / "batch.out").read_text()
    assert "6 of 7 steps" in output or "7 of 7 steps (100%) done" in output, output
    assert {event["worker"] for event in events("worker-lost")} == {victim["name"]}
    assert len(events("job-started")) == 8, output  # only the two jobs that ran there ran again
    ranks_output = (tmp_path / "ranks.out").read_text()
    assert ranks_output.count("Snakemake was started as one of 3 ranks by srun") == 3, ranks_output
    assert "No such file" in (tmp_path / "locks.out").read_text() or not (tmp_path / "locks.out").read_text().strip()
