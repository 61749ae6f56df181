"""The supervisor of a worker's job processes: starts them, watches memory and time, ends what must end.

``python -m snakemake_executor_plugin_dask.worker.supervisor --fd N [--lease-config FILE]``. N is a socket to the worker. One thread
with an event loop (and a few that only touch files), standard library only. It is a child subreaper, so every process
of its jobs is its descendant for as long as it lives. It leaves no job behind: without its worker, or without a lease, it ends
them all, says so to the driver, and exits.
"""

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from snakemake_executor_plugin_dask.jobs import JobSpec, RunSetup, Status
from snakemake_executor_plugin_dask.worker import attempt, logs, processes
from snakemake_executor_plugin_dask.worker.attempt import Attempt, NotStarted
from snakemake_executor_plugin_dask.worker.environment import base_environment, job_environment
from snakemake_executor_plugin_dask.worker.frames import frame, receive
from snakemake_executor_plugin_dask.worker.lease import Lease, LeaseConfig, LeaseLine
from snakemake_executor_plugin_dask.worker.usage import Excess, Monitor, ProcFiles
from snakemake_executor_plugin_dask.worker.warmlink import WarmProcess

_WARM_READY_S = 60.0  # a job waits so long for the warm process to have read the workflow
_WARM_ANSWER_S = 30.0  # a warm process that answers later hangs
_WARM_RESTARTS = 3
_LOG_S = 30.0
_LISTING_S = 10.0
_MEMORY_GRACE_S = 0.2  # who exceeds its memory may go on doing so
_RECHECK_S = 0.05


