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
    """One of five for each process."""
    number += 5 * NUMBER
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


class Cut:
    """The network of a host, from when it was cut."""

    def __init__(self, elsewhere: Elsewhere) -> None:
        self._interface = elsewhere.interface
        ip("link", "set", self._interface, "down")
        self.at, self._since = time.time(), time.monotonic()

    def back_after(self, seconds: float) -> None:
        """Connect it again once it was cut for so long."""
        self.wait(seconds, "the network is cut")
        ip("link", "set", self._interface, "up")

    def wait(self, seconds: float, why: str) -> None:
        """Until so long after it was cut."""
        until = self._since + seconds
        wait_for(lambda: time.monotonic() > until, why, seconds + 60)


@dataclass(frozen=True)
class CutOff:
    """A run on both, with the far worker cut off; its attempt there, and the job."""

    run: SnakemakeRun
    far: str
    job: str
    cut: Cut


@contextlib.contextmanager
def cut_off(directory: Path, elsewhere: Elsewhere) -> Iterator[CutOff]:
    """From when both of its jobs run."""
    with connected(elsewhere), started_on_both(directory, elsewhere) as (run, far, job):
        assert far in dict(lines(run, job, "alive"))
        yield CutOff(run, far, job, Cut(elsewhere))


@dataclass(frozen=True)
class StandsStill:
    """A run of which a worker and its supervisor were stopped; its attempt there, and the job."""

    run: SnakemakeRun
    facts: dict[str, Any]  # of the worker
    far: str
    job: str


@contextlib.contextmanager
def stands_still(directory: Path, elsewhere: Elsewhere) -> Iterator[StandsStill]:
    """From when both of its jobs run."""
    with connected(elsewhere), started_on_both(directory, elsewhere) as (run, far, job):
        facts = next(event["facts"] for event in run.events("worker-joined") if event["worker"].endswith("-0"))
        for which in ("pid", "supervisor_pid"):
            os.kill(facts[which], signal.SIGSTOP)
        yield StandsStill(run, facts, far, job)


