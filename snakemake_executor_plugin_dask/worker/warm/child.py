"""A forked child of the warm process: becomes one job's process, runs it and ends as a Python of its own would.

Changes this process's session, standard streams, environment and signal handlers.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from snakemake_executor_plugin_dask.model.jobs import JobSpec, RunSetup
from snakemake_executor_plugin_dask.node.logs import open_log
from snakemake_executor_plugin_dask.worker.warm import parsing
from snakemake_executor_plugin_dask.worker.warm import workflow as warm_workflow

if TYPE_CHECKING:
    from snakemake_executor_plugin_dask.model.messages import Channel
    from snakemake_executor_plugin_dask.worker.warm.process import Warmth

_PR_SET_PDEATHSIG = 1
_ANSWER_S = 2.0
_libc = ctypes.CDLL(None, use_errno=True)
_all_cores = os.sched_getaffinity(0)


def detach(parent: int) -> None:
    """A session of its own; SIGKILL once the warm process is gone."""
    os.setsid()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it went before prctl was called
        os._exit(1)


def become_job(setup: RunSetup, spec: JobSpec) -> None:
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
    os.sched_setaffinity(0, spec.affinity or _all_cores)
    if any(name == "TZ" for name, _ in spec.environment):
        time.tzset()
    sys.argv = parsing.job_argv(setup, spec)
    sys.orig_argv = [sys.orig_argv[0], "-m", "snakemake", *sys.argv[1:]]
    # What `python -m snakemake` has there: multiprocessing and pickle look at it.
    main = types.ModuleType("__main__")
    main.__file__, main.__package__ = sys.argv[0], "snakemake"
    main.__spec__ = parsing.main_spec()
    sys.modules["__main__"] = main


def end(warmth: "Warmth", code: int) -> NoReturn:
    """End this process as one that had read the workflow itself."""
    if warmth.belongings is None:
        sys.exit(code)  # it has: everything is its own
    warmth.belongings.end(code)


def run_job(warmth: "Warmth", spec: JobSpec) -> NoReturn:
    """Run the job at the deepest level that it and the warm process allow, and end this process."""
    code = 1
    try:
        become_job(warmth.setup, spec)
        code = _exit_code(lambda: _run(warmth, spec))
    except BaseException:  # noqa: BLE001 - printed as the interpreter does
        traceback.print_exc()
    end(warmth, code)


def run_command(warmth: "Warmth", spec: JobSpec, channel: "Channel") -> None:
    """Run a shell command, whose shell is the job's process. Returns where this child can be used again.

    Says («spawned», pid) or («forked»,), then («done», wait_status, cpu_s, again) if it was spawned; see `warm.Server`.
    """
    environment = dict(os.environb)
    workflow: warm_workflow.WarmWorkflow = warmth.workflow
    before = _cpu_s()
    said: list[str] = []

    def say(*message: Any) -> None:
        if not said:
            said.append(message[0])
            signal.setitimer(signal.ITIMER_REAL, 0)
            channel.send(message)

    code = 1
    try:
        signal.signal(signal.SIGALRM, lambda *_: say("forked"))
        signal.setitimer(signal.ITIMER_REAL, _ANSWER_S)  # who prepares for so long may wait for files
        become_job(warmth.setup, spec)
        workflow.adopt_again(spec)
        try:
            job = workflow.make_job(spec)
        except warm_workflow.OtherOutput as error:
            say("forked")
            workflow.note(str(error), always=True)
            end(warmth, 1)
        except Exception as error:  # noqa: BLE001 - as in _run
            say("forked")
            workflow.note(f"This job is run with a DAG of its own: {error}")
            code = _exit_code(lambda: workflow.run(spec))
            end(warmth, code)
        with _report_shell(lambda pid: say("spawned", pid)):
            code = 0 if workflow.call(job, spec.key) else 1
    except BaseException:  # noqa: BLE001 - printed as the interpreter does
        traceback.print_exc()
    say("forked")
    if said != ["spawned"]:
        end(warmth, code)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code == 0:
        workflow.forget(job)
        os.environb.clear()
        os.environb.update(environment)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for stream_number in (0, 1, 2):
            os.dup2(null, stream_number, inheritable=True)
        os.close(null)
    # The job's end is what its Snakemake would say, whose log tells how the shell ended.
    channel.send(("done", code << 8, _cpu_s() - before, code == 0))
    if code:
        os._exit(code)


def _cpu_s() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


@contextlib.contextmanager
def _report_shell(report: Callable[[int], None]) -> Iterator[None]:
    """The shell of a job's command leads a session of its own, and its process id is told as soon as there is one."""
    module: Any = sys.modules["snakemake.shell"]  # the package's attribute of this name is the class in it

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options, start_new_session=True)
            report(self.pid)

    module.sp = types.SimpleNamespace(**(vars(subprocess) | {"Popen": Popen}))
    try:
        yield
    finally:
        module.sp = subprocess


def _run(warmth: "Warmth", spec: JobSpec) -> bool:
    workflow: warm_workflow.WarmWorkflow | None = warmth.workflow
    if workflow is None:
        return bool(warmth.parser.run(spec))
    workflow.adopt(spec)
    if warmth.depth < 3 or spec.call is None:
        return workflow.run(spec)
    try:
        job = workflow.make_job(spec)
    except warm_workflow.OtherOutput as error:
        workflow.note(str(error), always=True)
        return False
    except Exception as error:  # noqa: BLE001 - the user's functions run here
        # Nothing has happened yet. With a DAG it works, or fails with Snakemake's own words.
        workflow.note(f"This job is run with a DAG of its own: {error}")
        return workflow.run(spec)
    with _finish_what_runs() as told_to_end:
        success = workflow.call(job, spec.key)
    if told_to_end:
        workflow.note("This job was told to end while it ran.", always=True)
        success = False
    workflow.close()
    return success


def _exit_code(run: Callable[[], bool]) -> int:
    """What `snakemake.cli.main` makes of an end."""
    try:
        return 0 if run() else 1
    except SystemExit as error:
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code & 0xFF
        sys.stderr.write(f"{error.code}\n")
        return 1
    except Exception as error:  # noqa: BLE001 - as Snakemake's main does
        from snakemake.exceptions import print_exception

        print_exception(error)
        return 1


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
