"""Runs on a real Slurm of small virtual nodes. After each test the queue is empty."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters.slurm import VirtualSlurm, one_pool
from running import (
    RUN_S,
    SnakemakeRun,
    ended,
    lasting,
    logged_jobs,
    slowness,
    snakemake,
    started,
    unless_again,
    wait_for,
)

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def allocations(slurm: VirtualSlurm, *states: str) -> list[str]:
    """Ids of the plugin's allocations that are in one of the states (without: in any)."""
    lines = [line.split() for line in slurm.queue()]
    return [line[0] for line in lines if line[1].startswith("snakemake-") and (not states or line[2] in states)]


def pools(directory: Path, text: str) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "pools.yaml"
    path.write_text(text)
    return str(path)


def values(run: SnakemakeRun, pattern: str) -> list[str]:
    return sorted(path.read_text().strip() for path in run.directory.glob(pattern))


def attempts(run: SnakemakeRun) -> dict[str, int]:
    """How often each job was started."""
    count: dict[str, int] = {}
    for line in started(run):
        count[line.split()[1]] = count.get(line.split()[1], 0) + 1
    return count


def wrap(command: str, script: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a shell script before one of Slurm's commands; what it goes on to with `exec "$REAL"` is that command."""
    wrapper = directory / "bin" / command
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/bash\nREAL={shutil.which(command)}\n{script}\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")


def test_pools_file_routes_to_two_partitions(
    slurm: VirtualSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs run in the first pool that holds them, each in its partition, with its prologue, whatever SBATCH_ says.

    One worker holds an allocation of two nodes, and an inner `srun` starts a task on each.
    """
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    monkeypatch.setenv("OF_SNAKEMAKE", "of snakemake")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    file = pools(
        tmp_path,
        """
pools:
  small:
    cluster: slurm
    workers: 0-2
    cores: 2
    memory: 1500 MB
    walltime: 10m
    options:
      queue: cpu
      job_script_prologue: ["export FROM_PROLOGUE='a b' SLURM_CPU_BIND=none SLURM_DISTRIBUTION=cyclic"]
      job_extra_directives: ["--export=NONE"]
  large:
    cluster: slurm
    workers: 0-1
    cores: 3
    memory: 4 GB
    walltime: 20m
    options: {queue: big}
  wide:
    cluster: slurm
    workers: 0-1
    nodes: 2
    cores: 1
    memory: 1500 MB
    walltime: 10m
    options: {queue: big}
""",
    )
    snakefile = """
rule all:
    input: expand("small/{i}", i=range(4)), "large/0", "long/0", expand("wide/{i}", i=range(2))
rule small:
    output: "small/{i}"
    resources: mem_mb=300, runtime=2
    shell:
        "echo $SLURM_JOB_PARTITION $FROM_PROLOGUE $SLURM_CPUS_PER_TASK $SLURM_MEM_PER_NODE $SLURM_CPU_BIND"
        " $(srun bash -c 'echo $SLURM_DISTRIBUTION $OF_SNAKEMAKE') > {output}"
rule large:
    output: "large/0"
    threads: 3
    shell: "echo $SLURM_JOB_PARTITION > {output}"
rule long:
    output: "long/0"
    resources: runtime=15
    shell: "echo $SLURM_JOB_PARTITION > {output}"
rule mpi:
    output: "wide/{i}"
    resources: nodes=2, tasks=2, mpi="srun", runtime=5
    shell: "{resources.mpi} -n {resources.tasks} --ntasks-per-node=1 bash -c 'echo $SLURMD_NODENAME' > {output}"
"""
    with snakemake(tmp_path, snakefile, "--dask-pools", file) as run:
        assert run.wait() == 0, run.output
        # 300 MB are 286 MiB; `srun` in a job has the job's environment, also where sites submit with --export=NONE.
        assert values(run, "small/*") == ["cpu a b 1 286 none cyclic of snakemake"] * 4
        assert values(run, "large/*") == values(run, "long/*") == ["big"]
        for wide in values(run, "wide/*"):
            assert len(set(wide.split())) == len(wide.split()) == 2
        assert not list(tmp_path.glob("*.out")), "Slurm's output files lie in the working directory"
        run.expect_gone(30)


def test_pools_made_for_slurm_resources(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Jobs that name partition, constraint and GPUs get there, and those that share GPUs see each its own.

    The second attempt of one job brings resources that none had before; the pool for these is made then.
    """
    snakefile = """
rule all:
    input: expand("cpu/{i}", i=range(3)), "big/0", expand("gpu/{i}", i=range(2))
rule cpu:
    output: "cpu/{i}"
    resources: mem_mb_per_cpu=400, runtime=2
    shell: "echo $SLURM_JOB_PARTITION > {output}"
rule big:
    output: "big/0"
    threads: 2
    retries: 1
    resources:
        slurm_partition="big", constraint="bigmem",
        slurm_extra=lambda wildcards, attempt: "'--comment=x'" if attempt == 1 else "'--comment=y'"
    shell: "echo $SLURM_JOB_ID >> tried; [ $(wc -l < tried) = 2 ] && echo $SLURM_JOB_PARTITION > {output}"
rule gpu:
    output: "gpu/{i}"
    resources: slurm_partition="gpu", gres="gpu:a100:2", mem_mb=500, runtime=5
    shell: "echo $SLURM_JOB_PARTITION $CUDA_VISIBLE_DEVICES > {output}"
"""
    with snakemake(tmp_path, snakefile, "--dask-cluster", "slurm", "--dask-workers", "0-2") as run:
        assert run.wait() == 0, run.output
        assert values(run, "cpu/*") == ["cpu"] * 3
        assert values(run, "big/*") == ["big"]
        assert len(set((tmp_path / "tried").read_text().split())) == 2, "the new resources got no pool of their own"
        assert len(run.events("pool-up")) == 1
        gpus = [line.split() for line in values(run, "gpu/*")]
        assert [line[0] for line in gpus] == ["gpu", "gpu"]
        assert all(len(line[1].split(",")) == 2 for line in gpus), gpus


def test_pools_made_for_slurm_resources_grow(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Retries that ask for more time or memory, and jobs behind a checkpoint or of a size that their input gives."""
    snakefile = """
rule all:
    input: "time", "memory", "gathered", "by_input"
rule time:
    output: "time"
    retries: 1
    resources: slurm_partition="big", mem_mb=300, runtime=lambda wildcards, attempt: 50 * attempt
    shell: "echo >> time.tries; [ $(wc -l < time.tries) = 2 ] && touch {output}"
rule memory:
    output: "memory"
    retries: 1
    resources: slurm_partition="gpu", runtime=2, mem_mb=lambda wildcards, attempt: 1500 * attempt
    shell: "echo >> memory.tries; [ $(wc -l < memory.tries) = 2 ] && touch {output}"
checkpoint split:
    output: directory("parts")
    resources: runtime=2, mem_mb=300
    shell: "mkdir parts; touch parts/1"
def parts(wildcards):
    return [f"made/{path.name}" for path in Path(checkpoints.split.get().output[0]).iterdir()]
rule gathered:
    input: parts
    output: "gathered"
    resources: runtime=2, mem_mb=300
    shell: "touch {output}"
rule made:
    input: "parts/{i}"
    output: "made/{i}"
    threads: 2
    resources: slurm_partition="gpu", runtime=2, mem_mb=300
    shell: "touch {output}"
rule by_input:
    input: "gathered"
    output: "by_input"
    resources: slurm_partition="big", mem_mb=300, runtime=lambda wildcards, input: 100 + input.size
    shell: "touch {output}"
"""
    arguments = ["--dask-cluster", "slurm", "--dask-workers", "0-1", "--cores", "4"]
    with snakemake(tmp_path, "from pathlib import Path" + snakefile, *arguments) as run:
        assert run.wait() == 0, run.output
        made = {event["pool"]: event for event in run.events("pool-up")}
        assert len([name for name in made if name.startswith("big")]) == 1, "the longer jobs need one further pool"
        assert 1 <= len([name for name in made if name.startswith("gpu")]) <= 2


def test_workers_come_and_go_with_the_work(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Several jobs bring several allocations; while one long job is left, only its own is kept."""
    file = pools(tmp_path, one_pool("0-3", "idle_timeout: 3s"))
    long = "for n in $(seq 600); do [ -e release ] && break; sleep 0.2; done"
    short = "while ! [ -e others ]; do sleep 0.2; done"
    body = f"if [ {{wildcards.i}} = 0 ]; then {long}; else {short}; fi"
    with snakemake(tmp_path, logged_jobs(7, body), "--dask-pools", file) as run:
        wait_for(lambda: len(allocations(slurm, "RUNNING")) == 3, "three allocations", RUN_S)
        (tmp_path / "others").touch()
        wait_for(lambda: len(ended(run)) == 6, "the short jobs' end", RUN_S)
        wait_for(lambda: len(allocations(slurm)) == 1, "one allocation left", RUN_S)
        assert len(ended(run)) == 6, "the long job lost its worker"
        (tmp_path / "release").touch()
        assert run.wait() == 0, run.output
        assert set(attempts(run).values()) == {1}


def test_walltime_ends_during_many_short_jobs(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Allocations of a minute end one after the other; each job runs once, and none is ended with its allocation."""
    file = pools(tmp_path, one_pool("0-1", "default_runtime: 10s\n    margin: 20s", walltime="1m", cores=2))
    # Together they take longer than one allocation lasts.
    with snakemake(tmp_path, logged_jobs(60, "sleep 2"), "--dask-pools", file) as run:
        assert run.wait() == 0, run.output
        assert len(run.events("worker-joined")) >= 2, "one allocation was enough; the test shows nothing"
        assert attempts(run) == {str(i): 1 for i in range(60)}
        assert len(ended(run)) == 60


def test_allocation_cancelled_from_outside(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """`scancel` of a running allocation: its jobs run again elsewhere, after the first attempts are dead."""
    file = pools(tmp_path, one_pool("0-1"))
    with snakemake(tmp_path, logged_jobs(2, unless_again("sleep 600")), "--dask-pools", file) as run:
        wait_for(lambda: lasting(run), "a job's start", RUN_S)
        (victim,) = allocations(slurm, "RUNNING")
        (tmp_path / "again").touch()
        slurm.run("scancel", victim)
        assert run.wait() == 0, run.output
        assert attempts(run) == {"0": 2, "1": 1} or attempts(run) == {"0": 1, "1": 2}
        assert len(ended(run)) == 2, "the first attempt went on"
        assert re.search(rf"in allocation {victim}, whose output ends with: .*CANCELLED AT", run.output), run.output


def test_node_goes_down(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """A power cut of the node: the job runs again on another one."""
    file = pools(tmp_path, one_pool("0-1"))
    with snakemake(tmp_path, logged_jobs(1, unless_again("sleep 600")), "--dask-pools", file) as run:
        wait_for(lambda: lasting(run), "a job's start", RUN_S)
        (line,) = slurm.queue()
        (tmp_path / "again").touch()
        slurm.kill_node(line.split()[3])
        assert run.wait() == 0, run.output
        assert attempts(run) == {"0": 2}
        assert len(ended(run)) == 1
    wait_for(lambda: not slurm.queue(), "Slurm to notice that the node is gone")


def test_partition_down_for_a_while(slurm: VirtualSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition that is down: why the allocation waits is said once, and work starts when it is up."""
    asked = tmp_path / "asked"
    wrap("squeue", f'echo >> {asked}; exec "$REAL" "$@"', tmp_path, monkeypatch)
    slurm.run("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    file = pools(tmp_path, one_pool("0-1"))
    with snakemake(tmp_path, logged_jobs(1, "true"), "--dask-pools", file) as run:
        wait_for(lambda: "PartitionDown" in run.output, "the reason", RUN_S)
        before = len(asked.read_text())
        wait_for(lambda: len(asked.read_text()) >= before + 2, "the queue is asked again")
        assert run.output.count("PartitionDown") == 1, "it is said again and again"
        slurm.run("scontrol", "update", "PartitionName=cpu", "State=UP")
        assert run.wait() == 0, run.output


def test_pool_that_is_refused_is_given_up(slurm: VirtualSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account that is refused each time: two tries, then the jobs run in another pool, and it is said why."""
    refusal = "Batch job submission failed: Invalid account or account/partition combination specified"
    refuse = f'case "$*" in *--test-only*) ;; *"-p cpu"*) echo "sbatch: error: {refusal}" >&2; exit 1 ;; esac'
    wrap("sbatch", f'{refuse}\nexec "$REAL" "$@"', tmp_path, monkeypatch)
    text = one_pool("0-2") + one_pool("0-1", partition="big").partition("pools:")[2].replace("main:", "other:")
    with snakemake(
        tmp_path, logged_jobs(3, "echo $SLURM_JOB_PARTITION >> where"), "--dask-pools", pools(tmp_path, text)
    ) as run:
        assert run.wait() == 0, run.output
        assert (tmp_path / "where").read_text().split() == ["big"] * 3
        assert f"{refusal}; name an account of yours" in run.output, run.output
        assert "Pool main is given up" in run.output
        gone = [event for event in run.events("allocation-gone") if event["pool"] == "main"]
        assert 2 <= len(gone) <= 3, gone


def test_node_that_fails_workers_is_left_out(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """The node that Slurm gives first ends each worker at its start, and is free again at once: others are asked for.

    Slurm would give it until the pool is given up. It is said which node and why.
    """
    (tmp_path / "fails_first").write_text(
        "(set -C; echo $SLURMD_NODENAME > bad) 2> /dev/null\n"
        'if [ "$(cat bad)" = "$SLURMD_NODENAME" ]; then echo no such module; exit 3; fi\n'
    )
    prologue = f'job_script_prologue: ["cd {tmp_path}", ". ./fails_first"], job_extra_directives: ["--exclude=c3"]'
    file = pools(tmp_path, one_pool("0-1").replace("queue: cpu", f"queue: cpu, {prologue}"))
    with snakemake(tmp_path, logged_jobs(1, "echo $SLURMD_NODENAME > where"), "--dask-pools", file) as run:
        assert run.wait() == 0, run.output
        bad = (tmp_path / "bad").read_text().strip()
        assert {bad, (tmp_path / "where").read_text().strip()} == {"c1", "c2"}
        assert run.output.count(f"Node {bad} is left out of later allocations of pool main: 2 workers failed") == 1
        assert "no such module" in run.output
        assert len(run.events("allocation-submitted")) == 3


def test_full_queue(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """While others hold the nodes, allocations wait, a few at most; the work starts when there is room."""
    for _ in range(3):
        slurm.run("sbatch", "--cpus-per-task=2", "--mem=3000", "--output=/dev/null", "--wrap", "exec sleep 600")
    wait_for(lambda: len(slurm.queue()) == 3 and all("RUNNING" in line for line in slurm.queue()), "full nodes")
    others = [line.split()[0] for line in slurm.queue()]
    file = pools(tmp_path, one_pool("0-6", cores=2))  # a worker takes a whole node
    with snakemake(tmp_path, logged_jobs(12, "true"), "--dask-pools", file) as run:
        wait_for(lambda: len(allocations(slurm, "PENDING")) == 3, "queued allocations", RUN_S)
        why = {"Resources", "Priority"}
        wait_for(lambda: why & {event["reason"] for event in run.events("allocation-waiting")}, "the reason", RUN_S)
        assert len(allocations(slurm)) == 3
        slurm.run("scancel", others[0])
        assert run.wait() == 0, run.output
    slurm.run("scancel", *others[1:])
    wait_for(lambda: not slurm.queue(), "an empty queue")


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.variant)])
def test_snakemake_ends_with_jobs_running_and_queued(
    slurm: VirtualSlurm, tmp_path: Path, number: signal.Signals
) -> None:
    """However Snakemake ends, its running and its queued allocations are gone soon after, and all processes."""
    # Of two workers with two cores each on two nodes' memory the third has to wait.
    text = one_pool("0-9", cores=2).replace("900 MB", "3 GB")
    with snakemake(tmp_path, logged_jobs(10, "sleep 300"), "--dask-pools", pools(tmp_path, text)) as run:
        wait_for(lambda: started(run), "a job's start", RUN_S)
        wait_for(lambda: allocations(slurm, "PENDING"), "an allocation that waits", RUN_S)
        os.kill(run.process.pid, number)
        run.wait()
        wait_for(lambda: not allocations(slurm), "an empty queue", 60 * slowness())
        run.expect_gone(30)


def test_snakemake_inside_an_allocation(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Started in an allocation of its own, Snakemake submits workers without that allocation's variables."""
    file = pools(tmp_path, one_pool("0-1", partition="big"))
    (tmp_path / "Snakefile").write_text(logged_jobs(1, "echo $SLURM_JOB_PARTITION $SLURM_JOB_NAME > where"))
    command = f"{sys.executable} -m snakemake --executor dask --jobs 10 --dask-pools {file}"
    slurm.run(
        "sbatch", "--wait", "--mem-per-cpu=1500", "--ntasks=1", "--job-name=outer", f"--chdir={tmp_path}",
        f"--output={tmp_path}/output.txt", f"--wrap={command}", timeout_s=RUN_S, check=False,
    )  # fmt: skip
    assert (tmp_path / "where").exists(), (tmp_path / "output.txt").read_text()
    partition, name = (tmp_path / "where").read_text().split()
    assert partition == "big"
    assert name.startswith("snakemake-")


def test_next_run_cancels_what_a_dead_host_left(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Snakemake and driver killed at once with an allocation queued: the next run in the directory cancels it."""
    slurm.run("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    file = pools(tmp_path, one_pool("0-1"))
    with snakemake(tmp_path, logged_jobs(1, "true"), "--dask-pools", file) as run:
        wait_for(lambda: allocations(slurm, "PENDING"), "an allocation in the queue", RUN_S)
        old = allocations(slurm)
        for pid in (run.driver(), run.process.pid):
            os.kill(pid, signal.SIGSTOP)
        for pid in (run.driver(), run.process.pid):
            os.kill(pid, signal.SIGKILL)
        run.wait(60)
        assert allocations(slurm) == old
    file = pools(tmp_path, one_pool("0-1", partition="big"))
    # Only under Snakemake's lock, which the dead one has left behind.
    subprocess.run([sys.executable, "-m", "snakemake", "--unlock", "--cores", "1"], cwd=tmp_path, check=True)
    with snakemake(tmp_path, logged_jobs(1, "true"), "--dask-pools", file, "--rerun-incomplete") as run:
        wait_for(lambda: not set(old) & set(allocations(slurm)), "the old allocation cancelled", RUN_S)
        assert run.wait() == 0, run.output


def test_mpi_job_spreads_over_as_many_nodes_as_its_tasks_need(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """`tasks` without `nodes`, as users of the Slurm executor write it: three ranks on nodes of two cores.

    The same run declares a resource that means nothing, and one by a function of its input, which is not missing.
    """
    snakefile = """
rule all:
    input: "out/3", "out/2", "size"
rule mpi:
    output: "out/{n}"
    resources: mpi="srun", tasks=lambda wildcards: int(wildcards.n), mem_mb_per_cpu=300, runtime=5, slurm_partion="big"
    shell: "{resources.mpi} -n {resources.tasks} bash -c 'echo $SLURMD_NODENAME' | sort > {output}"
rule size:
    input: "out/2"
    output: "size"
    resources: mem_mb=lambda wildcards, input: max(input.size, 200), runtime=5
    shell: "echo done > {output}"
"""
    with snakemake(tmp_path, snakefile, "--dask-cluster", "slurm", "--dask-workers", "0-1") as run:
        assert run.wait() == 0, run.output
        assert len(set((tmp_path / "out/3").read_text().split())) == 2
        assert len((tmp_path / "out/3").read_text().split()) == 3
        assert len(set((tmp_path / "out/2").read_text().split())) == 1
        joined = {event["pool"]: event["facts"] for event in run.events("worker-joined")}
        assert {pool: len(facts["hosts"]) for pool, facts in joined.items()} == {"slurm": 0, "slurm-2nodes": 2}
        assert run.output.count("slurm_partion, which is ignored; did you mean slurm_partition?") == 1
        assert "No mem_mb is declared" not in run.output


@contextlib.contextmanager
def _path_without(tmp_path: Path, *commands: str) -> Iterator[None]:
    """PATH with only the commands that a run needs beside the named ones."""
    kept = tmp_path / "bin"
    kept.mkdir()
    for name in ("bash", "sh", "env", "sbatch", "scancel", "squeue", "sinfo", "cat", "sleep", "date"):
        if name not in commands and (path := shutil.which(name)):
            (kept / name).symlink_to(path)
    before = os.environ["PATH"]
    os.environ["PATH"] = str(kept)
    try:
        yield
    finally:
        os.environ["PATH"] = before


def test_missing_command_is_named_before_anything_starts(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Without `sbatch` the run stops with a sentence that names it."""
    file = pools(tmp_path, one_pool("0-1"))
    with _path_without(tmp_path, "sbatch"), snakemake(tmp_path, logged_jobs(1, "true"), "--dask-pools", file) as run:
        assert run.wait() != 0
        assert "command sbatch is not on PATH" in run.output, run.output


#: What is wrong with a pool's options, by what is said of it.
WRONG = {
    "did you mean cpu?": "{queue: cpuu}",
    "did you mean 'queue'?": "{queu: cpu}",
    "ib77": "{queue: cpu, interface: ib77}",
    "refuses its batch script (allocation failure": "{queue: cpu, job_extra_directives: ['--constraint=fast']}",
    "walltime of 1h1m is more than the 1h that partition cpu allows": "{queue: cpu}",
}


def test_wrong_options_are_named_before_anything_starts(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Queues, options, interfaces, sizes that do not exist stop the run, all told at once, with what there is."""
    parts = []
    for number, (said, options) in enumerate(WRONG.items()):
        text = one_pool("0-1", walltime="61m" if "walltime" in said else "10m").replace("{queue: cpu}", options)
        parts.append(text.replace("\npools:\n", "").replace("main:", f"pool{number}:"))
    file = pools(tmp_path, "pools:\n" + "".join(parts))
    with snakemake(tmp_path, logged_jobs(1, "true"), "--dask-pools", file) as run:
        assert run.wait() != 0
        assert [said for said in WRONG if said not in run.output] == [], run.output
        assert not run.events("allocation-submitted")


def test_a_python_of_the_sites_own(slurm: VirtualSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`jobqueue.yaml` names a wrapper that enters another environment: workers run there, and jobs, warm and cold."""
    venv, other = Path(sys.prefix), tmp_path / "other environment"
    (other / "bin").mkdir(parents=True)
    (other / "bin/python3").symlink_to(Path(sys.executable).resolve())
    (other / "lib").symlink_to(venv / "lib")
    (other / "pyvenv.cfg").write_text((venv / "pyvenv.cfg").read_text())
    wrapper = tmp_path / "enter.sh"
    wrapper.write_text(f'#!/bin/sh\nexport ENTERED="$1"; shift\nexec "{other}/bin/python3" "$@"\n')
    wrapper.chmod(0o755)
    site = tmp_path / "etc"
    site.mkdir()
    (site / "jobqueue.yaml").write_text(
        f"jobqueue:\n  slurm:\n    cores: 1\n    memory: 900 MB\n    queue: cpu\n    python: {wrapper} 'an image'\n"
    )
    monkeypatch.setenv("DASK_CONFIG", str(site))
    snakefile = """
import sys
rule all:
    input: "warm.txt", "cold.txt"
rule warm:
    output: "warm.txt"
    resources: mem_mb=300
    run:
        shell("echo $ENTERED > {output}")
        open(output[0], "a").write(sys.executable)
rule cold:
    output: "cold.txt"
    resources: mem_mb=300, dask_job_start="cold"
    run:
        shell("echo $ENTERED > {output}")
        open(output[0], "a").write(sys.executable)
"""
    with snakemake(tmp_path / "a", snakefile, "--dask-cluster", "slurm") as run:
        assert run.wait() == 0, run.output
        assert {event["start"] for event in run.events("job-started")} == {"warm", "cold"}, run.output
        for name in ("warm", "cold"):
            assert (run.directory / f"{name}.txt").read_text() == f"an image\n{other}/bin/python3"
        run.expect_gone(30)
