"""Dask inside a rule: a bare `Client()` in a job with `dask_workers` has workers of the job's own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from clusters.slurm import VirtualSlurm
from running import RUN_S, SnakemakeRun, processes_of, snakemake, wait_for

from snakemake_executor_plugin_dask.node.processes import process_table, tree

from . import kept_clusters
from .kept_clusters import KEEP, Clusters
from .test_attached import Cluster
from .test_software import TOOLS, with_commands

EXAMPLE = Path(__file__).parents[2] / "example-workflows" / "dask-in-a-rule"

SCRIPT = """
import os, select, socket, sys, time
from pathlib import Path
import distributed
from distributed import Client

def noted(number):
    with open("computed", "a") as file:
        file.write(f"{number}\\n")
    time.sleep(0.2)
    return number

def big():
    held = bytearray()
    while True:
        held += b"x" * 5_000_000
        time.sleep(0.005)

def chunk(number):
    return os.urandom(10_000_000)

def on_disk(dask_worker):
    found = Path(dask_worker.local_directory).rglob("*")
    return [str(path) for path in found if path.is_file() and path.stat().st_size >= 10_000_000]

def slow(number, go):
    while not os.path.exists(go):
        time.sleep(0.1)
    return number

if __name__ == "__main__":
    output = sys.argv[1] if len(sys.argv) > 1 else snakemake.output[0]
    kind = Path(output).stem
    if kind == "stranger":
        while not Path("address").exists():
            time.sleep(0.1)
        try:
            Client(Path("address").read_text(), timeout=120)  # refused at once, unless the machine is busy
        except OSError as error:
            Path("refused").write_text(repr(error))
    with Client() as client:
        if kind == "shell":
            host, port = os.environ["DASK_SCHEDULER_ADDRESS"].removeprefix("tls://").split(":")
            silent = [socket.create_connection((host, int(port))) for _ in range(400)]
            while sum(bool(select.select([each], [], [], 0)[0]) for each in silent) < 100:
                time.sleep(0.1)  # they are turned away
        if kind == "keeps":
            Path("address.part").write_text(os.environ["DASK_SCHEDULER_ADDRESS"])
            os.rename("address.part", "address")
            while not Path("refused").exists():
                time.sleep(0.1)
        wanted = len(client.scheduler_info(n_workers=-1)["workers"])
        if kind == "lossy":
            futures = client.map(slow, range(10), [str(Path("go").resolve())] * 10)
            Path("pid").write_text(str(os.getpid()))
            total = sum(client.gather(futures))
            client.wait_for_workers(wanted)
        if kind == "grows":
            client.wait_for_workers(3)
            futures = client.map(noted, range(10))
            distributed.wait(futures)
            assert len([keys for keys in client.has_what().values() if keys]) == 3
            Path("spread").touch()
            while not os.path.exists("late.txt"):
                time.sleep(0.1)
            total = sum(client.gather(futures))
            client.wait_for_workers(3)
        if kind == "again" and not Path("pid").exists():
            Path("pid").write_text(str(os.getpid()))
            client.submit(time.sleep, 3600).result()
        if kind == "spills":
            held = client.map(chunk, range(80))  # more than all workers have
            distributed.wait(held)
            Path("spilled").write_text("\\n".join(found for each in client.run(on_disk).values() for found in each))
            total = sum(client.gather(client.map(len, held)))
        if kind == "greedy":
            client.submit(big).result()
        if kind == "long":
            Path("pid").write_text(str(os.getpid()))
            client.submit(time.sleep, 3600).result()
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        sizes = sorted((worker["nthreads"], worker["memory_limit"]) for worker in workers)
        answer = client.submit(sum, [1, 2]).result()
        if kind in ("lossy", "grows", "spills"):
            answer = total
        if kind == "inside":
            read = client.run(lambda: Path("/etc/name").read_text().strip()).values()
            answer = f"{' '.join(set(read))} {len(read)}"
        if kind == "devices":
            seen = client.run(lambda: __import__("os").environ["CUDA_VISIBLE_DEVICES"]).values()
            answer = f"{' '.join(sorted(seen))} of the script {os.environ.get('CUDA_VISIBLE_DEVICES', '')}"
        if kind == "cuda":
            def described(dask_worker):
                visible = os.environ["CUDA_VISIBLE_DEVICES"]
                data, listens = type(dask_worker.data).__name__, hasattr(dask_worker, "http_server")
                return visible, data, dask_worker.state.nthreads, listens, "RMMSetup" in str(dask_worker.plugins)
            answer = sorted(client.run(described).values())
        if kind == "other":
            answer = set(client.run(lambda: __import__("sys").executable).values())
        if kind == "devices":
            Path(output).write_text(answer)
            sys.exit(0)
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
    workers: 0-WORKERS
    cores: 2
    memory: 1400 MB
    walltime: 10m
    options: {queue: big}
"""


def of_python(snakefile: str, directory: Path) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "dask_script.py").write_text(SCRIPT)
    return snakefile.replace("PYTHON", sys.executable)


def other_python(directory: Path, *without: str) -> None:
    """An environment with Dask, and without Snakemake, the plugin, and what else starts so."""
    packages = directory / "packages"
    packages.mkdir(parents=True)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.lower().startswith(("snakemake", *without)):
            (packages / path.name).symlink_to(path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory / "other"], check=True)
    (own,) = (directory / "other").glob("lib/python*/site-packages")
    (own / "packages.pth").write_text(f"{packages}\n")


def keepers(run: SnakemakeRun) -> dict[int, str]:
    """The processes of jobs' own clusters."""
    return {pid: command for pid, command in run.processes().items() if "cluster.py" in command}


def script_of(run: SnakemakeRun) -> int:
    """The process of the script, once its client has all workers."""
    path = run.directory / "pid"
    return int(wait_for(lambda: path.exists() and path.read_text(), "the script"))


def run_again(run: SnakemakeRun) -> None:
    """Kill the script: a retry of its job has another cluster, and nothing is left of the first one."""
    script, former = script_of(run), keepers(run)
    (run.directory / "pid").unlink()
    os.kill(script, signal.SIGKILL)
    script_of(run)
    found = keepers(run)
    assert len(found) == len(former)
    assert not found.keys() & former.keys()


