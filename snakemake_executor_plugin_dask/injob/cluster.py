"""The Dask cluster of a job's own: its scheduler, which keeps its workers. Runs in the job's Python, by its path.

``python cluster.py DIRECTORY`` is the scheduler, ``python cluster.py DIRECTORY NAME`` one of its workers. The directory
holds the settings, and the socket to the worker's supervisor, which ends all this with the job. Nothing else of the
plugin is there: imports the standard library, Dask and distributed of the job's own environment.
"""

import asyncio
import contextlib
import ctypes
import json
import math
import os
import signal
import socket
import subprocess
import sys
from typing import Any

_LOOK_S = 0.2
_OVER_MOST = 3  # workers over their memory, before the job fails
_START_S = 60.0  # a job does not wait longer for all its workers, once some are there
_PR_SET_PDEATHSIG = 1


class Keeper:
    """The workers of one cluster: started, looked at, replaced."""

    def __init__(self, directory: str, settings: dict[str, Any], supervisor: socket.socket) -> None:
        self._directory, self._settings, self._supervisor = directory, settings, supervisor
        self._processes: dict[str, subprocess.Popen[bytes]] = {}  # by name
        self._peaks: dict[str, int] = {}
        self._registered: set[str] = set()
        self._over: list[str] = []
        self._killed: set[str] = set()
        self._runs = [0] * settings["workers"]

    def start(self, index: int) -> None:
        """Start the worker of a place, for the first time or once more."""
        self._runs[index] += 1
        name = str(index) if self._runs[index] == 1 else f"{index}.{self._runs[index]}"
        environment = dict(os.environ)
        environment.pop("DASK_DISTRIBUTED__CLIENT__PRELOAD", None)  # a client in a task finds the cluster started
        environment |= self._settings["environment"][index]
        self._processes[name] = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), self._directory, name],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            env=environment,
        )
        self._peaks[name] = 0

    def look(self, workers: "set[str]") -> str:
        """Replace workers that ended, and end those over their memory; returns why the cluster cannot go on.

        ``workers``: those that have registered with the scheduler.
        """
        self._registered |= workers
        for name, process in list(self._processes.items()):
            code = process.poll()
            if code is not None:
                del self._processes[name]
                if name not in self._registered and name not in self._killed:
                    return f"Dask worker {name} ended with exit code {code} before it was ready"
                if len(self._over) < _OVER_MOST:
                    sys.stderr.write(f"Dask worker {name} of this job ended ({_ending(code)}) and is replaced.\n")
                    sys.stderr.flush()
                    self.start(int(name.partition(".")[0]))
            elif self._exceeds(name, process):
                process.kill()
        return ""

    def all_there(self) -> bool:
        return all(name in self._registered for name in self._processes)

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()

    def _exceeds(self, name: str, process: "subprocess.Popen[bytes]") -> bool:
        """Whether a worker is to be ended; after the last one that may be, the job is."""
        limit_mb = self._settings["memory_mb"]
        held = _held(process.pid)
        self._peaks[name] = max(self._peaks[name], held)
        if limit_mb is None or not self._settings["enforce"] or name in self._killed or held <= limit_mb * 10**6:
            return False
        self._killed.add(name)
        self._over.append(name)
        text = f"memory of {math.ceil(self._peaks[name] / 1e6)} MB exceeded the limit of {limit_mb} MB (mem_mb)"
        sys.stderr.write(f"Dask worker {name} of this job: {text}; it is ended.\n")
        sys.stderr.flush()
        if len(self._over) >= _OVER_MOST:
            others = ", ".join(self._over[:-1])
            self.tell({"over": f"Dask worker {name}: {text}, as workers {others} had before"})
        return True

    def tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._supervisor.sendall(json.dumps(message).encode() + b"\n")


def _held(pid: int) -> int:
    """Bytes of anonymous and shared memory, and swap; 0 where the process is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            fields = dict(line.split(":", 1) for line in file if line.startswith(("RssAnon", "RssShmem", "VmSwap")))
    except OSError:
        return 0
    return sum(int(value.split()[0]) for value in fields.values()) * 1024


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


async def keep(directory: str, settings: dict[str, Any], supervisor: socket.socket) -> None:
    """Run the scheduler and its workers until the supervisor's socket closes."""
    keeper = Keeper(directory, settings, supervisor)
    for index in range(settings["workers"]):
        keeper.start(index)  # they get ready while this process does
    from distributed import Scheduler

    class QuietScheduler(Scheduler):
        """Without HTTP: nothing but its TLS port listens."""

        def start_http_server(self, *_: Any, **__: Any) -> None:
            """Open nothing."""

    answered = False
    reader, _ = await asyncio.open_unix_connection(sock=supervisor)
    gone = asyncio.ensure_future(reader.read())  # it says nothing, so this is its end
    try:
        async with QuietScheduler(
            host="127.0.0.1", port=settings["port"], protocol="tls", dashboard=False
        ) as scheduler:
            keeper.tell({"started": os.getpid()})
            began = asyncio.get_running_loop().time()
            while not gone.done():
                there = {str(worker.name) for worker in scheduler.workers.values()}
                if problem := keeper.look(there):
                    _answer(problem)
                    keeper.tell({"failed": problem})
                    return
                late = there and asyncio.get_running_loop().time() - began > _START_S
                if not answered and (keeper.all_there() or late):
                    answered = True
                    _answer("ready")
                await asyncio.wait({gone}, timeout=_LOOK_S if answered else _LOOK_S / 10)
    finally:
        keeper.end()


def _answer(text: str) -> None:
    """To who started this process, which reads one line."""
    with contextlib.suppress(OSError):
        os.write(1, f"{text}\n".encode())
        os.dup2(2, 1)


async def work(settings: dict[str, Any], name: str) -> None:
    """Run one Dask worker until its scheduler ends it."""
    from distributed import Worker

    class QuietWorker(Worker):
        """Without HTTP: nothing but its TLS port listens."""

        def start_http_server(self, *_: Any, **__: Any) -> None:
            """Open nothing."""

    memory_mb = settings["memory_mb"]
    given = {
        "name": name,
        "nthreads": settings["cores"],
        "memory_limit": "auto" if memory_mb is None else memory_mb * 10**6,
        "host": "127.0.0.1",
        "local_directory": settings["local_directory"],
    }
    worker = QuietWorker(f"tls://127.0.0.1:{settings['port']}", **given, **settings["options"])
    async with worker:
        await worker.finished()  # type: ignore[no-untyped-call]


def main() -> None:
    directory, *names = sys.argv[1:]
    with open(os.path.join(directory, "settings.json")) as file:
        settings = json.load(file)
    # As in a Python that was started without this file: nothing there is for the job's code to find.
    sys.path[:] = [path for path in sys.path if path != directory]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for Snakemake, which ends what has to end
    if names:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        import dask.config

        # As Dask's own nanny does, before numerical libraries are loaded.
        for key, value in dask.config.get("distributed.nanny.pre-spawn-environ", {}).items():
            os.environ.setdefault(key, str(value))
        asyncio.run(work(settings, names[0]))
        return
    supervisor = socket.socket(socket.AF_UNIX)
    os.chdir(directory)  # a socket's path may not be long
    supervisor.connect("supervisor")
    os.chdir(settings["workdir"])
    asyncio.run(keep(directory, settings, supervisor))


if __name__ == "__main__":
    main()
