"""The Dask cluster of a job's own: its scheduler, which keeps its workers. Runs in the job's Python, by its path.

``python cluster.py DIRECTORY`` is the scheduler, or on another node than the script's what keeps the workers there. It
has imported Dask once, and forks its workers before it does anything else; ``python cluster.py DIRECTORY NAME`` is one
of those that come later, or where a fork is not safe. The directory holds the settings, and the socket to the
worker's supervisor, which ends all this with the job. Nothing else of the plugin is there: imports the standard
library, Dask and distributed of the job's own environment.
"""

import asyncio
import contextlib
import ctypes
import importlib
import importlib.util
import json
import logging
import math
import os
import signal
import socket
import ssl
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

_LOOK_S = 0.2
_OVER_MOST = 3  # workers over their memory, before none is replaced any more
_FORKABLE = {"jemalloc_bg_thd"}  # threads of Arrow's allocator, which sees to forks itself
_RETIRE_S = 30.0  # so long a worker's data may take to move to others
_START_S = 60.0  # a job does not wait longer for all its workers, once some are there
_PR_SET_PDEATHSIG = 1


class Forked:
    """A child of this process, as far as it is used like a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> "int | None":
        """Its exit code, negative for a signal; None while it runs. Does not wait."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return self._code

    def kill(self) -> None:
        """Send SIGKILL, if it still runs. `poll` tells when it is gone."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


if TYPE_CHECKING:
    _Process = Forked | subprocess.Popen[bytes]


class Keeper:
    """The workers of one cluster on one node: started, looked at, replaced."""

    def __init__(self, directory: str, settings: dict[str, Any], supervisor: socket.socket) -> None:
        self.directory, self._settings, self.supervisor = directory, settings, supervisor
        self._writer: asyncio.StreamWriter | None = None
        self._processes: dict[str, tuple[int, _Process]] = {}  # by name: its place, and itself
        self._peaks: dict[str, int] = {}
        self._over: list[str] = []
        self._killed: set[str] = set()
        self._runs = [0] * settings["workers"]
        self._trees = has_dask_cuda(settings)  # its workers have a process of their own

    def start_all(self) -> str:
        """Start the workers. Returns in each of them, with its name; else empty."""
        can = _import_for_fork(self.directory)
        for index in range(self._settings["workers"]):
            name, environment = self._next(index)
            if not can:
                self._spawn(name, index, environment)
                continue
            keeper = os.getpid()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any thread
                pid = os.fork()
            if not pid:
                _become_worker(keeper, environment)
                self.supervisor.close()
                os.dup2(2, 1)
                return name
            self._add(name, index, Forked(pid))
        return ""

    def _next(self, index: int) -> "tuple[str, dict[str, str]]":
        """The name of the worker that comes now to a place, and what its environment has of its own."""
        self._runs[index] += 1
        part = self._settings["part"]
        name = f"{part}-{index}" if part else str(index)
        return name + (f".{self._runs[index]}" if self._runs[index] > 1 else ""), self._settings["environment"][index]

    def _spawn(self, name: str, index: int, environment: "dict[str, str]") -> None:
        process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), self.directory, name],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            env={**os.environ, **environment},
        )
        self._add(name, index, process)

    def _add(self, name: str, index: int, process: "_Process") -> None:
        self._processes[name] = index, process
        self._peaks[name] = 0

    def look(self) -> str:
        """Replace workers that ended, and end those over their memory; returns why the cluster cannot go on."""
        for name, (index, process) in list(self._processes.items()):
            code = process.poll()
            if code is not None:
                del self._processes[name]
                if self._settings["lent"]:
                    return f"Dask worker {name} ended ({_ending(code)})"  # its room may be needed by others
                if name not in self._killed and not os.path.exists(_ready_mark(self.directory, name)):
                    return f"Dask worker {name} ended with exit code {code} before it was ready"
                if len(self._over) < _OVER_MOST:
                    sys.stderr.write(f"Dask worker {name} of this job ended ({_ending(code)}) and is replaced.\n")
                    sys.stderr.flush()
                    again, environment = self._next(index)
                    self._spawn(again, index, environment)
            elif self._exceeds(name, process):
                rest = _descendants(process.pid) if self._trees else []
                process.kill()
                for pid in rest:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        return ""

    async def hear(self) -> asyncio.StreamReader:
        """What the supervisor says from now on; what is told to it goes there from now on."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self.supervisor)
        return reader

    async def end(self) -> None:
        """End all workers, and let the supervisor have what it was told."""
        for _, process in self._processes.values():
            process.kill()
        if self._writer is not None:
            self._writer.transport.set_write_buffer_limits(0)
            with contextlib.suppress(OSError):
                await self._writer.drain()

    def _exceeds(self, name: str, process: "_Process") -> bool:
        """Whether a worker is to be ended, which the supervisor is told: it counts them."""
        limit_mb = self._settings["memory_mb"]
        held = sum(map(_held, [process.pid, *(_descendants(process.pid) if self._trees else [])]))
        self._peaks[name] = max(self._peaks[name], held)
        if limit_mb is None or not self._settings["enforce"] or name in self._killed or held <= limit_mb * 10**6:
            return False
        self._killed.add(name)
        self._over.append(name)
        text = f"memory of {math.ceil(self._peaks[name] / 1e6)} MB exceeded the limit of {limit_mb} MB (mem_mb)"
        sys.stderr.write(f"Dask worker {name} of this job: {text}; it is ended.\n")
        sys.stderr.flush()
        self.tell({"over": name, "text": text})
        return True

    def tell(self, message: dict[str, Any]) -> None:
        """Send to the supervisor, as a line of JSON; dropped before `hear` has connected."""
        if self._writer is not None:
            self._writer.write(json.dumps(message).encode() + b"\n")


