"""What is left, lost or run twice when a part dies: looked up in the process table and in files."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from running import SnakemakeRun, ended, lasting, logged_jobs, snakemake, started, unless_again, wait_for

#: A grandchild in a session of its own that ignores SIGTERM, beside the job's own long command.
STUBBORN = """(trap '' TERM; setsid bash -c 'trap "" TERM; sleep 300' & sleep 300) & sleep 300"""


def test_worker_killed(tmp_path: Path) -> None:
    """A worker is killed: its jobs' processes are dead, and they run again elsewhere, one attempt at a time."""
    body = unless_again("sleep 300")
    with snakemake(tmp_path, logged_jobs(2, body)) as run:
        wait_for(lambda: lasting(run) == 2, "both jobs started")
        first = set(run.jobs())
        (tmp_path / "again").touch()
        os.kill(run.facts()["pid"], signal.SIGKILL)
        assert run.wait() == 0, run.output
        assert not first & set(run.jobs())
        assert len(started(run)) == 4
        assert len(ended(run)) == 2
        assert said(run) == lost("its connection closed")
        run.expect_gone(10)


def test_supervisor_killed(tmp_path: Path) -> None:
    """The supervisor is killed: the worker ends its jobs' processes and leaves; the jobs run again on another one."""
    with snakemake(tmp_path, logged_jobs(2, unless_again(STUBBORN))) as run:
        wait_for(lambda: lasting(run) == 2, "both jobs started")
        first = set(run.jobs())
        (tmp_path / "again").touch()
        os.kill(run.facts()["supervisor_pid"], signal.SIGKILL)
        assert run.wait() == 0, run.output
        assert len(run.events("job-requeued")) == 2, "once for each job, and not again on the worker that goes"
        assert not first & set(run.jobs())
        assert len(ended(run)) == 2
        reason = "the worker's supervisor process ended (SIGKILL). Its earlier processes are dead."
        assert said(run) == [
            *(f"Job {jobid}, work (i={jobid - 1}), runs again: {reason}" for jobid in (1, 2)),
            "Worker local-0 was lost: its connection closed.",
        ]
        run.expect_gone(10)