class Supervisor:
    """Everything of one worker's jobs."""

    def __init__(self, worker: socket.socket, lease: LeaseConfig | None) -> None:
        self._socket = worker
        self._loop = asyncio.get_running_loop()
        self._setup: RunSetup | None = None
        self._environment: dict[str, str] = {}
        self._attempts: dict[str, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaders: dict[int, Attempt] = {}
        self._adopted: dict[int, str] = {}
        self._warms: dict[int, WarmProcess] = {}
        self._warm: WarmProcess | None = None
        self._warm_failures = 0
        self._monitor = Monitor(ProcFiles(), os.getpid())
        self._next_look: asyncio.TimerHandle | None = None
        self._kernel_kills = 0
        self._reaped: asyncio.Future[None] = self._loop.create_future()
        self._writer: asyncio.StreamWriter | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._finished = asyncio.Event()
        self._logs = ThreadPoolExecutor(4)
        self._listings = ThreadPoolExecutor(8)
        self._lease = Lease(60.0)
        self._line = None if lease is None else LeaseLine(lease, self._lease, self._attempts.keys, self._from_driver)
        self._soft_limits = {resource.RLIMIT_NOFILE: resource.getrlimit(resource.RLIMIT_NOFILE)[0]}

    async def serve(self) -> None:
        """Run until there is nothing to supervise for: returns once every job process is gone."""
        processes.set_soft_limit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Meant for Snakemake or the worker; what follows from it comes through the sockets.
            self._loop.add_signal_handler(number, lambda: None)
        reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        self._task(self._watch_lease())
        if self._line is not None:
            self._task(self._line.run())
        gc.freeze()  # less to copy after each fork
        self._task(self._listen(reader))
        await self._finished.wait()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                self._from_worker(await receive(reader))
        except EOFError:
            self._finish("lost", "the worker process ended", grace_s=0.0)

    def _from_worker(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("setup", RunSetup() as setup):
                self._prepare(setup)
            case ("start", JobSpec() as spec):
                self._begin(spec)
            case ("kill", str(key), str(reason)):
                if key in self._attempts:
                    self._stop(self._attempts[key], "cancelled", reason)
            case ("renew",):
                self._lease.renew()
            case ("stop",):
                self._finish("cancelled", "the worker was told to stop")
            case _:
                print(f"supervisor: unknown message {message[:1]!r}", file=sys.stderr)

    def _from_driver(self, message: dict[str, Any]) -> None:
        if message.get("stop"):
            self._finish("cancelled", "the driver stopped the worker", grace_s=0.0)
        elif "kill" in message:
            current = self._attempts.get(message["kill"])
            if current is None:
                self._tell_driver([message["kill"]], "no such job runs here")
            else:
                current.tell_driver = True
                self._stop(current, "cancelled", "the driver ended it", grace_s=0.0)

    def _tell_worker(self, *message: Any) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    def _tell_driver(self, keys: list[str], why: str, last: bool = False) -> None:
        if self._line is not None:
            self._line.say({"dead": keys, "why": why, "last": last})

    def _task(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # The run

    def _prepare(self, setup: RunSetup) -> None:
        own = dict(os.environ)
        self._environment = base_environment(setup.environment, setup.replace_environment, own)
        self._soft_limits.update(setup.soft_limits)
        self._lease.length_s = setup.lease_s
        self._lease.renew()
        self._setup = setup
        self._start_warm()
        self._tell_worker("ready")

    async def _watch_lease(self) -> None:
        while self._lease.remaining_s() > 0:
            await asyncio.sleep(min(1.0, max(0.01, self._lease.length_s / 20)))
        self._finish("lost", f"no renewal of the lease for {self._lease.length_s:.0f} s", grace_s=0.0)

    def _finish(self, status: Status, why: str, grace_s: float | None = None) -> None:
        """End all jobs, tell everybody, and leave."""
        for current in self._attempts.values():
            self._stop(current, status, why, grace_s)
        if self._finishing is None:
            self._finishing = self._task(self._leave(why))

    async def _leave(self, why: str) -> None:
        keys = list(self._attempts)
        for warm in self._warms.values():
            warm.kill()
        for current in list(self._attempts.values()):
            await current.gone.wait()
        while not await asyncio.to_thread(processes.kill_descendants, os.getpid()):
            print("supervisor: processes of jobs do not end", file=sys.stderr)
        if self._line is not None:
            self._tell_driver(keys, why, last=True)
            await self._line.flush()
        if self._writer is not None and not self._writer.is_closing():
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(self._writer.drain(), 5.0)
        self._finished.set()

    # One job

    def _begin(self, spec: JobSpec) -> None:
        current = Attempt(spec, self._loop.create_future(), self._loop.create_future(), log=spec.log_path)
        self._attempts[spec.key] = current
        self._task(self._run(current))
        if self._finishing is not None:
            self._stop(current, "cancelled", "the worker was about to stop", grace_s=0.0)

    async def _run(self, current: Attempt) -> None:
        failure: str | None = None
        try:
            await self._start(current)
            await current.leader
            current.ended = time.time()
            await self._clear(current)
        except NotStarted as error:
            failure = str(error)
        except Exception as error:  # noqa: BLE001 - one job's trouble is reported as this job's, and is not the others'
            failure = f"the supervisor on {attempt.HOST} failed: {error!r}"
            await self._abandon(current)
        current.peak = self._monitor.remove(current.key)
        self._leaders.pop(current.pid, None)
        if failure is not None and current.verdict is not None:
            failure = None  # it was to be ended, and never started
        outcome = current.outcome(
            not_started=failure, kernel_kills=self._count_kernel_kills() if current.started else 0
        )
        if outcome.status == "succeeded" and current.spec.output_dirs:
            await self._list(current.spec.output_dirs)
        del self._attempts[current.key]
        current.gone.set()
        self._tell_worker("ended", outcome)
        if current.tell_driver:
            self._tell_driver([current.key], outcome.detail)

    async def _start(self, current: Attempt) -> None:
        setup, spec = self._setup, current.spec
        if setup is None:
            msg = "the worker was given no description of the run"
            raise NotStarted(msg)
        await self._choose_log(current)
        current.kernel_kills = self._kernel_kills
        self._check_verdict(current)
        warm = await self._warm_for(current, setup)
        self._check_verdict(current)
        if warm is None or not await self._start_warm_job(current, warm):
            self._check_verdict(current)
            await self._start_cold_job(current, setup)
        if spec.runtime_limit_s is not None and setup.enforce_runtime:
            self._loop.call_at(current.began + spec.runtime_limit_s, self._out_of_time, current)
        self._tell_worker("started", current.key, current.pid, current.start, current.started)

    def _check_verdict(self, current: Attempt) -> None:
        if current.verdict is not None:
            raise NotStarted(current.verdict[1])

    async def _choose_log(self, current: Attempt) -> None:
        path = current.spec.log_path
        places = attempt.fallback_places([self._environment.get("TMPDIR"), os.environ.get("TMPDIR")])
        looking = self._loop.run_in_executor(self._logs, logs.usable_log, path, places)
        try:
            current.log, note = await asyncio.wait_for(looking, _LOG_S)
        except TimeoutError:
            current.log, note = os.devnull, f"the log {path} did not open within {_LOG_S:.0f} s, so the output is lost"
        current.notes.append(note)

    async def _start_cold_job(self, current: Attempt, setup: RunSetup) -> None:
        spec = current.spec
        overrides: int | None = None
        try:
            if spec.overrides is not None and spec.script is None:
                overrides = os.memfd_create("overrides")
                os.write(overrides, spec.overrides)
                os.lseek(overrides, 0, os.SEEK_SET)
            command = attempt.cold_command(setup, spec, overrides)
            launch = processes.Launch(
                command,
                job_environment(self._environment, spec.key, spec.environment),
                setup.workdir,
                current.log,
                setup.umask,
                tuple(self._soft_limits.items()),
                () if overrides is None else (overrides,),
            )
            pid, report = processes.spawn(launch)
        except OSError as error:
            msg = f"no process could be made on {attempt.HOST}: {error.strerror or error}"
            raise NotStarted(msg) from error
        finally:
            if overrides is not None:
                os.close(overrides)
        self._started(current, pid, direct=spec.script is None and not setup.precommand, began=False)
        problem = await self._executed(report)
        if problem:
            await current.leader
            msg = f"on {attempt.HOST} {problem}"
            raise NotStarted(msg)

    async def _executed(self, report: int) -> str:
        """Wait until the child has executed its program; what it says if it cannot."""
        readable: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(report, lambda: readable.done() or readable.set_result(None))
        try:
            await readable
            return os.fsdecode(os.read(report, 4096)).encode(errors="replace").decode()
        finally:
            self._loop.remove_reader(report)
            os.close(report)

    def _started(self, current: Attempt, pid: int, *, direct: bool, began: bool) -> None:
        current.pid, current.started, current.began = pid, time.time(), self._loop.time()
        stat = processes.read_stat(pid)
        current.start_ticks = stat.start if stat is not None else 0
        self._leaders[pid] = current
        limit = current.spec.memory_limit_mb
        enforce = self._setup is not None and self._setup.enforce_memory
        self._monitor.add(
            current.key, pid, limit * 10**6 if limit is not None and enforce else None, direct=direct, began=began
        )
        self._plan_look()

    async def _abandon(self, current: Attempt) -> None:
        """After an error of its own the supervisor must not leave the job's processes behind."""
        if current.pid:
            self._stop(current, "lost", "the supervisor failed", grace_s=0.0)
            await current.leader
            await self._clear(current)

    async def _list(self, directories: tuple[str, ...]) -> None:
        def look() -> None:
            for directory in directories:
                with contextlib.suppress(OSError), os.scandir(directory) as entries:
                    for _ in entries:
                        pass

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._loop.run_in_executor(self._listings, look), _LISTING_S)

    # Limits

    def _plan_look(self) -> None:
        due = self._monitor.due()
        if due is None:
            return
        # The monitor's clock is the loop's.
        if self._next_look is not None:
            if self._next_look.when() <= due and not self._next_look.cancelled():
                return
            self._next_look.cancel()
        self._next_look = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._next_look = None
        try:
            found = self._monitor.look()
        except OSError as error:
            print(f"supervisor: the process table could not be read: {error}", file=sys.stderr)
            self._next_look = self._loop.call_later(1.0, self._look)
            return
        self._count_kernel_kills()
        for excess in found:
            self._out_of_memory(self._attempts[excess.key], excess)
        self._plan_look()

    def _count_kernel_kills(self) -> int:
        with contextlib.suppress(OSError), open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    self._kernel_kills = int(line.split()[1])
        return self._kernel_kills

    def _out_of_memory(self, current: Attempt, excess: Excess) -> None:
        after = self._loop.time() - current.began
        text = (
            f"memory of {excess.held / 1e6:.0f} MB exceeded the limit of {excess.limit / 1e6:.0f} MB (mem_mb) "
            f"{attempt.seconds(after)} after the start"
        )
        self._stop(current, "out-of-memory", text, grace_s=_MEMORY_GRACE_S)

    def _out_of_time(self, current: Attempt) -> None:
        limit = current.spec.runtime_limit_s
        if limit is not None and not current.leader.done():
            after = self._loop.time() - current.began
            text = f"runtime of {attempt.seconds(limit)} exceeded after {attempt.seconds(after)}"
            self._stop(current, "out-of-time", text)

    # Ending

    def _stop(self, current: Attempt, status: Status, why: str, grace_s: float | None = None) -> None:
        """End an attempt; the first reason counts, and the shortest grace. Its task reports once nothing is left."""
        if grace_s is None:
            grace_s = self._setup.stop_grace_s if self._setup is not None else 0.0
        kill_at = self._loop.time() + grace_s
        if current.killing is not None:
            current.kill_at = min(current.kill_at, kill_at)
            return
        if current.leader.done():
            return
        current.verdict, current.kill_at = (status, why), kill_at
        current.killing = self._task(self._kill(current))

    async def _kill(self, current: Attempt) -> None:
        if self._loop.time() < current.kill_at:
            members = self._tree(current)
            processes.send(members, signal.SIGTERM)
            processes.send(members, signal.SIGCONT)
        while not current.gone.is_set():
            if self._loop.time() >= current.kill_at:
                members = self._tree(current)
                processes.send(members, signal.SIGKILL)
                self._look_for_leader(current)
            await self._something_ended()

    def _look_for_leader(self, current: Attempt) -> None:
        """The end of a leader whose warm process is gone, and which that one had already waited for, is told by nobody."""
        warm = current.warm
        if warm is not None and warm.reaped.is_set() and not current.leader.done():
            stat = processes.read_stat(current.pid)
            if stat is None or stat.start != current.start_ticks:
                current.leader.set_result(None)

    def _tree(self, current: Attempt) -> list[int]:
        """All living processes of an attempt."""
        table = processes.process_table()
        roots = self._orphans(current)
        leader = table.get(current.pid)
        if leader is not None and leader.start == current.start_ticks and not current.leader.done():
            roots.append(current.pid)
        return [stat.pid for stat in processes.tree(table, roots) if not stat.dead]

    async def _clear(self, current: Attempt) -> None:
        """Once the leader has ended: end the rest of the tree, and return when nothing is left."""
        while orphans := self._orphans(current):
            if self._loop.time() >= current.kill_at:
                members = processes.tree(processes.process_table(), orphans)
                processes.send((stat.pid for stat in members), signal.SIGKILL)
            await self._something_ended()

    def _orphans(self, current: Attempt) -> list[int]:
        """Processes that lost their parent, came to the supervisor, and belong to the attempt."""
        return [
            pid
            for pid in processes.children_of(os.getpid())
            if pid not in self._leaders and pid not in self._warms and self._owner(pid) == current.key
        ]

    def _owner(self, pid: int) -> str | None:
        """The attempt of an orphan. Its number is its own until this process has waited for it."""
        if pid in self._adopted:
            return self._adopted[pid]
        stat = processes.read_stat(pid)
        if stat is None:
            return None
        leader = self._leaders.get(stat.session)
        key = leader.key if leader is not None else self._monitor.key_of(pid) or processes.job_key(pid)
        if key is None:
            # It has left its session and cleared its environment. Whoever else could have made it?
            possible = [other.key for other in self._attempts.values() if 0 < other.start_ticks <= stat.start]
            return possible[0] if len(possible) == 1 else None
        self._adopted[pid] = key
        return key

    async def _something_ended(self) -> None:
        await asyncio.wait({self._reaped}, timeout=_RECHECK_S)

    def _reap(self) -> None:
        """Wait for every child that has ended, its own or adopted."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if ended is None:
                break
            pid = ended.si_pid
            current = self._leaders.get(pid)
            if current is None:
                key = self._owner(pid)
                current = self._attempts.get(key) if key is not None else None
            elif self._loop.time() >= current.kill_at:
                # Now, while the zombie holds its number: nobody else can have this process group.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
            _, status, used = os.wait4(pid, 0)
            self._adopted.pop(pid, None)
            if pid in self._warms:
                self._warms.pop(pid).reaped.set()
            if current is not None:
                current.cpu_s += used.ru_utime + used.ru_stime
                if current.pid == pid and not current.leader.done():
                    current.leader.set_result(status)
        self._reaped.set_result(None)
        self._reaped = self._loop.create_future()

    # The warm process

    def _start_warm(self) -> None:
        setup = self._setup
        if setup is None or setup.job_start != "warm" or setup.precommand or self._finishing is not None:
            return
        try:
            self._warm = WarmProcess(setup, self._environment, self)
        except OSError as error:
            print(f"supervisor: no warm process could be made: {error}", file=sys.stderr)
        else:
            self._warms[self._warm.pid] = self._warm

    async def _warm_for(self, current: Attempt, setup: RunSetup) -> WarmProcess | None:
        """The warm process, if this job may start from it; waits until it has read the workflow."""
        if setup.job_start != "warm" or current.spec.start != "warm" or current.spec.script is not None:
            return None
        until = self._loop.time() + _WARM_READY_S
        while (warm := self._warm) is not None and not warm.ready:
            try:
                await asyncio.wait_for(warm.settled.wait(), until - self._loop.time())
            except TimeoutError:
                current.notes.append(f"not started warm: the workflow was not read within {_WARM_READY_S:.0f} s")
                return None
            if warm is self._warm and not warm.ready:
                return None
        return warm

    async def _start_warm_job(self, current: Attempt, warm: WarmProcess) -> bool:
        """Start the job in a fork of the warm process. False: it has to be started cold."""
        current.warm = warm
        warm.start(current.spec if current.log == current.spec.log_path else _with_log(current.spec, current.log))
        try:
            refusal = await asyncio.wait_for(asyncio.shield(current.answer), _WARM_ANSWER_S)
        except TimeoutError:
            warm.kill()
            refusal = await current.answer
        if refusal is None:
            return True
        current.warm = None
        current.notes.append(f"not started warm: {refusal}")
        return False

    def warm_forked(self, warm: WarmProcess, key: str, pid: int) -> None:
        current = self._attempts.get(key)
        if current is None:
            processes.send([pid], signal.SIGKILL)
            return
        current.start = "warm"
        self._started(current, pid, direct=True, began=warm.depth >= 3 and current.spec.call is not None)
        _settle(current.answer, None)

    def warm_exited(self, warm: WarmProcess, key: str, status: int, cpu_s: float) -> None:
        current = self._attempts.get(key)
        if current is not None and not current.leader.done():
            current.cpu_s += cpu_s
            current.leader.set_result(status)

    def warm_refused(self, warm: WarmProcess, key: str, reason: str) -> None:
        if key in self._attempts:
            _settle(self._attempts[key].answer, reason)

    def warm_stale(self, warm: WarmProcess, reason: str) -> None:
        if warm is self._warm:
            self._warm = None
            warm.close()
            self._start_warm()

    def warm_gone(self, warm: WarmProcess) -> None:
        if warm is self._warm:
            self._warm = None
            self._warm_failures += 1
            # One that never got ready would not the next time, either.
            if warm.depth > 0 and self._warm_failures <= _WARM_RESTARTS:
                self._start_warm()
        self._task(self._bury(warm))

    async def _bury(self, warm: WarmProcess) -> None:
        """End what a warm process leaves behind: its jobs, and a child of which it could not tell any more."""
        await warm.reaped.wait()
        for current in list(self._attempts.values()):
            if current.warm is warm and current.pid:
                self._stop(
                    current, "lost", f"the warm process on {attempt.HOST} ended, and the job with it", grace_s=0.0
                )
        if warm.unanswered:
            while strays := [
                pid
                for pid in processes.children_of(os.getpid())
                if pid not in self._leaders and pid not in self._warms and self._owner(pid) is None
            ]:
                processes.send(strays, signal.SIGKILL)
                await self._something_ended()
        for key in warm.unanswered:
            if key in self._attempts:
                _settle(self._attempts[key].answer, "the warm process ended")


def _settle(future: "asyncio.Future[str | None]", value: str | None) -> None:
    if not future.done():
        future.set_result(value)


def _with_log(spec: JobSpec, log: str) -> JobSpec:
    import dataclasses

    return dataclasses.replace(spec, log_path=log)


def main(exit_process: Callable[[int], None] = os._exit) -> None:
    parser = argparse.ArgumentParser(prog="python -m snakemake_executor_plugin_dask.worker.supervisor")
    parser.add_argument("--fd", type=int, required=True, help="socket to the worker")
    parser.add_argument("--lease-config", help="JSON: host, port, ca, cert, key, worker")
    options = parser.parse_args()
    worker = socket.socket(fileno=options.fd)
    worker.set_inheritable(False)
    lease = LeaseConfig.read(options.lease_config) if options.lease_config else None
    with contextlib.suppress(PermissionError):
        os.setsid()  # it is the leader of a group already if its parent made it one
    processes.become_subreaper()

    async def run() -> None:
        await Supervisor(worker, lease).serve()

    asyncio.run(run())
    # A thread that hangs in a file server must not keep the process.
    sys.stderr.flush()
    exit_process(0)


if __name__ == "__main__":
    main()
