"""What a batch system's words about allocations mean."""

import pytest

from snakemake_executor_plugin_dask.batch.meanings import ending, meaning
from snakemake_executor_plugin_dask.observe import status
from snakemake_executor_plugin_dask.observe.picture import PoolState, WaitingState
from snakemake_executor_plugin_dask.observe.status import waiting_line


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("PartitionDown", "another"),
        ("(ReqNodeNotAvail, UnavailableNodes:c[1-3])", "walltime"),
        ("AssocGrpCPUMinutesLimit", "account"),
        ("QOSMaxJobsPerUserLimit", "QOS"),
        ("MaxGRESRunMinsPerAccount", "QOS"),
        ("MaxPoweredUpNodes", "switched on"),
        ("Priority", "come first"),
        ("Resources", "nodes to become free"),
    ],
)
def test_reasons_of_slurm_are_explained(reason: str, word: str) -> None:
    """What is common on clusters comes with what it means."""
    assert word in meaning(reason)


def test_other_reasons_stand_alone() -> None:
    """A sentence of another batch system is left as it is."""
    assert meaning("Not Running: Insufficient amount of resource: ncpus") == ""
    assert meaning("") == ""


def test_waiting_line_explains_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once jobs wait for a worker of a queue that is down, the line says what to do."""
    pool = PoolState("large", queued=1, queued_since=0.0, queue_reason="PartitionDown")
    monkeypatch.setattr(status, "clock", lambda _: "14:02")
    line = waiting_line(WaitingState("large", 1, "a worker", "", ("train",)), pool)
    assert line == (
        "1 job (train) waits for a worker in pool large: 1 allocation is queued since 14:02, reason PartitionDown "
        "(this queue starts nothing now: wait until it is up, or give the pool another)."
    )


def test_waiting_line_tells_the_expected_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Slurm expects it, of the first allocation of the pool."""
    pool = PoolState("p", queued=2, queued_since=0.0, queue_reason="Priority", expected=99.0)
    monkeypatch.setattr(status, "clock", lambda when: f"{when:.0f}")
    line = waiting_line(WaitingState("p", 1, "a worker", "", ("train",)), pool)
    assert "2 allocations are queued since 0, reason Priority, the first is expected to start at 99 (others" in line


def test_the_end_of_an_allocation_is_found_in_its_output() -> None:
    """The batch system's own line is taken, and nothing of the worker's."""
    cancelled = "slurmstepd: error: *** JOB 7 ON c1 CANCELLED AT 2026-01-01T10:00:00 ***"
    assert ending(f"distributed.worker - INFO\n{cancelled}\nsupervisor: the worker is gone\n") == cancelled
    assert ending("Traceback\nValueError: cancelled by me") == ""
