"""The supervisor of a worker's job processes: starts them, and ends what must end.

``python -m snakemake_executor_plugin_dask.worker.supervisor --fd N [--lease-config FILE]``. N is a socket to the
worker, whose first message `first` may have read. One thread with an event loop (and a few that only touch files),
standard library only. It is a child subreaper, so every process of its jobs is its descendant for as long as it lives.
It leaves no job behind: without its worker, or without a lease, it ends them all, says so to the driver, and exits.
"""

import asyncio
import contextlib
import dataclasses
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any

from snakemake_executor_plugin_dask.model.batch_systems.slurm_steps import node_of_several
from snakemake_executor_plugin_dask.model.job_messages import (
    Ahead,
    Ended,
    Ending,
    Kill,
    Leave,
    OfCluster,
    Renew,
    Said,
    Setup,
    Start,
    Started,
    Uses,
)
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome, RunSetup, Status
from snakemake_executor_plugin_dask.model.wire import frame, receive
from snakemake_executor_plugin_dask.node import processes
from snakemake_executor_plugin_dask.node.environment import (
    expand,
    job_environment,
    node_changes,
    of_prologue,
    size_changes,
)
from snakemake_executor_plugin_dask.worker.supervisor import attempt
from snakemake_executor_plugin_dask.worker.supervisor.attempt import Attempt, NotStarted, note
from snakemake_executor_plugin_dask.worker.supervisor.commands import Commands
from snakemake_executor_plugin_dask.worker.supervisor.ending import Endings
from snakemake_executor_plugin_dask.worker.supervisor.files import Files
from snakemake_executor_plugin_dask.worker.supervisor.first import Begun, jobs_environment
from snakemake_executor_plugin_dask.worker.supervisor.jobcluster import ClusterOfJob
from snakemake_executor_plugin_dask.worker.supervisor.lease import LeaseClock, LeaseLine
from snakemake_executor_plugin_dask.worker.supervisor.limits import MEMORY_GRACE_S, Limits
from snakemake_executor_plugin_dask.worker.supervisor.usage import Monitor, ProcFiles
from snakemake_executor_plugin_dask.worker.supervisor.warming import Warming
from snakemake_executor_plugin_dask.worker.supervisor.warmlink import shallow_command

_TOLD_S = 30.0  # so long a signal to this process counts as the end of its allocation
_START_TOLD_S = 0.05  # so much later a start is told, or with the job's end
_TOLD_OF_ENDS_S = 2.0  # so long after the last SIGKILL a warm process may take
_LAST_WORDS_S = 10.0  # how long a worker that was told to end may take


