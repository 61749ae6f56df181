"""A worker on another host whose network is cut for longer than a lease, and comes back. Needs root.

The worker runs in a network namespace of its own, reached over a pair of virtual interfaces. What tells
the truth are the jobs' own lines: each says every half second, with its attempt's key, that it is alive.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from running import SnakemakeRun, slowness, snakemake, wait_for

from .kept_clusters import KEEP, Clusters
from .kept_clusters import snakemake as beside

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces"),
]

#: Of this process among those of pytest-xdist, which run these tests at the same time.
NUMBER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


@dataclass(frozen=True)
class Elsewhere:
    """A namespace, connected to this one."""

    name: str
    network: str
    interface: str  # the same on both sides: a pool names one interface for scheduler and workers


def place(number: int) -> Elsewhere:
    """One of two for each process."""
    number += 2 * NUMBER
    return Elsewhere(f"snkdask{os.getpid()}-{number}", f"10.213.{77 + number}", f"snkveth{number}")


#: Starts one worker in the namespace and one beside it, as a launcher would on two nodes.
LAUNCHER = """#!/bin/bash
trap 'kill $(jobs -p); wait; exit 0' TERM
export OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2
shift
OMPI_COMM_WORLD_RANK=0 ip netns exec NAMESPACE "$@" &
OMPI_COMM_WORLD_RANK=1 "$@" &
wait
"""

#: The second worker can take the job only once its own first one is over.
SNAKEFILE = """
rule all:
    input: expand("out/{i}.txt", i=range(2))

rule work:
    output: "out/{i}.txt"
    shell:
        '''
        echo "start $SNAKEMAKE_DASK_JOB $(date +%s.%N)" >> log.{wildcards.i}
        while ! test -e go; do
            echo "alive $SNAKEMAKE_DASK_JOB $(date +%s.%N)" >> log.{wildcards.i}
            sleep 0.5
        done
        echo "end $SNAKEMAKE_DASK_JOB $(date +%s.%N)" >> log.{wildcards.i}
        echo $SNAKEMAKE_DASK_JOB > {output}
        '''
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def connected(place: Elsewhere) -> Iterator[None]:
    """The namespace and its connection are there."""
    near, far = place.interface, f"{place.interface}-far"
    ip("netns", "add", place.name)
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", far)
        ip("link", "set", far, "netns", place.name)
        ip("-n", place.name, "link", "set", far, "name", near)
        ip("addr", "add", f"{place.network}.1/24", "dev", near)
        ip("-n", place.name, "addr", "add", f"{place.network}.2/24", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", place.name, "link", "set", near, "up")
        ip("-n", place.name, "link", "set", "lo", "up")
        yield
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", near)
        ip("netns", "del", place.name)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    """A host whose network can be cut."""
    with connected(place(0)):
        yield place(0)


@dataclass(frozen=True)
class StandsStill:
    """A run of which a worker and its supervisor were stopped; its attempt there, and the job."""

    run: SnakemakeRun
    facts: dict[str, Any]  # of the worker
    far: str
    job: str


@pytest.fixture(scope="module")
def meanwhile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandsStill]:
    """It waits for its silence to count while the other tests wait for their networks."""
    with connected(place(1)), started_on_both(tmp_path_factory.mktemp("test_frozen"), place(1)) as (run, far, job):
        facts = next(event["facts"] for event in run.events("worker-joined") if event["worker"].endswith("-0"))
        for which in ("pid", "supervisor_pid"):
            os.kill(facts[which], signal.SIGSTOP)
        yield StandsStill(run, facts, far, job)


def lines(run: SnakemakeRun, job: str, kind: str) -> list[tuple[str, float]]:
    """Attempts' keys and times of a job's lines of one kind."""
    path = run.directory / f"log.{job}"
    found = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(words[1], float(words[2])) for words in found if len(words) == 3 and words[0] == kind]


def on_both(directory: Path, elsewhere: Elsewhere, patch: pytest.MonkeyPatch, cores: int) -> tuple[str, ...]:
    """The settings of a pool with a worker in the namespace and one beside it."""
    launcher = directory / "launcher"
    launcher.write_text(LAUNCHER.replace("NAMESPACE", elsewhere.name))
    launcher.chmod(0o755)
    patch.setenv("NHOSTS", "2")  # so says Grid Engine of an allocation of two nodes
    options = f"{{launcher: {launcher} --, interface: {elsewhere.interface}}}"
    shape = ("--dask-workers", "2", "--dask-worker-cores", str(cores))
    return ("--dask-cluster", "mpi", *shape, "--dask-options", options)


