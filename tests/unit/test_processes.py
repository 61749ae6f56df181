"""The process table, and trees in it."""

import os
import signal
import threading
import warnings

from snakemake_executor_plugin_dask.node.processes import (
    Launch,
    Stat,
    exit_status,
    how_ended,
    process_table,
    read_stat,
    spawn,
    tree,
)


def stat(pid, ppid, state="S"):
    return Stat(pid, ppid, state, 0, 1, 0)


def test_tree_holds_descendants_and_nothing_else():
    """Parents come before their children; roots that are not there are left out."""
    table = {entry.pid: entry for entry in (stat(1, 0), stat(5, 1), stat(3, 5), stat(4, 3), stat(9, 1), stat(8, 9))}
    assert [entry.pid for entry in tree(table, [5, 77])] == [5, 3, 4]
    assert {entry.pid for entry in tree(table, [5, 3, 9])} == {5, 3, 4, 9, 8}


def test_own_line_of_the_table():
    """A process finds itself, its parent and its session."""
    own = read_stat(os.getpid())
    assert own is not None
    assert (own.ppid, own.session, own.dead) == (os.getppid(), os.getsid(0), False)
    assert process_table()[os.getpid()].start == own.start
    assert read_stat(2**22 + 1) is None


def test_name_with_brackets_does_not_confuse():
    """A program may call itself anything."""
    with open("/proc/self/comm", "r+b", buffering=0) as file:
        name = file.read()
        try:
            file.write(b") R 1 (x")
            own = read_stat(os.getpid())
        finally:
            file.write(name)
    assert own is not None
    assert own.ppid == os.getppid()


def test_what_wait_says():
    """An exit code or a signal, never both."""
    assert exit_status(3 << 8) == (3, None)
    assert exit_status(signal.SIGKILL) == (None, signal.SIGKILL)


def test_how_a_process_ended():
    """By its exit code, or by the signal's name, where it has one."""
    assert [how_ended(code) for code in (0, 3, -9, -40)] == ["exit code 0", "exit code 3", "SIGKILL", "signal 40"]


def test_a_process_is_started_beside_threads():
    """Also for users who make warnings errors: Python warns of such a fork from 3.12 on, once the child is there."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pid, failure = spawn(Launch(("/bin/true",), dict(os.environ), "/"))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(failure)
    finally:
        done.set()
        thread.join()
