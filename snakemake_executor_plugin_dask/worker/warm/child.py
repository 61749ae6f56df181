"""A forked child of the warm process: becomes one job's process, runs it and ends as a Python of its own would.

Changes this process's session, standard streams, environment and signal handlers.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from snakemake_executor_plugin_dask.interior import snakemake_command_line, snakemake_kept
from snakemake_executor_plugin_dask.model.job_messages import Cold, Done, Forked, Spawned
from snakemake_executor_plugin_dask.model.jobs import JobSpec, RunSetup
from snakemake_executor_plugin_dask.node.logs import open_log
from snakemake_executor_plugin_dask.node.processes import die_with_parent

if TYPE_CHECKING:
    from snakemake_executor_plugin_dask.model.wire import Channel
    from snakemake_executor_plugin_dask.worker.warm.server import Warmth

_ANSWER_S = 2.0
_all_cores = os.sched_getaffinity(0)


def detach(parent: int) -> None:
    """A session of its own; SIGKILL once the warm process is gone."""
    os.setsid()
    die_with_parent()
    if os.getppid() != parent:  # it went before prctl was called
        os._exit(1)


def _become_job(setup: RunSetup, spec: JobSpec) -> None:
    """Everything in which a job's process differs from the warm one, Snakemake apart.

    Raises OSError where the log cannot be opened.
    """
    log = open_log(spec.log_path)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for descriptor, stream in ((null, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, stream, inheritable=True)
    os.close(log)
    os.close(null)
    for name, value in (*spec.environment, ("SNAKEMAKE_DASK_JOB", spec.key)):
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if spec.cluster is not None:
        _read_dask_environment()
    os.sched_setaffinity(0, spec.affinity or _all_cores)
    if any(name == "TZ" for name, _ in spec.environment):
        time.tzset()
    sys.argv = snakemake_command_line.job_argv(snakemake_command_line.full_arguments(setup, spec.arguments))
    sys.orig_argv = [sys.orig_argv[0], "-m", "snakemake", *sys.argv[1:]]
    # What `python -m snakemake` has there: multiprocessing and pickle look at it.
    main = types.ModuleType("__main__")
    main.__file__, main.__package__ = sys.argv[0], "snakemake"
    main.__spec__ = snakemake_command_line.main_spec()
    sys.modules["__main__"] = main


def _read_dask_environment() -> None:
    """Dask reads the environment when it is imported, which the workflow may have done before the job had its own."""
    config: Any = sys.modules.get("dask.config")
    if config is not None:
        config.update(config.config, config.collect_env())


def end(warmth: "Warmth", code: int) -> NoReturn:
    """End this process as one that had read the workflow itself."""
    if warmth.belongings is None:
        sys.exit(code)  # it has: everything is its own
    warmth.belongings.end(code)


class Words:
    """What a child says of its job, once: `Spawned`, `Forked` or `Cold`.

    Where it says nothing for a while, an alarm says for it that it is the job's process: it may wait for files.
    """

    def __init__(self, channel: "Channel", key: str, depth: int) -> None:
        """``depth``: at which the job is started, as far as is known."""
        self._channel, self._key = channel, key
        self._handler = signal.signal(signal.SIGALRM, lambda *_: self.begin())
        signal.setitimer(signal.ITIMER_REAL, _ANSWER_S)
        self.said: type | None = None
        self.depth = depth
        self.reason = ""  # why not deeper

    def spawned(self, pid: int, unlike: str = "") -> None:
        """The job's shell has been started, and is its process."""
        self._say(Spawned(self._key, pid, unlike))

    def begin(self) -> None:
        """This process is the job's from here on."""
        self._say(Forked(self._key, os.getpid(), self.depth, self.reason))

    def cold(self, reason: str) -> None:
        """Nothing has begun here; let the job start cold."""
        self._say(Cold(self._key, reason))

    def _say(self, message: Spawned | Forked | Cold) -> None:
        if self.said is None:
            self.said = type(message)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._handler)
            self._channel.send(message)
            if self.said is not Spawned:
                self._channel.close()  # a job must not reach it


def run_job(warmth: "Warmth", spec: JobSpec, channel: "Channel") -> NoReturn:
    """Run the job at the deepest level that it and the warm process allow, and end this process."""
    _, code = _work(warmth, spec, channel, command=False)
    end(warmth, code)