def _import_for_fork(directory: str) -> bool:
    """Import what all workers need; whether they can be forked from this process then."""
    from distributed import Scheduler, Worker  # noqa: F401

    import_wanted(directory)
    try:
        # Numerical libraries have threads of their own, unless they are told otherwise, as Dask's settings do.
        return all(
            _name_of(thread) in _FORKABLE for thread in os.listdir("/proc/self/task") if thread != str(os.getpid())
        )
    except OSError:
        return False


def _name_of(thread: str) -> str:
    with open(f"/proc/self/task/{thread}/comm") as file:
        return file.read().strip()


def wanted_modules(directory: str) -> "list[str]":
    """Those of Dask that the script had imported when it made its client: its tasks will need them, too."""
    try:
        with open(os.path.join(directory, "modules.json")) as file:
            return [str(name) for name in json.load(file)]
    except OSError:
        return []


def import_wanted(directory: str) -> None:
    """Import them, before the first task or graph waits for that."""
    for module in wanted_modules(directory):
        with contextlib.suppress(Exception):
            importlib.import_module(module)


def _open_doors(directory: str, host: str) -> None:
    """How this process listens and connects by `tls://` from now on."""
    try:
        asyncio.timeout  # noqa: B018 - from Python 3.11 on, as a door needs it
        listening = _load(directory, "dask_listening")
        # Who has no certificate of this job costs its ports little: a few connections, for a few seconds.
        listening.guard(_load(directory, "door").Door)
        listening.guard_pages()
    except (ImportError, AttributeError) as error:  # another Dask has other names
        sys.stderr.write(f"The ports of this job's Dask cluster do not limit silent connections: {error}\n")
        return
    try:
        _load(directory, "dask_beside").connect_beside(listening.GuardedListener, directory, host)
    except (ImportError, AttributeError, OSError) as error:
        sys.stderr.write(f"What this job's Dask workers send to each other is encrypted on one node, too: {error}\n")


def _load(directory: str, name: str) -> Any:
    """A module that lies beside this one."""
    spec = importlib.util.spec_from_file_location(f"snakemake_dask_{name}", os.path.join(directory, f"{name}.py"))
    module: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[module.__name__] = module
    module.__spec__.loader.exec_module(module)
    return module


def _become_worker(keeper: int, environment: "dict[str, str]") -> None:
    """In a fork."""
    _die_with(keeper)
    os.environ.update(environment)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # not the same numbers in each; Python's own does this by itself


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _held(pid: int) -> int:
    """Bytes of anonymous and shared memory, and swap; 0 where the process is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            fields = dict(line.split(":", 1) for line in file if line.startswith(("RssAnon", "RssShmem", "VmSwap")))
    except OSError:
        return 0
    return sum(int(value.split()[0]) for value in fields.values()) * 1024


def _descendants(pid: int) -> "list[int]":
    """Those that can be seen."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{thread}/children") as file:
                    found += map(int, file.read().split())
    return found[1:]


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


async def keep_part(keeper: Keeper, settings: dict[str, Any]) -> str:
    """Keep the workers of a node without the scheduler until the supervisor's socket closes; or returns what failed."""
    reader = await keeper.hear()
    gone = asyncio.ensure_future(reader.read())
    try:
        keeper.tell({"started": os.getpid()})
        while not gone.done():
            if problem := keeper.look():
                if not settings["lent"]:
                    keeper.tell({"failed": problem})
                return problem
            await asyncio.wait({gone}, timeout=_LOOK_S)
    finally:
        await keeper.end()
    return ""


