"""Clusters that stay: one run after another, several at once, and the end of each of their parts."""

import os
import pty
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from clusters.slurm import VirtualSlurm
from running import RUN_S, ended, logged_jobs, started, wait_for

from snakemake_executor_plugin_dask.frontend.announcing import announce
from snakemake_executor_plugin_dask.settings import ExecutorSettings

from .kept_clusters import KEEP, SMALL, Clusters, finished, in_each_python, pools_of, snakemake, supervisor_of

pytestmark = pytest.mark.timeout(900)

TELLS = """
rule tell:
    output: "told.txt"
    shell: "echo $(pwd) $(umask) $(ulimit -n) $WHO $TMPDIR ${{ONLY_FIRST-unset}} > {output}"
"""


def test_runs_after_each_other_share_a_cluster_and_nothing_else(
    clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second and third run take the first one's worker; directory, umask, limits, variables are their own."""
    own = {name: tmp_path / "tmp" / name for name in ("first", "second", "third")}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    umask = os.umask(0o022)
    try:
        for name, mask, files in (("first", 0o022, 1000), ("second", 0o077, 2000), ("third", 0o027, 1000)):
            own[name].mkdir(parents=True)
            monkeypatch.setenv("WHO", name)
            monkeypatch.setenv("TMPDIR", str(own[name]))
            os.umask(mask)
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
            if name == "first":
                monkeypatch.setenv("ONLY_FIRST", "set")
            else:
                monkeypatch.delenv("ONLY_FIRST", raising=False)
            keep = () if name == "third" else KEEP  # one that keeps nothing uses what is there
            with snakemake(tmp_path / name, TELLS, *keep) as run:
                finished(run)
                assert re.search(r"stays for (1h|59m)", run.output)  # whatever a later run asks for
                assert ("has 1 worker" in run.output) == (name != "first")
            if name == "first":
                head, workers = clusters.heads(), clusters.workers()
                assert len(head) == 1
                assert len(workers) == 1
    finally:
        os.umask(umask)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert clusters.heads() == head
    assert clusters.workers() == workers
    for name, mask, files in (("first", "0022", "1000"), ("second", "0077", "2000"), ("third", "0027", "1000")):
        told = (tmp_path / name / "told.txt").read_text().split()
        only = "set" if name == "first" else "unset"
        assert told == [str(tmp_path / name), mask, files, name, str(own[name]), only]
    assert clusters.processes("worker.supervisor") == []  # each run's went with it
    with snakemake(tmp_path / "third", TELLS) as run:
        finished(run)
        assert "Nothing to be done" in run.output
        run.expect_gone(10)  # what was started ahead of its first job, too
    listed = clusters.command("clusters").stdout
    assert clusters.names()[0] in listed
    assert "1 up" in listed


LATE = """
import os
onstart:
    os.environ["WHO"] = "late"
rule all:
    output: "told.txt"
    shell: "echo $WHO > {output}"
"""


def test_what_was_begun_ahead_is_the_runs_or_gone(
    clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that says that it comes gets a warm process; what it began otherwise than it goes on is begun anew."""
    monkeypatch.setenv("WHO", "early")
    with snakemake(tmp_path / "first", TELLS, *KEEP) as run:
        finished(run)
    settings = ExecutorSettings(keep="1h")
    announced = announce(settings, "abcdefg1", str(tmp_path), 3, os.environ)
    assert announced is not None
    for what in ("worker.supervisor", "worker.warm"):
        wait_for(lambda what=what: clusters.processes(what), f"a {what} of the run that is about to come", RUN_S)
    announced.close()  # it does not come
    for what in ("worker.supervisor", "worker.warm"):
        wait_for(lambda what=what: not clusters.processes(what), f"the end of {what}", RUN_S)
    with snakemake(tmp_path / "second", LATE) as run:
        finished(run)
    assert (tmp_path / "second" / "told.txt").read_text() == "late\n"
    assert len(clusters.heads()) == len(clusters.workers()) == 1
    assert clusters.processes("worker.supervisor") == []


def test_two_runs_at_once_take_turns_and_end_apart(clusters: Clusters, tmp_path: Path) -> None:
    """While both have jobs that wait, each starts about as many as the other, of jobs that are alike.

    A third run's jobs start beside the first one's many, also while that one is stopped (Ctrl-Z).
    SIGKILL of one run ends its jobs and no other's.
    """
    body = "sleep 0.3"
    with snakemake(tmp_path / "large", logged_jobs(400, body), *KEEP, *SMALL) as large:
        wait_for(lambda: len(started(large)) > 10, "the large run's jobs")
        with snakemake(tmp_path / "small", logged_jobs(40, body), *SMALL) as small:
            finished(small)
        theirs = sorted(float(line.split()[3]) for line in started(small))
        of_large = [when for line in started(large) if theirs[0] <= (when := float(line.split()[3])) <= theirs[-1]]
        assert 20 <= len(of_large) <= 80
        os.killpg(large.process.pid, signal.SIGSTOP)
        with snakemake(tmp_path / "third", logged_jobs(6, body), *KEEP, *SMALL) as third:
            finished(third)
            assert "has 1 worker" in third.output
            assert any(held["jobs"] for event in third.events("others-held") for held in event["held"].values())
            assert len(ended(large)) < 400
            assert len(clusters.heads()) == 1
            assert len(clusters.workers()) == 1
        os.killpg(large.process.pid, signal.SIGCONT)
        large.process.kill()
        large.process.wait()
        wait_for(lambda: not large.jobs(), "the killed run's jobs are gone")
        wait_for(lambda: not clusters.processes("worker.supervisor"), "its supervisor is gone")
        # What it held is free again.
        with snakemake(tmp_path / "after", logged_jobs(2, "true"), *SMALL) as after:
            finished(after)


def test_a_home_that_cannot_be_written_is_for_runs_that_keep_nothing(
    clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --dask-keep it is one sentence, and no job starts; without, nothing is said of it."""
    clusters.state.write_text("")  # no directory, also for root
    for name, keep in (("keeps", KEEP), ("not", ())):
        with snakemake(tmp_path / name, TELLS, *keep, *SMALL) as run:
            assert (run.wait() == 0) == (name == "not"), run.output
            assert ("cannot be used" in run.output and "omit --dask-keep" in run.output) == (name == "keeps")
            assert (run.directory / "told.txt").exists() == (name == "not")
            assert "Traceback" not in run.output
    clusters.state.unlink()


def test_runs_that_ask_for_different_clusters_are_told_so(clusters: Clusters, tmp_path: Path) -> None:
    """A run without --dask-keep that asks for something else brings its own up, and says in what they differ."""
    with snakemake(tmp_path / "first", TELLS, *KEEP, *SMALL) as run:
        finished(run)
    with snakemake(tmp_path / "second", TELLS, "--dask-worker-cores", "1", "--dask-worker-memory", "2 GB") as run:
        finished(run)
        assert "differs in pool local: cores 2, 1" in run.output
    assert len(clusters.workers()) == 1


def test_a_run_may_name_the_cluster(clusters: Clusters, tmp_path: Path) -> None:
    """By name it is taken whatever the settings; a name of none that is up fails with the list of those."""
    profile = tmp_path / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text("executor: dask\ndask-keep: 1h\ndask-worker-cores: 2\n")
    done = clusters.command("start", "--profile", str(profile), "--dask-worker-memory", "2 GB", "--wait")
    assert done.returncode == 0, done.stderr
    (name,) = clusters.names()
    assert name in done.stdout
    workers = clusters.workers()
    assert len(workers) == 1
    with snakemake(tmp_path / "run", TELLS, "--dask-scheduler", name, "--dask-dashboard", "auto") as run:
        finished(run)
        assert "was brought up without a dashboard" in run.output
    assert clusters.workers() == workers
    other = "0000000" + str((int(name[7]) + 1) % 10)
    with snakemake(tmp_path / "other", TELLS, "--dask-scheduler", other) as run:
        assert run.wait() != 0
        assert f"those that are up: {name}" in run.output


def test_stop_does_not_end_runs_unless_told(
    clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal it refuses where runs use the cluster, and names them; with --force they end with a reason.

    At a terminal it asks. Meanwhile no file holds what the run's jobs get from its environment.
    """
    monkeypatch.setenv("TOKEN", "swordfish-of-the-run")
    with snakemake(tmp_path / "run", logged_jobs(1, "sleep 600"), *KEEP, *SMALL) as run:
        wait_for(lambda: started(run), "the job")
        (name,) = clusters.names()
        (row,) = clusters.command("clusters").stdout.splitlines()[1:]
        run_id = run.events("run-started")[0]["run_id"]
        for word in (name, os.uname().nodename, "local (local, 1 of 1)", "1 up", f"{run_id} (1 jobs, {run.directory})"):
            assert word in row
        refused = clusters.command("stop", name)
        assert refused.returncode == 1
        assert str(tmp_path / "run") in refused.stderr
        asked = at_a_terminal(clusters.command_line("stop", name), b"n\n")
        assert f"is used by {run_id} with 1 jobs in {run.directory}. End them? [y/N]" in asked
        assert run.process.poll() is None
        for path in (*clusters.root.rglob("*"), *run.directory.rglob("*")):
            assert not path.is_file() or b"swordfish-of" not in path.read_bytes(), path
        assert any(b"swordfish-of" in Path(f"/proc/{pid}/environ").read_bytes() for pid in run.jobs())
        ended_ = clusters.command("stop", name, "--force")
        assert ended_.returncode == 0, ended_.stderr
        assert run.wait() != 0
        assert f"Cluster {name} ends, since it was told to stop" in run.output
        assert not run.jobs()


def at_a_terminal(command: list[str], answer: bytes) -> str:
    """What a command says to somebody who types this; it has to end."""
    here, there = pty.openpty()
    with os.fdopen(here, "r+b", buffering=0) as terminal, os.fdopen(there, "r+b", buffering=0) as its:
        terminal.write(answer)
        done = subprocess.run(
            command, stdin=its, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=RUN_S, check=False
        )
    assert done.returncode == 1
    return done.stdout


def test_a_head_that_is_killed_ends_its_runs_and_the_next_run_starts_another(
    clusters: Clusters, tmp_path: Path
) -> None:
    """Both runs say so, no process of a worker or job is left, and what was written down is replaced."""
    with (
        snakemake(tmp_path / "run", logged_jobs(1, "sleep 600"), *KEEP, *SMALL) as run,
        snakemake(tmp_path / "other", logged_jobs(1, "sleep 600"), *KEEP, *SMALL) as other,
    ):
        wait_for(lambda: started(run) and started(other), "the jobs")
        (head,) = clusters.heads()
        os.kill(head, signal.SIGKILL)
        for each in (run, other):
            assert each.wait() != 0
            assert "was lost" in each.output
            each.expect_gone(30)
    assert clusters.workers() == []
    with snakemake(tmp_path / "next", TELLS, *KEEP, *SMALL) as run:
        finished(run)
    assert clusters.heads() not in ([], [head])


def test_an_idle_head_that_is_killed_leaves_nothing(clusters: Clusters, tmp_path: Path) -> None:
    """No process, and nothing in the state directory; as little as one that ends by itself."""
    for end in (signal.SIGKILL, signal.SIGTERM):
        with snakemake(tmp_path / end.name, logged_jobs(1, "true"), *SMALL, *KEEP) as run:
            finished(run)
        (head,), (_,) = clusters.heads(), clusters.watchdogs()
        os.kill(head, end)
        wait_for(lambda: not clusters.names() and not clusters.processes(), "nothing is left")


def test_a_run_that_waits_for_its_cluster_can_be_stopped(clusters: Clusters, tmp_path: Path) -> None:
    """Its head hangs, and would be waited for: Ctrl-C ends the run, and the cluster is left alone."""
    with snakemake(tmp_path / "first", logged_jobs(1, "true"), *SMALL, *KEEP) as run:
        finished(run)
    (head,) = clusters.heads()
    os.kill(head, signal.SIGSTOP)
    try:
        with snakemake(tmp_path / "second", logged_jobs(1, "true"), *SMALL, *KEEP) as run:
            wait_for(lambda: any((tmp_path / "second/.snakemake/dask").glob("*/driver.log")), "its driver has begun")
            os.kill(run.process.pid, signal.SIGINT)
            assert run.wait() != 0
            assert "did not end within" not in run.output
            assert not [text for text in run.processes().values() if "plugin_dask.driver --fd" in text]
    finally:
        os.kill(head, signal.SIGCONT)
    assert clusters.heads() == [head]


def test_the_cluster_ends_after_the_keep_time(clusters: Clusters, tmp_path: Path) -> None:
    """By itself, and leaves neither process nor file."""
    with snakemake(tmp_path / "run", TELLS, "--dask-keep", "2s", "--dask-dashboard", "auto") as run:
        finished(run)
        assert f"the link is in {clusters.root}/" in run.output
    wait_for(lambda: not clusters.processes(), "no process")
    assert clusters.names() == []


def test_a_supervisor_that_is_killed_costs_its_run_alone(clusters: Clusters, tmp_path: Path) -> None:
    """Its jobs run again, with a new supervisor; the other run on the worker hears nothing of it.

    Nothing is left of the first attempt, also no daemon that carries no key.
    """
    daemon = "env -i setsid sleep 4242 & echo $! >> daemons; "
    wait = 'while [ ! -e "{}" ]; do sleep 0.1; done'
    go = tmp_path / "go"
    with (
        snakemake(tmp_path / "hit", logged_jobs(1, daemon + wait.format(go)), *KEEP, *SMALL) as hit,
        snakemake(tmp_path / "spared", logged_jobs(1, wait.format(go)), *KEEP, *SMALL) as spared,
    ):
        wait_for(lambda: started(hit) and started(spared), "both jobs")
        os.kill(supervisor_of(hit), signal.SIGKILL)
        wait_for(lambda: len(started(hit)) > 1, f"its job runs again: {hit.output}{clusters.log()}")
        first = int((hit.directory / "daemons").read_text().split()[0])
        assert not Path(f"/proc/{first}/stat").exists()
        go.touch()
        finished(hit)
        finished(spared)
        assert len(started(spared)) == 1
        assert not spared.events("worker-lost")


def test_clusters_of_one_name_are_told_apart(
    clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two state directories of one user hold clusters of one name; the end of one takes nothing of the other along."""
    go = tmp_path / "go"
    body = logged_jobs(1, f'while [ ! -e "{go}" ]; do sleep 0.1; done')
    with snakemake(tmp_path / "run", body, *KEEP, *SMALL) as run:
        wait_for(lambda: started(run), "the job")
        other = tmp_path / "other"
        monkeypatch.setenv("XDG_STATE_HOME", str(other))
        with snakemake(tmp_path / "beside", TELLS, *KEEP, *SMALL) as beside:
            finished(beside)
        assert [path.name for path in (other / "snakemake-dask").iterdir()] == clusters.names()
        assert clusters.command("stop", "--all").returncode == 0
        monkeypatch.setenv("XDG_STATE_HOME", str(clusters.state))
        go.touch()
        finished(run)
        assert len(started(run)) == 1


def test_an_idle_head_takes_little(clusters: Clusters, tmp_path: Path) -> None:
    """Its memory is bounded, it dumps no core, and it seldom wakes. What passes counts as idle, and for no run."""
    with snakemake(tmp_path / "run", TELLS, *KEEP, *SMALL) as run:
        finished(run)
    (head,) = clusters.heads()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{head}/status").read_text().splitlines())
    assert int(status["VmRSS"].split()[0]) < 120_000
    assert Path(f"/proc/{head}/cwd").resolve() == clusters.root / clusters.names()[0]
    limits = Path(f"/proc/{head}/limits").read_text()
    assert next(line for line in limits.splitlines() if line.startswith("Max core file size")).split()[4] == "0"
    before, told = wakings(head), clusters.told()
    pause(4)
    assert wakings(head) - before < 4 * 12  # Dask's own default is more than fifty a second
    after = clusters.told()
    assert after.runs == []
    assert after.idle_core_s - told.idle_core_s == pytest.approx(after.held_core_s - told.held_core_s)
    assert after.idle_core_s > told.idle_core_s + 4


#: Counts, for whoever sends the signal, what a process holds of runs' environments.
COUNTS = """
import sys
if {"snakemake_executor_plugin_dask.driver.head", "snakemake_executor_plugin_dask.worker"} & set(sys.orig_argv):
    import gc, os, signal
    def count(*_):
        gc.disable()  # by this count's own garbage it would be collected
        gc.unfreeze()  # else what is old would not be among them
        number = sum(type(each).__name__ in ("RunSetup", "Beginning") for each in gc.get_objects())
        with open(f"DIRECTORY/new-{os.getpid()}", "w") as file:
            file.write(str(number))
        os.replace(file.name, f"DIRECTORY/held-{os.getpid()}")
    signal.signal(signal.SIGUSR2, count)
"""


def test_a_runs_environment_is_forgotten_with_the_run(
    clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the head nor a worker holds on to it until the next run comes."""
    in_each_python(tmp_path, monkeypatch, COUNTS.replace("DIRECTORY", str(tmp_path)))

    def held(pid: int) -> int:
        path = tmp_path / f"held-{pid}"
        path.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR2)
        wait_for(path.exists, "it has counted")
        return int(path.read_text())

    go = tmp_path / "go"
    body = logged_jobs(1, f'while [ ! -e "{go}" ]; do sleep 0.1; done')
    with snakemake(tmp_path / "run", body, *KEEP, *SMALL) as run:
        wait_for(lambda: started(run), "the job", RUN_S)
        (head,), (worker,) = clusters.heads(), clusters.workers()
        assert held(head) > 0
        go.touch()
        finished(run)
    for pid in (head, worker):
        wait_for(lambda pid=pid: held(pid) == 0, "it is forgotten")


def wakings(pid: int) -> int:
    """How often it has waited for something."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("voluntary_ctxt_switches")).split()[1])


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The commands of the processes with this value of WHO that have ended, and had imported Dask."""
    in_each_python(
        tmp_path,
        monkeypatch,
        "import atexit, os, sys\n"
        "def tell():\n"
        "    if 'dask' in sys.modules:\n"
        f"        with open(os.path.join({str(tmp_path)!r}, 'imported-' + os.environ.get('WHO', '')), 'a') as file:\n"
        "            file.write(' '.join(sys.orig_argv) + '\\n')\n"
        "atexit.register(tell)\n",
    )

    def imported(who: str) -> str:
        path = tmp_path / f"imported-{who}"
        return path.read_text() if path.exists() else ""

    return imported


@pytest.mark.slurm
def test_on_slurm_three_runs_wait_once(
    clusters: Clusters,
    slurm: VirtualSlurm,
    imports: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second run, with a rule mended and fewer jobs, and the third take the allocations of the first.

    Nothing of Dask is imported in their way.
    """
    pools = ("--dask-pools", str(pools_of(tmp_path, "0-2")))
    allocations = []
    for number, (jobs, body) in enumerate(((3, "test {wildcards.i} != 1"), (1, "true"), (2, "true"))):
        monkeypatch.setenv("WHO", str(number))
        with snakemake(tmp_path / f"run{number}", logged_jobs(jobs, body), *pools, *KEEP, "--keep-going") as run:
            assert (run.wait() != 0) == (number == 0), run.output
            allocations.append({event["outcome"]["allocation"] for event in run.events("job-ended")})
    assert "preflight" in imports("0")
    assert imports("1") + imports("2") == ""
    queue = [line.split()[0] for line in slurm.queue()]
    assert allocations[1] | allocations[2] <= allocations[0]
    assert set(queue) == allocations[0]
    assert clusters.command("stop", "--all").returncode == 0
    assert not slurm.queue()


@pytest.mark.slurm
def test_on_slurm_pools_come_with_the_runs(
    clusters: Clusters,
    slurm: VirtualSlurm,
    imports: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pools for Slurm resources are shaped from jobs: a run shares those that are there, and adds what it needs.

    One that needs no others waits for nothing of Dask. Jobs that are larger than what is there get larger workers.
    """
    resources = ("--dask-cluster", "slurm", "--dask-workers", "0-1")
    done = clusters.command("start", *KEEP, *resources)
    assert done.returncode == 0, done.stderr
    assert "Its workers come with the first run." in done.stdout
    body = """
rule all:
    input: expand("{partition}.txt", partition=config["partitions"].split())
rule ask:
    output: "{partition}.txt"
    resources: mem_mb=config["memory"], runtime=5, slurm_partition=lambda wildcards: wildcards.partition
    shell: "echo $SLURM_JOB_PARTITION $SLURM_JOB_ID > {output}"
"""
    said = []
    for number, (partitions, memory) in enumerate((("cpu", 300), ("cpu big", 300), ("big", 300), ("cpu", 3000))):
        monkeypatch.setenv("WHO", str(number))
        config = ("--config", f"partitions={partitions}", f"memory={memory}")
        with snakemake(tmp_path / f"run{number}", body, *resources, *config) as run:
            finished(run)
        said.append(
            {path.stem: path.read_text().split() for path in run.directory.glob("*.txt") if path.stem in partitions}
        )
    assert said[0]["cpu"] == said[1]["cpu"]  # the same allocation
    assert said[1]["big"][0] == "big"
    assert said[2]["big"] == said[1]["big"]
    assert "preflight" in imports("1")
    assert imports("2") == ""
    assert said[3]["cpu"] != said[0]["cpu"]
    assert len(slurm.queue()) == 3
    assert clusters.command("stop", "--all").returncode == 0


@pytest.mark.slurm
def test_on_slurm_a_dead_heads_allocations_are_cancelled(
    clusters: Clusters, slurm: VirtualSlurm, tmp_path: Path
) -> None:
    """`stop` cancels from the record what a head had submitted whose host went down, running or queued."""
    done = clusters.command("start", *KEEP, "--dask-pools", str(pools_of(tmp_path, "1-2")), "--wait")
    assert done.returncode == 0, done.stderr
    assert slurm.queue()
    clusters.take_host_down()
    assert clusters.command("stop", "--all").returncode == 0
    wait_for(lambda: not slurm.queue(), "the queue is empty")


@pytest.mark.slurm
def test_on_slurm_a_head_that_is_killed_without_a_run_leaves_nothing_in_the_queue(
    slurm: VirtualSlurm, clusters: Clusters, tmp_path: Path
) -> None:
    """What waits would wait on, and then hold a node for a minute: the head's watchdog cancels it."""
    slurm.run("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    try:
        done = clusters.command("start", *KEEP, "--dask-pools", str(pools_of(tmp_path, "1-2")))
        assert done.returncode == 0, done.stderr
        wait_for(lambda: any("PENDING" in line for line in slurm.queue()), "an allocation waits", RUN_S)
        (head,) = clusters.heads()
        os.kill(head, signal.SIGKILL)
        wait_for(lambda: not slurm.queue(), "the queue is empty")
        wait_for(lambda: not clusters.names() and not clusters.processes(), "nothing is left")
    finally:
        slurm.run("scontrol", "update", "PartitionName=cpu", "State=UP")


@pytest.mark.slurm
def test_on_slurm_a_head_that_is_killed_leaves_nothing_in_the_queue(
    slurm: VirtualSlurm, clusters: Clusters, tmp_path: Path
) -> None:
    """In the midst of two runs: both end with that reason, their jobs too, and what waits in the queue is cancelled.

    The next run starts another one. Idle workers end, too, where no run is there to cancel them.
    """
    pools = ("--dask-pools", str(pools_of(tmp_path, "0-2", cores=2)))
    with (
        snakemake(tmp_path / "one", logged_jobs(1, "sleep 600"), *pools, *KEEP) as one,
        snakemake(tmp_path / "other", logged_jobs(1, "sleep 600"), *pools, *KEEP) as other,
    ):
        wait_for(lambda: started(one) and started(other), "the jobs", RUN_S)
        slurm.run("scontrol", "update", "PartitionName=cpu", "State=DOWN")  # what is submitted now waits
        with snakemake(tmp_path / "waits", logged_jobs(1, "true"), *pools, *KEEP) as waits:
            wait_for(lambda: any("PENDING" in line for line in slurm.queue()), "an allocation waits", RUN_S)
            (head,) = clusters.heads()
            os.kill(head, signal.SIGKILL)
            for run in (one, other, waits):
                assert run.wait() != 0
                assert "was lost" in run.output
        wait_for(lambda: not slurm.queue(), "the queue is empty")
        for run in (one, other):
            assert len(started(run)) == 1
            assert not ended(run)
    wait_for(lambda: not clusters.workers(), "the workers are gone")
    slurm.run("scontrol", "update", "PartitionName=cpu", "State=UP")
    with snakemake(tmp_path / "next", logged_jobs(1, "true"), *pools, *KEEP) as run:
        finished(run)
    (head,) = clusters.heads()
    os.kill(head, signal.SIGKILL)
    wait_for(lambda: not slurm.queue(), "the idle allocations have ended, although no run is there")


@pytest.mark.slurm
def test_on_slurm_nothing_is_asked_for_after_the_last_run(
    slurm: VirtualSlurm, clusters: Clusters, tmp_path: Path
) -> None:
    """Idle workers stay for longer than the idle timeout; what waits is called back, and what goes is not replaced."""
    pools = ("--dask-pools", str(pools_of(tmp_path, "1-2")), "--dask-idle-timeout", "2")
    with snakemake(tmp_path / "first", logged_jobs(1, "true"), *pools, *KEEP) as run:
        finished(run)
    (line,) = slurm.queue()
    pause(15)  # many times the idle timeout
    assert [each.split()[0] for each in slurm.queue()] == [line.split()[0]]
    slurm.run("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    with snakemake(tmp_path / "killed", logged_jobs(4, "sleep 600"), *pools) as run:
        wait_for(lambda: started(run), "a job", RUN_S)
        wait_for(lambda: any("PENDING" in each for each in slurm.queue()), "an allocation waits", RUN_S)
        run.process.kill()
        wait_for(lambda: len(slurm.queue()) == 1, "it is called back", RUN_S)
        run.expect_gone(30)
    slurm.run("scontrol", "update", "PartitionName=cpu", "State=UP")
    slurm.run("scancel", line.split()[0])
    wait_for(lambda: "none" in clusters.command("clusters").stdout and not clusters.workers(), "the worker is gone")
    pause(15)
    assert not slurm.queue()  # although the pool has a least number
    with snakemake(tmp_path / "next", logged_jobs(1, "true"), *pools) as run:
        finished(run)
    assert len(clusters.heads()) == 1


def pause(seconds: float) -> None:
    """To see that something does not happen."""
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() > until, f"{seconds} s", seconds + 60)


def test_jobs_that_run_end_by_themselves_after_a_failure(
    clusters: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that has nothing to tell of a run that stops is not taken for lost."""
    # Silence counts for 120 s; here for eight.
    in_each_python(
        tmp_path,
        monkeypatch,
        "import sys\n"
        "if 'snakemake_executor_plugin_dask.driver' in sys.orig_argv:\n"
        "    from snakemake_executor_plugin_dask.driver import relay\n"
        "    relay.SILENT_S = 8.0\n",
    )
    body = """
rule all:
    input: "fails", "lasts"
rule fails:
    output: "fails"
    shell: "while [ ! -e lasting ]; do sleep 0.1; done; false"
rule lasts:
    output: "lasts"
    shell: "touch lasting; sleep 20; touch {output}"
"""
    with snakemake(tmp_path / "run", body, *KEEP, *SMALL) as run:
        assert run.wait() != 0
        assert (tmp_path / "run" / "lasts").exists(), run.output
        assert "was lost" not in run.output
