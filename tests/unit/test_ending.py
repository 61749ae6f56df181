"""Whose a process is that has lost its parent."""

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from snakemake_executor_plugin_dask.jobs import JobSpec
from snakemake_executor_plugin_dask.worker.attempt import Attempt
from snakemake_executor_plugin_dask.worker.ending import Endings
from snakemake_executor_plugin_dask.worker.environment import JOB
from snakemake_executor_plugin_dask.worker.processes import job_key
from snakemake_executor_plugin_dask.worker.usage import Monitor, ProcFiles

Start = Callable[[str | None], int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a child in a session of its own, with an attempt's key in its environment or without; its number."""
    with ExitStack() as ends:

        def start(key: str | None) -> int:
            environment = {} if key is None else {JOB: key}
            child = subprocess.Popen(["/bin/sleep", "100"], env=environment, start_new_session=True)
            ends.callback(child.wait)
            ends.callback(child.kill)
            while job_key(child.pid) != key:  # until its program is executed
                time.sleep(0.01)
            return child.pid

        yield start


def test_what_a_dead_warm_process_left_is_found(start: Start) -> None:
    """A job's process of which it could not tell any more carries that job's key; another job's is left alone."""

    async def look() -> None:
        endings = Endings(Monitor(ProcFiles(), os.getpid()))
        loop = asyncio.get_running_loop()
        for key in ("untold", "other"):
            spec = JobSpec(key, "rule", "1", 1, (), 1, "/log")
            endings.attempts[key] = Attempt(spec, loop.create_future(), loop.create_future())
        endings.attempts["other"].start_ticks = 1
        others, untold, bare = start("other"), start("untold"), start(None)
        found = endings.left_by_warm({"untold"})
        assert {untold, bare} <= set(found), "the one without a key may be a fork that has executed nothing yet"
        assert others not in found

    asyncio.run(look())