@contextlib.contextmanager
def started_on_both(directory: Path, elsewhere: Elsewhere) -> Iterator[tuple[SnakemakeRun, str, str]]:
    """A run with a job on each worker; the far worker's attempt, and its job."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        settings = on_both(directory, elsewhere, patch, 1)
        run = stack.enter_context(snakemake(directory / "work", SNAKEFILE, *settings))
        wait_for(lambda: all(lines(run, job, "alive") for job in "01"), "both jobs started")
        placed = {event["key"]: event["worker"] for event in run.events("job-placed")}
        far = next(key for key, worker in placed.items() if worker.endswith("-0"))
        job = next(job for job in "01" if lines(run, job, "start")[0][0] == far)
        yield run, far, job


@pytest.mark.parametrize("cut_s", [pytest.param(50, marks=pytest.mark.variant), 75])
def test_cut_network(tmp_path: Path, elsewhere: Elsewhere, meanwhile: StandsStill, cut_s: float) -> None:
    """Shorter or longer than a lease: the old attempt is dead before the new one starts; its result is not taken."""
    with started_on_both(tmp_path, elsewhere) as (run, far, cut_job):
        assert far in dict(lines(run, cut_job, "alive"))
        ip("link", "set", elsewhere.interface, "down")
        cut = time.time()
        back = time.monotonic() + cut_s
        wait_for(lambda: time.monotonic() > back, "the network is cut", cut_s + 60)
        ip("link", "set", elsewhere.interface, "up")
        # The other worker's only core is busy meanwhile, so that the far one's job must wait for it.
        wait_for(lambda: "runs again" in run.output, "the far worker's attempt is known to be dead", 200)
        known = time.time()
        (run.directory / "go").touch()
        assert run.wait() == 0, run.output
        starts = lines(run, cut_job, "start")
        assert len(starts) == 2
        old, new = starts[0][0], starts[1][0]
        assert old == far != new
        last = max(when for key, when in lines(run, cut_job, "alive") if key == old)
        print(f"cut {cut_s} s: alive for {last - cut:.0f} s, known to be dead after {known - cut:.0f} s")
        assert last < known
        assert last < starts[1][1]
        assert [key for key, _ in lines(run, cut_job, "end")] == [new]
        assert (run.directory / "out" / f"{cut_job}.txt").read_text().strip() == new
        assert run.output.count("Worker ") >= 1
        assert "was lost" in run.output
        run.expect_gone(60)


def test_cut_network_of_a_cluster_that_stays(
    tmp_path: Path, elsewhere: Elsewhere, clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs share both workers: what either has on the far one is dead before it runs again, once, and it ends once.

    The near worker's jobs go on, and a run that comes later finds the cluster in order.
    """
    settings = (*on_both(tmp_path, elsewhere, monkeypatch, 2), *KEEP)
    with (
        beside(tmp_path / "one", SNAKEFILE, *settings) as one,
        beside(tmp_path / "other", SNAKEFILE, *settings) as other,
    ):
        runs = (one, other)
        wait_for(lambda: all(lines(run, job, "alive") for run in runs for job in "01"), "four jobs")
        placed = {event["key"]: event["worker"] for run in runs for event in run.events("job-placed")}
        first = {(run, job): lines(run, job, "start")[0][0] for run in runs for job in "01"}
        cut_off = {place for place, key in first.items() if placed[key].endswith("-0")}
        assert len(cut_off) == 2
        ip("link", "set", elsewhere.interface, "down")
        back = time.monotonic() + 75
        wait_for(lambda: time.monotonic() > back, "the network is cut", 135)
        ip("link", "set", elsewhere.interface, "up")
        of_cut = {run for run, _ in cut_off}
        wait_for(
            lambda: all("runs again" in run.output for run in of_cut), "the far attempts are known to be dead", 200
        )
        known = time.time()
        for run in runs:
            (run.directory / "go").touch()
        for run in runs:
            assert run.wait() == 0, run.output
            for job in "01":
                starts = [key for key, _ in lines(run, job, "start")]
                assert starts[0] == first[run, job]
                assert len(starts) == (2 if (run, job) in cut_off else 1)
                assert [key for key, _ in lines(run, job, "end")] == [starts[-1]]
                if (run, job) in cut_off:
                    assert max(when for key, when in lines(run, job, "alive") if key == starts[0]) < known
            assert not run.jobs()
    with beside(tmp_path / "after", SNAKEFILE, *settings) as after:
        (after.directory / "go").touch()
        assert after.wait() == 0, after.output
    assert len(clusters.heads()) == 1


def test_short_cut(tmp_path: Path, elsewhere: Elsewhere, meanwhile: StandsStill) -> None:
    """A network that is back after half a minute costs nothing."""
    with started_on_both(tmp_path, elsewhere) as (run, _, cut_job):
        ip("link", "set", elsewhere.interface, "down")
        back = time.monotonic() + 30
        wait_for(lambda: time.monotonic() > back, "the network is cut")
        ip("link", "set", elsewhere.interface, "up")
        later = time.monotonic() + 20
        wait_for(lambda: time.monotonic() > later, "what a late reaction would be")
        (run.directory / "go").touch()
        assert run.wait() == 0, run.output
        assert len(lines(run, cut_job, "start")) == len(lines(run, cut_job, "end")) == 1
        assert "was lost" not in run.output
        run.expect_gone(60)


def test_frozen_elsewhere(meanwhile: StandsStill) -> None:
    """Worker and supervisor stand still on a host that answers: nobody can end their job, so it is not run again."""
    run, job = meanwhile.run, meanwhile.job
    wait_for(lambda: "are frozen and cannot be ended from here" in run.output, "the job is given up", 240)
    assert lines(run, job, "alive")[-1][1] > time.time() - 10 * slowness(), "which is right, since it lives"
    (run.directory / "go").touch()
    assert run.wait() == 1
    assert "it is not run again, since two attempts could then run at once" in run.output
    assert [key for key, _ in lines(run, job, "start")] == [meanwhile.far]
    # On a host that thaws everything of a run that is over ends by itself.
    for which in ("pid", "supervisor_pid"):
        os.kill(meanwhile.facts[which], signal.SIGCONT)
    run.expect_gone(60)