def test_a_bare_client_has_the_jobs_workers(tmp_path: Path) -> None:
    """In every kind of rule, warm and cold, also where the Snakefile has imported Dask; and nobody else's.

    Its workers are of the script's own Python, and silent connections to its port are few.
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


PAGE = Path(__file__).parents[2] / "docs" / "dask-in-rules.md"

OWN_CLUSTER = """
rule own:
    output: "own.txt"
    threads: 2
    resources: mem_mb=500
    script: "own.py"
"""


def documented(begins: str) -> str:
    """The example on the page on Dask inside a rule that begins so."""
    (found,) = [text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if begins in text[:20]]
    return found


@pytest.mark.parametrize("executor", ["dask", "local"])
def test_what_is_documented(tmp_path: Path, executor: str) -> None:
    """The page's rule and scripts, unchanged by either executor; a `LocalCluster` of a script's own has its share.

    Where the rule's Dask workers do not fit on this machine, one has the script's cores, which is said once.
    """
    read = "import dask.dataframe as dd", "dd.read_parquet(snakemake.input[0]).x.mean()"
    mean = documented("# mean.py")
    assert all(text in mean for text in read)
    # There need not be pandas and pyarrow.
    mean = mean.replace(read[0], "import dask.array as da").replace(read[1], "da.arange(9, chunks=2).mean()")
    (tmp_path / "mean.py").write_text(f"{mean}    open('seen', 'w').write(type(client.cluster).__name__)\n")
    sizes = "sorted((w['nthreads'], w['memory_limit']) for w in client.scheduler_info()['workers'].values())"
    (tmp_path / "own.py").write_text(f"{documented('# own.py')}    print({sizes}, file=open('own.txt', 'w'))\n")
    (tmp_path / "data.parquet").touch()
    arguments = ["mean.txt", "own.txt", "--set-resources", "mean:mem_mb=300"]
    arguments += ["--dask-worker-cores", "2"] if executor == "dask" else []
    with snakemake(tmp_path, documented("rule mean") + OWN_CLUSTER, *arguments, executor=executor) as run:
        assert run.wait() == 0, run.output
    assert float((tmp_path / "mean.txt").read_text()) == 4
    assert (tmp_path / "own.txt").read_text() == "[(2, 500000000)]\n"
    assert (tmp_path / "seen").read_text() == ("NoneType" if executor == "dask" else "LocalCluster")
    assert run.output.count("Rule mean asks for 4 Dask workers") == (1 if executor == "dask" else 0)


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


def test_what_does_not_fit_into_memory_is_on_disk(tmp_path: Path) -> None:
    """No worker is ended where Dask's own means do; what they have written goes with the job."""
    with snakemake(tmp_path, of_python(ONE, tmp_path), "spills.txt", "--dask-worker-cores", "3") as run:
        assert run.wait() == 0, run.output
        run.expect_gone(10)
    assert (tmp_path / "spills.txt").read_text() == f"800000000 {[(1, 300000000)] * 2} NoneType"
    spilled = [Path(path) for path in (tmp_path / "spilled").read_text().split()]
    assert len(spilled) >= 20
    assert not any(path.exists() or path.parents[1].exists() for path in spilled)


def test_its_pages_are_below_the_runs(tmp_path: Path) -> None:
    """Under the run's secret path, as long as the job runs."""
    with snakemake(tmp_path, of_python(ONE, tmp_path), "long.txt", "--dask-dashboard", "auto") as run:
        script = script_of(run)
        (file,) = tmp_path.glob(".snakemake/dask/*/dashboard")
        base = file.read_text().strip().removesuffix("/status")
        (event,) = run.events("job-placed")
        page = f"{base}/job/{event['key']}/status"
        assert page.removeprefix(base.rpartition("/")[0]) in urlopen(f"{base}/jobs").read().decode()
        assert "Bokeh" in urlopen(page).read().decode()
        with pytest.raises(HTTPError, match="404"):
            urlopen(page.replace(base, base[:-1]))
        os.kill(script, signal.SIGKILL)
        assert run.wait() == 1
        run.expect_gone(10)


IN_CONTAINER = """
rule inside:
    output: "inside.txt"
    container: "IMAGE"
    resources: mem_mb=300, dask_workers=2, dask_workers_max=3
    shell: "PYTHON dask_script.py {output}"
"""


@pytest.mark.variant
@pytest.mark.skipif(os.geteuid() != 0, reason="the stand-in for apptainer needs root")
def test_the_workers_are_in_the_scripts_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as were asked for: they have its files, and there are no others where it is not."""
    for name, value in with_commands(tmp_path).items():
        monkeypatch.setenv(name, value)
    snakefile = of_python(IN_CONTAINER, tmp_path / "work").replace("IMAGE", os.environ["STAND_IN_IMAGE"])
    arguments = ("inside.txt", "--dask-worker-cores", "5", "--software-deployment-method", "apptainer")
    with snakemake(tmp_path / "work", snakefile, *arguments) as run:
        assert run.wait() == 0, run.output
        run.expect_gone(10)
    assert (tmp_path / "work" / "inside.txt").read_text() == f"a container 2 {[(1, 300000000)] * 2} NoneType"
    assert not run.events("dask-workers-placed")


TWICE = """
rule all:
    input: "a.txt", "b.txt"

rule one:
    output: "{name}.txt"
    resources: mem_mb=300, dask_workers=1
    shell: "other/bin/python dask_script.py {output}"
"""


@pytest.mark.variant
def test_without_bokeh_there_are_no_pages(tmp_path: Path) -> None:
    """In the script's Python, which is named once; its jobs have their Dask workers all the same."""
    other_python(tmp_path, "bokeh")
    with snakemake(tmp_path, of_python(TWICE, tmp_path), "--dask-dashboard", "auto") as run:
        assert run.wait() == 0, run.output
        run.expect_gone(10)
    python = tmp_path / "other" / "bin" / "python"
    said = f"Dask's pages of a job with dask_workers need bokeh, which its Python ({python}) does not have."
    assert run.output.count(said) == 1
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "b.txt").read_text() == "3 [(1, 300000000)] NoneType"


