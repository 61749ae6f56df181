"""What a run is called, how Snakemake is told that a job started, and what becomes of a run whose driver is lost."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from snakemake_executor_plugin_dask.frontend import session as session_module
from snakemake_executor_plugin_dask.frontend.session import (
    Session,
    new_run_id,
    not_started_text,
    report_submission,
    unfit_directory,
)
from snakemake_executor_plugin_dask.interior.checks import Interior
from snakemake_executor_plugin_dask.model.jobs import Outcome, task_key
from snakemake_executor_plugin_dask.model.messages import Finished


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


@pytest.mark.parametrize("at_the_end", [False, True])
def test_lost_driver_is_told_and_cleared_up_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_the_end: bool
) -> None:
    """Also where it dies while it gives everything back: allocations are cancelled, keys go, and it is said."""
    told: dict[str, list[str]] = {"logged": [], "raised": []}
    cancelled: list[Path] = []
    monkeypatch.setattr(session_module, "cancel_run", lambda path: cancelled.append(path) or ["allocation 7 is left"])
    state_dir = tmp_path / "abc12345"
    state_dir.mkdir()
    (state_dir / "tls-key.pem").write_text("secret")
    (state_dir / "driver.log").write_text("its last words\n")
    session: Any = object.__new__(Session)
    session._state_dir, session._ended = state_dir, at_the_end
    session._link = SimpleNamespace(log_tail=lambda: "its last words")
    session._voice = SimpleNamespace(error=told["logged"].append)
    scheduler = SimpleNamespace(executor_error_callback=lambda error: told["raised"].append(str(error)))
    session._workflow = SimpleNamespace(scheduler=scheduler)
    session._driver_lost("SIGKILL")
    assert cancelled == [state_dir]
    assert [path.name for path in state_dir.iterdir()] == ["driver.log"]
    (text,) = told["logged" if at_the_end else "raised"]
    assert not told["raised" if at_the_end else "logged"]
    assert "was lost (SIGKILL)" in text
    assert "allocation 7 is left" in text
    assert "its last words" in text


@pytest.mark.parametrize("accepted", [True, False])
def test_logs_are_kept_until_the_outputs_are_found(tmp_path: Path, accepted: bool) -> None:
    """A job that ended well may still lack outputs: then Snakemake counts it as failed, and its log is told of."""
    said: list[str] = []
    job = type("Job", (), {"name": "work", "attempt": 1, "restart_times": 0, "is_group": lambda _: True})()
    log = tmp_path / "log"
    log.write_text("its output\n")
    session: Any = object.__new__(Session)
    session._lock, session._succeeded = threading.Lock(), {}
    session._interior = Interior()
    session._options = SimpleNamespace(keep_successful_logs=False)
    session._voice = SimpleNamespace(error=said.append, show=lambda _, text: said.append(text))
    session._handover = SimpleNamespace(is_last=lambda _: False, ended=lambda *_, **__: None)
    session._executor = SimpleNamespace(report_job_success=lambda _: None)
    outcome = Outcome("key", "succeeded", worker="local-0", host="here", log_path=str(log))
    session._report_ended(SubmittedJobInfo(job), Finished("key", outcome, 1))
    assert log.exists()
    (session.job_accepted if accepted else session.job_failed)(job)
    session.job_failed(job)  # of a later attempt, which is told otherwise
    assert log.exists() is not accepted
    assert len(said) == (not accepted)
    assert all(f"Its log: {log}" in text for text in said)


def test_one_job_is_told_in_the_singular() -> None:
    """The sentence about what was not started holds for one job as for several."""
    assert not_started_text(1) == "1 job that waited was not started; its outputs are as they were before."
    assert not_started_text(2) == "2 jobs that waited were not started; their outputs are as they were before."


def test_directories_in_which_no_worker_could_start() -> None:
    """One sentence before anything starts; other hostile names are fine."""
    assert unfit_directory(Path("/a b/$(x)/é'\t,\\")) is None
    assert "holds a line break" in (unfit_directory(Path("/a\nb")) or "")
    assert "not UTF-8" in (unfit_directory(Path("/a\udcff")) or "")
