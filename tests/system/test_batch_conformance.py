"""The same promises for every batch system: real ones where Debian has them, and stand-ins for the others."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clusters import standins
from clusters.daemons import comm
from clusters.htcondor import HTCondor
from clusters.oar import Oar
from clusters.slurm import VirtualSlurm
from running import logged_jobs, processes_of, snakemake, started, wait_for

from snakemake_executor_plugin_dask.backends.base import Link
from snakemake_executor_plugin_dask.backends.jobqueue import JobqueueBackend
from snakemake_executor_plugin_dask.batch.allocations import Record, cancel_run
from snakemake_executor_plugin_dask.batch.meanings import meaning
from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.pools import Pool

pytestmark = pytest.mark.timeout(600)

OPTIONS: dict[str, dict[str, Any]] = {"htcondor": {"disk": "100 MB"}, "slurm": {"queue": "cpu"}}
REAL = {"slurm": "slurm_cluster", "sge": "grid_engine", "oar": "oar", "htcondor": "htcondor"}  # fixtures


@dataclass(frozen=True)
class BatchSystem:
    name: str
    left: Callable[[], list[Any]]  # what waits or runs


def _mark(name: str, *more: pytest.MarkDecorator) -> Any:
    marks = {"slurm": "slurm", "sge": "gridengine", "oar": "oar", "htcondor": "htcondor"}
    of_system = [getattr(pytest.mark, marks[name])] if name in marks else []
    return pytest.param(name, marks=[*of_system, *more])


@pytest.fixture(scope="module", params=[_mark(name) for name in SYSTEMS])
def batch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchSystem]:
    """One batch system after the other, with its commands on PATH."""
    name: str = request.param
    with pytest.MonkeyPatch.context() as patch:
        if name in REAL:
            cluster = request.getfixturevalue(REAL[name])
            for variable, value in cluster.variables.items():
                patch.setenv(variable, value)
            yield BatchSystem(name, cluster.queue)
        else:
            directory = tmp_path_factory.mktemp(name)
            patch.setenv("PATH", f"{standins.install(directory, name)}:{os.environ['PATH']}")
            yield BatchSystem(name, lambda: standins.left(directory))


def pool(name: str, **options: Any) -> Pool:
    more = OPTIONS.get(name, {}) | options
    return Pool("main", name, 0, 2, cores=1, memory_mb=500, walltime_s=600.0, options=more)


def link(state: Path, program: str) -> Link:
    """A link whose worker is a shell program: the batch system is what is tested."""
    state.mkdir(exist_ok=True)
    worker = state / "worker.sh"
    worker.write_text(f"#!/bin/bash\n{program}\n")
    worker.chmod(0o755)
    return Link("ab12cd34", "tls://x:1", ("x", 2), ("a", "b", "c"), os.fspath(state), "setup", python=os.fspath(worker))


async def until(process: Any, kind: str, timeout_s: float = 90) -> Any:
    deadline = time.monotonic() + timeout_s
    while (state := await process.state()).kind != kind:
        assert time.monotonic() < deadline, f"still {state}"
        assert state.kind != "gone", state
        await asyncio.sleep(0.5)
    return state


# The queue is asked more often than on a site, which has others to serve.
Backend = partial(JobqueueBackend, look_every_s=1.0)


def test_submitted_running_and_cancelled(batch: BatchSystem, tmp_path: Path) -> None:
    """The script is truly started, the queue says so, and `kill` returns once it is gone; the record is empty then."""

    async def check() -> None:
        process = Backend(batch.name).worker(
            pool(batch.name), "main-0", link(tmp_path, f'echo "$@" > {tmp_path}/started; exec sleep 600')
        )
        await process.start()
        assert process.failure is None, process.failure
        assert process.allocation_id
        await until(process, "running")
        await asyncio.to_thread(wait_for, (tmp_path / "started").exists, "the script's start")
        assert [entry.id for entry in Record(tmp_path).entries()] == [process.allocation_id]
        assert await process.kill()
        assert (await process.state()).kind == "gone"

    asyncio.run(check())
    words = (tmp_path / "started").read_text()
    assert words == f"-P -m snakemake_executor_plugin_dask.worker --config {tmp_path}/workers/main-0.json\n"
    assert not batch.left()
    assert Record(tmp_path).entries() == []


def test_end_by_itself_shows_the_last_output(batch: BatchSystem, tmp_path: Path) -> None:
    """An allocation that fails on its own is gone, with the end of what it printed; cancelling it does no harm."""

    async def check() -> None:
        process = Backend(batch.name).worker(
            pool(batch.name), "main-0", link(tmp_path, "echo the reason is this >&2; exit 3")
        )
        await process.start()
        state = await until(process, "gone")
        assert "the reason is this" in state.log_tail
        assert await process.kill()

    asyncio.run(check())


@pytest.mark.slurm
def test_allocation_that_would_never_start(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """What no node has is queued by Slurm 22.05 and refused by newer ones; both are told with what to change."""

    async def check() -> None:
        large = replace(pool("slurm"), cores=64)
        process = Backend("slurm", stuck_s=1.0).worker(large, "main-0", link(tmp_path, "true"))
        await process.start()
        state = await until(process, "gone")
        queued = "it would never start: PartitionConfig"
        refused = "Requested node configuration is not available"
        assert re.search(f"({queued}|{refused}); ask for what a node of that queue has", state.reason), state.reason
        assert process.outlook == "final"

    asyncio.run(check())


@pytest.mark.oar
def test_node_and_server_that_do_not_answer(oar: Oar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OAR submits what it could not start on its node once more by itself: that one is followed, and cancelled.

    What is submitted while its server is away is queued, though the submit command says that it failed.
    """
    monkeypatch.setenv("PATH", oar.variables["PATH"])

    async def check() -> None:
        lost = Backend("oar").worker(pool("oar"), "main-0", link(tmp_path / "lost", "exec sleep 600"))
        await lost.start()
        first, state = lost.allocation_id, await lost.state()
        deadline = time.monotonic() + 90
        while lost.allocation_id == first or "matching resources" not in state.reason:
            state = await lost.state()
            assert state.kind != "gone", state
            assert time.monotonic() < deadline, state
            await asyncio.sleep(0.5)
        assert [entry.id for entry in Record(tmp_path / "lost").entries()] == [lost.allocation_id]
        assert "are down or taken out" in meaning(state.reason)
        assert await lost.kill()
        assert not oar.queue()
        await asyncio.to_thread(oar.mend_node)
        await asyncio.to_thread(oar.end_server)
        late = Backend("oar").worker(pool("oar"), "main-0", link(tmp_path / "late", "exec sleep 600"))
        await late.start()
        assert late.failure is None, late.failure
        await asyncio.to_thread(oar.start_server)
        await until(late, "running")
        assert await late.kill()

    oar.lose_node()
    try:
        asyncio.run(check())
    finally:
        oar.mend_node()
    assert not oar.queue()


