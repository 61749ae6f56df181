"""Waiting jobs are packed by what they share with the first one of their rule, and come back as they were."""

import pytest

from snakemake_executor_plugin_dask.driver.packing import Packing
from snakemake_executor_plugin_dask.model.jobs import JobSpec
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.requests import Request

REQUEST = Request(cores=1)


def job(number: int, rule: str = "align", files: int = 3) -> JobSpec:
    """One of many that are alike."""
    arguments = ("--target-jobs", f"{rule}:i={number}", *(f"data/{number}/{file}.fastq" for file in range(files)))
    return JobSpec(f"{rule}-{number}-1.1", rule, str(number), 1, arguments, 1, f"/logs/{rule}/{number}.log")


def test_jobs_come_back_as_they_were() -> None:
    """Also the first one of a rule, those of other rules, and one that is longer than what is looked back on."""
    packing = Packing()
    jobs = [*map(job, range(5)), job(5, files=5000), *(job(number, "sort") for number in range(3))]
    packed = [packing.packed(QueuedJob.of(each, REQUEST, 2.0, last=True)) for each in jobs]
    assert [packing.spec(each) for each in packed] == jobs
    assert {(each.priority, each.last) for each in packed} == {(2.0, True)}


def test_what_is_alike_takes_little() -> None:
    """A job takes less than a fifth of its size."""
    packing = Packing()
    queued = [QueuedJob.of(job(number, files=20), REQUEST) for number in range(10)]
    assert all(len(packing.packed(each).packed) < len(each.packed) / 5 for each in queued)


@pytest.mark.parametrize("rules", [1000, 1003])
def test_of_many_rules_the_first_jobs_are_known(rules: int) -> None:
    """Those beyond are packed by themselves: what is kept for it is bounded."""
    packing = Packing()
    jobs = [job(1, f"rule{number}") for number in range(rules)]
    packed = [packing.packed(QueuedJob.of(each, REQUEST)) for each in jobs]
    assert [packing.spec(each) for each in packed] == jobs
