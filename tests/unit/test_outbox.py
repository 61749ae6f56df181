"""What the driver tells Snakemake at once, what it gathers, and that nothing changes its place or is lost."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

from snakemake_executor_plugin_dask.driver.outbox import Outbox
from snakemake_executor_plugin_dask.interior.snakemake_scheduler import forget_reevaluations, wake_once
from snakemake_executor_plugin_dask.model.jobs import Outcome
from snakemake_executor_plugin_dask.model.messages import Finished, Say, Started, Together

STARTED, SUCCEEDED, FAILED = (
    Started("a"),
    Finished("a", Outcome("a", "succeeded")),
    Finished("b", Outcome("b", "failed")),
)
LINE = Say("info", "a line")


def told(messages: list[Any], *, jobs_wait: bool, then_flush: bool = False) -> list[Any]:
    """What was written of these, sent at one moment."""
    written: list[Any] = []

    async def send() -> None:
        outbox = Outbox(written.append, lambda: jobs_wait)
        for message in messages:
            outbox.send(message)
        if then_flush:
            outbox.flush()

    asyncio.run(send())
    return written


def test_at_once_where_no_job_waits() -> None:
    """A chain's next link needs Snakemake's word, so nothing is held back."""
    assert told([STARTED, SUCCEEDED], jobs_wait=False) == [STARTED, SUCCEEDED]


def test_gathered_while_jobs_wait() -> None:
    """Starts and successes travel together; one alone is not wrapped."""
    assert told([STARTED, SUCCEEDED, STARTED], jobs_wait=True) == []
    gathered = told([STARTED, SUCCEEDED, STARTED], jobs_wait=True, then_flush=True)
    assert gathered == [Together((STARTED, SUCCEEDED, STARTED))]
    assert told([STARTED], jobs_wait=True, then_flush=True) == [STARTED]


def test_all_else_at_once_and_in_order() -> None:
    """A failure must stop a run soon, and comes after what was told before it."""
    assert told([STARTED, FAILED], jobs_wait=True) == [STARTED, FAILED]
    assert told([STARTED, SUCCEEDED, LINE], jobs_wait=True) == [Together((STARTED, SUCCEEDED)), LINE]


def test_gathered_ones_are_told_by_themselves() -> None:
    """Without any further message, too."""

    async def send() -> Any:
        written: asyncio.Queue[Any] = asyncio.Queue()
        outbox = Outbox(written.put_nowait, lambda: True)
        outbox.send(STARTED)
        outbox.send(SUCCEEDED)
        return await asyncio.wait_for(written.get(), 30)

    assert asyncio.run(send()) == Together((STARTED, SUCCEEDED))


def test_snakemakes_scheduler_is_woken_once() -> None:
    """Of many wake-ups one is left, and of none none."""
    for due in (0, 1, 500):
        wakes = threading.Semaphore(due)
        wake_once(SimpleNamespace(_open_jobs=wakes))
        left = 0
        while wakes.acquire(blocking=False):
            left += 1
        assert left == min(1, due)


def test_the_end_of_a_run_waits_for_no_timer() -> None:
    """Snakemake's scheduler leaves one after each selection of jobs, and Python waits for all of them at its end."""
    from snakemake.api import SnakemakeApi  # noqa: F401 - first: its modules import each other
    from snakemake.scheduling.job_scheduler import JobScheduler

    class Scheduler(JobScheduler):  # type: ignore[misc]
        def __init__(self) -> None:
            self._open_jobs = threading.Semaphore(0)

    scheduler, before = Scheduler(), set(threading.enumerate())
    someone_elses = threading.Timer(3600, lambda: None)
    someone_elses.start()
    scheduler._schedule_reevalutation(3600)  # noqa: SLF001 - as its loop does
    (timer,) = set(threading.enumerate()) - before - {someone_elses}
    forget_reevaluations(scheduler)
    timer.join(60)
    try:
        assert not timer.is_alive()
        assert someone_elses.is_alive()
        assert not scheduler._open_jobs.acquire(blocking=False)  # noqa: SLF001
    finally:
        someone_elses.cancel()