@pytest.mark.htcondor
def test_what_fits_in_no_slot(htcondor: HTCondor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTCondor lets it wait: what it waits for is said, and it can be cancelled."""
    for variable, value in htcondor.variables.items():
        monkeypatch.setenv(variable, value)

    async def check() -> None:
        large = Backend("htcondor").worker(replace(pool("htcondor"), cores=64), "main-0", link(tmp_path, "true"))
        await large
        deadline = time.monotonic() + 90
        while (state := await large.state()).reason != "no match found":
            assert time.monotonic() < deadline, state
            await asyncio.sleep(0.5)
        assert state.kind == "queued"
        assert "condor_q -better-analyze" in meaning(state.reason)
        assert await large.kill()

    asyncio.run(check())
    assert not htcondor.queue()


@pytest.mark.parametrize("name", standins.COMMANDS)
def test_queue_that_is_full_or_silent(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is told from what does not answer, and neither is taken for gone; what waits can be cancelled.

    Only stand-ins can be told to be silent; the real Slurm's full queue is tested with whole runs.
    """
    switches = tmp_path / "cluster"
    monkeypatch.setenv("PATH", f"{standins.install(switches, name)}:{os.environ['PATH']}")
    (switches / "hold").touch()

    async def check() -> None:
        process = Backend(name).worker(pool(name), "main-0", link(tmp_path / "state", "exec sleep 600"))
        await process.start()
        await until(process, "queued")
        (switches / "down").touch()
        assert "cannot connect" in (await until(process, "unknown")).reason
        (switches / "down").unlink()
        await until(process, "queued")
        assert await process.kill()

    asyncio.run(check())
    assert not standins.left(switches)


def test_prologue_runs_and_what_it_changed_is_known(batch: BatchSystem, tmp_path: Path) -> None:
    """The prologue's variables reach the worker, with the environment from before it."""
    said = tmp_path / "said"
    program = f'echo $SNAKEMAKE_DASK_BEFORE_PROLOGUE | base64 -d > {tmp_path}/before; echo "$FROM_PROLOGUE" > {said}'

    async def check() -> None:
        options = {"job_script_prologue": ["export FROM_PROLOGUE=yes"]}
        process = Backend(batch.name).worker(pool(batch.name, **options), "main-0", link(tmp_path, program))
        await process.start()
        await asyncio.to_thread(wait_for, lambda: said.exists() and said.read_text(), "the worker's words")
        assert await process.kill()

    asyncio.run(check())
    assert said.read_text() == "yes\n"
    before = (tmp_path / "before").read_bytes().split(b"\0")
    assert any(entry.startswith(b"PATH=") for entry in before)
    assert not any(entry.startswith(b"FROM_PROLOGUE=") for entry in before)


def test_refused_submission_keeps_the_words(batch: BatchSystem, tmp_path: Path) -> None:
    """A queue that does not exist: the command, its exit code and what it said."""
    wrong: dict[str, Any] = {"queue": "nope"}
    if batch.name == "htcondor":
        wrong = {"job_extra_directives": {"accounting_group": "nope"}}

    async def check() -> None:
        process = Backend(batch.name).worker(pool(batch.name, **wrong), "main-0", link(tmp_path, "true"))
        await process.start()
        assert process.failure is not None
        assert "failed with exit code" in process.failure
        assert re.search("nope|partition|Unknown queue", process.failure)
        assert (await process.state()).kind == "gone"

    asyncio.run(check())
    assert Record(tmp_path).entries() == []


def test_what_would_be_refused_is_told_before(batch: BatchSystem) -> None:
    """A pool that is well passes; where the submit command can be asked without submitting, it is."""
    backend = Backend(batch.name)
    backend.check(pool(batch.name))
    wrong = {"slurm": ["--constraint=fast"], "sge": ["-P nope"], "htcondor": {"requirements": "((("}}
    if batch.name in wrong:
        with pytest.raises(ConfigurationError, match="refuses its batch script"):
            backend.check(pool(batch.name, job_extra_directives=wrong[batch.name]))
    assert not batch.left()


def test_leftovers_are_cancelled_from_the_record(batch: BatchSystem, tmp_path: Path) -> None:
    """What a dead run submitted is cancelled by what it recorded."""

    async def submit() -> None:
        process = Backend(batch.name).worker(pool(batch.name), "main-0", link(tmp_path, "exec sleep 600"))
        await process.start()
        assert process.failure is None, process.failure
        await until(process, "running")

    asyncio.run(submit())
    assert batch.left()
    assert cancel_run(tmp_path) == []
    assert not batch.left()
    assert cancel_run(tmp_path) == []


def arguments(batch: BatchSystem) -> list[str]:
    options = OPTIONS.get(batch.name, {})
    words = ["--dask-cluster", batch.name, "--dask-workers", "0-1", "--dask-worker-cores", "1"]
    words += ["--dask-worker-memory", "500 MB", "--dask-walltime", "10m"]
    if options:
        words += ["--dask-options", "{" + ", ".join(f"{key}: {value}" for key, value in options.items()) + "}"]
    return words


@pytest.mark.parametrize("batch", [_mark("sge", pytest.mark.variant), _mark("oar"), _mark("htcondor")], indirect=True)
def test_lost_worker_and_killed_run(batch: BatchSystem, tmp_path: Path) -> None:
    """A worker that dies is replaced, and its job runs again; a run that is then killed leaves nothing.

    Slurm is tested closer, with whole runs of its own.
    """
    with snakemake(tmp_path, logged_jobs(1, "exec sleep 600"), *arguments(batch)) as run:
        wait_for(lambda: started(run), "the job's start")
        os.kill(run.facts()["pid"], signal.SIGKILL)
        wait_for(lambda: len(started(run)) == 2, "the job's second start")
        os.kill(run.process.pid, signal.SIGKILL)
        run.expect_gone(60)
        wait_for(lambda: not batch.left(), "an empty queue", 60)
        assert not processes_of(f"{tmp_path}/.snakemake")


@pytest.mark.htcondor
@pytest.mark.long
@pytest.mark.parametrize("batch", [_mark("htcondor")], indirect=True)
def test_lost_starter_of_htcondor(batch: BatchSystem, tmp_path: Path) -> None:
    """HTCondor's process for a job on its node dies: the job runs again, and the allocation leaves the queue.

    HTCondor by itself would say for forty minutes that it runs, and `condor_rm` would not help.
    """
    with snakemake(tmp_path, logged_jobs(1, "exec sleep 600"), *arguments(batch)) as run:
        wait_for(lambda: started(run), "the job's start")
        first = run.jobs()
        assert first
        os.kill(_above(run.facts()["pid"], "condor_starter"), signal.SIGKILL)
        wait_for(lambda: len(started(run)) == 2, "the job's second start", 240)
        assert not first.keys() & run.jobs().keys()
        wait_for(lambda: len(batch.left()) == 1, "the queue without the lost allocation", 240)
        os.kill(run.process.pid, signal.SIGKILL)
        run.expect_gone(60)
        wait_for(lambda: not batch.left(), "an empty queue", 60)


def _above(pid: int, name: str) -> int:
    """The nearest process of this name above another."""
    while comm(pid) != name:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


#: A real one, and the one whose submissions look least like the others'. Slurm has runs enough elsewhere.
WHOLE_RUNS = ("sge", "htcondor")


@pytest.mark.parametrize(
    "batch",
    [_mark(name, *(() if name in WHOLE_RUNS else (pytest.mark.variant,))) for name in SYSTEMS],
    indirect=True,
)
def test_run_of_snakemake(batch: BatchSystem, tmp_path: Path) -> None:
    """A whole run on one of the batch system's workers; afterwards nothing waits or runs."""
    with snakemake(tmp_path, logged_jobs(3, "true"), *arguments(batch)) as run:
        assert run.wait() == 0, run.output
        assert not batch.left()
        run.expect_gone(30)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"Snakefile", "output.txt", "log.txt", "out", ".snakemake"}
