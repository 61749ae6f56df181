"""What a run is called, how Snakemake is told that a job started, and what becomes of a run whose driver is lost."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import snakemake.api  # first: its modules import each other
import snakemake.jobs
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from snakemake_executor_plugin_dask.frontend import driver_process
from snakemake_executor_plugin_dask.frontend.ahead import ready_next
from snakemake_executor_plugin_dask.frontend.driver_process import clean_up_after
from snakemake_executor_plugin_dask.frontend.failures import not_accepted_text, not_started_text
from snakemake_executor_plugin_dask.frontend.launching import new_run_id
from snakemake_executor_plugin_dask.frontend.session import report_submission
from snakemake_executor_plugin_dask.frontend.unchecked import Unchecked
from snakemake_executor_plugin_dask.frontend.verdicts import over, starts_no_more, unfit_directory, verdict
from snakemake_executor_plugin_dask.interior.snakemake_dag import look_up_pipes
from snakemake_executor_plugin_dask.model.jobs import Outcome, Status, task_key
from snakemake_executor_plugin_dask.model.messages import Finished, Later
from snakemake_executor_plugin_dask.model.requests import Request


def test_run_ids_stand_in_the_keys_of_their_jobs() -> None:
    """By its id a run's processes are found, so that each key holds it unchanged."""
    ids = {new_run_id() for _ in range(500)}
    assert len(ids) == 500
    assert all(f"-{run_id}-" in task_key("align", run_id, 1, 1, 1) for run_id in ids)


class Job:
    """Marks its outputs, which fails as often as told."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.marks: list[str] = []

    def register(self, external_jobid: str) -> None:
        if self.failures:
            self.failures -= 1
            raise FileNotFoundError(2, "its own Snakemake took the mark away")
        self.marks.append(external_jobid)


class Executor:
    """Reports as Snakemake's base class does, which says a word where a mark cannot be made."""

    def __init__(self) -> None:
        self.submitted = 0
        self.said: list[str] = []

    def report_job_submission(self, info: Any, register_job: bool) -> None:
        self.submitted += 1
        try:
            if register_job:
                info.job.register(external_jobid=info.external_jobid)
        except OSError as error:
            self.said.append(str(error))


def test_a_mark_that_a_short_job_took_away_is_made_again() -> None:
    """Each job is reported and marked once; only what fails twice is worth a word."""
    executor = Executor()
    quick, short, unwritable = Job(0), Job(1), Job(2)
    for job in (quick, short, unwritable):
        report_submission(executor, SubmittedJobInfo(job, external_jobid="k"))
    assert executor.submitted == 3
    assert [job.marks for job in (quick, short, unwritable)] == [["k"], ["k"], []]
    assert len(executor.said) == 1


def test_a_job_that_is_over_is_not_marked() -> None:
    """Its outputs are complete, and are recorded next: a mark would be made and removed for nothing."""
    executor, job = Executor(), Job(0)
    report_submission(executor, SubmittedJobInfo(job, external_jobid="k"), over=True)
    assert (executor.submitted, job.marks, executor.said) == (1, [], [])


@pytest.mark.parametrize("at_the_end", [False, True])
def test_lost_driver_is_told_and_cleared_up_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_the_end: bool
) -> None:
    """Also where it dies while it gives everything back: allocations are cancelled, keys go, and it is said."""
    cancelled: list[Path] = []
    monkeypatch.setattr(driver_process, "cancel_run", lambda path: cancelled.append(path) or ["allocation 7 is left"])
    state_dir = tmp_path / "abc12345"
    state_dir.mkdir()
    (state_dir / "tls-key.pem").write_text("secret")
    (state_dir / "driver.log").write_text("its last words\n")
    text = clean_up_after("SIGKILL", state_dir, "its last words", leaving=at_the_end, kept="")
    assert cancelled == [state_dir]
    assert [path.name for path in state_dir.iterdir()] == ["driver.log"]
    assert "was lost (SIGKILL)" in text
    assert ("while it gave everything back" in text) is at_the_end
    assert ("the run cannot go on" in text) is not at_the_end
    assert "allocation 7 is left" in text
    assert "its last words" in text


def test_the_loss_of_a_run_that_shares_a_cluster_is_told_as_that(tmp_path: Path) -> None:
    """Its jobs alone end: the cluster, and what it costs, stays."""
    text = clean_up_after("SIGKILL", tmp_path / "gone", "", leaving=False, kept="k3f9")
    assert "the jobs of this run end, and cluster k3f9 stays (`snakemake-dask stop k3f9` ends it)" in text
    assert "workers end" not in text


