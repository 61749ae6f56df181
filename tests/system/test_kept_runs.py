"""Clusters that stay, used by several runs: that these touch nothing of each other, whatever is killed or differs."""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest
from clusters.slurm import VirtualSlurm
from running import RUN_S, ended, logged_jobs, processes_of, started, wait_for

from snakemake_executor_plugin_dask.kept import directory

from .kept_clusters import KEEP, SMALL, Clusters, finished, in_each_python, pools_of, snakemake

pytestmark = pytest.mark.timeout(1200)

WAITS = 'while [ ! -e "{}" ]; do sleep 0.1; done'


def test_a_worker_that_is_killed_costs_no_run_a_retry(clusters: Clusters, tmp_path: Path) -> None:
    """Jobs of both runs run again on the next worker, also of one that allows a single retry, time after time."""
    go = tmp_path / "go"
    both = [*KEEP, *SMALL, "--dask-lost-worker-retries", "1"]
    with (
        snakemake(tmp_path / "one", logged_jobs(1, WAITS.format(go)), *both) as one,
        snakemake(tmp_path / "other", logged_jobs(1, WAITS.format(go)), *both) as other,
    ):
        for number in (1, 2):
            wait_for(lambda number=number: len(started(one)) == len(started(other)) == number, "both jobs", RUN_S)
            (worker,) = clusters.workers()
            os.kill(worker, signal.SIGKILL)
        wait_for(lambda: len(started(one)) + len(started(other)) > 4, "one of them alone", RUN_S)
        go.touch()
        for run in (one, other):
            finished(run)
            assert len(ended(run)) == 1
        assert len(clusters.heads()) == 1


@pytest.mark.slurm
def test_on_slurm_an_allocation_that_is_cancelled_costs_both_runs_no_more_than_time(
    slurm: VirtualSlurm, clusters: Clusters, tmp_path: Path
) -> None:
    """Jobs of both runs run again in the next one, once each is dead; what a run says of it is in its own log."""
    go = tmp_path / "go"
    shared = [*KEEP, "--dask-pools", str(pools_of(tmp_path, "0-1", cores=2))]
    with (
        snakemake(tmp_path / "one", logged_jobs(1, WAITS.format(go)), *shared) as one,
        snakemake(tmp_path / "other", logged_jobs(1, WAITS.format(go)), *shared) as other,
    ):
        wait_for(lambda: started(one) and started(other), "both jobs", RUN_S)
        (line,) = slurm.queue()
        slurm.run("scancel", line.split()[0])
        wait_for(lambda: min(len(started(one)), len(started(other))) == 2, "both run again", RUN_S)
        go.touch()
        for run in (one, other):
            finished(run)
            assert len(ended(run)) == 1, "the first attempt went on"
            assert len(run.events("worker-lost")) == 1
        (after,) = slurm.queue()
        assert after.split()[0] != line.split()[0]


#: What a job finds of the process that it is, as JSON: all that might come from the run that started the head.
LOOKS = """
rule look:
    output: "found.json"
    resources: mem_mb=100, runtime=5
    shell: "{python} -I -S {look} > {{output}}"
"""
LOOK = """
import json, os, resource
limits = {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")}
mask = os.umask(0)
print(json.dumps({
    "variables": dict(os.environ), "directory": os.getcwd(), "umask": mask, "limits": limits, "nice": os.nice(0),
    "cores": sorted(os.sched_getaffinity(0)), "groups": sorted(os.getgroups()), "session": os.getsid(0) != os.getppid(),
    "files": sorted(os.readlink(f"/proc/self/fd/{n}") for n in (0, 1, 2)),
    "blocked": next(line for line in open("/proc/self/status") if line.startswith("SigIgn")),
}))
"""
#: Of an allocation or an attempt, which are others each time.
_OWN = ("SLURM_", "SNAKEMAKE_DASK_JOB", "PYTEST_")


