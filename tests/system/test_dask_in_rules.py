"""Dask inside a rule: a bare `Client()` in a job with `dask_workers` has workers of the job's own."""

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from clusters.slurm import VirtualSlurm
from running import SnakemakeRun, processes_of, snakemake, wait_for

from .test_attached import Cluster

SCRIPT = """
import os, sys, time
from pathlib import Path
from distributed import Client

def big():
    held = bytearray()
    while True:
        held += b"x" * 5_000_000
        time.sleep(0.005)

if __name__ == "__main__":
    output = sys.argv[1] if len(sys.argv) > 1 else snakemake.output[0]
    kind = Path(output).stem
    if kind == "stranger":
        while not Path("address").exists():
            time.sleep(0.1)
        try:
            Client(Path("address").read_text(), timeout=5)
        except OSError as error:
            Path("refused").write_text(repr(error))
    with Client() as client:
        if kind == "keeps":
            Path("address.part").write_text(os.environ["DASK_SCHEDULER_ADDRESS"])
            os.rename("address.part", "address")
            while not Path("refused").exists():
                time.sleep(0.1)
        if kind == "greedy":
            client.submit(big).result()
        if kind == "long":
            Path("pid").write_text(str(os.getpid()))
            client.submit(time.sleep, 3600).result()
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        sizes = sorted((worker["nthreads"], worker["memory_limit"]) for worker in workers)
        answer = client.submit(sum, [1, 2]).result()
        if kind == "other":
            answer = set(client.run(lambda: __import__("sys").executable).values())
        Path(output).write_text(f"{answer} {sizes} {type(client.cluster).__name__}")
"""

KINDS = """
import dask, distributed

rule all:
    input: "script.txt", "run.txt", "shell.txt", "cold.txt", "keeps.txt", "stranger.txt", "other.txt"

rule script:
    output: "script.txt"
    threads: 2
    resources: mem_mb=300, dask_workers=2, dask_worker_options="{resources: {A: 1}}"
    script: "dask_script.py"

rule run:
    output: "run.txt"
    resources: mem_mb=300, dask_workers=2
    run:
        with distributed.Client() as client:
            sizes = sorted((w["nthreads"], w["memory_limit"]) for w in client.scheduler_info()["workers"].values())
            answer = client.submit(sum, [1, 2]).result()
        open(output[0], "w").write(f"{answer} {sizes} {type(client.cluster).__name__}")

rule shell:
    output: "shell.txt"
    resources: mem_mb=300, dask_workers=1
    shell: "PYTHON dask_script.py {output} | cat"

rule cold:
    output: "cold.txt"
    resources: mem_mb=300, dask_workers=1, dask_job_start="cold"
    run:
        with distributed.Client() as client:
            open(output[0], "w").write(str(client.submit(sum, [1, 2]).result()))

rule pair:
    output: "{name,keeps|stranger}.txt"
    resources: mem_mb=300, dask_workers=1
    shell: "PYTHON dask_script.py {output}"
"""

OTHER_PYTHON = """
rule other:
    output: "other.txt"
    resources: mem_mb=300, dask_workers=1
    shell: "! other/bin/python -c 'import snakemake' 2> no-snakemake; other/bin/python dask_script.py {output}"
"""

ONE = """
rule one:
    output: "{name}.txt"
    resources: mem_mb=300, dask_workers=2, dask_script_mem_mb=3000
    shell: "PYTHON dask_script.py {output}"
"""


POOL = """
pools:
  main:
    cluster: slurm
    workers: 0-1
    cores: 2
    memory: 1400 MB
    walltime: 10m
    options: {queue: big}
"""


def of_python(snakefile: str, directory: Path) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "dask_script.py").write_text(SCRIPT)
    return snakefile.replace("PYTHON", sys.executable)


def other_python(directory: Path) -> None:
    """An environment with Dask, and without Snakemake and the plugin."""
    packages = directory / "packages"
    packages.mkdir(parents=True)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.lower().startswith("snakemake"):
            (packages / path.name).symlink_to(path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory / "other"], check=True)
    (own,) = (directory / "other").glob("lib/python*/site-packages")
    (own / "packages.pth").write_text(f"{packages}\n")


def clusters(run: SnakemakeRun) -> dict[int, str]:
    """The processes of jobs' own clusters."""
    return {pid: command for pid, command in run.processes().items() if "cluster.py" in command}


