"""The runs that a worker of a cluster that stays has jobs of. Runs in the worker, by `Client.run`.

Each run gets a supervisor of its own, with a lease of its own, and leaves nothing behind. The worker is a subreaper:
what a supervisor that died had started becomes its child.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from snakemake_executor_plugin_dask.model.job_messages import Setup
from snakemake_executor_plugin_dask.model.jobs import Beginning, RunSetup, WorkerFacts
from snakemake_executor_plugin_dask.node import versions
from snakemake_executor_plugin_dask.node.processes import kill_descendants, process_table
from snakemake_executor_plugin_dask.worker import client, companions
from snakemake_executor_plugin_dask.worker.attach import AttachedLink, detach, know
from snakemake_executor_plugin_dask.worker.supervising import SupervisorProcess, write_lease

_Run = TypeVar("_Run", bound=Beginning)


@dataclass
class Serving:
    """What this worker tells each supervisor."""

    name: str
    config: dict[str, Any]  # the worker's
    directory: Path  # for the leases' configurations
    scratch: str  # what lies below it goes with the worker
    facts: WorkerFacts
    worker: Any  # Dask's


class Link(AttachedLink):
    """One run's jobs on a worker that other runs have supervisors on."""

    async def _kill_jobs(self) -> bool:
        """Also what carries no key: it has become this process's child, which only supervisors are besides."""
        return await super()._kill_jobs() and await asyncio.to_thread(_kill_orphans)


def _kill_orphans() -> bool:
    with companions.forking:  # one that is just being started is not known yet
        known = {each.pid for each in _supervisors} | companions.pids()
        gone = kill_descendants(os.getpid(), spared=lambda: known)
    for stat in process_table().values():
        if stat.ppid == os.getpid() and stat.dead and stat.pid not in known:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(stat.pid, os.WNOHANG)
    return gone


_supervisors: "list[subprocess.Popen[bytes]]" = []
serving: Serving | None = None
_beginning: dict[str, asyncio.Task[WorkerFacts]] = {}
_ahead: dict[str, Beginning] = {}  # of runs that are about to come, with what their supervisors began


async def begin_ahead(run_id: str, beginning: Beginning) -> None:
    """Have a supervisor for a run that is about to come: `begin` follows, or `end`."""
    if _link(run_id) is None and run_id not in _beginning:
        beginning = _ahead[run_id] = _here(beginning)
        await _once(run_id, _begin(run_id, beginning))


async def begin(setup: RunSetup) -> WorkerFacts:
    """Have a supervisor for the run. May be repeated; one that has ended, or is about to, is replaced."""
    run_id = setup.run_id
    while True:
        if run_id in _beginning:
            await asyncio.wait({_beginning[run_id]})
        elif (link := _link(run_id)) is not None and link.ending:
            await link.lost.wait()
        else:
            break
    if link is not None and run_id not in _ahead:
        return client.described[run_id]
    return await _once(run_id, _take_over(_here(setup)))


async def _take_over(setup: RunSetup) -> WorkerFacts:
    """Go on with a supervisor that was begun ahead, if it began as the run does now; else have one."""
    run_id, link = setup.run_id, _link(setup.run_id)
    ahead = _ahead.pop(run_id, None)
    if link is None:
        return await _begin(run_id, setup)
    if ahead == Beginning.of(setup):
        link.send(Setup(setup))
        return client.described[run_id]
    await detach(run_id)
    return await _begin(run_id, setup)


def _link(run_id: str) -> client.SupervisorLink | None:
    """To the run's supervisor, while that lives."""
    link = client.links.get(run_id)
    return None if link is None or link.lost.is_set() else link


def _here(run: _Run) -> _Run:
    """As it is on this worker."""
    assert serving is not None
    # The pool names another one than Snakemake's.
    return replace(run, python=sys.executable) if serving.config.get("own_python") else run


async def _once(run_id: str, coroutine: Coroutine[Any, Any, WorkerFacts]) -> WorkerFacts:
    """Whoever waits for it may be cancelled."""
    starting = _beginning[run_id] = asyncio.ensure_future(coroutine)
    starting.add_done_callback(lambda _: _beginning.pop(run_id, None))
    return await asyncio.shield(starting)


async def _begin(run_id: str, run: Beginning) -> WorkerFacts:
    assert serving is not None
    here = serving
    # A supervisor is started from the files that lie there now, and speaks with this process. To read them all may take
    # a file server as long as the supervisor takes to start.
    looking = asyncio.ensure_future(asyncio.to_thread(_reinstalled, here.config["code"]))
    # Of its own: one that has just ended removes its own.
    lease = Path(tempfile.mkdtemp(prefix=f"{run_id}-", dir=here.directory), f"lease-{here.name}.json")
    write_lease(lease, here.config, here.name, run_id)
    scratch = tempfile.mkdtemp(prefix=f"{run_id}-", dir=here.scratch)
    # On this machine nothing of the run that brought the worker up is left in what jobs get; elsewhere the batch system
    # has set what belongs to the node.
    environment = run.environment if here.config.get("host") else None
    if environment is None and (inherited := here.config.get("inherited")):  # a launcher has handed it on
        environment = {name: value for name, value in os.environ.items() if inherited.get(name) != value}
    supervisor = await asyncio.to_thread(_start, run, os.fspath(lease), environment, scratch)
    if reinstalled := await looking:
        await asyncio.to_thread(supervisor.end)
        _clear(lease)
        raise RuntimeError(reinstalled)

    def tell(message: dict[str, Any]) -> None:
        here.worker.log_event(client.EVERY_RUN, {**client.as_event(message), "run": run_id})

    link = Link(run_id, here.name, supervisor, tell)
    await link.open()
    facts = replace(here.facts, supervisor_pid=supervisor.process.pid)
    know(link, facts, lambda: _clear(lease))
    return facts


def _reinstalled(code: str) -> str:
    """Why no supervisor can be started; empty where one can."""
    try:
        return "" if versions.installed_code() == code else versions.REINSTALLED
    except OSError as error:
        return f"the plugin's files cannot be read ({error.strerror or error})"


def _start(run: Beginning, lease: str, environment: dict[str, str] | None, scratch: str) -> SupervisorProcess:
    with companions.forking:
        supervisor = SupervisorProcess(run, lease, environment, scratch=scratch)
        # One that has ended stays known for as long as it is a zombie.
        _supervisors[:] = [*(each for each in _supervisors if each.returncode is None), supervisor.process]
    return supervisor


async def end(run_id: str) -> bool:
    """End the run's jobs and its supervisor; False where it does not leave."""
    _ahead.pop(run_id, None)
    if run_id in _beginning:
        await asyncio.wait({_beginning[run_id]})
    return await detach(run_id)


def _clear(lease: Path) -> None:
    lease.unlink(missing_ok=True)
    try:
        lease.parent.rmdir()  # the last worker of the run here
    except OSError:
        pass


def clear(directory: Path) -> None:
    """What a worker that ends leaves of runs that it still served."""
    assert serving is not None
    for lease in directory.glob(f"*/lease-{serving.name}.json"):
        _clear(lease)
    shutil.rmtree(serving.scratch, ignore_errors=True)