@contextlib.contextmanager
def at_home(state: Path) -> Iterator[pytest.MonkeyPatch]:
    """Runs that start now look for clusters there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(state))
        yield patch


@dataclass(frozen=True)
class Stays:
    """Two runs on a cluster that stays, with its far worker cut off, and which of their attempts were there."""

    clusters: Clusters
    settings: tuple[str, ...]
    runs: tuple[SnakemakeRun, SnakemakeRun]
    first: dict[tuple[SnakemakeRun, str], str]  # by run and job
    cut_off: set[tuple[SnakemakeRun, str]]
    cut: Cut


@contextlib.contextmanager
def cluster_that_stays(directory: Path, elsewhere: Elsewhere) -> Iterator[Stays]:
    """From when all four jobs run; afterwards nothing of the cluster is there."""
    clusters = Clusters(directory / "state")

    def end() -> None:
        with at_home(clusters.state):
            clusters.end()

    with connected(elsewhere), contextlib.ExitStack() as stack:
        stack.callback(end)
        with at_home(clusters.state) as patch:
            settings = (*on_both(directory, elsewhere, patch, 2), *KEEP)
            one, other = (
                stack.enter_context(beside(directory / name, SNAKEFILE, *settings)) for name in ("one", "other")
            )
        runs = (one, other)
        wait_for(lambda: all(lines(run, job, "alive") for run in runs for job in "01"), "four jobs")
        placed = {event["key"]: event["worker"] for run in runs for event in run.events("job-placed")}
        first = {(run, job): lines(run, job, "start")[0][0] for run in runs for job in "01"}
        cut_off = {place for place, key in first.items() if placed[key].endswith("-0")}
        assert len(cut_off) == 2
        yield Stays(clusters, settings, runs, first, cut_off, Cut(elsewhere))


@dataclass(frozen=True)
class Meanwhile:
    """Runs that each wait for a minute or more."""

    long: CutOff
    stays: Stays
    still: StandsStill
    short: CutOff


@pytest.fixture(scope="module")
def meanwhile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meanwhile]:
    """They wait at the same time, whichever of the tests looks at them first."""
    directory = tmp_path_factory.mktemp
    with (
        stands_still(directory("frozen"), place(0)) as still,
        cluster_that_stays(directory("stays"), place(1)) as stays,
        cut_off(directory("long"), place(2)) as long,
        cut_off(directory("short"), place(3)) as short,
    ):
        yield Meanwhile(long, stays, still, short)


def test_short_cut(meanwhile: Meanwhile) -> None:
    """A network that is back after half a minute costs nothing."""
    run, cut = meanwhile.short.run, meanwhile.short.cut
    cut.back_after(30)
    cut.wait(50, "what a late reaction would be")
    (run.directory / "go").touch()
    assert run.wait() == 0, run.output
    assert len(lines(run, meanwhile.short.job, "start")) == len(lines(run, meanwhile.short.job, "end")) == 1
    assert "was lost" not in run.output
    run.expect_gone(60)


def test_cut_network(meanwhile: Meanwhile) -> None:
    """Longer than a lease: the old attempt is dead before the new one starts, and its result is not taken."""
    runs_again_once_it_is_dead(meanwhile.long, 75)


@pytest.mark.variant
def test_network_cut_for_less_than_a_lease(tmp_path: Path) -> None:
    """For longer than the silence that counts, but not than a lease: as if it were longer."""
    with cut_off(tmp_path, place(4)) as cut:
        runs_again_once_it_is_dead(cut, 50)


def runs_again_once_it_is_dead(cut_off: CutOff, cut_s: float) -> None:
    run, far, cut_job, cut = cut_off.run, cut_off.far, cut_off.job, cut_off.cut
    cut.back_after(cut_s)
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
    print(f"cut {cut_s} s: alive for {last - cut.at:.0f} s, known to be dead after {known - cut.at:.0f} s")
    assert last < known
    assert last < starts[1][1]
    assert [key for key, _ in lines(run, cut_job, "end")] == [new]
    assert (run.directory / "out" / f"{cut_job}.txt").read_text().strip() == new
    assert run.output.count("Worker ") >= 1
    assert "was lost" in run.output
    run.expect_gone(60)


def test_cut_network_of_a_cluster_that_stays(tmp_path: Path, meanwhile: Meanwhile) -> None:
    """Two runs share both workers: what either has on the far one is dead before it runs again, once, and it ends once.

    The near worker's jobs go on, and a run that comes later finds the cluster in order.
    """
    stays = meanwhile.stays
    stays.cut.back_after(75)
    of_cut = {run for run, _ in stays.cut_off}
    wait_for(lambda: all("runs again" in run.output for run in of_cut), "the far attempts are known to be dead", 200)
    known = time.time()
    for run in stays.runs:
        (run.directory / "go").touch()
    for run in stays.runs:
        assert run.wait() == 0, run.output
        for job in "01":
            starts = [key for key, _ in lines(run, job, "start")]
            assert starts[0] == stays.first[run, job]
            assert len(starts) == (2 if (run, job) in stays.cut_off else 1)
            assert [key for key, _ in lines(run, job, "end")] == [starts[-1]]
            if (run, job) in stays.cut_off:
                assert max(when for key, when in lines(run, job, "alive") if key == starts[0]) < known
        assert not run.jobs()
    with at_home(stays.clusters.state), beside(tmp_path / "after", SNAKEFILE, *stays.settings) as after:
        (after.directory / "go").touch()
        assert after.wait() == 0, after.output
    assert len(stays.clusters.heads()) == 1


def test_frozen_elsewhere(meanwhile: Meanwhile) -> None:
    """Worker and supervisor stand still on a host that answers: nobody can end their job, so it is not run again."""
    run, job = meanwhile.still.run, meanwhile.still.job
    wait_for(lambda: "are frozen and cannot be ended from here" in run.output, "the job is given up", 240)
    assert lines(run, job, "alive")[-1][1] > time.time() - 10 * slowness(), "which is right, since it lives"
    (run.directory / "go").touch()
    assert run.wait() == 1
    assert "it is not run again, since two attempts could then run at once" in run.output
    assert [key for key, _ in lines(run, job, "start")] == [meanwhile.still.far]
    # On a host that thaws everything of a run that is over ends by itself.
    for which in ("pid", "supervisor_pid"):
        os.kill(meanwhile.still.facts[which], signal.SIGCONT)
    run.expect_gone(60)