def test_worker_and_supervisor_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are killed at once: the driver ends what is left of the jobs itself before they run again.

    Nobody else could clear what they had for temporary files.
    """
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with snakemake(tmp_path, logged_jobs(2, unless_again(STUBBORN))) as run:
        wait_for(lambda: lasting(run) == 2, "both jobs started")
        wait_for(lambda: len(run.jobs()) > 4, "all processes of the jobs")
        first = set(run.jobs())
        (tmp_path / "again").touch()
        facts = run.facts()
        os.kill(facts["supervisor_pid"], signal.SIGSTOP)
        os.kill(facts["pid"], signal.SIGKILL)
        os.kill(facts["supervisor_pid"], signal.SIGKILL)
        assert run.wait() == 0, run.output
        assert not first & set(run.jobs())
        assert len(ended(run)) == 2
        assert said(run) == lost("its connection closed")
        run.expect_gone(10)
        assert not list(temporary.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_all_processes_of_a_worker_ended(tmp_path: Path, number: signal.Signals) -> None:
    """A batch system ends all processes of an allocation, jobs first: they are lost with it, and have not failed."""
    with snakemake(tmp_path, logged_jobs(2, unless_again("sleep 300"))) as run:
        wait_for(lambda: lasting(run) == 2, "both jobs started")
        (tmp_path / "again").touch()
        jobs = run.jobs()
        others = [pid for pid, command in run.processes().items() if pid not in jobs and ".worker" in command]
        for pid in [*sorted(jobs, reverse=True), *sorted(others, reverse=True)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            time.sleep(0.01)
        assert run.wait() == 0, run.output
        assert len(started(run)) == 4
        assert len(ended(run)) == 2
        assert run.output.index("was lost") < run.output.index("runs again"), "the reason stands before what follows"
        assert said(run) == lost("its connection closed")
        assert not list((tmp_path / ".snakemake").glob("dask_logs/*/*")), "logs of runs that were lost"
        run.expect_gone(10)


def test_worker_keeps_dying(tmp_path: Path) -> None:
    """A job that kills its worker each time is named and fails after the limit; its neighbours finish."""
    # The file may still name the last one. Its neighbours last until it does what it does.
    kill = "sleep 1; until kill -9 $(cat worker.pid); do sleep 0.1; done; sleep 300"
    body = f"test {{wildcards.i}} != 0 || {{{{ {kill}; }}}}; sleep 2"
    with snakemake(tmp_path, logged_jobs(4, body), "--keep-going", "--dask-lost-worker-retries", "2") as run:
        while run.process.poll() is None:
            joined = run.events("worker-joined")
            if joined:
                (tmp_path / "worker.pid").write_text(str(joined[-1]["facts"]["pid"]))
            wait_for(_news_of(run, len(joined)), "news", 120)
        assert run.wait() == 1
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.txt", "2.txt", "3.txt"]
        assert "likely cause" in run.output
        run.expect_gone(10)


@pytest.mark.parametrize("victim", ["snakemake", "driver", "both"])
def test_killed_run_leaves_nothing(tmp_path: Path, victim: str) -> None:
    """Snakemake, its driver or both are killed (SIGKILL): no process is left after 10 s; the next run finishes."""
    snakefile = logged_jobs(2, "echo half > {output}; " + unless_again(STUBBORN))
    with snakemake(tmp_path, snakefile) as run:
        wait_for(lambda: lasting(run) == 2, "both jobs started")
        pids = {"snakemake": [run.process.pid], "driver": [run.driver()]}
        for pid in pids.get(victim, pids["snakemake"] + pids["driver"]):
            os.kill(pid, signal.SIGKILL)
        run.expect_gone(10)
        if victim == "driver":
            assert run.wait() == 1
            assert "The driver process of the Dask cluster was lost (SIGKILL)" in run.output
    if victim != "both":  # what is left for the next run is the most there
        return
    (tmp_path / "again").touch()
    with snakemake(tmp_path, snakefile, "--unlock") as run:
        assert run.wait() == 0, run.output
    with snakemake(tmp_path, snakefile, "--rerun-incomplete") as run:
        assert run.wait() == 0, run.output
        assert [(tmp_path / "out" / f"{i}.txt").read_text() for i in range(2)] == ["0\n", "1\n"]
        run.expect_gone(10)


def test_killed_before_snakemake_heard_of_a_start(tmp_path: Path) -> None:
    """A job that started while Snakemake stood still: what it had written when all was killed counts as half."""
    body = "echo half > {output}; test -e again || {{ while ! test -e go; do sleep 0.1; done; rm go; }}"
    snakefile = logged_jobs(2, body)
    with snakemake(tmp_path, snakefile, "--dask-worker-cores", "1") as run:
        wait_for(lambda: len(started(run)) == 1, "the first job started")
        os.kill(run.process.pid, signal.SIGSTOP)
        (tmp_path / "go").touch()
        wait_for(lambda: len(started(run)) == 2, "the second job started")
        wait_for(lambda: len(list((tmp_path / "out").glob("*.txt"))) == 2, "its output is begun")
        assert len(list((tmp_path / ".snakemake" / "incomplete").iterdir())) == 1
        os.kill(run.process.pid, signal.SIGKILL)
        run.expect_gone(10)
    (tmp_path / "again").touch()
    for more in ("--unlock", "--rerun-incomplete"):
        with snakemake(tmp_path, snakefile, more) as run:
            assert run.wait() == 0, run.output
    assert [(tmp_path / "out" / f"{i}.txt").read_text() for i in range(2)] == ["0\n", "1\n"]


UPDATES = """
rule all:
    input: "again.txt", "again", "warm.txt", "cold.txt", "new.txt", "grouped.txt"

rule again:
    output: update("again.txt"), update(directory("again")), update("fresh.txt")
    shell: "for f in again.txt again/file fresh.txt; do echo bar >> $f; done; touch begun; test -e go || sleep 300"

rule warm:
    output: update("warm.txt")
    shell: "echo bar >> {output}; exit 1"

rule cold:
    output: update("cold.txt")
    resources: dask_job_start="cold"
    shell: "echo bar >> {output}; exit 1"

rule new:
    output: update("new.txt")
    shell: "echo half >> {output}; exit 1"

rule grouped:
    group: "pair"
    input: "first.txt"
    output: update("grouped.txt")
    shell: "echo bar >> {output}; exit 1"

rule first:
    group: "pair"
    output: temp("first.txt")
    shell: "touch {output}"