GROWS = """
rule all:
    input: "grows.txt", "late.txt"

rule grows:
    output: "grows.txt"
    priority: 1
    resources: mem_mb=300, dask_workers=1, dask_workers_max=3
    shell: "PYTHON dask_script.py {output}"

rule grown:
    output: "grown.txt"
    threads: 0
    resources: mem_mb=100
    shell: "until [ -e spread ]; do sleep 0.1; done; touch {output}"

rule late:
    input: "grown.txt"
    output: "late.txt"
    threads: 2
    resources: mem_mb=100
    shell: "touch {output}"
"""


def test_a_job_grows_while_nobody_needs_the_room(tmp_path: Path) -> None:
    """What it got is given back to a job that waits, with nothing computed again; then it grows once more."""
    with snakemake(tmp_path, of_python(GROWS, tmp_path), "--dask-worker-cores", "4") as run:
        assert run.wait() == 0, run.output
        run.expect_gone(10)
    assert (tmp_path / "grows.txt").read_text() == f"45 {[(1, 300000000)] * 3} NoneType"
    assert len((tmp_path / "computed").read_text().split()) == 10
    assert len(run.events("dask-workers-returned")) == 2
    assert len(run.events("dask-workers-placed")) == 4


def asked(directory: Path, *arguments: str) -> str:
    """What `snakemake-dask` says of the run there."""
    command = [sys.executable, "-m", "snakemake_executor_plugin_dask", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True).stdout


def test_its_workers_are_shown_as_parts_of_it(tmp_path: Path) -> None:
    """In `status` and `jobs` while it runs, with what they use, and in the report at the end."""
    arguments = ("long.txt", "--dask-worker-cores", "3", "--dask-report", "report.html")
    with snakemake(tmp_path, of_python(ONE, tmp_path), *arguments) as run:
        script = script_of(run)
        wait_for(
            lambda: re.search(r" \d\.\d +\d+ MB .* one \(2 Dask workers\)", asked(tmp_path, "status")), "their use"
        )
        heads, job = (line.split() for line in asked(tmp_path, "jobs").splitlines()[:2])
        assert job[heads.index("DASK")] == "2", (heads, job)
        os.kill(script, signal.SIGKILL)
        assert run.wait() == 1
    (placed,), (ended,) = run.events("job-placed"), run.events("job-ended")
    assert placed["dask_workers"] == {placed["worker"]: 2}
    assert ended["outcome"]["peak_memory_mb"] > 100, "those of a script, a scheduler and two workers"
    assert "2 Dask workers" in (tmp_path / "report.html").read_text()


def test_a_cluster_goes_with_its_job(tmp_path: Path) -> None:
    """However that ends: its script killed, after which it is run again, or the run interrupted."""

    def directories(run: SnakemakeRun) -> set[str]:
        return {command.split()[-1] for command in keepers(run).values()}

    with snakemake(tmp_path, of_python(ONE, tmp_path), "long.txt", "--retries", "1") as run:
        script_of(run)
        assert len(keepers(run)) >= 2
        first = directories(run)
        run_again(run)
        second = directories(run)
        assert not first & second
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 1
        run.expect_gone(10)
    for directory in first | second:
        assert not processes_of(directory)
        assert not Path(directory).exists()


NOTEBOOKS = """
rule all:
    input: "warm.txt", "cold.txt"

rule warm:
    output: "warm.txt"
    resources: mem_mb=300, dask_workers=2
    notebook: "count.py.ipynb"

use rule warm as cold with:
    output: "cold.txt"
    resources: mem_mb=300, dask_workers=2, dask_job_start="cold"
"""

CELL = """
from distributed import Client
with Client() as client:
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    with open(snakemake.output[0], "w") as file:
        file.write(f"{client.submit(sum, [1, 2]).result()} {workers} {type(client.cluster).__name__}")
"""


@pytest.mark.software
def test_in_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm and cold. The kernel is of this Python, which has Dask, with what Jupyter needs there."""
    jupyter = TOOLS / "jupyter"
    assert jupyter.exists(), "prepare this with ./run tests software"
    (packages,) = jupyter.glob("lib/python*/site-packages")
    kernels = tmp_path / "jupyter" / "kernels" / "with-dask"
    kernels.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    described = {"argv": argv, "display_name": "Dask", "language": "python", "env": {"PYTHONPATH": str(packages)}}
    (kernels / "kernel.json").write_text(json.dumps(described))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PATH", f"{jupyter / 'bin'}{os.pathsep}{os.environ['PATH']}")
    cell = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": [], "source": CELL}
    kernel = {"display_name": "Dask", "language": "python", "name": "with-dask"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": [cell], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "count.py.ipynb").write_text(json.dumps(notebook))
    with snakemake(tmp_path, NOTEBOOKS, "--dask-worker-cores", "3") as run:
        assert run.wait() == 0, run.output
    assert (tmp_path / "warm.txt").read_text() == (tmp_path / "cold.txt").read_text() == "3 2 NoneType"


@pytest.mark.mpi
@pytest.mark.variant
def test_over_the_ranks_of_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks of one core each: one has the script, the others a Dask worker each."""
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"):
        monkeypatch.setenv(name, "1")
    pool = ("--dask-cluster", "mpi", "--dask-workers", "3", "--dask-worker-cores", "1", "--dask-worker-memory", "800MB")
    pool += ("--dask-options", "{launcher: mpirun.openmpi}", "--set-resources", "one:dask_script_mem_mb=300")
    with snakemake(tmp_path, of_python(ONE, tmp_path), "some.txt", *pool) as run:
        assert run.wait() == 0, run.output
        run.expect_gone(10)
    assert (tmp_path / "some.txt").read_text() == "3 [(1, 300000000), (1, 300000000)] NoneType"
    (placed,) = run.events("job-placed")
    assert sorted(placed["workers"].values()) == [1, 1, 1]


