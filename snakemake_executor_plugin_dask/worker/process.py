"""The worker process: one Dask worker on one node, the same for every backend.

Exit codes: 0, given back; 1, no scheduler within the death timeout; 2, the supervisor died.
"""

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.model.either import either
from snakemake_executor_plugin_dask.model.jobs import WorkerFacts
from snakemake_executor_plugin_dask.node import allocation, processes, rank, versions
from snakemake_executor_plugin_dask.node.devices import Inventory, complaint, near_cores, take_inventory
from snakemake_executor_plugin_dask.node.own_log import bound_log
from snakemake_executor_plugin_dask.node.private import read_private
from snakemake_executor_plugin_dask.worker import client, companions, runs
from snakemake_executor_plugin_dask.worker.first import Begun


def main(begun: Begun) -> int:
    """Be a worker until it is given back or has nobody to work for. Returns the exit code."""
    try:
        return asyncio.run(_serve(begun))
    finally:
        companions.end_all()
        if begun.lease_path is not None:
            Path(begun.lease_path).unlink(missing_ok=True)
        shutil.rmtree(begun.scratch, ignore_errors=True)


def import_dask() -> None:
    """In the order in which it has to be."""
    from snakemake_executor_plugin_dask.config.owned import BEFORE_IMPORT
    from snakemake_executor_plugin_dask.interior import quick_imports

    quick_imports.import_distributed(BEFORE_IMPORT)
    from snakemake_executor_plugin_dask.interior import checks, dask_http, dask_listening, dask_streams

    del checks, dask_http, dask_listening, dask_streams


def security_of(tls: Mapping[str, str]) -> Any:
    """What a worker shows to whom: ``ca``, ``cert`` and ``key`` as PEM, or the paths of such files."""
    from distributed.security import Security

    return Security(
        require_encryption=True,
        tls_ca_file=tls["ca"],
        tls_worker_cert=tls["cert"],
        tls_worker_key=tls["key"],
        tls_client_cert=tls["cert"],
        tls_client_key=tls["key"],
    )


async def _serve(begun: Begun) -> int:
    name, only = begun.name, begun.only
    import_dask()
    from snakemake_executor_plugin_dask.interior import checks

    if lacking := checks.of_dask().refusal:
        sys.stderr.write(f"worker {name}: {lacking}\n")
        return 1
    facts = _facts(begun)
    ends = None if facts.remaining_s is None else time.monotonic() + facts.remaining_s
    companions.here = companions.Here(begun.config, begun.directory, ends)
    worker = _dask_worker(begun, facts)
    client.described[begun.config["cluster"]] = facts
    link: client.SupervisorLink | None = None
    if only is None:
        runs.serving = runs.Serving(name, begun.config, begun.directory, begun.scratch, facts, worker)
    else:
        run_id = only[0].run_id
        topic = client.event_topic(run_id)
        link = client.SupervisorLink(
            run_id, name, only[1], lambda message: worker.log_event(topic, client.as_event(message))
        )
        await link.open()
        client.links[run_id], client.described[run_id] = link, facts
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: asyncio.ensure_future(worker.close(reason="SIGTERM")))
    try:
        await worker
    except (TimeoutError, OSError) as error:
        sys.stderr.write(
            f"worker {name} reached no scheduler at {begun.config['scheduler']}: {error}; if this host cannot reach "
            "that address, name the network that both share: `interface` in the pool's options, or `scheduler` in the "
            "pools file\n"
        )
        return 1
    if link is None:
        await worker.finished()
        await asyncio.gather(*map(runs.end, list(client.links)))
        runs.clear(begun.directory)
        return 0
    await either(link.lost.wait(), worker.finished())
    if link.lost.is_set():
        await worker.close(reason="the supervisor process died")
        return 2
    link.close()
    return 0


def _dask_worker(begun: Begun, facts: WorkerFacts) -> Any:
    """Dask's worker, which listens and connects once it is awaited."""
    import dask

    from snakemake_executor_plugin_dask.config.owned import WORKER_CONFIGURATION, quieten
    from snakemake_executor_plugin_dask.interior import dask_network, dask_streams
    from snakemake_executor_plugin_dask.interior.dask_http import QuietWorker
    from snakemake_executor_plugin_dask.interior.dask_listening import guard
    from snakemake_executor_plugin_dask.node.door import Door

    config = begun.config
    dask.config.set(WORKER_CONFIGURATION)
    quieten()
    bound_log()
    guard(Door)
    interface = config.get("interface")
    # Read here, and not by their paths: whoever replaced them would be this worker's scheduler.
    tls = {name: read_private(path).decode() for name, path in config["tls"].items()}
    worker = QuietWorker(
        config["scheduler"],
        name=begun.name,
        # Shown by Dask's dashboard, and held by nothing: how many jobs run at once is the ledger's business.
        nthreads=facts.cores,
        memory_limit=facts.memory_mb * 10**6,
        security=security_of(tls),
        protocol="tls://",
        host=config.get("host") or (None if interface else dask_network.own_address(config["scheduler"])),
        interface=interface,
        local_directory=begun.scratch,
        death_timeout=config["death_timeout_s"],
        resources={},
    )
    dask_streams.hurry(dask_streams.OF_WORKER, worker)
    worker.metrics |= client.METRICS
    return worker


def _facts(begun: Begun) -> WorkerFacts:
    from snakemake_executor_plugin_dask.model.pools import usable_memory_mb
    from snakemake_executor_plugin_dask.node.machine import this_machine

    config, only, machine = begun.config, begun.only, this_machine()
    cores, memory_mb = rank.share_of_node(os.environ, machine.cores, machine.memory_mb)
    walltime_s = config.get("walltime_s")
    otherwise_s = None if walltime_s is None else float(walltime_s) - (time.monotonic() - begun.started)
    host = allocation.host_name(os.environ)
    found = _inventory(config)
    return WorkerFacts(
        name=begun.name,
        host=host,
        pid=os.getpid(),
        supervisor_pid=0 if only is None else only[1].process.pid,
        cores=config["cores"] or cores,
        memory_mb=usable_memory_mb(config["memory_mb"] or memory_mb),
        devices=found.devices,
        too_few=complaint(config.get("gpus"), found, host) or "",
        cold=processes.why_cold() if only is None or only[0].job_start == "warm" else "",
        near=near_cores(found.devices, os.sched_getaffinity(0)) if found.devices else (),
        remaining_s=allocation.remaining_s(os.environ, time.time(), otherwise_s),
        hosts=allocation.allocation_hosts(os.environ) if config["nodes"] else (),
        allocation_id=allocation.allocation_id(os.environ),
        plugin_version=versions.plugin_version(),
        snakemake_version=versions.snakemake_version(),
    )


def _inventory(config: dict[str, Any]) -> Inventory:
    """The GPUs that jobs may hold, where the pool counts any."""
    if not config.get("gpus"):
        return Inventory((), "")
    if config.get("devices") is not None:
        return Inventory(tuple(config["devices"]), "the driver")
    return take_inventory(config.get("gpu_vendor", "nvidia"))