"""


def test_updated_files(tmp_path: Path) -> None:
    """A file that a job updates is as before where the job fails, and updated once where its worker was lost.

    Backups that a run has left which was killed have no part in it.
    """
    names = ["again.txt", "warm.txt", "cold.txt", "grouped.txt"]
    for name in (*names, "again/file"):
        for path, text in ((tmp_path / name, "foo\n"), (tmp_path / ".snakemake/backups" / name, "stale\n")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    with snakemake(tmp_path, UPDATES, "--keep-going", "--forceall") as run:
        wait_for((tmp_path / "begun").exists, "the job that runs again has started")
        wait_for(lambda: len(run.events("job-ended")) == 4, "the others have failed")
        (tmp_path / "go").touch()
        os.kill(run.facts()["pid"], signal.SIGKILL)
        assert run.wait() == 1, run.output
        assert len(run.events("job-requeued")) == 1
    found = {name: (tmp_path / name).read_text() for name in (*names, "again/file")}
    assert found == {**dict.fromkeys(names, "foo\n"), "again.txt": "foo\nbar\n", "again/file": "foo\nbar\n"}
    assert not (tmp_path / "new.txt").exists()
    assert (tmp_path / "fresh.txt").read_text() == "bar\n"


LATIN = r"""
rule all:
    input: "neighbour.txt", "warm.txt", "cold.txt"

rule neighbour:
    output: "neighbour.txt"
    shell: "touch {output}; while ! test -e go; do sleep 0.1; done"

rule fails:
    output: "{start}.txt"
    log: "logs/M\udcfcller.{start}.log"
    resources: dask_job_start=lambda wildcards: wildcards.start
    shell: "echo why > {log}; exit 3"
"""


def test_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    """A job that failed is told of, with what its rule's log says, and costs no worker and no neighbour."""
    with snakemake(tmp_path, LATIN, "--keep-going", "--dask-worker-cores", "3") as run:
        wait_for((tmp_path / "neighbour.txt").exists, "the neighbour has started")
        wait_for(lambda: len(run.events("job-ended")) == 2, "the other jobs have failed")
        (tmp_path / "go").touch()
        assert run.wait() == 1, run.output
    assert not run.events("worker-lost")
    assert {event["start"] for event in run.events("job-started") if event["key"].startswith("fails")} == {
        "warm",
        "cold",
    }
    *failed, succeeded = (event["outcome"] for event in run.events("job-ended"))
    assert [outcome["status"] for outcome in (*failed, succeeded)] == ["failed", "failed", "succeeded"]
    assert [text for outcome in failed for _, text in outcome["rule_logs"]] == ["why", "why"]


UPDATES_OF_GROUPS = """
rule all:
    input: "retried.done", "lost.done"

rule update:
    group: "pair"
    output: update("{name}.txt")
    shell: "echo bar >> {output}"

rule after:
    group: "pair"
    input: "{name}.txt"
    output: touch("{name}.done")
    retries: 1
    resources: tries=lambda wildcards, attempt: attempt
    shell:
        "cp {input} {wildcards.name}.$(date +%s%N).seen; if [ {wildcards.name} = retried ];"
        " then test {resources.tries} = 2; else touch begun; test -e go || sleep 300; fi"
"""


def test_a_group_updates_once(tmp_path: Path) -> None:
    """A member had updated its file when another one failed, or when the worker was lost: the next one begins anew."""
    for name in ("retried", "lost"):
        (tmp_path / f"{name}.txt").write_text("foo\n")
    with snakemake(tmp_path, UPDATES_OF_GROUPS, "--forceall", "--keep-going") as run:
        wait_for((tmp_path / "begun").exists, "the group that runs again has updated its file")
        wait_for(lambda: len(run.events("job-ended")) == 2, "the other has failed, and run again")
        (tmp_path / "go").touch()
        os.kill(run.facts()["pid"], signal.SIGKILL)
        assert run.wait() == 0, run.output
        assert len(run.events("job-requeued")) == 1
    for name in ("retried", "lost"):
        assert [path.read_text() for path in tmp_path.glob(f"{name}.*.seen")] == ["foo\nbar\n"] * 2
        assert (tmp_path / f"{name}.txt").read_text() == "foo\nbar\n"
    assert not [path for path in (tmp_path / ".snakemake/backups").rglob("*") if path.is_file()]


STUBBORN_UPDATES = """
rule all:
    input: expand("{name}.{start}", name=["old", "new"], start=["warm", "cold"])

rule update:
    output: update("{name}.{start}")
    resources: dask_job_start=lambda wildcards: wildcards.start
    shell: "trap '' TERM INT; echo bar >> {output}; touch {output}.begun; while :; do sleep 0.2; done"
"""