#: As one would on three nodes.
LAUNCHER = """#!/bin/bash
trap 'kill $(jobs -p); wait; exit 0' TERM
export OMPI_COMM_WORLD_SIZE=3 OMPI_COMM_WORLD_LOCAL_SIZE=3
shift
for rank in 0 1 2; do OMPI_COMM_WORLD_RANK=$rank "$@" & done
wait
"""


@pytest.mark.variant
@pytest.mark.long
def test_what_is_frozen_gets_no_more_work(tmp_path: Path) -> None:
    """Where nobody can end worker and supervisor, their Dask worker goes on: another takes its place all the same."""
    launcher = tmp_path / "launcher"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    pool = ("--dask-cluster", "mpi", "--dask-workers", "3", "--dask-worker-cores", "1", "--dask-worker-memory", "800MB")
    pool += ("--dask-options", f"{{launcher: {launcher} --}}", "--set-resources", "one:dask_script_mem_mb=300")
    with snakemake(tmp_path, of_python(ONE, tmp_path), "lossy.txt", *pool, "one:dask_workers=1") as run:
        wait_for((tmp_path / "pid").exists, "the script")
        (placed,) = run.events("job-placed")
        part = next(name for name in placed["workers"] if name != placed["worker"])
        facts = next(event["facts"] for event in run.events("worker-joined") if event["worker"] == part)
        for which in ("pid", "supervisor_pid"):
            os.kill(facts[which], signal.SIGSTOP)
        wait_for(lambda: run.events("dask-workers-placed"), "another in its place", 300)
        assert "They get no more work, and others take their place" in run.output
        (tmp_path / "go").touch()
        assert run.wait() == 0, run.output
        for which in ("pid", "supervisor_pid"):
            os.kill(facts[which], signal.SIGCONT)
        run.expect_gone(60)
    assert (tmp_path / "lossy.txt").read_text() == f"45 {[(1, 300000000)]} NoneType"


TWO_HERE = """
pools:
  main: {cluster: local, workers: 2, cores: 2, gpus: 2, memory: 2 GB}
  other: {cluster: local, workers: 1, cores: 1, memory: 1 GB}
"""

PLANNED = (
    ONE
    + """
rule all:
    input: "fits.txt", "more.out", "grouped.out"

rule more:
    output: "more.out"
    resources: mem_mb=300, dask_workers=5
    shell: "touch {output}"

rule grouped:
    output: "grouped.out"
    group: "g"
    resources: mem_mb=300, dask_workers=1
    shell: "touch {output}"
"""
)


def test_what_cannot_be_is_told_before_the_first_job(tmp_path: Path) -> None:
    """By `--dask-plan` with what fits, and by a run: how many Dask workers would fit, and that groups have none."""
    tmp_path.joinpath("pools.yaml").write_text(TWO_HERE)
    arguments = ("all", "--dask-pools", "pools.yaml", "--set-resources", "one:dask_script_mem_mb=300")
    problems = ("To make it fit: --set-resources more:dask_workers=3", "declared by rules of a group (grouped)")
    with snakemake(tmp_path, of_python(PLANNED, tmp_path), *arguments, "--dask-plan") as run:
        assert run.wait() == 1, run.output
    fits = "3 cores (2 Dask workers with 1 core and mem_mb=300 each, and 1 core and mem_mb=300 for the script)"
    assert f"1 job of rule one, {fits}, mem_mb=900: pool main" in run.output
    assert all(problem in run.output for problem in problems), run.output
    with snakemake(tmp_path, of_python(PLANNED, tmp_path), *arguments) as run:
        assert run.wait() == 1, run.output
    assert all(problem in run.output for problem in problems), run.output
    assert not run.events("job-placed")


GPUS = """
rule gpus:
    output: "devices.txt"
    resources: mem_mb=300, gpu=1, dask_workers=3, dask_script_threads=0
    shell: "PYTHON dask_script.py {output}"
"""


@pytest.mark.variant
def test_each_dask_worker_has_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they lie on two workers of a pool; the script sees none."""
    monkeypatch.setenv("SNAKEMAKE_DASK_DEVICES", "0,1,2,3")
    tmp_path.joinpath("pools.yaml").write_text(TWO_HERE)
    with snakemake(tmp_path, of_python(GPUS, tmp_path), "devices.txt", "--dask-pools", "pools.yaml") as run:
        assert run.wait() == 0, run.output
    (placed,) = run.events("job-placed")
    assert len(placed["workers"]) == 2
    seen, of_script = (tmp_path / "devices.txt").read_text().split(" of the script ")
    held = sorted(device for devices in placed["devices"].values() for device in devices)
    assert seen.split() == held
    assert of_script in ("-1", "")


DASK_CUDA = Path(sys.executable).parents[1] / "dask-cuda"
STANDINS = Path(__file__).parents[1] / "clusters" / "nvml"

CUDA = """
rule one:
    output: "{name}.txt"
    threads: 2
    resources: mem_mb=600, gpu=1, dask_workers=2, dask_script_threads=0, dask_script_mem_mb=2000
    shell: "PYTHON dask_script.py {output}"

rule own:
    output: "own.txt"
    threads: 2
    resources: gpu=2
    shell: "PYTHON own.py {output}"
"""

OWN = """
import sys
from dask_cuda import LocalCUDACluster
from distributed import Client

if __name__ == "__main__":
    with LocalCUDACluster(dashboard_address=None) as cluster, Client(cluster) as client:
        seen = client.run(lambda: __import__("os").environ["CUDA_VISIBLE_DEVICES"].split(",")[0])
        with open(sys.argv[1], "w") as file:
            file.write(" ".join(sorted(seen.values())))
