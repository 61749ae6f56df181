"""Workers whose jobs are made up, many in one process, and a driver that brings such workers up.

``simulated.py driver --fd N``: the plugin's driver, with this backend in the place of Slurm's. ``simulated.py host
SOCKET``: a process that holds workers. Each is a real Dask worker, and has a real connection for its leases; only the
processes of jobs are missing: a job sleeps for as long as its `max_threads` says, in seconds.
"""

import asyncio
import gc
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

HOSTS = "SIMULATED_HOSTS"  # variable: the sockets of the hosts, by os.pathsep
FIGURES = "SIMULATED_FIGURES"  # variable: where the driver writes what it measured of itself
_STARTED_AT_ONCE = 8  # of a process: else none of a hundred is there before a connection's time is over
SECONDS = "SIMULATED_SECONDS"  # variable: how long each job takes; default: what it says itself


# The driver


def backend() -> Any:
    """Places worker after worker in the hosts, in turn."""
    from snakemake_executor_plugin_dask.backends.base import AllocationState, WorkerProcess, write_worker_config

    hosts = os.environ[HOSTS].split(os.pathsep)
    asked: list[str] = []

    class Simulated(WorkerProcess):
        async def start(self) -> None:
            self.host = hosts[len(asked) % len(hosts)]
            asked.append(self.name)
            config = write_worker_config(self.pool, self.name, self.link)
            self.allocation_id = self.name
            if not await self._ask({"start": os.fspath(config)}):
                self.failure = "its host is gone"

        async def _ask(self, message: dict[str, str]) -> bool:
            try:
                reader, writer = await asyncio.open_unix_connection(self.host)
                writer.write(json.dumps(message).encode() + b"\n")
                done = bool(await reader.readline())
                writer.close()
            except OSError:
                return False
            return done

        async def state(self) -> AllocationState:
            return AllocationState("running")

        async def kill(self) -> bool:
            await self._ask({"kill": self.name})
            return True

    class Backend:
        on_this_machine = True

        def interface(self, _pool: Any) -> None:
            return None

        def worker(self, pool: Any, name: str, link: Any) -> Simulated:
            return Simulated(pool, name, link)

    return Backend()


class Probe:
    """What the driver's own loop shows: the longest time that it answered nothing, and what its decisions take."""

    def __init__(self) -> None:
        self.figures = {"lag_s": 0.0, "gc_s": 0.0, "place_s": 0.0, "demand_s": 0.0}
        self._collecting = 0.0

    def begin(self) -> None:
        from snakemake_executor_plugin_dask.decide import demand, placement

        placement.place = self._timed(placement.place, "place_s")
        demand.recommend = self._timed(demand.recommend, "demand_s")
        gc.callbacks.append(self._collects)

    def _collects(self, phase: str, _: dict[str, int]) -> None:
        now = time.thread_time()
        if phase == "stop":
            self.figures["gc_s"] = max(self.figures["gc_s"], now - self._collecting)
        self._collecting = now

    def _timed(self, function: Any, longest: str) -> Any:
        def timed(*arguments: Any, **more: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **more)
            finally:
                self.figures[longest] = max(self.figures[longest], time.thread_time() - began)

        return timed

    async def look(self) -> None:
        path, every_s = Path(os.environ[FIGURES]), 0.1
        written = 0.0
        while True:
            before = time.monotonic()
            await asyncio.sleep(every_s)
            late = time.monotonic() - before - every_s
            self.figures["lag_s"] = max(self.figures["lag_s"], late)
            if before > written + 1.0:
                path.with_suffix(".new").write_text(json.dumps(self.figures))
                path.with_suffix(".new").replace(path)
                written = before


def drive() -> int:
    from snakemake_executor_plugin_dask.driver import first, process
    from snakemake_executor_plugin_dask.driver.own import core
    from snakemake_executor_plugin_dask.driver.run import Run

    core.backend_for = lambda _: backend()  # type: ignore[attr-defined]
    probe, looking = Probe(), []
    probe.begin()
    watch = Run.watch

    async def watched(run: Run) -> None:
        if not looking:
            looking.append(asyncio.create_task(probe.look()))
        await watch(run)

    Run.watch = watched  # type: ignore[method-assign]
    return process.main(first.begin())


# Hosts of workers