@pytest.mark.slurm
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores to take one away")
def test_on_slurm_nothing_of_the_run_that_started_the_head_is_found(
    slurm: VirtualSlurm, clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job finds on a cluster that a run brought up which differs in all what it finds on one of its own run's."""
    look = tmp_path / "look.py"
    look.write_text(LOOK)
    body = LOOKS.format(python=sys.executable, look=look)
    pools = ("--dask-pools", str(pools_of(tmp_path, "0-1")))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cores = os.sched_getaffinity(0)
    found = {}
    for starts in ("others", "own"):
        if starts == "others":
            strange = tmp_path / "strange"
            (strange / "bin").mkdir(parents=True)
            with monkeypatch.context() as context:
                for name, value in {
                    "TMPDIR": str(strange),
                    "ONLY_FIRST": "set",
                    "WHO": "first",
                    "PATH": f"{strange / 'bin'}:{os.environ['PATH']}",
                    "LD_LIBRARY_PATH": str(strange),
                    "CUDA_VISIBLE_DEVICES": "7",
                    "OMP_NUM_THREADS": "3",
                    "PYTHONPATH": str(strange),
                    "LC_ALL": "C",
                    "TZ": "Asia/Tokyo",
                }.items():
                    context.setenv(name, value)
                mask = os.umask(0o077)
                resource.setrlimit(resource.RLIMIT_NOFILE, (900, hard))
                os.sched_setaffinity(0, {min(cores)})
                try:
                    with snakemake(strange / "first", logged_jobs(1, "true"), *pools, *KEEP) as run:
                        finished(run)
                finally:
                    os.umask(mask)
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                    os.sched_setaffinity(0, cores)
            heads = clusters.heads()
        keep = KEEP if starts == "others" else ()
        with snakemake(tmp_path / "run", body, *pools, *keep, "--forceall") as run:
            finished(run)
        found[starts] = json.loads((tmp_path / "run" / "found.json").read_text())
        if starts == "others":
            assert clusters.heads() == heads
            assert len(slurm.queue()) == 1
            assert clusters.command("stop", "--all").returncode == 0
    for each in found.values():
        each["files"] = [re.sub(r"\.\w+\.log$", "", path) for path in each["files"]]  # which has a random part
        each["variables"] = {name: value for name, value in each["variables"].items() if not name.startswith(_OWN)}
    assert found["others"] == found["own"]
    assert found["own"]["variables"]["WHO"] == "somebody"


def test_a_run_whose_network_is_cut_ends_and_the_other_goes_on(
    clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides notice; its jobs end, their room is free, and the cluster is as it was."""
    # Silence counts for two minutes; here for fifteen seconds.
    in_each_python(
        tmp_path,
        monkeypatch,
        "import sys\n"
        "if 'snakemake_executor_plugin_dask.driver' in sys.orig_argv:\n"
        "    from snakemake_executor_plugin_dask.driver import relay as part\n"
        "    part.SILENT_S = 15.0\n"
        "if 'snakemake_executor_plugin_dask.driver.head' in sys.orig_argv:\n"
        "    from snakemake_executor_plugin_dask.driver.head import head as part\n"
        "    part.SILENT_S = 15.0\n",
    )
    go = tmp_path / "go"
    with snakemake(tmp_path / "spared", logged_jobs(1, WAITS.format(go)), *KEEP, *SMALL) as spared:
        wait_for(lambda: started(spared), "its job")
        (where,) = clusters.root.iterdir()
        record = directory.read(where)
        assert record is not None
        with Between(record.address) as between:
            directory.write(where, replace(record, address=between.address))
            with snakemake(tmp_path / "cut", logged_jobs(1, "sleep 900"), *SMALL) as cut:
                wait_for(lambda: started(cut), "the job of the run that is cut off")
                directory.write(where, record)
                between.cut()
                assert cut.wait() != 0
                assert "was lost" in cut.output
                cut.expect_gone(60)
        (worker,) = clusters.workers()
        with snakemake(tmp_path / "after", logged_jobs(1, "true"), *SMALL) as after:
            finished(after)
        go.touch()
        finished(spared)
        assert len(started(spared)) == 1
        assert clusters.workers() == [worker]


class Between:
    """Stands between a run and its cluster's head, until the network is cut: no word, and no end, comes through."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._to = address
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = ("127.0.0.1", self._door.getsockname()[1])
        self._open = threading.Event()
        self._open.set()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._door, *self._sockets):
            each.close()

    def cut(self) -> None:
        self._open.clear()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._door.accept()
                other = socket.create_connection(self._to)
                self._sockets += [one, other]
                for here, there in ((one, other), (other, one)):
                    threading.Thread(target=self._pass_on, args=(here, there), daemon=True).start()

    def _pass_on(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(65536):
                self._open.wait()
                there.sendall(data)
            self._open.wait()
            there.shutdown(socket.SHUT_WR)


def several_at_once(clusters: Clusters, tmp_path: Path, runs: int, jobs: int) -> None:
    with contextlib.ExitStack() as stack:
        there = [
            stack.enter_context(snakemake(tmp_path / f"run{number}", logged_jobs(jobs, "true"), *KEEP))
            for number in range(runs)
        ]
        for run in there:
            finished(run)
            assert len(ended(run)) == jobs
            assert len(started(run)) == jobs
    assert len(clusters.heads()) == 1
    assert len(clusters.workers()) == 1
    wait_for(lambda: not clusters.processes("worker.supervisor"), "the supervisors are gone")


def test_runs_that_start_at_once_make_one_cluster(clusters: Clusters, tmp_path: Path) -> None:
    """Whoever makes the directory first starts the head, and the others wait for it; each job runs once."""
    several_at_once(clusters, tmp_path, 5, 5)


@pytest.mark.variant
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_runs_of_twenty_jobs_at_once(clusters: Clusters, tmp_path: Path) -> None:
    """As five runs of five jobs."""
    several_at_once(clusters, tmp_path, 20, 20)


@pytest.mark.variant
@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_hundred_runs_leave_nothing(clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another on one cluster; after the keep time there is no process and no file, and none in between.

    Head and worker keep nothing of a run's environment: the runs' environments together are larger than what they grow.
    """
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    memory, files = [], []
    for number in range(100):
        for part in range(4):
            monkeypatch.setenv(f"LARGE_{part}", f"{number}-{part}-" * 15_000)
        with snakemake(tmp_path / f"run{number}", logged_jobs(3, "true"), "--dask-keep", "120s", *SMALL) as run:
            finished(run)
        (head,) = clusters.heads()
        (worker,) = clusters.workers()
        memory.append([resident_kb(pid) for pid in (head, worker)])
        files.append([len(os.listdir(f"/proc/{pid}/fd")) for pid in (head, worker)])
        left = [path for path in (tmp_path / f"run{number}").rglob("*") if "dask" in path.parts and path.is_file()]
        assert all(path.name.endswith(".events.jsonl") for path in left), left
    assert len({*clusters.heads()}) == 1
    for of_one in zip(*memory, strict=True):
        assert of_one[-1] < of_one[20] + 15_000, memory
    for of_one in zip(*files, strict=True):
        assert of_one[-1] <= of_one[20] + 4, files
    wait_for(lambda: not clusters.processes(), f"no process: {processes_of(str(clusters.state))}", 600)
    assert clusters.names() == []
    assert list(temporary.iterdir()) == []


def resident_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


@pytest.mark.mpi
@pytest.mark.variant
def test_a_launchers_workers_stay(clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run takes the workers that the first one's launcher started; nothing of the first is in its jobs."""
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"):
        monkeypatch.setenv(name, "1")
    body = """
rule wide:
    output: "wide.txt"
    resources: nodes=2
    shell: "env -0 > {output}; timeout 60 mpirun.openmpi -n 2 true"
"""
    arguments = ("--dask-cluster", "mpi", "--dask-workers", "2", "--dask-options", "{launcher: mpirun.openmpi}")
    workers = []
    for name in ("first", "second"):
        (tmp_path / f"tmp-{name}").mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / f"tmp-{name}"))
        monkeypatch.setenv(f"ONLY_{name.upper()}", "set")
        with snakemake(tmp_path / name, body, *arguments, *KEEP) as run:
            finished(run)
        monkeypatch.delenv(f"ONLY_{name.upper()}")
        workers.append(clusters.workers())
        found = (tmp_path / name / "wide.txt").read_text().split("\0")  # values may have several lines
        variables = dict(each.split("=", 1) for each in found if each)
        assert variables["TMPDIR"] == str(tmp_path / f"tmp-{name}")
        assert [each for each in variables if each.startswith("ONLY_")] == [f"ONLY_{name.upper()}"]
        assert not any(each.startswith(("PMIX", "OMPI_COMM")) for each in variables)
    assert len(workers[0]) >= 2
    assert workers[0] == workers[1]


INSIDE = """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=2 --partition=cpu --output={directory}/batch.out --time=10
export XDG_STATE_HOME={state}
for name in first second; do
    mkdir $name && cd $name && cp ../Snakefile .
    ONLY=$name {python} -m snakemake --executor dask --dask-cluster mpi --dask-keep 1h --jobs 500 --scheduler firstfit
    cd ..
done
{python} -P -m snakemake_executor_plugin_dask clusters
"""


@pytest.mark.mpi
@pytest.mark.slurm
@pytest.mark.variant
def test_inside_an_allocation_of_slurm_the_launchers_workers_stay(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """A batch script of two runs: the second one takes the workers, and all ends with the allocation."""
    body = """
rule wide:
    output: "wide.txt"
    resources: nodes=2
    shell: "(echo $ONLY; timeout 60 srun -n 2 --ntasks-per-node=1 bash -c 'echo $SLURMD_NODENAME') > {output}"
"""
    (tmp_path / "Snakefile").write_text(body)
    script, state = tmp_path / "batch.sh", tmp_path / "state"
    script.write_text(INSIDE.format(directory=tmp_path, state=state, python=sys.executable))
    slurm.run("sbatch", "--wait", f"--chdir={tmp_path}", str(script), check=False, timeout_s=RUN_S)
    output = (tmp_path / "batch.out").read_text()
    for name in ("first", "second"):
        path = tmp_path / name / "wide.txt"
        assert path.exists(), output
        only, *nodes = path.read_text().split()
        assert (only, len(set(nodes))) == (name, 2)
    assert "ends with this allocation of slurm" in output
    assert "has 2 workers" in output
    assert "mpi (mpi, 2 of 2)" in output
    wait_for(lambda: not processes_of(str(state)), f"no process: {processes_of(str(state))}")