"""


@pytest.mark.skipif(not DASK_CUDA.is_dir(), reason="dask-cuda is an extra of the test machine")
def test_the_workers_are_those_of_dask_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stand-ins for devices: each has one, and spills from it; `LocalCUDACluster()` has those that its job holds."""
    monkeypatch.setenv("PYTHONPATH", f"{DASK_CUDA}:{STANDINS}")
    monkeypatch.setenv("SNAKEMAKE_DASK_DEVICES", "0,1,2,3")
    (tmp_path / "own.py").write_text(OWN)
    pool = ("--dask-worker-gpus", "4", "--dask-worker-cores", "6", "cuda.txt", "own.txt")
    with snakemake(tmp_path, of_python(CUDA, tmp_path), *pool) as run:
        assert run.wait() == 0, run.output
        run.expect_gone(10)
    devices = {event["key"].partition("-")[0]: event["devices"] for event in run.events("job-placed")}
    (held,) = devices["one"].values()
    expected = [(device, "DeviceHostFile", 2, False, True) for device in held]
    assert (tmp_path / "cuda.txt").read_text().startswith(str(expected))
    (held,) = devices["own"].values()
    assert (tmp_path / "own.txt").read_text() == " ".join(held)


@pytest.mark.variant
@pytest.mark.skipif(not DASK_CUDA.is_dir(), reason="dask-cuda is an extra of the test machine")
def test_workers_of_dask_cuda_over_their_memory_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What their own processes hold is measured; nothing of one that is ended lives beside its replacement."""
    monkeypatch.setenv("PYTHONPATH", f"{DASK_CUDA}:{STANDINS}")
    monkeypatch.setenv("SNAKEMAKE_DASK_DEVICES", "0,1,2,3")
    pool = ("--dask-worker-gpus", "4", "--dask-worker-cores", "4", "greedy.txt")
    with snakemake(tmp_path, of_python(CUDA, tmp_path), *pool) as run:
        assert run.wait() == 1, run.output
        run.expect_gone(10)
    (ended,) = run.events("job-ended")
    assert ended["outcome"]["status"] == "out-of-memory"
    assert "exceeded the limit of 600 MB (mem_mb), as workers" in ended["outcome"]["detail"]


@pytest.mark.variant
@pytest.mark.skipif(not DASK_CUDA.is_dir(), reason="dask-cuda is an extra of the test machine")
def test_where_dask_cuda_fails_workers_are_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NVIDIA's library it can be imported and no more: that is in the log, and the job goes on."""
    monkeypatch.setenv("PYTHONPATH", str(DASK_CUDA))
    monkeypatch.setenv("SNAKEMAKE_DASK_DEVICES", "0,1,2,3")
    pool = ("--dask-worker-gpus", "4", "--dask-worker-cores", "4", "some.txt")
    with snakemake(tmp_path, of_python(CUDA, tmp_path), *pool, "--dask-keep-successful-logs") as run:
        assert run.wait() == 0, run.output
        run.expect_gone(10)
    assert (tmp_path / "some.txt").read_text() == f"3 {[(2, 600000000)] * 2} NoneType"
    (log,) = (tmp_path / ".snakemake" / "dask_logs" / "one").iterdir()
    assert log.read_text().count("is a plain one, since dask-cuda failed") == 2


@pytest.mark.variant
def test_without_a_shared_file_system(tmp_path: Path) -> None:
    """The job is in a directory of its own, where its Dask workers are, too."""
    work = tmp_path / "work"
    arguments = ("--shared-fs-usage", "none", "--default-storage-provider", "fs", "--default-storage-prefix")
    script = tmp_path / "dask_script.py"
    snakefile = of_python(ONE, tmp_path).replace("dask_script.py", str(script))
    (tmp_path / "storage").mkdir()
    with snakemake(work, snakefile, "some.txt", *arguments, str(tmp_path / "storage")) as run:
        assert run.wait() == 0, run.output
    assert "3 [(1, 300000000)" in (tmp_path / "storage" / "some.txt").read_text()


@pytest.mark.slurm
@pytest.mark.variant
def test_on_slurm(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """On a node of its own, in an allocation; what does not fit there is told before the first job."""
    tmp_path.joinpath("pools.yaml").write_text(POOL.replace("WORKERS", "1"))
    snakefile = of_python(ONE, tmp_path)
    less = ("--dask-pools", "pools.yaml", "--set-resources", "one:dask_script_mem_mb=300")
    with snakemake(tmp_path, snakefile, "some.txt", *less) as run:
        assert run.wait() == 1
        assert "To make it fit: --set-resources one:dask_workers=1" in run.output
    with snakemake(tmp_path, snakefile, "some.txt", *less, "one:dask_workers=1") as run:
        assert run.wait() == 0, run.output
        run.expect_gone(60)
    assert (tmp_path / "some.txt").read_text() == "3 [(1, 300000000)] NoneType"


@pytest.mark.variant
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


def attached(
    cluster: Cluster, output: str, workers: int, directory: Path | None = None
) -> AbstractContextManager[SnakemakeRun]:
    """A job with so many Dask workers of one core on a cluster of others."""
    directory = directory or cluster.directory.parent
    resources = ("--set-resources", "one:dask_script_mem_mb=300", f"one:dask_workers={workers}")
    return snakemake(directory, of_python(ONE, directory), output, "--dask-scheduler", str(cluster.file), *resources)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Cluster]:
    """An attached cluster without encryption: three workers of two threads."""
    (tmp_path / "cluster").mkdir()
    cluster = Cluster(tmp_path / "cluster")
    try:
        cluster.scheduler()
        for name in "abc":
            cluster.worker(name, 2)
        yield cluster
    finally:
        cluster.end()


def test_over_the_workers_of_an_attached_cluster(tmp_path: Path, three: Cluster) -> None:
    """Over `tcp://`: what is secret lies in files while the job runs, and is sent to none of them."""
    with attached(three, "keeps.txt", 5) as run:
        wait_for((tmp_path / "address").exists, "the script")
        (secrets,) = tmp_path.glob(".snakemake/dask/*/dask-one-*")
        assert (secrets / "environment.json").exists()
        assert [secrets.stat().st_mode & 0o777, *{file.stat().st_mode & 0o777 for file in secrets.iterdir()}] == [
            0o700,
            0o600,
        ]
        (tmp_path / "refused").touch()
        assert run.wait() == 0, run.output
        run.expect_gone(10)
    assert (tmp_path / "keeps.txt").read_text() == f"3 {[(1, 300000000)] * 5} NoneType"
    (placed,) = run.events("job-placed")
    assert sorted(placed["workers"].values()) == [2, 2, 2]
    assert not list(tmp_path.glob(".snakemake/dask/*/dask-*"))


