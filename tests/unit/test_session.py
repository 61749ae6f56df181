"""What a run is called, and how Snakemake is told that a job started."""

from typing import Any

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from snakemake_executor_plugin_dask.observe.dashboard import task_key
from snakemake_executor_plugin_dask.session import new_run_id, report_submission


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