def test_an_update_that_is_interrupted(tmp_path: Path) -> None:
    """A job that Ctrl-C has to end by force leaves what it updates as it was before, and no copy of it."""
    for start in ("warm", "cold"):
        (tmp_path / f"old.{start}").write_text("foo\n")
    with snakemake(tmp_path, STUBBORN_UPDATES, "--forceall", "--dask-worker-cores", "4") as run:
        wait_for(lambda: len(list(tmp_path.glob("*.begun"))) == 4, "all jobs have begun")
        assert sorted(event["start"] for event in run.events("job-started")) == ["cold", "cold", "warm", "warm"]
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.wait() != 0
        assert not run.processes()
    for start in ("warm", "cold"):
        assert (tmp_path / f"old.{start}").read_text() == "foo\n"
        assert not (tmp_path / f"new.{start}").exists()
    assert not [path for path in (tmp_path / ".snakemake/backups").rglob("*") if path.is_file()]


def test_an_update_whose_end_is_not_heard(tmp_path: Path) -> None:
    """The driver is killed, and the job with it: Snakemake says where the file is as it was before."""
    (tmp_path / "old.cold").write_text("foo\n")
    with snakemake(tmp_path, STUBBORN_UPDATES, "old.cold", "--forceall") as run:
        wait_for((tmp_path / "old.cold.begun").exists, "the job has begun")
        os.kill(run.driver(), signal.SIGKILL)
        assert run.wait() != 0
        run.expect_gone(10)
    (copy,) = (path for path in (tmp_path / ".snakemake/backups").iterdir() if ".before-" in path.name)
    assert copy.read_text() == "foo\n"
    said = f"old.cold may be half updated, since its job was not seen to end. Its former content is in {copy} until"
    assert said in " ".join(run.output.split())


def test_interrupt(tmp_path: Path) -> None:
    """Ctrl-C once: running jobs are stopped and nothing is left."""
    with snakemake(tmp_path, logged_jobs(3, STUBBORN)) as run:
        wait_for(lambda: len(started(run)) == 2, "two jobs started")
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.wait() != 0
        assert not run.processes()
        assert not list((tmp_path / "out").glob("*")), "a job that was stopped leaves no output"


def test_terminate(tmp_path: Path) -> None:
    """SIGTERM: jobs with a process finish; waiting ones are not started, keep their outputs and get no mark."""
    (tmp_path / "out").mkdir()
    for i in range(6):
        (tmp_path / "out" / f"{i}.txt").write_text("old\n")
    with snakemake(tmp_path, logged_jobs(6, "while ! test -e go; do sleep 0.1; done"), "--forceall") as run:
        wait_for(lambda: len(started(run)) == 2, "two jobs started")
        run.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "Will exit after finishing" in run.output, "Snakemake's word")
        (tmp_path / "go").touch()
        assert run.wait() != 0
        assert len(started(run)) == len(ended(run)) == 2
        old = [path for path in (tmp_path / "out").iterdir() if path.read_text() == "old\n"]
        assert len(old) == 4
        assert "4 jobs that waited were not started" in run.output
        assert not list((tmp_path / ".snakemake" / "incomplete").glob("*"))
        run.expect_gone(10)


def test_error_without_keep_going(tmp_path: Path) -> None:
    """After an error the jobs with a process finish, and waiting ones are not started."""
    others = "while test $(grep -c start log.txt) -lt 2; do sleep 0.1; done"
    body = f"{others}; if test {{wildcards.i}} = 0; then exit 3; fi; while ! test -e go; do sleep 0.1; done"
    more = ("--prioritize", "out/0.txt", "--dask-worker-cores", "2")
    with snakemake(tmp_path, logged_jobs(12, body), *more) as run:
        wait_for(lambda: "Job of work" in run.output, "the failure is told")
        (tmp_path / "go").touch()
        assert run.wait() == 1
        assert "exit code" in run.output
        assert (len(started(run)), len(ended(run))) == (2, 1)
        assert "10 jobs that waited were not started" in run.output
        run.expect_gone(10)


ODD_JOBS = """
rule all:
    input: "stops.txt", expand("other{i}.txt", i=range(3))

rule stops:
    output: "stops.txt"
    priority: 1
    shell: "kill -STOP $PPID; touch {output}"

rule other:
    output: "other{i}.txt"
    shell: "touch {output}"

rule removes:
    output: "removes.txt"
    shell: "until test -e stops.txt; do sleep 0.1; done; rm -r .snakemake/dask_logs; exit 3"
"""