STREAM = """
rule all:
    input: expand("{number}.done", number=range(3000))

rule short:
    output: "{number}.done"
    resources: mem_mb=100
    shell: "[ -e ../stop ] || sleep 1; touch {output}"
"""


@pytest.mark.variant
@pytest.mark.long
def test_another_run_on_an_attached_cluster_does_not_starve_it(tmp_path: Path, three: Cluster) -> None:
    """Its small jobs would take each core that comes free; the cluster's scheduler leaves the job room."""
    scheduler = ("--dask-scheduler", str(three.file))
    with snakemake(tmp_path / "stream", STREAM, *scheduler) as stream:
        wait_for(lambda: len(stream.events("job-started")) >= 6, "jobs on all cores")
        with attached(three, "some.txt", 5, tmp_path / "large") as run:
            assert run.wait() == 0, run.output
        assert stream.process.poll() is None
        assert not (tmp_path / "stream" / "2999.done").exists()
        (tmp_path / "stop").touch()
        assert stream.wait() == 0, stream.output
    assert (tmp_path / "large" / "some.txt").read_text() == f"3 {[(1, 300000000)] * 5} NoneType"


def test_a_lost_worker_of_an_attached_cluster_takes_its_dask_workers_alone(tmp_path: Path, three: Cluster) -> None:
    """What comes in its place is used; the job goes on."""
    with attached(three, "lossy.txt", 5) as run:
        wait_for((tmp_path / "pid").exists, "the script")
        (placed,) = run.events("job-placed")
        lost = next(name for name in placed["workers"] if name != placed["worker"])
        three.processes[1 + "abc".index(lost)].kill()
        wait_for(lambda: run.events("dask-workers-lost"), "the loss")
        three.worker("d", 2)
        (tmp_path / "go").touch()
        assert run.wait() == 0, run.output
        run.expect_gone(10)
    assert (tmp_path / "lossy.txt").read_text() == f"45 {[(1, 300000000)] * 5} NoneType"
    assert len(run.events("job-placed")) == 1
    (instead,) = run.events("dask-workers-placed")
    assert instead["worker"] == "d"


NODES = """
pools:
  main:
    cluster: slurm
    workers: 0-3
    cores: 2
    memory: 1400 MB
    walltime: 10m
    idle_timeout: 5s
    options: {queue: cpu}
"""


def on_nodes(directory: Path, output: str, workers: int, *more: str) -> AbstractContextManager[SnakemakeRun]:
    """A job with so many Dask workers of one core, on Slurm's nodes with two."""
    directory.joinpath("pools.yaml").write_text(NODES)
    resources = ("--set-resources", "one:dask_script_mem_mb=300", f"one:dask_workers={workers}")
    return snakemake(directory, of_python(ONE, directory), output, *more, "--dask-pools", "pools.yaml", *resources)