async def keep(keeper: Keeper, settings: dict[str, Any]) -> None:
    """Run the scheduler, and keep the workers of its node, until the supervisor's socket closes."""
    from distributed import Scheduler

    reader = await keeper.hear()
    pages = pages_arguments(settings, keeper)

    class OwnScheduler(Scheduler):
        """Without HTTP, or with pages for who has the job's certificate."""

        def start_http_server(self, routes: Any, dashboard_address: Any, *_: Any, **__: Any) -> None:
            """Open nothing else."""
            if pages:
                opened: Any = super()
                opened.start_http_server(routes, dashboard_address, 0, _for_ourselves(keeper.directory))
                server: Any = self.http_server
                keeper.tell({"pages": server.port})

    answered = False
    try:
        port = int(settings["scheduler"].rpartition(":")[2])
        where = {"host": settings["host"], "port": port, "protocol": "tls"}
        async with OwnScheduler(**where, **(pages or {"dashboard": False})) as scheduler:
            lost: set[int] = set()
            gone = asyncio.ensure_future(_hear(reader, scheduler, keeper, lost))
            started: dict[str, Any] = {"started": os.getpid()}
            if settings["part"] is not None:
                started |= {"python": sys.executable, "environment": dict(os.environ)}
                started["modules"] = wanted_modules(keeper.directory)
            keeper.tell(started)
            began = asyncio.get_running_loop().time()
            while not gone.done():
                if problem := keeper.look():
                    _answer(problem)
                    keeper.tell({"failed": problem})
                    return
                for part in list(lost):  # one that was frozen, or what it has started since, may be there again
                    await _remove(part, scheduler)
                there = len(scheduler.workers)
                late = there and asyncio.get_running_loop().time() - began > _START_S
                if not answered and (there >= settings["expected"] or late):
                    answered = True
                    _answer("ready")
                await asyncio.wait({gone}, timeout=_LOOK_S if answered else _LOOK_S / 10)
            if gone.result():
                _answer(gone.result())
    finally:
        await keeper.end()


def pages_arguments(settings: "dict[str, Any]", keeper: Keeper) -> "dict[str, Any]":
    """Arguments of a scheduler that serves its pages; empty: it has none, and the keeper was told where that is odd."""
    if not settings["pages"]:
        return {}
    if importlib.util.find_spec("bokeh") is None:
        text = f"Dask's pages of a job with dask_workers need bokeh, which its Python ({sys.executable}) does not have."
        keeper.tell({"note": text})
        return {}
    if ":" in settings["host"]:
        keeper.tell({"note": "Dask has no pages of a job with dask_workers where nodes have IPv6 addresses."})
        return {}
    import dask.config

    shown = ("scheduler.prometheus", "scheduler.info", "scheduler.json", "health", "statics")
    dask.config.set(
        {
            "distributed.scheduler.http.routes": [f"distributed.http.{name}" for name in shown],
            "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin": ["*"],  # asked before
            "distributed.scheduler.dashboard.tls": {"ca-file": None, "key": None, "cert": None},
        }
    )
    logging.getLogger("bokeh.server.util").setLevel(logging.ERROR)
    return {"dashboard": True, "dashboard_address": f"{settings['host']}:0", "http_prefix": settings["pages"]}


def _for_ourselves(directory: str) -> ssl.SSLContext:
    """Who shows no certificate of this job is not let in."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem"))
    context.load_verify_locations(os.path.join(directory, "cert.pem"))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def _hear(reader: asyncio.StreamReader, scheduler: Any, keeper: Keeper, lost: "set[int]") -> str:
    """What the supervisor says of other parts, until it goes; returns what failed, if that is why.

    ``lost`` gets the parts that get no more work.
    """
    tasks: set[asyncio.Future[None]] = set()  # held, so that they go on
    while line := await reader.readline():
        message = json.loads(line)
        if "failed" in message:
            return str(message["failed"])
        if "retire" in message:
            tasks.add(asyncio.ensure_future(_retire(message["retire"], scheduler, keeper)))
            continue
        lost.add(message["gone"])
        await _remove(message["gone"], scheduler)
    return ""


async def _remove(part: int, scheduler: Any) -> None:
    for address in _workers_of(part, scheduler):
        await scheduler.remove_worker(address=address, stimulus_id=f"node-lost-{part}")


async def _retire(part: int, scheduler: Any, keeper: Keeper) -> None:
    """Others need the room of this part: its data moves to other workers first, if it can."""
    with contextlib.suppress(Exception):
        # What cannot be moved is computed again. It is removed here, so that its tasks are not held to have killed it.
        await asyncio.wait_for(scheduler.retire_workers(workers=_workers_of(part, scheduler)), _RETIRE_S)
    keeper.tell({"retired": part})


def _workers_of(part: int, scheduler: Any) -> "list[str]":
    """The addresses of those of another node, or of a part that was lent."""
    return [address for address, worker in scheduler.workers.items() if str(worker.name).startswith(f"{part}-")]


def _mark_ready(directory: str, name: str) -> None:
    with open(_ready_mark(directory, name), "w"):
        pass


def _ready_mark(directory: str, name: str) -> str:
    return os.path.join(directory, f"{name}.ready")


def _answer(text: str) -> None:
    """To who started this process, which reads one line."""
    with contextlib.suppress(OSError):
        os.write(1, f"{text}\n".encode())
        os.dup2(2, 1)


async def work(directory: str, settings: dict[str, Any], name: str) -> None:
    """Run one Dask worker until its scheduler ends it."""
    from distributed import Worker

    import_wanted(directory)

    class QuietWorker(Worker):
        """Without HTTP: nothing but its TLS port listens."""

        def start_http_server(self, *_: Any, **__: Any) -> None:
            """Open nothing."""

    memory_mb = settings["memory_mb"]
    given = {
        "name": name,
        "nthreads": settings["cores"],
        "memory_limit": "auto" if memory_mb is None else memory_mb * 10**6,
        "host": settings["host"],
        "local_directory": settings["local_directory"],
    }
    if has_dask_cuda(settings) and (of_cuda := await _start_cuda_worker(directory, settings, given)) is not None:
        _mark_ready(directory, name)
        await of_cuda.finished()
        return
    async with QuietWorker(settings["scheduler"], **given, **settings["options"]) as worker:
        _mark_ready(directory, name)
        await worker.finished()


def has_dask_cuda(settings: "dict[str, Any]") -> bool:
    """Whether the Dask workers are dask-cuda's: each has one device, which is all that those are made for."""
    nvidia = settings["gpus"] == 1 and all("CUDA_VISIBLE_DEVICES" in each for each in settings["environment"])
    return nvidia and importlib.util.find_spec("dask_cuda") is not None


