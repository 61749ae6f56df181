"""This package's part on a worker of a cluster that others brought up. Runs in that worker, by `Client.run`.

Nothing of the worker is changed: each run gets a supervisor process of its own, as a child of the worker, and a link to
it. Processes of other clients on the worker are left alone.
"""

import asyncio
import dataclasses
import os
import tempfile
from collections.abc import Callable, Collection
from typing import Any

from snakemake_executor_plugin_dask.interior import dask_attached
from snakemake_executor_plugin_dask.model.jobs import RunSetup, WorkerFacts
from snakemake_executor_plugin_dask.node import devices, versions
from snakemake_executor_plugin_dask.node.allocation import batch_system, host_name
from snakemake_executor_plugin_dask.node.machine import this_machine
from snakemake_executor_plugin_dask.node.processes import all_pids, is_supervisor, job_key, kill_until_gone, why_cold
from snakemake_executor_plugin_dask.worker import client
from snakemake_executor_plugin_dask.worker.supervising import SupervisorProcess

_STOP_S = 15.0
_watching: set[asyncio.Task[None]] = set()


class AttachedLink(client.SupervisorLink):
    """One run's jobs on a worker that has other descendants too, and may share its host with other workers."""

    async def _kill_jobs(self) -> bool:
        return await asyncio.to_thread(kill_marked, self.keys())


def marked(keys: Collection[str]) -> list[int]:
    """The processes on this machine that carry one of these attempts' keys."""
    return [pid for pid in all_pids() if job_key(pid) in keys]


def seen_here(supervisor: int) -> bool:
    """Whether this is a supervisor's number on this machine, too, and its jobs' keys could be read from here."""
    return is_supervisor(supervisor) and os.access(f"/proc/{supervisor}/environ", os.R_OK)


def kill_marked(keys: Collection[str]) -> bool:
    """SIGKILL every process that carries one of these keys; False where one is left."""
    return kill_until_gone(lambda: marked(keys))


def end_from_outside(supervisor: int, keys: Collection[str]) -> bool:
    """End a supervisor that was `seen_here`, so that it starts nothing more, and these jobs; False where one is left.

    For a worker that is lost, which may be stopped and go on later. Runs in the driver. Some processes carry no key,
    since they were forked and not executed; those do not outlive their supervisor.
    """
    return kill_until_gone(lambda: [*([supervisor] if seen_here(supervisor) else []), *marked(keys)])


async def attach(setup: RunSetup, name: str, dask_worker: Any) -> WorkerFacts:
    """Start the run's supervisor; what the worker has is what it declares. May be repeated."""
    run_id = setup.run_id
    if run_id in client.links and client.links[run_id].ending:
        await client.links[run_id].lost.wait()
    if run_id in client.links and not client.links[run_id].lost.is_set():
        return client.described[run_id]
    if setup.scratch is not None:
        setup = dataclasses.replace(setup, scratch=dask_worker.local_directory)
    topic = client.event_topic(run_id)
    scratch = tempfile.mkdtemp(prefix=f"snakemake-{run_id}-", dir=dask_worker.local_directory)
    supervisor = SupervisorProcess(setup, None, subreaper=False, scratch=scratch)

    def tell(message: dict[str, Any]) -> None:
        dask_worker.log_event(topic, client.as_event(message))

    link = AttachedLink(run_id, name, supervisor, tell)
    await link.open()
    facts = _facts(setup, name, supervisor, dask_worker)
    know(link, facts)
    return facts


def know(link: AttachedLink, facts: WorkerFacts, gone: Callable[[], None] = lambda: None) -> None:
    """From now on the run has jobs here. ``gone`` is called on a thread, once its supervisor is, also by itself."""
    client.links[link.run_id], client.described[link.run_id] = link, facts
    watch = asyncio.create_task(_forget(link, gone))
    _watching.add(watch)
    watch.add_done_callback(_watching.discard)


async def detach(run_id: str) -> bool:
    """End the run's jobs and its supervisor; False where it does not leave."""
    link = client.links.get(run_id)
    if link is None:
        return True
    link.stop()
    try:
        await asyncio.wait_for(link.lost.wait(), _STOP_S)
    except TimeoutError:
        return False
    return True


async def _forget(link: AttachedLink, gone: Callable[[], None]) -> None:
    await link.lost.wait()
    await asyncio.to_thread(link.supervisor.process.wait)
    if client.links.get(link.run_id) is link:
        del client.links[link.run_id]
        client.described.pop(link.run_id, None)
    await asyncio.to_thread(gone)


def _facts(setup: RunSetup, name: str, supervisor: SupervisorProcess, dask_worker: Any) -> WorkerFacts:
    limit, system = dask_attached.memory_bytes(dask_worker), batch_system(os.environ)
    return WorkerFacts(
        name=name,
        host=host_name(os.environ),
        pid=os.getpid(),
        supervisor_pid=supervisor.process.pid,
        cores=dask_attached.threads(dask_worker),
        memory_mb=limit // 10**6 if limit else this_machine().memory_mb,
        devices=_devices(dask_worker),
        cold=why_cold() if setup.job_start == "warm" else "",
        plugin_version=versions.plugin_version(),
        snakemake_version=versions.snakemake_version(),
        batch_system=None if system is None else system.name,
    )


def _devices(dask_worker: Any) -> tuple[str, ...]:
    """The worker's GPUs. One of dask-cuda sees all of them, in an order in which its own comes first."""
    found = devices.take_inventory().devices
    return found[:1] if dask_attached.is_of_dask_cuda(dask_worker) else found
