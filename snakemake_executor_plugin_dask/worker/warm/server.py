"""The warm process once it is ready: forks a child for each job, and tells the supervisor what becomes of them."""

import contextlib
import os
import resource
import select
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from snakemake_executor_plugin_dask.interior.snakemake_records import load as load_records
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.job_messages import (
    Cold,
    Done,
    EndChild,
    Exited,
    Forked,
    Spawned,
    Stale,
    Start,
    Warm,
)
from snakemake_executor_plugin_dask.model.jobs import JobSpec, RunSetup
from snakemake_executor_plugin_dask.model.shellcommand import Shell
from snakemake_executor_plugin_dask.model.wire import Channel
from snakemake_executor_plugin_dask.node.processes import fork, set_soft_limit
from snakemake_executor_plugin_dask.node.sources import Sources, stamps
from snakemake_executor_plugin_dask.worker.warm import trial
from snakemake_executor_plugin_dask.worker.warm.end import Belongings
from snakemake_executor_plugin_dask.worker.warm.reseeding import Randomness

RUNNERS_MAX = 64  # children that have run a shell command, and wait for another
#: Children that wait for a job, so that it need not wait for a fork.
IDLE_CHILDREN = 2
#: A child that has said nothing for so long is held by the kernel: its own alarm comes earlier (`warm_child`).
SILENT_S = 10.0
#: A job of the trial must have ended in that time.
_TRIAL_S = 30.0
#: Of a job of the trial whose child has not said why; its log may.
_UNEXPLAINED = "a trial job failed, or was run in another way"
#: So long no child is forked ahead after one could not be.
_NO_FORK_S = 1.0


@dataclass(frozen=True, slots=True)
class Warmth:
    """What a child is forked with."""

    setup: RunSetup
    depth: int = 0
    parser: Any = None  # snakemake_command_line.Parser
    workflow: Any = None  # snakemake_kept.WarmWorkflow, from depth 2 on
    cold_reason: str = ""  # why no job can be started warm
    shallow_reason: str = ""  # why they are not started at the depth that was asked for
    dag_reason: str = ""  # why one that needs a DAG of its own cannot be started warm
    shell: Shell | None = None  # with which the supervisor starts shell commands itself; None: it is not to do so
    shell_reason: str = ""  # why not, though the workflow has some that could be
    randomness: Randomness | None = None
    belongings: Belongings | None = None  # from depth 2 on, where the workflow's code has run here
    child_handler: Any = signal.SIG_DFL  # of SIGCHLD: the workflow's own, which would wait for children of this process

    def calls(self, spec: JobSpec) -> bool:
        """Whether a job's own function is called, without a DAG."""
        return self.depth > 2 and spec.call is not None

    def depth_of(self, spec: JobSpec) -> int:
        """At which a job is started, unless its rule's functions need a DAG."""
        return self.depth if self.calls(spec) else min(self.depth, 2)


