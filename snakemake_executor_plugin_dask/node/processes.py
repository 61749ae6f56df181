"""Start and end processes, and read the process table (`/proc`). Standard library only; Linux only.

Races with process numbers: a number may be given to another process once its parent has waited for it. So functions
that signal read the table immediately before.
"""

import contextlib
import ctypes
import errno
import functools
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, NoReturn

from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.node.environment import JOB
from snakemake_executor_plugin_dask.node.logs import open_log

_KILL_S = 10.0
_PR_SET_PDEATHSIG = 1
_STAT_BYTES = 1024
_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36
_OOM_SCORE = 500  # added for jobs, so that the kernel ends them rather than the worker when the node is full
_libc = ctypes.CDLL(None, use_errno=True)
SUPERVISOR = b"snakemake_executor_plugin_dask.worker.supervisor"


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def become_subreaper() -> None:
    """From now on orphans among this process's descendants become its children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Let the kernel send SIGKILL to this process once the thread that forked it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def why_cold() -> str:
    """Why jobs on this host cannot start warm, as a sentence; empty where they can."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        host, kernel = os.uname().nodename, os.uname().release
        return (
            f"jobs start cold on {host}, which costs each a second or two: warm starts need pidfd_open (Linux "
            f"5.3), which its kernel {kernel} does not offer ({error})."
        )
    return ""


# The process table


@dataclass(frozen=True, slots=True)
class Stat:
    """A line of the process table. ``start``, in clock ticks since boot, names a process for good with its number."""

    pid: int
    ppid: int
    state: str
    session: int
    threads: int
    start: int

    @property
    def dead(self) -> bool:
        """It has ended, and waits at most for its parent to take note."""
        return self.state in "ZX"


def proc_file(pid: int, name: str, size: int = -1) -> bytes:
    """A file of the process table about a process, or so many bytes; empty where it is gone, or does not show it."""
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
            return file.read(size) or b""
    except OSError:
        return b""


def read_stat(pid: int) -> Stat | None:
    """None where there is no such process."""
    data = proc_file(pid, "stat", _STAT_BYTES)
    try:
        fields = data[data.rindex(b")") + 2 :].split()  # the name before may hold anything
        return Stat(pid, int(fields[1]), chr(fields[0][0]), int(fields[3]), int(fields[17]), int(fields[19]))
    except (ValueError, IndexError):
        return None


def state_of(pid: int) -> str:
    """A process's state as the process table has it, such as "T"; empty where it is gone."""
    stat = read_stat(pid)
    return "" if stat is None else stat.state


def cpu_s(pid: int) -> float | None:
    """CPU time of a process and of its children that have ended and were waited for; None where there is none such."""
    data = proc_file(pid, "stat", _STAT_BYTES)
    try:
        return sum(map(int, data[data.rindex(b")") + 2 :].split()[11:15])) / _TICKS
    except ValueError:
        return None


def all_pids() -> list[int]:
    """The numbers of all processes that this one may see."""
    return [int(name) for name in os.listdir("/proc") if name[0].isdigit()]


def process_table() -> dict[int, Stat]:
    """Every process that this one may see."""
    stats = (read_stat(pid) for pid in all_pids())
    return {stat.pid: stat for stat in stats if stat is not None}


def children_in(table: Mapping[int, Stat]) -> dict[int, list[Stat]]:
    """The direct children of each process in a table that has any."""
    children: dict[int, list[Stat]] = {}
    for stat in table.values():
        children.setdefault(stat.ppid, []).append(stat)
    return children