@pytest.mark.slurm
@pytest.mark.variant
def test_its_pages_come_from_its_scripts_node(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Wherever that is: they are below the run's own path, and show the Dask workers of all nodes."""
    with on_nodes(tmp_path, "long.txt", 5, "--dask-dashboard", "auto") as run:
        placed_on(run)
        (file,) = tmp_path.glob(".snakemake/dask/*/dashboard")
        base = file.read_text().strip().removesuffix("/status")
        (event,) = run.events("job-placed")
        told = json.loads(urlopen(f"{base}/job/{event['key']}/json/counts.json").read())
        assert told["workers"] == 5
        assert "Bokeh" in urlopen(f"{base}/job/{event['key']}/status").read().decode()
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 1
        run.expect_gone(60)


@pytest.mark.slurm
def test_over_several_nodes(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Where no node holds all: script and workers on three of them. What does not fit there is told before."""
    assert slurm.queue() == []
    with on_nodes(tmp_path, "some.txt", 6) as run:
        assert run.wait() == 1
        assert "To make it fit: --set-resources one:dask_workers=5" in run.output
    with on_nodes(tmp_path, "some.txt", 5) as run:
        assert run.wait() == 0, run.output
        run.expect_gone(60)
    assert (tmp_path / "some.txt").read_text() == f"3 {[(1, 300000000)] * 5} NoneType"
    (placed,) = run.events("job-placed")
    assert sorted(placed["workers"].values()) == [2, 2, 2]


@pytest.mark.slurm
@pytest.mark.variant
def test_the_example_over_three_nodes(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """The same Snakefile, where each node has room for one Dask worker, or for the script."""
    assert slurm.queue() == []
    directory = tmp_path / "example"
    shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("results", ".snakemake"))
    directory.joinpath("pools.yaml").write_text(NODES.replace("cores: 2", "cores: 1").replace("1400", "900"))
    snakefile = (EXAMPLE / "workflow" / "Snakefile").read_text()
    arguments = ("--snakefile", "workflow/Snakefile", "--dask-pools", "pools.yaml")
    with snakemake(directory, snakefile, *arguments) as run:
        assert run.wait() == 0, run.output
        run.expect_gone(60)
    assert (directory / "results" / "density.svg").exists()
    nodes = {event["key"].partition("-")[0]: len(event["workers"]) for event in run.events("job-placed")}
    assert (nodes["points"], nodes["density"], nodes["fit"]) == (1, 3, 3)


@pytest.mark.slurm
def test_workers_over_their_memory_are_counted_over_all_nodes(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """The third one ends the job, wherever the first two were."""
    assert slurm.queue() == []
    with on_nodes(tmp_path, "greedy.txt", 3) as run:
        assert run.wait() == 1, run.output
        run.expect_gone(60)
    (ended,) = run.events("job-ended")
    assert ended["outcome"]["status"] == "out-of-memory"
    assert "exceeded the limit of 300 MB (mem_mb), as workers" in ended["outcome"]["detail"]


def placed_on(run: SnakemakeRun) -> tuple[str, list[str]]:
    """The allocation of the script, and those of the job's other nodes, once its client has all workers."""
    script_of(run)
    (placed,) = run.events("job-placed")
    of = {event["worker"]: event["facts"]["allocation_id"] for event in run.events("worker-joined")}
    return of[placed["worker"]], [of[name] for name in placed["workers"] if name != placed["worker"]]


@pytest.mark.slurm
def test_a_lost_node_takes_its_dask_workers_and_not_the_job(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Dask computes again what was there, and others take their place on a new node."""
    with on_nodes(tmp_path, "lossy.txt", 3) as run:
        _, others = placed_on(run)
        slurm.run("scancel", others[0])
        wait_for(lambda: run.events("dask-workers-lost"), "the loss")
        (tmp_path / "go").touch()
        assert run.wait() == 0, run.output
        run.expect_gone(60)
    assert (tmp_path / "lossy.txt").read_text() == f"45 {[(1, 300000000)] * 3} NoneType"
    assert len(run.events("job-placed")) == 1
    assert len(run.events("dask-workers-placed")) == 1


@pytest.mark.slurm
@pytest.mark.variant
def test_a_job_grows_onto_other_nodes(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Those that are there; and gives back what a waiting job needs, with nothing computed again."""
    tmp_path.joinpath("pools.yaml").write_text(NODES.replace("0-3", "2"))
    with snakemake(tmp_path, of_python(GROWS, tmp_path), "--dask-pools", "pools.yaml") as run:
        assert run.wait() == 0, run.output
        run.expect_gone(60)
    assert (tmp_path / "grows.txt").read_text() == f"45 {[(1, 300000000)] * 3} NoneType"
    assert len((tmp_path / "computed").read_text().split()) == 10
    assert run.events("dask-workers-returned")


@pytest.mark.slurm
@pytest.mark.variant
@pytest.mark.long
def test_a_frozen_node_is_replaced(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Once its allocation is ended: no Dask worker runs beside its replacement, and the job goes on."""
    with on_nodes(tmp_path, "lossy.txt", 5) as run:
        _, others = placed_on(run)
        frozen = processes_of(f"SLURM_JOB_ID={others[0]}").keys() & run.processes().keys()
        assert frozen
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: run.events("dask-workers-placed"), "others in their place", 300)
        assert not frozen & processes_of(f"SLURM_JOB_ID={others[0]}").keys()
        (tmp_path / "go").touch()
        assert run.wait() == 0, run.output
        run.expect_gone(60)
    assert (tmp_path / "lossy.txt").read_text() == f"45 {[(1, 300000000)] * 5} NoneType"
    assert len(run.events("job-placed")) == 1


@pytest.mark.slurm
def test_a_job_that_loses_its_scripts_node_runs_again(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """As other jobs do, once its Dask workers on other nodes are dead, too."""
    with on_nodes(tmp_path, "again.txt", 3) as run:
        home, _ = placed_on(run)
        former = set(keepers(run))
        slurm.run("scancel", home)
        wait_for(lambda: len(run.events("job-placed")) == 2, "its second run")
        assert not former & set(keepers(run))
        assert run.wait() == 0, run.output
        run.expect_gone(60)
    assert (tmp_path / "again.txt").read_text() == f"3 {[(1, 300000000)] * 3} NoneType"


@pytest.mark.slurm
def test_parts_on_other_nodes_go_with_their_job(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """However that ends: its script killed, after which it is run again, or the run interrupted.

    Nothing is left, of processes or in the queue.
    """
    with on_nodes(tmp_path, "long.txt", 3, "--retries", "1") as run:
        placed_on(run)
        assert len(keepers(run)) == 5  # two nodes with what keeps the workers, and three workers
        run_again(run)
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 1
        run.expect_gone(60)
    assert slurm.queue() == []


WIDE = """
pools:
  wide:
    cluster: slurm
    workers: 1
    nodes: 2
    cores: 2
    memory: 1400 MB
    walltime: 10m
    options: {queue: cpu}
"""

BESIDE_MPI = (
    ONE
    + """
rule mpi:
    output: "mpi.txt"
    resources: mem_mb=100, mpi="srun", tasks=1
    shell: "touch mpi-runs; until [ -e go ]; do sleep 0.1; done; {resources.mpi} -n 1 hostname > {output}"
"""
)


def wide_pool(directory: Path, workers: int, nodes: int = 2) -> tuple[str, ...]:
    """Arguments for so many Dask workers of one core, on the nodes of one allocation, which have two."""
    directory.mkdir(exist_ok=True)
    directory.joinpath("pools.yaml").write_text(WIDE.replace("nodes: 2", f"nodes: {nodes}"))
    return (
        "--dask-pools",
        "pools.yaml",
        "--set-resources",
        "one:dask_script_mem_mb=300",
        f"one:dask_workers={workers}",
    )


def on_a_wide_worker(
    directory: Path, workers: int, *arguments: str, nodes: int = 2
) -> AbstractContextManager[SnakemakeRun]:
    """A run with such a job."""
    pool = wide_pool(directory, workers, nodes)
    return snakemake(directory, of_python(BESIDE_MPI, directory), *arguments, *pool)


def below_companions(run: SnakemakeRun) -> dict[int, set[int]]:
    """The workers that a wide worker has started on its further nodes, each with all processes below it."""
    table = process_table()
    return {
        pid: {stat.pid for stat in tree(table, [pid])}
        for pid, command in run.processes().items()
        if "--name" in command.split() and "srun" not in command
    }


@pytest.mark.slurm
def test_over_the_nodes_of_a_wide_worker(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Script and workers on both nodes of one allocation; what does not fit there is told before the first job."""
    assert slurm.queue() == []
    with on_a_wide_worker(tmp_path, 4, "some.txt") as run:
        assert run.wait() == 1
        assert "are too much for the 2 nodes of a worker, which hold 3 Dask workers" in run.output
        assert "To make it fit: --set-resources one:dask_workers=3" in run.output
    with on_a_wide_worker(tmp_path, 3, "some.txt") as run:
        assert run.wait() == 0, run.output
        run.expect_gone(60)
    assert (tmp_path / "some.txt").read_text() == f"3 {[(1, 300000000)] * 3} NoneType"
    (placed,) = run.events("job-placed")
    assert (placed["workers"], placed["dask_workers"]) == ({"wide-0": 4}, {"wide-0": 3})
    assert len(run.events("node-opened")) == 1
    assert len(run.events("worker-joined")) == 1


@pytest.mark.slurm
def test_over_its_memory_on_another_node(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Dask workers there are limited, replaced and counted as everywhere: the job fails with the message."""
    assert slurm.queue() == []
    with on_a_wide_worker(tmp_path, 3, "greedy.txt") as run:
        assert run.wait() == 1, run.output
        run.expect_gone(60)
    (ended,) = run.events("job-ended")
    assert ended["outcome"]["status"] == "out-of-memory"
    assert "exceeded the limit of 300 MB (mem_mb), as workers" in ended["outcome"]["detail"]


@pytest.mark.slurm
def test_a_lost_companion_takes_its_dask_workers_and_not_the_job(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Killed while it computes: another one has others in their place, and an MPI job beside it goes on."""
    assert slurm.queue() == []
    with on_a_wide_worker(tmp_path, 3, "lossy.txt", "mpi.txt", nodes=3) as run:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "mpi-runs").exists(), "both jobs")
        parts = {event["key"] for event in run.events("job-placed")}
        script, of_cluster = int((tmp_path / "pid").read_text()), set(keepers(run))
        found = below_companions(run)
        (companion,) = [pid for pid, below in found.items() if below & of_cluster and script not in below]
        os.kill(companion, signal.SIGKILL)
        wait_for(lambda: run.events("dask-workers-placed"), "others in their place")
        (tmp_path / "go").touch()
        assert run.wait() == 0, run.output
        run.expect_gone(60)
    assert (tmp_path / "lossy.txt").read_text() == f"45 {[(1, 300000000)] * 3} NoneType"
    assert {event["key"] for event in run.events("job-placed")} == parts
    assert len(run.events("dask-workers-lost")) == 1
    assert len(run.events("node-closed")) == 1


@pytest.mark.slurm
@pytest.mark.variant
def test_a_job_whose_script_was_on_a_lost_companion_runs_again(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """An MPI job has the first node; what that does is not touched."""
    assert slurm.queue() == []
    with on_a_wide_worker(tmp_path, 3, "again.txt", "mpi.txt", nodes=3) as run:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "mpi-runs").exists(), "both jobs")
        script, former = int((tmp_path / "pid").read_text()), set(keepers(run))
        (companion,) = [pid for pid, below in below_companions(run).items() if script in below]
        os.kill(companion, signal.SIGKILL)
        wait_for(lambda: len(run.events("job-placed")) == 3, "its second run")
        assert not former & set(keepers(run))
        (tmp_path / "go").touch()
        assert run.wait() == 0, run.output
        run.expect_gone(60)
    assert (tmp_path / "again.txt").read_text() == f"3 {[(1, 300000000)] * 3} NoneType"
    assert len([event for event in run.events("job-placed") if event["key"].startswith("mpi-")]) == 1


@pytest.mark.slurm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_all_nodes_of_a_wide_worker_are_left(slurm: VirtualSlurm, tmp_path: Path, number: signal.Signals) -> None:
    """However the job, the run, or Snakemake itself ends: no process and no allocation stays."""
    with on_a_wide_worker(tmp_path, 3, "long.txt", "--retries", "1") as run:
        script_of(run)
        assert len(keepers(run)) == 5  # two nodes with what keeps the workers, and three workers
        assert len(below_companions(run)) == 1
        if number == signal.SIGINT:
            run_again(run)
            assert len(below_companions(run)) == 1
        run.process.send_signal(number)
        assert run.wait() != 0
        run.expect_gone(60)
        wait_for(lambda: slurm.queue() == [], "the end of the allocation")


IN_AN_ALLOCATION = """#!/bin/bash
#SBATCH --nodes=3 --ntasks-per-node=2 --partition=cpu --output={directory}/batch.out --time=10
cd {directory}
{python} -m snakemake --executor dask --dask-cluster mpi --jobs 500 some.txt --set-resources {resources}
"""


@pytest.mark.mpi
@pytest.mark.slurm
@pytest.mark.variant
def test_over_the_nodes_of_snakemakes_own_allocation(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """An `mpi` pool has a worker on each node, over which a job's Dask workers lie."""
    assert slurm.queue() == []
    (tmp_path / "Snakefile").write_text(of_python(ONE, tmp_path))
    resources = "one:dask_script_mem_mb=300 one:dask_workers=5"
    script = tmp_path / "batch.sh"
    script.write_text(IN_AN_ALLOCATION.format(directory=tmp_path, python=sys.executable, resources=resources))
    slurm.run("sbatch", "--wait", str(script), check=False, timeout_s=RUN_S)
    output = (tmp_path / "batch.out").read_text()
    assert (tmp_path / "some.txt").exists(), output
    assert (tmp_path / "some.txt").read_text() == f"3 {[(1, 300000000)] * 5} NoneType"
    (log,) = tmp_path.glob(".snakemake/dask/*.events.jsonl")
    (placed,) = [event for line in log.read_text().splitlines() if (event := json.loads(line))["kind"] == "job-placed"]
    assert sorted(placed["workers"].values()) == [2, 2, 2]
    wait_for(lambda: slurm.queue() == [], "the end of the allocation")


@pytest.mark.slurm
@pytest.mark.variant
def test_companions_stay_with_a_cluster_that_stays(clusters: Clusters, slurm: VirtualSlurm, tmp_path: Path) -> None:
    """A further run starts none; the first one's end took none of them along."""
    for number in range(2):
        directory = tmp_path / str(number)
        pool = wide_pool(directory, 3)
        with kept_clusters.snakemake(directory, of_python(ONE, directory), "some.txt", *KEEP, *pool) as run:
            assert run.wait() == 0, run.output
        assert (directory / "some.txt").read_text() == f"3 {[(1, 300000000)] * 3} NoneType"
        assert len(run.events("node-opened")) == 1 - number
    assert clusters.command("stop", "--all").returncode == 0
    wait_for(lambda: slurm.queue() == [], "the end of the allocation")