async def _start_cuda_worker(directory: str, settings: "dict[str, Any]", given: "dict[str, Any]") -> Any:
    """One with dask-cuda's memory pool and spilling, in a process of its own. None: it cannot be had, which is told."""
    import dask.config

    options = dict(settings["options"])
    if isinstance(resources := options.get("resources"), dict):
        options["resources"] = " ".join(f"{key}={value}" for key, value in resources.items())
    if settings["memory_mb"] is None:
        share = settings["cores"] / (os.cpu_count() or 1)
        given = {**given, "memory_limit": min(1.0, share)}  # of the machine's, as a plain one has it
    dask.config.set({"distributed.worker.memory.terminate": False})  # who is over its memory is ended and counted here
    quiet = (
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('snakemake_dask_cluster', {__file__!r})\n"
        "found = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(found)\n"
        f"found.be_quiet({directory!r}, {given['host']!r})\n"
    )
    preload = options.get("preload", [])
    options["preload"] = [quiet, *([preload] if isinstance(preload, str) else preload)]
    worker = None
    try:
        from dask_cuda import CUDAWorker

        worker = CUDAWorker(settings["scheduler"], dashboard=False, **given, **options)
        await worker
    except Exception as error:
        if worker is not None:
            with contextlib.suppress(Exception):
                await worker.close()
        if settings["options"]:
            raise  # a plain one may not know what is asked for
        sys.stderr.write(f"Dask worker {given['name']} of this job is a plain one, since dask-cuda failed: {error!r}\n")
        sys.stderr.flush()
        return None
    return worker


def be_quiet(directory: str, host: str) -> None:
    """In the process of a worker of dask-cuda's, before it listens: nothing but its TLS port, which is guarded."""
    from distributed import Worker

    def start_nothing(*_: Any, **__: Any) -> None:
        """Open nothing."""

    Worker.start_http_server = start_nothing  # type: ignore[method-assign]
    _open_doors(directory, host)


def main() -> None:
    """The process beside a job's script, or one of its Dask workers where a name is given."""
    directory, *names = sys.argv[1:]
    with open(os.path.join(directory, "settings.json")) as file:
        settings = json.load(file)
    # As in a Python that was started without this file: nothing there is for the job's code to find.
    sys.path[:] = [path for path in sys.path if path != directory]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for Snakemake, which ends what has to end
    os.environ.pop("DASK_DISTRIBUTED__CLIENT__PRELOAD", None)  # a client in a task finds the cluster started
    _open_doors(directory, settings["host"])
    if names:
        _die_with(os.getppid())
        asyncio.run(work(directory, settings, names[0]))
        return
    supervisor = socket.socket(socket.AF_UNIX)
    here = os.getcwd()  # the script's
    os.chdir(directory)  # a socket's path may not be long
    supervisor.connect("supervisor")
    os.chdir(here)
    keeper = Keeper(directory, settings, supervisor)
    if name := keeper.start_all():
        asyncio.run(work(directory, settings, name))
    elif settings["part"]:
        sys.exit(1 if asyncio.run(keep_part(keeper, settings)) else 0)
    else:
        asyncio.run(keep(keeper, settings))


if __name__ == "__main__":
    main()