def children_of(pid: int) -> list[int]:
    """A process's direct children, adopted ones included; cheap where the kernel offers the list.

    Children belong to the thread that forked them, adopted ones to the first thread; so only the first thread may fork.
    """
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb", buffering=0) as file:
            return [int(item) for item in (file.readall() or b"").split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return [stat.pid for stat in process_table().values() if stat.ppid == pid]


def tree(
    table: Mapping[int, Stat], roots: Iterable[int], children: Mapping[int, list[Stat]] | None = None
) -> list[Stat]:
    """The roots that exist, and all their descendants, parents first. ``children``: what `children_in` gave."""
    children = children_in(table) if children is None else children
    found = {root: table[root] for root in roots if root in table}
    queue = list(found.values())
    for stat in queue:  # grows while it is walked
        for child in children.get(stat.pid, ()):
            if child.pid not in found:
                found[child.pid] = child
                queue.append(child)
    return queue


def _is_own(pid: int) -> bool:
    """Whether it runs as this process's user. Any other one may call itself, and carry, what it likes."""
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return False


def is_supervisor(pid: int) -> bool:
    """Whether it is the supervisor of a worker, of any run of this user's."""
    return SUPERVISOR in command_line(pid) and _is_own(pid)


def job_key(pid: int) -> str | None:
    """The attempt's key in the environment of a process of this user's, as it was when its program was executed."""
    if not _is_own(pid):
        return None
    _, found, rest = (b"\0" + proc_file(pid, "environ")).partition(b"\0" + JOB.encode() + b"=")
    return os.fsdecode(rest.partition(b"\0")[0]) if found else None


def command_line(pid: int) -> list[bytes]:
    """A process's arguments; empty where it has none or is gone."""
    return proc_file(pid, "cmdline").split(b"\0")[:-1]


# Ending


def send(pids: Iterable[int], number: int) -> None:
    """Signal each process; those that are gone, or no longer ours, are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill_descendants(pid: int, spared: Callable[[], Collection[int]] = tuple) -> bool:
    """SIGKILL all descendants of ``pid`` until none is alive; False where some are after ten seconds.

    Right for a process that is a subreaper, so that no descendant can leave the tree. ``spared``: of these children
    nothing is killed; asked for at each look, before it.
    """

    def living() -> list[int]:
        but = {pid, *spared()}
        table = process_table()
        others = {stat.pid for stat in tree(table, but - {pid})}
        return [stat.pid for stat in tree(table, [pid]) if stat.pid not in but | others and not stat.dead]

    return kill_until_gone(living)


def kill_worker(state_dir: str, worker: str, runs: Collection[str], timeout_s: float = _KILL_S) -> bool:
    """End what is left on this machine of a worker: its supervisors, and every process of its jobs.

    ``state_dir`` is its cluster's: by a path below it supervisors say whose they are. The worker itself must be dead.
    Jobs belong to it when they descend from a supervisor of it, or carry a key of one of the cluster's runs and descend
    from no other supervisor. Returns True once none of them is alive, False after ``timeout_s``.
    """
    everything = functools.partial(_of_worker, state_dir, worker, runs)
    # The supervisor comes last: while it lives, even stopped, its jobs' orphans come to it and stay in the tree.
    jobs_gone = kill_until_gone(lambda: [pid for pid in everything() if not is_supervisor(pid)], timeout_s / 2)
    return kill_until_gone(everything, timeout_s / 2) and jobs_gone


def _of_worker(state_dir: str, worker: str, runs: Collection[str]) -> list[int]:
    table = process_table()
    ours: set[int] = set()
    theirs: set[int] = set()
    for pid in table:
        if not is_supervisor(pid):
            continue
        arguments = command_line(pid)
        mine = any(
            argument.endswith(b"/lease-%b.json" % os.fsencode(worker))
            and argument.startswith(os.fsencode(f"{state_dir}/"))
            for argument in arguments
        )
        (ours if mine else theirs).add(pid)
    of_others = {stat.pid for stat in tree(table, theirs)}
    # As `jobs.task_key` writes them, with a zero where an id is of letters alone.
    marks = [f"-{zero}{run}-" for run in runs for zero in ("", "0")]
    marked = {
        pid
        for pid in table
        if pid not in of_others and (key := job_key(pid)) is not None and any(mark in key for mark in marks)
    }
    return [stat.pid for stat in tree(table, ours | marked) if not stat.dead and stat.pid not in theirs]


def kill_until_gone(living: Callable[[], Collection[int]], timeout_s: float = _KILL_S) -> bool:
    """SIGKILL what is ``living`` until nothing is; False where something still is after so long."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.005
    while pids := living():
        send(pids, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(0.1, pause_s * 2)
    return True


# Starting


@dataclass(frozen=True, slots=True)
class Launch:
    """A process to start. No shell reads the arguments."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    cwd: str
    output: str | None = None  # stdout and stderr are appended to this file; None: those of the supervisor
    umask: int | None = None
    soft_limits: tuple[tuple[int, int], ...] = ()
    affinity: tuple[int, ...] = ()  # empty: the supervisor's
    keep: tuple[int, ...] = ()  # descriptors that the process gets, under the same numbers


def fork() -> int:
    """As `os.fork`, without Python's warning where there are other threads.

    Some end themselves before a fork (OpenBLAS), and others are no concern of a child that soon executes a program. A
    user who makes warnings errors would have an exception and a child.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def spawn(launch: Launch) -> tuple[int, int]:
    """Fork, and return the child's number and a descriptor.

    The descriptor gives nothing but end of file once the program was executed, else the reason as text; so nothing that
    can block (a directory on a file server that hangs) blocks the caller. Raises OSError where no process can be made.
    """
    parent = os.getpid()
    readable, writable = os.pipe()
    try:
        pid = fork()
    except OSError:
        os.close(readable)
        os.close(writable)
        raise
    if pid == 0:
        _child(launch, parent, writable)
    os.close(writable)
    os.set_blocking(readable, False)
    return pid, readable


def _child(launch: Launch, parent: int, report: int) -> NoReturn:
    stage = "the process could not be set up"
    try:
        os.setsid()
        die_with_parent()
        if os.getppid() != parent:
            os._exit(125)
        _default_signals()
        volunteer("self")
        stage = f"the working directory {launch.cwd} cannot be entered"
        os.chdir(launch.cwd)
        stage = "stdin and stdout cannot be opened"
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        if launch.output is not None:
            stage = f"the log {launch.output} cannot be opened"
            output = open_log(launch.output)
            os.dup2(output, 1)
            os.dup2(output, 2)
        for descriptor in launch.keep:
            os.set_inheritable(descriptor, True)
        stage = "the process could not be set up"
        if launch.umask is not None:
            os.umask(launch.umask)
        for number, soft in launch.soft_limits:
            set_soft_limit(number, soft)
        if launch.affinity:
            os.sched_setaffinity(0, launch.affinity)
        stage = f"{launch.arguments[0]} cannot be executed"
        _execute(launch.arguments, dict(launch.environment))
    except BaseException as error:  # noqa: BLE001 - whatever it is, this copy of the supervisor must end here
        reason = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
        os.write(report, os.fsencode(f"{stage}: {reason}")[:4000])
    finally:
        os._exit(126)


def _default_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def volunteer(pid: int | Literal["self"]) -> None:
    """Raise a process's score for the kernel's out-of-memory killer; its user may raise it, and children inherit it."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(f"/proc/{pid}/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
        score = min(1000, int(os.read(descriptor, 16)) + _OOM_SCORE)
        os.pwrite(descriptor, b"%d" % score, 0)
        os.close(descriptor)


def set_soft_limit(number: int, soft: int) -> None:
    """Set a soft limit, or the hard limit where that is lower; a limit that this system lacks is passed over."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(number, (possible_soft_limit(number, soft), resource.getrlimit(number)[1]))


def possible_soft_limit(number: int, soft: int) -> int:
    """``soft``, or the hard limit where that is lower. Raises ValueError, OSError where this system lacks the limit."""
    hard = resource.getrlimit(number)[1]
    return hard if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard) else soft


def _execute(arguments: Sequence[str], environment: dict[str, str]) -> NoReturn:
    try:
        os.execvpe(arguments[0], list(arguments), environment)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    # A script without a first line that names its interpreter: the shell's own rule.
    os.execve("/bin/sh", ["sh", *arguments], environment)


def how_ended(code: int | None) -> str:
    """How a child process ended, from its return code as `subprocess` gives it: an exit code, or a signal's name."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # real-time signals have no names
        return f"signal {-code}"


def exit_status(status: int) -> tuple[int | None, int | None]:
    """Exit code and signal, of which one is None, from what `wait` said."""
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None