@pytest.mark.parametrize("parts", [True, False])
def test_logs_of_dask_workers_go_with_their_jobs(tmp_path: Path, parts: bool) -> None:
    """Of each run of the job. Nobody looks for them where there can be none."""
    names = ["1.log", "1.log.dask-1", "1.log.2", "1.log.2.dask-1", "1.log.2.dask-2", "11.log"]
    for name in names:
        (tmp_path / name).touch()
    unchecked = Unchecked(keep_logs=False)
    outcome = Outcome("key", "succeeded", worker="local-0", host="here", log_path=str(tmp_path / "1.log.2"))
    unchecked.add("job", outcome, 2, parts=parts)
    unchecked.accepted("job")
    left = ["11.log"] if parts else ["1.log.2.dask-1", "1.log.2.dask-2", "1.log.dask-1", "11.log"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


@pytest.mark.parametrize("accepted", [True, False])
def test_logs_are_kept_until_the_outputs_are_found(tmp_path: Path, accepted: bool) -> None:
    """A job that ended well may still lack outputs: then Snakemake counts it as failed, and its log is told of."""
    log = tmp_path / "log"
    log.write_text("its output\n")
    unchecked = Unchecked(keep_logs=False)
    outcome = Outcome("key", "succeeded", worker="local-0", host="here", log_path=str(log))
    unchecked.add("job", outcome, 1)
    assert log.exists()
    if accepted:
        unchecked.accepted("job")
    else:
        assert unchecked.refused("job") is outcome
        assert f"Its log: {log}" in not_accepted_text("work", outcome)
        told = not_accepted_text("work", replace(outcome, log_tail="its last words"))
        assert told.endswith("as said above.\nThe last lines of its log:\n    its last words"), "it is there no more"
    assert unchecked.refused("job") is None, "a later attempt is told otherwise"
    assert log.exists() is not accepted


def test_logs_of_lost_runs_go_with_the_last_ones_and_all_can_be_kept(tmp_path: Path) -> None:
    """Each run of a job has its own; what another job wrote stays."""
    logs = [tmp_path / name for name in ("log", "log.2", "log.3", "log.4", "other")]
    for log in logs:
        log.touch()
    outcome = Outcome("key", "succeeded", log_path=str(tmp_path / "log.3"))
    for keeps in (True, False):
        unchecked = Unchecked(keep_logs=keeps)
        unchecked.add("job", outcome, 3)
        unchecked.accepted("job")
        assert [log.exists() for log in logs] == [keeps, keeps, keeps, True, True]


@pytest.mark.parametrize(
    ("status", "circumstances", "expected"),
    [
        ("succeeded", {}, "succeeded"),
        ("succeeded", {"started": False}, "succeeded"),
        ("failed", {}, "failed"),
        ("failed", {"leaving": True}, "failed"),
        ("cancelled", {}, "failed"),
        ("cancelled", {"leaving": True}, "expected"),
        ("lost", {"leaving": True, "started": False}, "expected"),
        ("not-started", {"started": False}, "refused"),
        ("not-started", {"started": False, "failed": True}, "dropped"),
        ("not-started", {"started": False, "leaving": True}, "refused"),
        # An earlier run of it may have touched the outputs.
        ("not-started", {"started": False, "runs": 2}, "failed"),
        ("not-started", {"started": True}, "failed"),
    ],
)
def test_what_a_jobs_end_means(status: Status, circumstances: dict[str, Any], expected: str) -> None:
    """Old outputs stay where nothing was started; an end that was asked for is no failure."""
    known = {"started": True, "failed": False, "leaving": False, "runs": 1} | circumstances
    message = Finished("key", Outcome("key", status), known.pop("runs"))
    assert verdict(message, **known) == expected


def test_when_snakemake_starts_no_more() -> None:
    """After SIGTERM always; after an error without --keep-going."""
    for failed in (False, True):
        for keeps_going in (False, True):
            assert starts_no_more(failed=failed, keeps_going=keeps_going, told_to_stop=True)
            ends = starts_no_more(failed=failed, keeps_going=keeps_going, told_to_stop=False)
            assert ends == (failed and not keeps_going)


def test_a_stopped_run_is_over_once_only_dropped_jobs_are_left() -> None:
    """Not while one has a process, nor while Snakemake waits for another one."""
    assert over(["a", "b"], 0, lambda: {"a"})
    assert not over(["a"], 0, lambda: {"a", "local rule"})
    assert not over(["a"], 1, lambda: {"a"})
    assert not over([], 0, set)


class Dependencies:
    """A graph of jobs by name; some are members of groups, and some have run or need not run."""

    def __init__(self, groups: Mapping[str, str], done: str, **waits_for: Collection[str]) -> None:
        self.groups, self.done, self.waits_for = groups, done, waits_for

    def parts(self, whole: str) -> Iterable[str]:
        return [name for name, group in self.groups.items() if group == whole] or [whole]

    def whole(self, single: str) -> str:
        return self.groups.get(single, single)

    def dependents(self, single: str) -> Iterable[str]:
        return [name for name, others in self.waits_for.items() if single in others]

    def awaited(self, single: str) -> Iterable[str]:
        return [other for other in self.waits_for.get(single, "") if other not in self.done]


def test_jobs_that_become_ready_next() -> None:
    """Once each, with all that they wait for; not where some of it was not handed over, or nothing is known of them."""
    keys = {"a": "key-a", "b": "key-b", "earlier": "key-e"}
    known = {name: Request(number) for number, name in enumerate("cdefg", 1)}
    graph = Dependencies({}, "z", c="abz", d="a", e="ax", h="a")
    assert ready_next(["b", "a"], graph, keys, known) == (
        Later(known["c"], ("key-a", "key-b")),
        Later(known["d"], ("key-a",)),
    )


def test_a_group_becomes_ready_as_one() -> None:
    """Its members wait for each other within it; a group that was handed over has one key."""
    graph = Dependencies({"f": "F", "g": "F", "i": "I", "j": "I"}, "", f="a", g="f", c="j")
    known = {"f": Request(2), "c": Request(1)}
    assert ready_next(["a"], graph, {"a": "key-a"}, known) == (Later(Request(2), ("key-a",)),)
    assert ready_next(["I"], graph, {"I": "key-i"}, known) == (Later(Request(1), ("key-i",)),)


def test_one_that_waits_for_thousands_is_not_looked_ahead_to() -> None:
    """Nobody goes through a hundred thousand inputs again and again: 5,000 are the most."""
    keys = {str(number): f"key-{number}" for number in range(5_001)}
    known = {"few": Request(1), "many": Request(2)}
    graph = Dependencies({}, "", few=list(keys)[:5_000], many=list(keys))
    (found,) = ready_next(["0"], graph, keys, known)
    assert found.request == known["few"]
    assert len(found.after) == 5_000


def test_one_job_is_told_in_the_singular() -> None:
    """The sentence about what was not started holds for one job as for several."""
    assert not_started_text(1) == "1 job that waited was not started; its outputs are as they were before."
    assert not_started_text(2) == "2 jobs that waited were not started; their outputs are as they were before."


def test_directories_in_which_no_worker_could_start() -> None:
    """One sentence before anything starts; other hostile names are fine."""
    assert unfit_directory(Path("/a b/$(x)/é'\t,\\")) is None
    assert "holds a line break" in (unfit_directory(Path("/a\nb")) or "")
    assert "not UTF-8" in (unfit_directory(Path("/a\udcff")) or "")


class Single:
    """A job as far as Snakemake looks for pipes among its inputs."""

    is_pipe_or_service_input = snakemake.jobs.Job.is_pipe_or_service_input

    def __init__(self, dag: Any, *pipes: str) -> None:
        self.dag = dag
        self.pipe_or_service_output = set(pipes)


def test_pipes_among_inputs_are_looked_up_once() -> None:
    """With the answers that Snakemake gives by going through all jobs for each input."""
    awaited: dict[Single, dict[Single, set[str]]] = {}
    dag = SimpleNamespace(dependencies=awaited, job_dependencies=lambda job: awaited[job])
    job, pipe, plain = Single(dag), Single(dag, "fifo"), Single(dag)
    awaited[job] = {plain: {"a", "b"}, pipe: {"fifo", "c"}}
    files = ("a", "b", "c", "fifo", "source")
    before = [job.is_pipe_or_service_input(file) for file in files]
    assert before == [False, False, False, True, False]
    look_up_pipes(dag, job)
    awaited.clear()
    assert [job.is_pipe_or_service_input(file) for file in files] == before