class Supervisor:
    """Everything of one worker's jobs."""

    def __init__(self, begun: Begun) -> None:
        self._begun = begun
        self._directory = directory = begun.scratch  # the worker's own, for what its jobs need
        self._host_file = ""  # names this node for `srun`, which else would go to the allocation's others
        self._of_prologue: frozenset[str] = frozenset()
        self._socket = begun.worker
        self._loop = asyncio.get_running_loop()
        self._setup: RunSetup | None = None
        self._commands: Commands | None = None
        self._refused_commands = ""  # why, as the user was told
        self._environment: dict[str, str] = {}
        self._scratch: str | None = None  # where each job gets a directory of its own
        self._files_dir = ""  # from where relative paths of a rule's logs count
        self._at_home = True  # the paths of Snakemake's host are those of this one
        self._tasks: set[asyncio.Task[None]] = set()
        self._monitor = Monitor(ProcFiles(), os.getpid())
        self._endings = Endings(self._monitor)
        self._warming = Warming(self._endings, self._started, self._say, directory)
        self._limits = Limits(self._monitor, self._endings)
        self._writer: asyncio.StreamWriter | None = None
        self._starts: dict[str, Started] = {}  # that are not told yet
        self._telling: asyncio.TimerHandle | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._finished = asyncio.Event()
        #: All processes of the worker are about to end, and why.
        self._told, self._told_why = asyncio.Event(), ""
        self._worker_left = asyncio.Event()
        self._files = Files()
        self._lease = LeaseClock(60.0)
        self._line: LeaseLine | None = None
        self._soft_limits = {resource.RLIMIT_NOFILE: resource.getrlimit(resource.RLIMIT_NOFILE)[0]}

    async def serve(self) -> None:
        """Run until there is nothing to supervise for: returns once every job process is gone."""
        processes.set_soft_limit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        self._loop.add_signal_handler(signal.SIGCHLD, self._endings.reap)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Meant for Snakemake or the worker; what follows from it comes through the sockets.
            self._loop.add_signal_handler(number, self._signalled, number)
        reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        self._task(self._watch_lease())
        self._hear_driver()
        gc.freeze()  # less to copy after each fork
        self._task(self._listen(reader))
        await self._finished.wait()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        if self._begun.message is not None:
            self._from_worker(self._begun.message)
            self._endings.reap()  # the warm process may have ended before anybody was told
        try:
            while True:
                self._from_worker(await receive(reader))
        except EOFError:
            self._finish("lost", "the worker process ended", grace_s=0.0)

    def _from_worker(self, message: object) -> None:
        match message:
            case Ahead():
                if self._begun.warm is not None:
                    self._warming.ahead(self._begun.warm)
            case Setup(setup):
                self._prepare(setup)
            case Start(spec):
                self._begin(spec)
            case Kill(key, reason):
                if key in self._endings.attempts:
                    self._endings.stop(self._endings.attempts[key], "cancelled", reason)
            case OfCluster(key, told):
                if key in self._endings.attempts and (cluster := self._endings.attempts[key].cluster) is not None:
                    cluster.tell(told)
            case Renew(number):
                self._lease.renew(number)
                self._uses()
            case Leave():
                self._finish("cancelled", "the worker was told to stop")

    def _hear_driver(self) -> None:
        """Connect to it, once it is known where it listens: that of a spare worker is not before the run is."""
        path = self._begun.lease_config
        if self._line is None and path is not None and (self._setup is not None or os.path.exists(path)):
            with open(path, encoding="utf-8") as file:
                config = json.load(file)
            self._line = LeaseLine(config, self._lease, self._from_driver, self._uses)
            self._task(self._line.run())

    def _from_driver(self, message: dict[str, Any]) -> None:
        if message.get("stop"):
            self._finish("cancelled", "the driver stopped the worker", grace_s=0.0)

    def _uses(self) -> dict[str, tuple[float, float]]:
        """What each job uses now, of which the worker hears, too."""
        found = self._monitor.uses()
        self._tell_worker(Uses(found))
        return found

    def _tell_worker(self, message: object) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    def _tell_of_cluster(self, current: Attempt, message: Mapping[str, Any]) -> None:
        self._tell_starts()  # first that it has one
        self._tell_worker(OfCluster(current.key, message))

    def _say(self, text: str) -> None:
        """To the user."""
        note(text)
        self._tell_worker(Said(text))

    def _task(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        """After an error in one of them this process would be there, and renew its lease, but do nothing."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            note(f"{error!r}")
            self._finish("lost", f"the supervisor on {attempt.HOST} failed: {error!r}", grace_s=0.0)
            if task is self._finishing:
                self._finished.set()

    # The run

    def _prepare(self, setup: RunSetup) -> None:
        own = dict(os.environ)
        self._environment = jobs_environment(setup, own)
        self._of_prologue = of_prologue(own)
        node = node_of_several(self._environment)
        if node is not None and self._directory is not None:
            self._host_file = os.path.join(self._directory, "hosts")
            with open(self._host_file, "w") as file:
                file.write(f"{node}\n" * (os.cpu_count() or 1))
        if setup.scratch is not None:
            self._scratch = tempfile.mkdtemp(prefix=f"snakemake-{setup.run_id}-", dir=setup.scratch or None)
            self._at_home = os.path.isdir(setup.workdir)
        self._soft_limits.update(setup.soft_limits)
        self._lease.length_s = setup.lease_s
        self._lease.renew()
        self._endings.stop_grace_s = setup.stop_grace_s
        self._setup, self._files_dir = setup, setup.files_dir
        self._hear_driver()
        os.umask(setup.umask)  # for what is made for jobs; what is this process's own lies in directories of its own
        self._limits.begin(setup)
        if self._finishing is None:
            spawned = self._begun.warm if isinstance(self._begun.message, Setup) else None
            self._warming.begin(setup, self._environment, spawned)

    async def _watch_lease(self) -> None:
        while self._lease.remaining_s() > 0:  # noqa: ASYNC110 - a clock runs out without an event to wait for
            await asyncio.sleep(min(1.0, max(0.01, self._lease.length_s / 20)))
        self._finish("lost", f"no renewal of the lease for {self._lease.length_s:.0f} s", grace_s=0.0)

    def _signalled(self, number: signal.Signals) -> None:
        self._told.set()
        self._told_why = f"the processes of its worker were told to end ({number.name})"
        self._loop.call_later(_TOLD_S, self._go_on)

    def _go_on(self) -> None:
        if self._finishing is None:
            self._told.clear()

    def _finish(self, status: Status, why: str, grace_s: float | None = None) -> None:
        """End all jobs, tell everybody, and leave."""
        self._told.set()
        self._told_why = self._told_why or (why if status == "lost" else "")
        self._worker_left.set()
        for current in self._endings.attempts.values():
            self._endings.stop(current, status, why, grace_s)
        if self._finishing is None:
            self._finishing = self._task(self._leave(why))
            self._tell_worker(Ending())

    async def _leave(self, why: str) -> None:
        keys = list(self._endings.attempts)
        self._warming.close()
        ends = [asyncio.ensure_future(current.gone.wait()) for current in self._endings.attempts.values()]
        last = max((current.kill_at for current in self._endings.attempts.values()), default=0.0)
        if ends and (await asyncio.wait(ends, timeout=max(0.0, last - self._loop.time()) + _TOLD_OF_ENDS_S))[1]:
            self._warming.kill()  # it does not tell of jobs that must have ended by now
            await asyncio.wait(ends)
        await self._warming.end()
        while not await asyncio.to_thread(processes.kill_descendants, os.getpid()):
            note("processes of jobs do not end")
        if self._scratch is not None:
            await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)
        if self._line is not None:
            self._line.say({"dead": keys, "last": True})
            await self._line.flush()
        if self._writer is not None and not self._writer.is_closing():
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(self._writer.drain(), 5.0)
        self._finished.set()

    # One job

    def _begin(self, spec: JobSpec) -> None:
        if self._finishing is not None:  # it was on its way when the worker was told; it has no process, and may go on
            detail = f"the supervisor on {attempt.HOST} was about to end"
            self._tell_worker(Ended(Outcome(spec.key, "lost", host=attempt.HOST, detail=detail)))
            return
        current = Attempt(spec, self._loop.create_future(), self._loop.create_future(), log=spec.log_path)
        self._endings.attempts[spec.key] = current
        self._task(self._run(current))

    async def _run(self, current: Attempt) -> None:
        failure: str | None = None
        try:
            await self._start(current)
            await current.leader
            current.ended = time.time()
            if current.shell is not None and current.verdict is None:
                await self._conclude_command(current)
            await self._endings.clear(current)
            self._limits.ended(current)
            if current.leader.result() != 0 or current.verdict is not None or self._log_goes(current):
                await self._files.read_log(current, current.directory or self._files_dir)
            await self._find_cause(current)
            if current.cluster is not None and current.leader.result() != 0 and current.verdict is None:
                current.notes.append(current.cluster.why(current.words.log_tail))
        except NotStarted as error:
            failure = str(error)
            if current.verdict is None:
                await self._files.read_log(current, current.directory or self._files_dir)
        except Exception as error:  # noqa: BLE001 - one job's trouble is reported as this job's, and is not the others'
            failure = f"the supervisor on {attempt.HOST} failed: {error!r}"
            await self._abandon(current)
        if current.time_limit is not None:
            current.time_limit.cancel()  # it would keep the attempt in memory until then
        of_cluster = current.cluster.close() if current.cluster is not None else []
        for directory in (current.directory, current.copies, *of_cluster):
            if directory is not None:
                await self._files.remove(directory)
        current.peak_bytes = max(filter(None, (current.peak_bytes, self._monitor.remove(current.key))), default=None)
        self._endings.forget_leader(current)
        if failure is not None and current.verdict is not None:
            failure = None  # it was to be ended, and never started
        outcome = current.outcome(failure, self._limits.count_kernel_kills)
        if outcome.status == "succeeded" and current.spec.output_dirs and current.late:
            await self._files.look_at(current.spec.output_dirs)
        if outcome.status == "succeeded" and self._log_goes(current):
            await self._files.remove_log(current.log)
        del self._endings.attempts[current.key]
        current.gone.set()
        self._tell_worker(Ended(outcome, self._starts.pop(current.key, None)))

    def _log_goes(self, current: Attempt) -> bool:
        """Whether its log goes with its success: nobody else removes it from this node. Its last lines are told."""
        return current.log_elsewhere() and not (self._setup is not None and self._setup.keep_logs)

    async def _find_cause(self, current: Attempt) -> None:
        """Whether a job that ended badly was ended with its worker's other processes, and has not failed.

        Who ends an allocation signals all its processes, one after the other and in any order.
        """
        doubt_s = current.doubt_s()
        if doubt_s == 0:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._told.wait(), doubt_s)
        if self._told.is_set() and self._told_why:
            current.verdict = ("lost", self._told_why)
            # Where the worker goes, too, its loss is told first, and once for all its jobs.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._worker_left.wait(), _LAST_WORDS_S)

    async def _start(self, current: Attempt) -> None:
        setup, spec = self._setup, current.spec
        if setup is None:
            msg = "the worker was given no description of the run"
            raise NotStarted(msg)
        if spec.size is not None:
            changes = size_changes(self._environment, spec.size, self._of_prologue)
            changes += node_changes(self._environment, self._host_file, self._of_prologue)
            current.spec = spec = dataclasses.replace(spec, environment=(*changes, *spec.environment))
        current.kernel_kills = self._limits.kernel_kills
        if await self._start_command(current):
            self._tell_started(current)
            return
        # Where a log is that cannot be where it should be: in a directory of the user's own.
        places = filter(None, (self._environment.get("TMPDIR"), os.environ.get("TMPDIR"), "/dev/shm"))  # noqa: S108
        await self._files.choose_log(current, list(dict.fromkeys(places)), at_home=self._at_home)
        if spec.local_copies is not None and self._scratch is None:
            environment = job_environment(self._environment, spec.key, spec.environment)
            current.copies = os.path.join(setup.files_dir, expand(spec.local_copies, environment))
            await self._files.clear_place(current.copies)
        if spec.updates:
            await self._files.keep_updated(current, setup.files_dir)
        if spec.cluster is not None:
            await self._prepare_cluster(current, spec.cluster)
        current.check_verdict()
        if current.command or not await self._warming.start(current):
            current.check_verdict()
            await self._start_cold_job(current, setup)
        self._tell_started(current)

    def _tell_started(self, current: Attempt) -> None:
        self._limits.limit_time(current)
        how = (current.start, current.start_depth, current.start_reason)
        # Those of short jobs travel with their ends.
        self._starts[current.key] = Started(current.key, current.pid, *how, current.started)
        if self._telling is None:
            self._telling = self._loop.call_later(_START_TOLD_S, self._tell_starts)

    def _tell_starts(self) -> None:
        self._telling = None
        starts, self._starts = self._starts, {}
        for started in starts.values():
            self._tell_worker(started)

    async def _start_command(self, current: Attempt) -> bool:
        """Start a plain shell command; False where the job takes a Snakemake."""
        spec, setup = current.spec, self._setup
        if spec.command is None or setup is None or self._scratch is not None:
            return False
        shell = await self._warming.shell(current)
        if shell is None:
            return False
        if self._commands is None or self._commands.shell is not shell:
            self._commands = Commands(shell, self._soft_limits.items())
        commands = self._commands
        command = commands.fits(spec)
        if command is None:
            self._say_refusal(commands.refusal)
            return False
        if commands.at_once(spec, command):
            prepared = commands.prepare(spec, command, threading.Event())
        else:
            prepared = await self._files.prepare(commands, spec, command)
        if prepared is None:
            self._say_refusal(commands.refusal)
            return False
        try:
            current.check_verdict()
            pid = commands.launch(spec, command, prepared)
        finally:
            os.close(prepared.log)
        if pid is None:
            return False
        current.log, current.shell, current.late = spec.log_path, command, prepared.late
        current.start, current.start_depth = "warm", 4
        self._started(current, pid, direct=False, began=True)
        return True

    def _say_refusal(self, reason: str) -> None:
        if reason and reason != self._refused_commands:
            self._refused_commands = reason
            self._say(shallow_command(reason))

    async def _conclude_command(self, current: Attempt) -> None:
        """A command is over that had no Snakemake around it. Where it failed, or left no output, one is to say so.

        Until that is known the attempt counts as running, so that it can be ended.
        """
        status = current.leader.result()
        assert status is not None
        ended, current.leader, current.answer = current.leader, self._loop.create_future(), self._loop.create_future()
        pid, current.pid, peak = current.pid, 0, None
        try:
            finished = status == 0 and await self._finish_command(current)
            peak = self._monitor.remove(current.key)
            if not finished and current.verdict is None:
                current.spec = dataclasses.replace(current.spec, ended=status)
                if self._finishing is None and await self._warming.start(current):
                    await current.leader
                elif current.verdict is None:
                    current.notes.append(attempt.status_words(status))
        finally:
            if not current.leader.done():
                current.leader = ended
            self._endings.forget_leader(current)
            current.pid = pid
            current.peak_bytes = max(filter(None, (peak, self._monitor.remove(current.key))), default=None)

    async def _finish_command(self, current: Attempt) -> bool:
        """Whether a command's outputs are there. Snakemake's main process looks again."""
        commands, command = self._commands, current.shell
        assert commands is not None
        assert command is not None
        if not current.late:
            return commands.finish(command, threading.Event())  # a file system of this machine answers at once
        current.late = False
        await self._files.look_at(current.spec.output_dirs)
        return await self._files.finish(commands, command)

    async def _prepare_cluster(self, current: Attempt, cluster: JobCluster) -> None:
        """Let the job start a Dask cluster of its own."""
        current.cluster = ClusterOfJob(
            lambda text: self._endings.stop(current, "out-of-memory", text, MEMORY_GRACE_S),
            lambda message: self._tell_of_cluster(current, message),
        )
        try:
            changes = await current.cluster.prepare(
                current.spec, cluster, self._directory, current.log, self._environment
            )
        except OSError as error:
            msg = f"its Dask cluster could not be prepared on {attempt.HOST}: {error}"
            raise NotStarted(msg) from error
        current.spec = dataclasses.replace(current.spec, environment=(*current.spec.environment, *changes))
        current.command = current.cluster.command

    async def _start_cold_job(self, current: Attempt, setup: RunSetup) -> None:
        spec = current.spec
        overrides: int | None = None
        try:
            if spec.overrides is not None and spec.script is None:
                overrides = os.memfd_create("overrides")
                os.write(overrides, spec.overrides)
                os.lseek(overrides, 0, os.SEEK_SET)
            command = current.command or attempt.cold_command(setup, spec, overrides)
            if self._scratch is not None:
                current.directory = tempfile.mkdtemp(prefix=f"{spec.jobid}-", dir=self._scratch)
            launch = processes.Launch(
                command,
                job_environment(self._environment, spec.key, spec.environment),
                current.directory or setup.workdir,
                current.log,
                setup.umask,
                tuple(self._soft_limits.items()),
                spec.affinity,
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
        readable = asyncio.Event()
        self._loop.add_reader(report, readable.set)
        try:
            await readable.wait()
            return os.fsdecode(os.read(report, 4096)).encode(errors="replace").decode()
        finally:
            self._loop.remove_reader(report)
            os.close(report)

    def _started(self, current: Attempt, pid: int, *, direct: bool, began: bool) -> None:
        current.pid = pid
        if current.spec.ended is None:  # else its command was started before
            current.started, current.began = time.time(), self._loop.time()
        stat = processes.read_stat(pid)
        current.start_ticks = stat.start if stat is not None else 0
        current.teller = stat.ppid if stat is not None and current.is_command else 0
        self._endings.leaders[pid] = current
        self._limits.started(current, direct=direct, began=began)

    async def _abandon(self, current: Attempt) -> None:
        """After an error of its own the supervisor must not leave the job's processes behind."""
        if current.pid:
            self._endings.stop(current, "lost", "the supervisor failed", grace_s=0.0)
            await current.leader
            await self._endings.clear(current)


def main(begun: Begun) -> None:
    """Supervise jobs until the worker is gone or says so. Does not return: the process ends with it."""
    with contextlib.suppress(PermissionError):
        os.setsid()  # it is the leader of a group already if its parent made it one
    processes.become_subreaper()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # its shells inherit it

    async def run() -> None:
        await Supervisor(begun).serve()

    asyncio.run(run())
    if begun.scratch:
        shutil.rmtree(begun.scratch, ignore_errors=True)
    # A thread that hangs in a file server must not keep the process.
    sys.stderr.flush()
    os._exit(0)