def test_jobs_that_meddle(tmp_path: Path) -> None:
    """One that stops who started its shell ends all the same; one that removes its log fails with a word about it.

    But not the log of the other one, which may be about to open it.
    """
    with snakemake(tmp_path, ODD_JOBS, "--keep-going", "all", "removes.txt") as run:
        assert run.wait() == 1
        assert {path.name for path in tmp_path.glob("*.txt")} == {
            *("output.txt", "stops.txt", "other0.txt", "other1.txt", "other2.txt"),
        }
        assert "was removed while it ran" in run.output
        run.expect_gone(10)


@dataclass(frozen=True)
class StandsStill:
    """A run of which something was stopped by SIGSTOP."""

    run: SnakemakeRun
    jobs: set[int]  # its jobs' processes at that time
    since: float


@pytest.fixture(scope="module")
def stand_still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, StandsStill]]:
    """Runs in which nothing happens for the better part of a minute. They wait at the same time, by test."""
    sleeps, waits = unless_again("sleep 300"), unless_again("while ! test -e go; do sleep 0.1; done")
    bodies = {"snakemake": waits, "worker": sleeps, "worker_and_supervisor": sleeps}
    with contextlib.ExitStack() as stack:
        runs = {
            name: stack.enter_context(snakemake(tmp_path_factory.mktemp(f"test_frozen_{name}"), logged_jobs(2, body)))
            for name, body in bodies.items()
        }
        found = {}
        for name, run in runs.items():
            wait_for(lambda run=run: lasting(run) == 2, "both jobs started")  # type: ignore[misc]
            jobs = _lasting(run) if name == "snakemake" else set(run.jobs())
            (run.directory / "again").touch()
            stopped = {
                "snakemake": [run.process.pid],
                "worker": [run.facts()["pid"]],
                "worker_and_supervisor": [run.facts()["pid"], run.facts()["supervisor_pid"]],
            }
            for pid in stopped[name]:
                os.kill(pid, signal.SIGSTOP)
            found[name] = StandsStill(run, jobs, time.monotonic())
        yield found


@pytest.mark.parametrize("stopped", ["worker", "worker_and_supervisor"])
def test_frozen_worker(stand_still: dict[str, StandsStill], stopped: str) -> None:
    """A worker that is stopped is given up; its jobs are dead before they run again.

    If its supervisor is stopped too, as on a hung node, the driver ends their processes.
    """
    run = stand_still[stopped].run
    assert run.wait() == 0, run.output
    assert not stand_still[stopped].jobs & set(run.jobs())
    assert len(ended(run)) == 2
    assert said(run) == lost("it said nothing for N s")
    run.expect_gone(10)


def test_stopped_snakemake(stand_still: dict[str, StandsStill]) -> None:
    """Ctrl-Z for longer than a lease: the jobs live on, and the run ends well after it goes on."""
    run, jobs = stand_still["snakemake"].run, stand_still["snakemake"].jobs
    wait_for(lambda: time.monotonic() > stand_still["snakemake"].since + 70, "more than a lease of 60 s")
    assert jobs
    assert jobs == _lasting(run)
    os.kill(run.process.pid, signal.SIGCONT)
    (run.directory / "go").touch()
    assert run.wait() == 0, run.output
    assert len(started(run)) == 2


def said(run: SnakemakeRun) -> list[str]:
    """What a user reads of lost workers and their jobs, in alphabetical order, with N for numbers of seconds."""
    lines = [line for line in run.output.splitlines() if " was lost: " in line or ", runs again: " in line]
    return sorted(re.sub(r"\d+ s\b", "N s", line) for line in lines)


def lost(why: str) -> list[str]:
    """The same, as it is to be where one worker with two jobs was lost."""
    again = f"worker local-0 was lost ({why}). Its earlier processes are dead."
    jobs = [f"Job {jobid}, work (i={jobid - 1}), runs again: {again}" for jobid in (1, 2)]
    return [*jobs, f"Worker local-0 was lost: {why}; 2 jobs ran on it."]


def _lasting(run: SnakemakeRun) -> set[int]:
    """The jobs' processes, without the short ones with which they wait."""
    return {pid for pid, command in run.jobs().items() if not command.startswith("sleep")}


def _news_of(run: SnakemakeRun, joined: int) -> Callable[[], bool]:
    return lambda: run.process.poll() is not None or len(run.events("worker-joined")) > joined