def run_command(warmth: "Warmth", spec: JobSpec, channel: "Channel") -> None:
    """Run a shell command, whose shell is the job's process. Returns where this child can be used again.

    Says what `Words` do, and then, if the shell was spawned, `Done`.
    """
    environment = dict(os.environb)
    before = _cpu_s()
    words, code = _work(warmth, spec, channel, command=True)
    if words.said is not Spawned:
        end(warmth, code)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code == 0:
        warmth.workflow.forget()
        os.environb.clear()
        os.environb.update(environment)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for stream_number in (0, 1, 2):
            os.dup2(null, stream_number, inheritable=True)
        os.close(null)
    # The job's end is what its Snakemake would say, whose log tells how the shell ended.
    channel.send(Done(code << 8, _cpu_s() - before, again=code == 0))
    if code:
        os._exit(code)


def _cpu_s() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _work(warmth: "Warmth", spec: JobSpec, channel: "Channel", *, command: bool) -> tuple[Words, int]:
    """Become the job and run it; returns what the channel was told of it, and the exit code."""
    words = Words(channel, spec.key, warmth.depth_of(spec))
    code = 1
    try:
        _become_job(warmth.setup, spec)
        code = _run(warmth, spec, words, command=command)
    except BaseException:  # noqa: BLE001 - printed as the interpreter does
        traceback.print_exc()
    words.begin()
    return words, code


def _run(warmth: "Warmth", spec: JobSpec, words: Words, *, command: bool) -> int:
    """Run the job; returns its exit code, which is what `snakemake.cli.main` makes of an end.

    An error before anything of the job has begun is one of this process, and says nothing of the job: that starts cold.
    """
    try:
        return 0 if _succeeds(warmth, spec, words, command=command) else 1
    except SystemExit as error:
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code & 0xFF
        sys.stderr.write(f"{error.code}\n")
        return 1
    except Exception as error:  # noqa: BLE001 - as Snakemake's main does
        if words.said is None:
            words.cold(snakemake_kept.in_a_line(error))
            os._exit(1)  # should the warm process have given up on an answer before, the job has failed
        snakemake_command_line.print_error(error)
        return 1


def _succeeds(warmth: "Warmth", spec: JobSpec, words: Words, *, command: bool) -> bool:
    workflow: snakemake_kept.WarmWorkflow | None = warmth.workflow
    if workflow is None:
        return bool(warmth.parser.run(spec, words.begin))
    workflow.adopt(spec)
    if warmth.calls(spec):
        try:
            job = workflow.make_job(spec)
        except snakemake_kept.OtherOutput as error:
            words.begin()
            workflow.note(str(error), always=True)
            return False
        except Exception as error:
            if spec.ended is not None:
                raise  # with a DAG its command would be run again
            # Nothing has happened yet. With a DAG it works, or fails with Snakemake's own words.
            words.depth, words.reason = 2, snakemake_kept.in_a_line(error)
            workflow.note(f"This job is run with a DAG of its own: {error}")
        else:
            return _call(workflow, job, spec, words, command=command)
    if warmth.dag_reason:
        raise snakemake_kept.NotWarm(warmth.dag_reason)
    return workflow.run(spec, words.begin)


def _call(workflow: snakemake_kept.WarmWorkflow, job: Any, spec: JobSpec, words: Words, *, command: bool) -> bool:
    if command:
        with snakemake_kept.report_shell(words.spawned, workflow.expected_shell(job)):
            return workflow.call(job, spec.key, lambda: None)
    with _finish_what_runs() as told_to_end:
        if spec.ended is None:
            success = workflow.call(job, spec.key, words.begin)
        else:
            success = workflow.conclude(job, spec.key, spec.ended, words.begin)
    if told_to_end:
        workflow.note("This job was told to end while it ran.", always=True)
        success = False
    workflow.close()
    return success


@contextlib.contextmanager
def _finish_what_runs() -> Iterator[list[int]]:
    """SIGTERM means to Snakemake: finish what runs, then end with an error."""
    told: list[int] = []
    leader = os.getpid()

    def note(number: int, _: object) -> None:
        if os.getpid() == leader:
            told.append(number)
        else:  # a process that the job forked, such as one of a pool, which would otherwise not end
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    handler = signal.signal(signal.SIGTERM, note)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, handler)