class Host:
    """All workers of this process."""

    def __init__(self) -> None:
        self.workers: dict[str, Any] = {}
        self.running: dict[str, dict[str, float]] = {}  # by worker and key: since when
        self.renewed: dict[str, float] = {}
        self.longest_s = 0.0  # between two renewals of a worker's leases
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starting = asyncio.Semaphore(_STARTED_AT_ONCE)

    async def serve(self, path: str) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            message = json.loads(await reader.readline() or b"{}")
            if "start" in message:
                self._spawn(self._in_turn(Path(message["start"])))
            elif message.get("kill") in self.workers:
                self._spawn(self.workers.pop(message["kill"]).close(executor_wait=False, nanny=False))
            told = {
                "workers": len(self.workers),
                "longest_s": self.longest_s,
                "running": sum(map(len, self.running.values())),
            }
            writer.write(json.dumps(told).encode() + b"\n")
            writer.close()

        server = await asyncio.start_unix_server(answer, path)
        await server.serve_forever()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_turn(self, path: Path) -> None:
        async with self._starting:
            await self._start(path)

    async def _start(self, path: Path) -> None:
        """As `worker/process.py` does, without the process of a supervisor: its connection is made here."""
        from snakemake_executor_plugin_dask.interior.dask_http import QuietWorker
        from snakemake_executor_plugin_dask.worker.process import security_of
        from snakemake_executor_plugin_dask.worker.supervisor.lease import LeaseClock, LeaseLine

        config = json.loads(await asyncio.to_thread(path.read_text))
        name, tls = config["name"], config["tls"]
        worker = self.workers[name] = QuietWorker(
            config["scheduler"],
            name=name,
            nthreads=config["cores"],
            memory_limit=config["memory_mb"] * 10**6,
            security=security_of(tls),
            protocol="tls://",
            host="127.0.0.1",
            local_directory=os.fspath(path.parent / "dask"),
            death_timeout=config["death_timeout_s"],
            resources={},
        )
        worker.simulated = config
        self.running[name] = {}
        host, port = config["lease"]
        lease = {**tls, "host": host, "port": port, "worker": name, "run": config["cluster"]}
        clock = LeaseClock(60.0)
        line = LeaseLine(lease, clock, lambda _: None, lambda: self._uses(name))
        renew = clock.renew

        def note(*arguments: Any, **more: Any) -> None:
            now = time.monotonic()
            self.longest_s = max(self.longest_s, now - self.renewed.get(name, now))
            self.renewed[name] = now
            renew(*arguments, **more)

        clock.renew = note  # type: ignore[method-assign]
        self._spawn(line.run())
        await worker

    def _uses(self, name: str) -> dict[str, tuple[float, float]]:
        now = time.monotonic()
        return {key: (round(now - since, 2), 50.0) for key, since in self.running[name].items()}


def hold(path: str) -> None:
    import dask
    from distributed.worker import get_worker

    from snakemake_executor_plugin_dask.config.owned import WORKER_CONFIGURATION, quieten
    from snakemake_executor_plugin_dask.model.jobs import Outcome, WorkerFacts
    from snakemake_executor_plugin_dask.model.wire import unframed
    from snakemake_executor_plugin_dask.worker import client

    dask.config.set(WORKER_CONFIGURATION)
    quieten()
    host = Host()

    async def facts(_run_id: str, dask_worker: Any) -> WorkerFacts:
        config = dask_worker.simulated
        return WorkerFacts(
            config["name"], f"node-{config['name']}", os.getpid(), os.getpid(), config["cores"], config["memory_mb"]
        )

    async def run_job(run_id: str, _key: str, start: bytes, _certify: bool) -> Outcome:
        worker, spec = get_worker(), unframed(start).spec
        name, topic, began = worker.simulated["name"], client.event_topic(run_id), time.time()
        host.running[name][spec.key] = time.monotonic()
        how = {"start": "warm", "start_depth": 3, "start_reason": ""}
        started = {"started": spec.key, "pid": 1, "time": began, "worker": name, **how}
        worker.log_event(topic, client.as_event(started))
        await asyncio.sleep(float(os.environ.get(SECONDS) or spec.max_threads))
        outcome = Outcome(
            spec.key, "succeeded", name, name, pid=1, start="warm", exit_code=0, started=began, ended=time.time()
        )
        worker.log_event(topic, client.as_event({"ended": asdict(outcome)}))
        host.running[name].pop(spec.key, None)
        return outcome

    client.facts, client.run_job = facts, run_job  # type: ignore[assignment]  # both travel by their names
    asyncio.run(host.serve(path))


if __name__ == "__main__":
    if sys.argv[1] == "driver":
        del sys.argv[1]
        sys.exit(drive())
    hold(sys.argv[2])