class _Child:
    def __init__(self, pid: int, sock: socket.socket, silent_s: float) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        sock.settimeout(silent_s)  # one that is stopped must not hold up the others
        self.channel = Channel(sock)
        self.key: str | None = None  # of its job; None: it waits for one
        self.answered = False  # the supervisor knows the leader of its job
        self.silent_at = 0.0  # from then on the child itself counts as that leader, whatever it says later
        self.again = True  # it can run another command after this one
        self.sock = sock

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class Server:
    """Serves the supervisor until it closes its end, and then until the last job has ended."""

    def __init__(
        self,
        sock: socket.socket,
        warmth: "Warmth",
        idle_children: int = IDLE_CHILDREN,
        *,
        fork: Callable[[], int] = fork,
        silent_s: float = SILENT_S,
    ) -> None:
        self._fork_process, self._silent_s = fork, silent_s
        self._sock = sock
        self._channel = Channel(sock)
        self.warmth = warmth
        self._cold_reason = warmth.cold_reason
        self._sources = Sources(stamps(warmth.workflow.files) if warmth.workflow is not None else ())
        self._wanted_idle = 0 if self._cold_reason else idle_children
        self._idle: list[_Child] = []  # forked ahead, and never used
        self._runners: list[_Child] = []  # have run shell commands, and can run another
        self._talking: dict[int, _Child] = {}  # those that have a job and may say something, by their sockets
        self._asked: list[_Child] = []  # those whose answer is waited for, the longest first
        self._children: dict[int, _Child] = {}  # by pidfd
        self._closing = False
        self._fork_at = 0.0  # not ahead before then
        self.unlike = ""  # after a trial: in what Snakemake starts a shell otherwise than the supervisor would
        # Each child takes two descriptors; it gets back the limit that jobs are to have.
        self._soft_limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        set_soft_limit(resource.RLIMIT_NOFILE, hard)
        # `selectors` does not tell an end of file from a peer that is gone.
        self._epoll = select.epoll()
        self._epoll.register(sock, select.EPOLLIN)

    def serve(self) -> bool:
        """Returns once the supervisor has closed its end and every job has ended; False where it is gone before."""
        try:
            reason = self._cold_reason or self.warmth.shallow_reason
            warmth = self.warmth
            self._channel.send(Warm(warmth.depth, reason, warmth.dag_reason, warmth.shell, warmth.shell_reason))
            while not (self._closing and len(self._children) == len(self._idle) + len(self._runners)):
                # Fork ahead only when there is nothing else to do.
                lacking = len(self._idle) < self._wanted_idle and time.monotonic() >= self._fork_at
                # One at a time: what it leads to may close descriptors, whose numbers are then given to others.
                events = self._epoll.poll(0 if lacking else self._patience_s(), 1)
                self._answer_for_silent()
                if not events and lacking:
                    self._fork_ahead()
                for descriptor, event in events:
                    if descriptor in self._talking:
                        self._hear(self._talking[descriptor])
                    elif descriptor in self._children:
                        self._reap(self._children[descriptor])
                    elif event & select.EPOLLIN and not self._closing:
                        self._receive()
                    elif event & select.EPOLLHUP:
                        return False
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _receive(self) -> None:
        try:
            message = self._channel.receive()
        except EOFError:
            self._closing = True
            self._epoll.modify(self._sock, 0)  # a hang-up is still told
            self._drop_idle()
            return
        match message:
            case Start(spec):
                self._start(spec)
            case EndChild(key):
                for child in self._children.values():
                    if child.key == key:
                        child.kill()

    def _start(self, spec: JobSpec) -> None:
        reason, command = self._judge(spec)
        if reason:
            self._channel.send(Cold(spec.key, reason))
            return
        if not self.warmth.calls(spec):
            load_records()  # a DAG may need them, in each child of its own
        while True:
            try:
                child = (
                    (command and self._runners and self._runners.pop())
                    or (self._idle and self._idle.pop())
                    or self._fork()
                )
            except OSError as error:
                # A cold start needs no room here; where it cannot be made either, its own failure says why.
                self._channel.send(Cold(spec.key, f"no process could be forked ({error.strerror})"))
                return
            try:
                child.channel.send((spec, command))
            except BrokenPipeError:
                continue  # it died while it waited; its pidfd tells so
            except TimeoutError:
                child.kill()  # something has stopped it
                continue
            break
        child.key, child.answered = spec.key, False
        child.silent_at = time.monotonic() + self._silent_s
        self._asked.append(child)
        if child.sock.fileno() not in self._talking:
            self._talking[child.sock.fileno()] = child
            self._epoll.register(child.sock, select.EPOLLIN)

    def _judge(self, spec: JobSpec) -> tuple[str, bool]:
        """Why a job must start cold, if it must, and whether it is a shell command that needs no child of its own."""
        reason = self._cold_reason or _cold_because(spec) or self._stale()
        workflow = self.warmth.workflow
        if reason or workflow is None:
            return reason, False
        try:
            if spec.ended is not None and not self.warmth.calls(spec):
                return "its command is over, and only a job that needs no DAG can be concluded", False
            if self.warmth.dag_reason and not self.warmth.calls(spec):
                return self.warmth.dag_reason, False
            is_command = spec.ended is None and self.warmth.calls(spec) and workflow.is_command(spec)
            return workflow.unfit(spec), is_command
        except Exception as error:  # noqa: BLE001 - whatever it is, it is Snakemake's interior, which a cold job can do without
            return f"{type(error).__name__}: {error}", False

    def _patience_s(self) -> float | None:
        """Until a runner's answer is due, or another child may be forked ahead; None: nothing is waited for."""
        now = time.monotonic()
        times = [self._asked[0].silent_at] if self._asked else []
        times += [self._fork_at] if self._fork_at > now and len(self._idle) < self._wanted_idle else []
        return max(0.0, min(times) - now) if times else None

    def _answer_for_silent(self) -> None:
        """A child may wait for a file server before it can say anything; it is waited for as any job is."""
        while self._asked and self._asked[0].silent_at <= time.monotonic():
            child = self._asked[0]
            child.again = False
            self._answer_for(child)

    def _answer(self, child: _Child, message: Spawned | Forked | Cold) -> None:
        """Tell the supervisor what has become of a job, if it does not know of it."""
        if not child.answered:
            child.answered = True
            self._asked.remove(child)
            self._channel.send(message)

    def _answer_for(self, child: _Child) -> None:
        """The child itself counts as its job's process."""
        if child.key is not None:
            self._answer(child, Forked(child.key, child.pid, 0))

    def _hear(self, runner: _Child) -> None:
        """What a child says of its job. A shell command is the job's process; the child may live on."""
        try:
            message = runner.channel.receive()
        except (EOFError, ConnectionResetError, TimeoutError):
            self._hang_up(runner)
            return
        match message:
            case Spawned():
                self._answer(runner, message)
            case Forked():
                # The job's process is the child itself, whose end is the job's.
                self._answer(runner, message)
                self._hang_up(runner)
            case Cold():
                # It has done nothing, and leaves.
                if not runner.answered:
                    self._answer(runner, message)
                    runner.key = None
                self._hang_up(runner)
            case Done(status, cpu_s, again):
                if runner.key is not None:
                    self._channel.send(Exited(runner.key, status, cpu_s))
                runner.key = None
                if (
                    again
                    and runner.again
                    and not self._closing
                    and not self._cold_reason
                    and len(self._runners) < RUNNERS_MAX
                ):
                    self._runners.append(runner)
                else:
                    self._hang_up(runner)

    def _hang_up(self, runner: _Child) -> None:
        del self._talking[runner.sock.fileno()]
        self._epoll.unregister(runner.sock)
        runner.sock.close()

    def _stale(self) -> str:
        path = self._sources.changed()
        if path is None:
            return ""
        self._cold_reason = f"{path} changed since the workflow was read"
        self._drop_idle()
        self._channel.send(Stale(self._cold_reason))
        return self._cold_reason

    def _drop_idle(self) -> None:
        self._wanted_idle = 0
        while self._idle:
            self._idle.pop().sock.close()  # end of file: it leaves
        while self._runners:
            self._hang_up(self._runners.pop())

    def _fork_ahead(self) -> None:
        try:
            self._idle.append(self._fork())
        except OSError:  # the limit of processes or of memory is reached, and may not be later
            self._fork_at = time.monotonic() + _NO_FORK_S

    def try_out(self, parent: str | None = None) -> tuple[str, str]:
        """Run the trial's jobs, before `serve`, in a directory below ``parent``, which is removed.

        Returns why children cannot call a job's own function, and why they cannot run a job with a DAG of its own; an
        empty text each where one has.
        """
        setup = self.warmth.setup
        try:
            with tempfile.TemporaryDirectory(
                prefix="snakemake-dask-trial-", dir=parent, ignore_cleanup_errors=True
            ) as name:
                directory = os.path.realpath(name)
                snakefile = trial.lay_out(directory)
                with_dag = [trial.dag(setup, directory)]
                without = trial.calls(directory) if self.warmth.depth > 2 else []
                # Both children at once: building a DAG takes longer.
                builder = self._try(snakefile, None, with_dag)
                caller = self._try(snakefile, directory, without) if without else None
                return self._tried(caller, without) if caller else "", self._tried(builder, with_dag)
        except OSError as error:
            reason = f"no trial could be made ({error.strerror})"
            return reason, reason

    def _try(self, snakefile: str, directory: str | None, jobs: list[trial.TrialJob]) -> _Child:
        def prepare() -> None:
            self.warmth.workflow.lay_trial(snakefile, directory)
            for job in jobs:
                job.check(is_command=self.warmth.workflow.is_command(job.spec))

        child = self._fork(prepare)
        child.sock.settimeout(_TRIAL_S)
        with contextlib.suppress(BrokenPipeError):  # it could not be prepared, and has said why
            child.channel.send((jobs[0].spec, jobs[0].command))
        return child

    def _tried(self, child: _Child, jobs: list[trial.TrialJob]) -> str:
        """Why a child that has the first of these jobs could not run them all. It is gone then."""
        reason = told = ""
        try:
            for number, job in enumerate(jobs):
                if number:
                    child.channel.send((job.spec, job.command))
                told = self._heard(child, job)
                if reason := told or job.reason():
                    break
        except (EOFError, OSError) as error:  # TimeoutError among them
            reason = f"a trial job failed ({type(error).__name__})"
        child.kill()
        self._epoll.unregister(child.pidfd)
        del self._children[child.pidfd]
        _, status = os.waitpid(child.pid, 0)
        os.close(child.pidfd)
        child.sock.close()
        if not reason and status:
            reason = "a trial job's process did not end as it should"
        # Where a child says why, its log may go on: it runs the job in another way then.
        words = trial.last_words(jobs[0]) if reason and told in ("", _UNEXPLAINED) else ""
        return f"{reason}: {words}" if words and words not in reason else reason

    def _heard(self, child: _Child, job: trial.TrialJob) -> str:
        """Wait for the end of a job; returns what the child says against it. Raises EOFError, OSError."""
        message = child.channel.receive()
        if isinstance(message, Spawned):
            self.unlike = self.unlike or message.unlike
            message = child.channel.receive()
        match message:
            case Cold(_, reason):
                return str(reason)
            case Done(0, _, True) if job.command:
                return ""
            case Forked(_, _, job.depth) if not job.command:
                poll = select.poll()
                poll.register(child.pidfd, select.POLLIN)
                if not poll.poll(_TRIAL_S * 1000):
                    raise TimeoutError
                return ""
            case Forked(_, _, _, reason) if reason:
                return str(reason)
            case _:
                return _UNEXPLAINED

    def _fork(self, prepare: Callable[[], None] = lambda: None) -> _Child:
        """Raises OSError where no process can be made. ``prepare`` is called in the child, before its first job."""
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        with theirs:
            try:
                pid = self._fork_process()
            except OSError:
                ours.close()
                raise
            if pid == 0:
                ours.close()
                self._be_child(parent, theirs, prepare)
        try:
            child = _Child(pid, ours, self._silent_s)
        except OSError:
            ours.close()  # end of file: it leaves
            os.waitpid(pid, 0)
            raise
        self._children[child.pidfd] = child
        self._epoll.register(child.pidfd, select.EPOLLIN)
        return child

    def _be_child(self, parent: int, sock: socket.socket, prepare: Callable[[], None]) -> NoReturn:
        from snakemake_executor_plugin_dask.worker.warm import child as warm_child

        try:
            warm_child.detach(parent)
            set_soft_limit(resource.RLIMIT_NOFILE, self._soft_limit)
            self._epoll.close()
            self._sock.close()
            for child in self._children.values():
                os.close(child.pidfd)
                child.sock.close()
            self._children.clear()
            self._idle.clear()
            self._runners.clear()
            self._talking.clear()
            if self.warmth.belongings is not None:
                self.warmth.belongings.disown()
            if self.warmth.randomness is not None:
                self.warmth.randomness.renew()
            channel = Channel(sock)
            try:
                prepare()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is why there is no trial
                channel.send(Cold("", f"{type(error).__name__}: {error}"))
                os._exit(0)
            while True:
                spec, command = channel.receive()
                if not command:
                    break
                warm_child.run_command(self.warmth, spec, channel)
        except EOFError:  # not needed any more
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a child must never go on as its parent
            traceback.print_exc()
            os._exit(1)
        with contextlib.suppress(TypeError):  # a handler that is not Python's cannot be had back
            signal.signal(signal.SIGCHLD, self.warmth.child_handler)
        warm_child.run_job(self.warmth, spec, channel)

    def _reap(self, child: _Child) -> None:
        self._epoll.unregister(child.pidfd)
        _, status, usage = os.wait4(child.pid, 0)
        del self._children[child.pidfd]
        os.close(child.pidfd)
        while child.sock.fileno() in self._talking and _readable(child.sock):
            self._hear(child)  # its last words, and then the end of file
        if child.sock.fileno() in self._talking:
            self._hang_up(child)
        child.sock.close()
        for waiting in (self._idle, self._runners):
            if child in waiting:
                waiting.remove(child)
        if child.key is not None:
            self._answer_for(child)
            self._channel.send(Exited(child.key, status, usage.ru_utime + usage.ru_stime))


def _readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _cold_because(spec: JobSpec) -> str:
    if spec.start == "cold":
        return "the job asks for a cold start"
    if spec.script is not None:
        return "the job has a script of its own"
    return ""