def test_a_bare_client_has_the_jobs_workers(tmp_path: Path) -> None:
    """In every kind of rule, warm and cold, also where the Snakefile has imported Dask; and nobody else's.

    Its workers are of the script's own Python.
    """
    other_python(tmp_path)
    with snakemake(tmp_path, of_python(KINDS + OTHER_PYTHON, tmp_path), "--dask-worker-cores", "20") as run:
        assert run.wait() == 0, run.output
        run.expect_gone(10)
    found = {path.stem: path.read_text() for path in tmp_path.glob("*.txt")}
    assert found["script"] == "3 [(2, 300000000), (2, 300000000)] NoneType"
    assert found["run"] == "3 [(1, 300000000), (1, 300000000)] NoneType"
    assert found["shell"] == "3 [(1, 300000000)] NoneType"
    assert found["cold"] == "3"
    assert str(tmp_path / "other" / "bin" / "python") in found["other"]
    assert "No module named 'snakemake'" in (tmp_path / "no-snakemake").read_text()
    assert "TLS certificate does not match" in (tmp_path / "refused").read_text()
    starts = {event["key"].partition("-")[0]: event["start"] for event in run.events("job-started")}
    assert (starts["run"], starts["cold"]) == ("warm", "cold")


def test_snakemakes_local_executor_starts_a_local_cluster(tmp_path: Path) -> None:
    """The same rule."""
    with snakemake(tmp_path, of_python(ONE, tmp_path), "some.txt", executor="local") as run:
        assert run.wait() == 0, run.output
    assert (tmp_path / "some.txt").read_text().endswith("LocalCluster")


def test_a_worker_over_its_memory_is_replaced_and_then_the_job_fails(tmp_path: Path) -> None:
    """The message names the worker, what it held and the limit."""
    with snakemake(tmp_path, of_python(ONE, tmp_path), "greedy.txt", "--dask-worker-cores", "3") as run:
        assert run.wait() == 1, run.output
        run.expect_gone(10)
    (ended,) = run.events("job-ended")
    assert ended["outcome"]["status"] == "out-of-memory"
    detail = ended["outcome"]["detail"]
    assert "Dask worker " in detail
    assert "exceeded the limit of 300 MB (mem_mb), as workers" in detail
    log = Path(ended["outcome"]["log_path"]).read_text()
    assert log.count("and is replaced") == 2


@pytest.mark.parametrize("how", ["script", "ctrl-c"])
def test_a_cluster_goes_with_its_job(tmp_path: Path, how: str) -> None:
    """However that ends: its script killed, or the run interrupted."""
    with snakemake(tmp_path, of_python(ONE, tmp_path), "long.txt") as run:
        script = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the script"))
        assert len(clusters(run)) >= 2
        directory = next(command for command in clusters(run).values()).split()[-1]
        if how == "script":
            os.kill(script, signal.SIGKILL)
        else:
            run.process.send_signal(signal.SIGINT)
        assert run.wait() == 1
        run.expect_gone(10)
    assert not processes_of(directory)
    assert not Path(directory).exists()


@pytest.mark.slurm
def test_on_slurm(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """On a node of its own, in an allocation; what does not fit there is told before the first job."""
    tmp_path.joinpath("pools.yaml").write_text(POOL)
    snakefile = of_python(ONE, tmp_path)
    less = ("--dask-pools", "pools.yaml", "--set-resources", "one:dask_script_mem_mb=300")
    with snakemake(tmp_path, snakefile, "some.txt", *less) as run:
        assert run.wait() == 1
        assert "To make it fit: --set-resources one:dask_workers=1" in run.output
    with snakemake(tmp_path, snakefile, "some.txt", *less, "one:dask_workers=1") as run:
        assert run.wait() == 0, run.output
        run.expect_gone(60)
    assert (tmp_path / "some.txt").read_text() == "3 [(1, 300000000)] NoneType"


def test_on_an_attached_cluster(tmp_path: Path) -> None:
    """Over `tcp://`, too: what is secret is made on the worker and stays there."""
    (tmp_path / "cluster").mkdir()
    cluster = Cluster(tmp_path / "cluster")
    try:
        cluster.scheduler()
        cluster.worker("w", 4)
        with snakemake(tmp_path, of_python(ONE, tmp_path), "some.txt", "--dask-scheduler", str(cluster.file)) as run:
            assert run.wait() == 0, run.output
    finally:
        cluster.end()
    assert (tmp_path / "some.txt").read_text() == "3 [(1, 300000000), (1, 300000000)] NoneType"
