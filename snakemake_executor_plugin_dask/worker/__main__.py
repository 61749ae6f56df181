"""The worker process: one Dask worker on one node, the same for every backend.

``python -m snakemake_executor_plugin_dask.worker --config FILE [--name NAME] [--ahead FD]``. Starts the supervisor
before it imports Dask, so that both get ready at the same time. Exit codes: 0, given back, or not needed; 1, no
scheduler within the death timeout; 2, the supervisor died.
"""

import argparse
import asyncio
import json
import os
import pickle
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.model.jobs import Beginning, RunSetup, WorkerFacts
from snakemake_executor_plugin_dask.model.wire import Channel
from snakemake_executor_plugin_dask.node import allocation, processes, rank, versions
from snakemake_executor_plugin_dask.node.descriptors import raise_limit
from snakemake_executor_plugin_dask.node.devices import Inventory, complaint, near_cores, take_inventory
from snakemake_executor_plugin_dask.node.own_log import bound_log
from snakemake_executor_plugin_dask.node.private import read_private, write_private
from snakemake_executor_plugin_dask.worker import client, companions, runs


def main() -> int:
    """Be a worker until it is given back or has nobody to work for. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m snakemake_executor_plugin_dask.worker")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--name")
    parser.add_argument("--ahead", type=int, metavar="FD", help="a socket that tells when FILE is there")
    known, _ = parser.parse_known_args()  # dask-jobqueue appends arguments of dask's own worker command
    started = time.monotonic()
    spare = None
    if known.ahead is not None and (spare := _get_ready(known.ahead, known.config)) is None:
        return 0
    config: dict[str, Any] = json.loads(read_private(known.config))
    if parent := config.get("die_with_parent"):
        processes.die_with_parent()
        if os.getppid() != parent:  # it went before
            return 1
    if (code := config.get("code")) and not config.get("own_python") and versions.installed_code() != code:
        sys.stderr.write(f"{versions.REINSTALLED}\n")
        return 1
    raise_limit()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for Snakemake, which ends what has to end
    name = known.name or rank.worker_name(config["name"], os.environ)
    scratch = _scratch(config["local_directory"]) if spare is None else spare.make_scratch()
    if config["setup"] is None:  # runs come later
        processes.become_subreaper()
        try:
            return asyncio.run(_serve(config, name, started, scratch, None, known.config.parent))
        finally:
            companions.end_all()
            shutil.rmtree(scratch, ignore_errors=True)
    setup: RunSetup = pickle.loads(read_private(config["setup"]))
    if config.get("own_python"):
        setup = replace(setup, python=sys.executable)  # the pool names another one than Snakemake's
    host, port = config["lease"]
    lease = {"host": host, "port": port, "worker": name, "run": setup.run_id, **config["tls"]}
    lease_path = _lease_path(known.config.parent if spare is None else scratch, name)
    write_private(Path(lease_path), json.dumps(lease).encode())
    supervisor = None if spare is None else spare.supervisor_for(setup)
    if supervisor is None:
        supervisor = client.SupervisorProcess(setup, lease_path, scratch=scratch)
    try:
        return asyncio.run(_serve(config, name, started, scratch, (setup, supervisor), known.config.parent))
    finally:
        companions.end_all()
        Path(lease_path).unlink(missing_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class _Spare:
    """What was begun before the run was known."""

    beginning: Beginning
    supervisor: client.SupervisorProcess
    scratch: str  # the path that the supervisor knows

    def make_scratch(self) -> str:
        os.mkdir(self.scratch, 0o700)
        return self.scratch

    def supervisor_for(self, setup: RunSetup) -> client.SupervisorProcess | None:
        """The supervisor, told of the run; None where another one is needed, and this one is gone."""
        if self.supervisor.process.poll() is None and Beginning.of(setup) == self.beginning:
            self.supervisor.prepare(setup)
            return self.supervisor
        self.supervisor.end()
        return None


def _get_ready(descriptor: int, config: Path) -> _Spare | None:
    """Do what can be done without a configuration, until that is there. None: it does not come."""
    processes.die_with_parent()
    sock = socket.socket(fileno=descriptor)
    try:
        beginning: Beginning = Channel(sock).receive()
    except EOFError:
        return None
    state_dir = config.parent.parent
    scratch = os.fspath(state_dir / f"snakemake-dask-{secrets.token_hex(8)}")
    # Below the scratch directory: should the run go without this worker, its supervisor never finds another one's.
    supervisor = client.SupervisorProcess(beginning, _lease_path(scratch, config.stem), scratch=scratch)
    _import_dask()
    with sock:
        if not sock.recv(1):
            return None
    os.chdir(state_dir)
    return _Spare(beginning, supervisor, scratch)


def _lease_path(directory: str | os.PathLike[str], name: str) -> str:
    """As `processes.kill_worker` knows a supervisor by it."""
    return os.path.join(directory, f"lease-{name}.json")


def _import_dask() -> None:
    """In the order in which it has to be."""
    import dask

    from snakemake_executor_plugin_dask.config.owned import BEFORE_IMPORT

    dask.config.set(BEFORE_IMPORT)
    from snakemake_executor_plugin_dask.interior import checks, dask_http, dask_listening, dask_streams

    del checks, dask_http, dask_listening, dask_streams


def _scratch(wanted: str | None) -> str:
    """A directory for what Dask writes on its own. It goes with this process or its supervisor."""
    parent = os.path.expanduser(os.path.expandvars(wanted)) if wanted else None  # `$TMPDIR`, say
    if parent is not None:
        os.makedirs(parent, exist_ok=True)
    return tempfile.mkdtemp(prefix="snakemake-dask-", dir=parent)


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


async def _serve(
    config: dict[str, Any],
    name: str,
    started: float,
    scratch: str,
    only: tuple[RunSetup, client.SupervisorProcess] | None,
    directory: Path,
) -> int:
    """``only``: the run that the worker is for, and its supervisor; None: runs come later, by `runs`."""
    _import_dask()
    import dask

    from snakemake_executor_plugin_dask.config.owned import WORKER_CONFIGURATION, quieten
    from snakemake_executor_plugin_dask.interior import checks, dask_network, dask_streams

    if lacking := checks.of_dask().refusal:
        sys.stderr.write(f"worker {name}: {lacking}\n")
        return 1

    from snakemake_executor_plugin_dask.interior.dask_http import QuietWorker
    from snakemake_executor_plugin_dask.interior.dask_listening import guard
    from snakemake_executor_plugin_dask.node.door import Door

    facts = _facts(config, name, started, only)
    ends = None if facts.remaining_s is None else time.monotonic() + facts.remaining_s
    companions.here = companions.Here(config, directory, ends)
    dask.config.set(WORKER_CONFIGURATION)
    quieten()
    bound_log()
    guard(Door)
    interface = config.get("interface")
    # Read here, and not by their paths: whoever replaced them would be this worker's scheduler.
    tls = {name: read_private(path).decode() for name, path in config["tls"].items()}
    worker = QuietWorker(
        config["scheduler"],
        name=name,
        # Shown by Dask's dashboard, and held by nothing: how many jobs run at once is the ledger's business.
        nthreads=facts.cores,
        memory_limit=facts.memory_mb * 10**6,
        security=security_of(tls),
        protocol="tls://",
        host=config.get("host") or (None if interface else dask_network.own_address(config["scheduler"])),
        interface=interface,
        local_directory=scratch,
        death_timeout=config["death_timeout_s"],
        resources={},
    )
    dask_streams.hurry_worker(worker)
    worker.metrics |= client.METRICS
    client.described[config["cluster"]] = facts
    link: client.SupervisorLink | None = None
    if only is None:
        runs.serving = runs.Serving(name, config, directory, scratch, facts, worker)
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
            f"worker {name} reached no scheduler at {config['scheduler']}: {error}; if this host cannot reach that "
            "address, name the network that both share: `interface` in the pool's options, or `scheduler` in the pools "
            "file\n"
        )
        return 1
    if link is None:
        await worker.finished()  # type: ignore[no-untyped-call]
        await asyncio.gather(*map(runs.end, list(client.links)))
        runs.clear(directory)
        return 0
    lost = asyncio.create_task(link.lost.wait())
    finished = asyncio.create_task(worker.finished())  # type: ignore[no-untyped-call]
    await asyncio.wait({lost, finished}, return_when=asyncio.FIRST_COMPLETED)
    if lost.done():
        await worker.close(reason="the supervisor process died")
        return 2
    link.close()
    return 0


def _facts(
    config: dict[str, Any], name: str, started: float, only: tuple[RunSetup, client.SupervisorProcess] | None
) -> WorkerFacts:
    from snakemake_executor_plugin_dask.model.pools import usable_memory_mb
    from snakemake_executor_plugin_dask.node.machine import this_machine

    machine = this_machine()
    cores, memory_mb = rank.share_of_node(os.environ, machine.cores, machine.memory_mb)
    walltime_s = config.get("walltime_s")
    otherwise_s = None if walltime_s is None else float(walltime_s) - (time.monotonic() - started)
    host = allocation.host_name(os.environ)
    found = _inventory(config)
    return WorkerFacts(
        name=name,
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


if __name__ == "__main__":
    sys.exit(main())
