"""The supervisor with real processes: nothing of a job survives it, limits hold, and no log costs a job."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import slowness, wait_for
from supervising import RUN_ID, alive, fake_worker, marked_processes, pids_in, run_setup

from snakemake_executor_plugin_dask.model.job_messages import Ending, Kill, Leave, Renew
from snakemake_executor_plugin_dask.node.processes import kill_worker
from snakemake_executor_plugin_dask.worker.attach import end_from_outside

PYTHON = sys.executable


@pytest.fixture
def worker(tmp_path):
    with fake_worker(tmp_path) as supervised:
        yield supervised


def python(code, *arguments):
    return f"exec {PYTHON} -c '{code}' {' '.join(map(str, arguments))}"


def test_outcome_of_success_and_failure(worker):
    """Exit code, signal, and the log's tail come back as they are."""
    ok = worker.outcome(worker.start("echo fine"))
    assert (ok.status, ok.exit_code, ok.log_tail, ok.detail) == ("succeeded", 0, "", "")
    assert Path(ok.log_path).read_text() == "fine\n"
    bad = worker.outcome(worker.start("printf '\\033[31mred\\033[0m\\n'; for i in $(seq 30); do echo $i; done; exit 7"))
    assert (bad.status, bad.exit_code, bad.signal) == ("failed", 7, None)
    assert bad.log_tail.split("\n") == [str(i) for i in range(11, 31)]
    killed = worker.outcome(worker.start("kill -SEGV $$"))
    assert (killed.status, killed.exit_code, killed.signal) == ("failed", None, signal.SIGSEGV)


def test_end_is_told_at_once(worker):
    """There is no polling between a process's end and the message."""
    delays = []
    for _ in range(10):
        outcome = worker.outcome(key := worker.start("date +%s.%N"))
        delays.append(worker.ended_at[key] - float(Path(outcome.log_path).read_text()))
    assert sorted(delays)[5] < 0.2 * slowness()


def test_leftovers_are_ended_before_the_end_is_told(worker, tmp_path):
    """Background processes, daemons that forked twice and left the session, and those without a marked environment."""
    script = f"""
        (trap '' TERM HUP; echo $BASHPID >> {tmp_path}/pids; exec sleep 1000) &
        setsid -f bash -c 'trap "" TERM HUP; echo $$ >> {tmp_path}/pids; sleep 1000; sleep 1000'
        setsid -f env -i {PYTHON} -c '
import os, time
open("{tmp_path}/pids", "a").write(str(os.getpid()) + chr(10))
time.sleep(1000)'
        while [ $(wc -l < {tmp_path}/pids) -lt 3 ]; do sleep 0.05; done
    """
    outcome = worker.outcome(worker.start(script))
    left = [pid for pid in pids_in(tmp_path / "pids", 3) if alive(pid)]
    assert (outcome.status, left) == ("succeeded", [])


def test_a_job_may_be_bound_to_cores(worker, tmp_path):
    """Only that one; the next has all of the worker's again."""
    cores = sorted(os.sched_getaffinity(0))
    for number, affinity in enumerate(((cores[-1],), ())):
        worker.outcome(worker.start(f"taskset -cp $$ > {tmp_path}/{number}", affinity=affinity))
    found = [(tmp_path / str(number)).read_text().rpartition(": ")[2].strip() for number in range(2)]
    assert found[0] == str(cores[-1])
    assert found[1] != found[0] or len(cores) == 1


def test_a_stopped_supervisor_is_ended_from_outside(worker, tmp_path):
    """As the driver of a run on an attached cluster does it on its own machine: nothing goes on, or starts, later."""
    key = worker.start(f"setsid -f bash -c 'echo $$ > {tmp_path}/pids; exec sleep 1000'; sleep 1000")
    pids_in(tmp_path / "pids", 1)
    worker.process.send_signal(signal.SIGSTOP)
    worker.start(f"touch {tmp_path}/late")
    assert end_from_outside(worker.process.pid, {key})
    assert worker.process.wait(30) == -signal.SIGKILL
    assert not marked_processes()
    assert not (tmp_path / "late").exists()


def test_daemons_of_another_job_survive(worker, tmp_path):
    """The end of one job does not touch what another one started in the background."""
    first = worker.start(f"setsid -f bash -c 'echo $$ > {tmp_path}/pids; exec sleep 1000'; sleep 1000")
    (daemon,) = pids_in(tmp_path / "pids", 1)
    worker.outcome(worker.start("setsid -f sleep 1000"))
    assert alive(daemon)
    worker.send(Kill(first, "enough"))
    assert worker.outcome(first).status == "cancelled"
    assert not alive(daemon)


def test_cancelled_job_gets_sigterm_then_sigkill(worker, tmp_path):
    """A tree that heeds SIGTERM ends by itself; grandchildren that ignore it, and stopped ones, are killed."""
    polite = worker.start(
        f"trap 'echo bye > {tmp_path}/bye; exit 9' TERM; touch {tmp_path}/on; while :; do sleep 0.1; done"
    )
    wait_for((tmp_path / "on").exists, "the job did not start")
    worker.send(Kill(polite, "it was not needed"))
    outcome = worker.outcome(polite)
    assert (outcome.status, outcome.exit_code, outcome.detail) == ("cancelled", 9, "it was not needed")
    assert (tmp_path / "bye").exists()
    rude = worker.start(
        f"trap '' TERM; (trap '' TERM; echo $BASHPID >> {tmp_path}/pids; sleep 1000; sleep 1000) &\n"
        f"(echo $BASHPID >> {tmp_path}/pids; kill -STOP $BASHPID) & sleep 1000; sleep 1000"
    )
    pids = pids_in(tmp_path / "pids", 2)
    started = time.monotonic()
    worker.send(Kill(rude, "enough"))
    outcome = worker.outcome(rude)
    assert (outcome.status, outcome.signal) == ("cancelled", signal.SIGKILL)
    assert time.monotonic() - started >= 1.9, "the grace period was kept"
    assert not any(map(alive, pids))
    assert not marked_processes()


def test_runtime_limit_ends_the_tree_and_says_so(worker, tmp_path):
    """The time limit counts from the job's own start."""
    key = worker.start(f"(echo $BASHPID > {tmp_path}/pids; sleep 1000); sleep 1000", runtime_limit_s=1.0)
    (pid,) = pids_in(tmp_path / "pids", 1)
    outcome = worker.outcome(key)
    assert outcome.status == "out-of-time"
    assert outcome.detail.startswith("runtime of 1 s exceeded after 1")
    assert not alive(pid)


def test_fast_memory_grower_is_ended_alone(worker, tmp_path):
    """A job that grows by gigabytes a second is caught near its limit; its neighbour goes on."""
    neighbour = worker.start(f"until test -e {tmp_path}/go; do sleep 0.1; done", memory_limit_mb=500)
    fast = "x = []\nwhile True:\n    x.append(bytearray(5_000_000))"
    outcome = worker.outcome(worker.start(f"{PYTHON} -c '{fast}' & wait", memory_limit_mb=500))
    assert outcome.status == "out-of-memory"
    assert 500 <= outcome.peak_memory_mb < 500 + 1000 * slowness()
    assert "exceeded the limit of 500 MB (mem_mb)" in outcome.detail
    (tmp_path / "go").touch()
    assert worker.outcome(neighbour).status == "succeeded"


def test_memory_of_many_processes_adds_up(worker):
    """No process alone exceeds the limit; together they do."""
    hold = f"{PYTHON} -c 'import time; x = bytearray(60_000_000); time.sleep(1000)'"
    outcome = worker.outcome(worker.start(f"for i in 1 2 3 4; do {hold} & done; wait", memory_limit_mb=200))
    assert outcome.status == "out-of-memory"


def test_memory_that_processes_share_counts_once(worker):
    """Forked children that only read their parent's memory do not multiply it."""
    # It is held for longer than from one look at a job's memory to the next.
    code = (
        "import os, time, sys\nx = bytearray(150_000_000)\n"
        "pids = [p for p in (os.fork() for _ in range(3)) if p]\ntime.sleep(2.5)"
    )
    outcome = worker.outcome(worker.start(python(code), memory_limit_mb=300))
    assert outcome.status == "succeeded", outcome.detail
    assert outcome.peak_memory_mb == pytest.approx(150, rel=0.3)


def test_limits_can_be_switched_off(tmp_path):
    """`--dask-enforce none` measures memory only; a time limit that is sent all the same is that of the allocation."""
    setup = run_setup(tmp_path, enforce_memory=False, enforce_runtime=False)
    with fake_worker(tmp_path, setup) as worker:
        # For longer than from one look at a job's memory to the next.
        hold = python("import time; x = bytearray(80_000_000); time.sleep(2)")
        outcome = worker.outcome(worker.start(hold, memory_limit_mb=20))
        assert outcome.status == "succeeded"
        assert outcome.peak_memory_mb > 80
        assert worker.outcome(worker.start("sleep 1000", runtime_limit_s=0.5)).status == "out-of-time"


def test_jobs_with_a_time_limit_are_forgotten(worker):
    """A job that ended before its limit is not kept until then."""

    def resident_mb():
        pages = int(Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6

    worker.outcome(worker.start("true", call=os.urandom(1_000_000), runtime_limit_s=86400.0))
    before = resident_mb()
    for _ in range(60):
        worker.outcome(worker.start("true", call=os.urandom(1_000_000), runtime_limit_s=86400.0))
    assert resident_mb() - before < 30


def test_measured_use_is_right(worker, tmp_path):
    """Peak memory and CPU time of a tree with known use, daemon included."""
    # They say themselves what they spent: on a busy machine an interpreter's start may cost as much as their work.
    # Memory is held, and the daemon's end left behind, for longer than from one look to the next.
    burn = (
        "import time\nx = bytearray(200_000_000)\nend = time.process_time() + 1.0\n"
        "while time.process_time() < end: pass\ntime.sleep(1.2)"
    )
    spent = (
        "import os, time\nwhile time.process_time() < 0.5: pass\n"
        f'with open("{tmp_path}/writing", "w") as f: print(time.process_time(), file=f)\n'
        f'os.rename("{tmp_path}/writing", "{tmp_path}/daemon")'
    )
    script = (
        f"{PYTHON} -S -c '{burn}' & setsid -f {PYTHON} -S -c '{spent}'; wait; "
        f"until test -e {tmp_path}/daemon; do sleep 0.1; done; sleep 1.5; times > {tmp_path}/others"
    )
    outcome = worker.outcome(worker.start(script))
    assert outcome.peak_memory_mb == pytest.approx(206, rel=0.05)
    others_s = sum(
        60 * float(minutes) + float(seconds)
        for minutes, seconds in re.findall(r"(\d+)m([\d.]+)s", (tmp_path / "others").read_text())
    )
    known_s = others_s + float((tmp_path / "daemon").read_text())
    assert known_s >= 1.5
    assert outcome.cpu_s == pytest.approx(known_s, rel=0.05, abs=0.1)


def test_end_of_the_worker_ends_everything(worker, tmp_path):
    """When the worker goes, all its jobs' processes are killed at once, and the supervisor leaves."""
    daemon = f"setsid -f bash -c 'trap \"\" TERM; echo $$ >> {tmp_path}/pids; sleep 1000; sleep 1000'"
    worker.start(f"trap '' TERM; {daemon}; sleep 1000")
    worker.start(f"(trap '' TERM; echo $BASHPID >> {tmp_path}/pids; sleep 1000; sleep 1000) & sleep 1000")
    pids = pids_in(tmp_path / "pids", 2)
    worker.close()
    assert worker.wait() == 0
    assert not any(map(alive, pids))
    assert not marked_processes()


def test_sigkill_of_the_supervisor_ends_the_leaders(worker):
    """A job's first process dies with its supervisor, whatever it ignores."""
    key = worker.start("trap '' TERM HUP INT; while :; do sleep 0.2; done")
    leader = worker.wait_started(key)
    os.kill(worker.process.pid, signal.SIGKILL)
    wait_for(lambda: not alive(leader), "the leader outlived the supervisor")


def test_signals_to_the_supervisor_end_no_job(worker, tmp_path):
    """SIGINT, SIGTERM and SIGHUP of others are not for the supervisor."""
    key = worker.start(f"until test -e {tmp_path}/go; do sleep 0.1; done")
    worker.wait_started(key)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker.process.pid, number)
    (tmp_path / "go").touch()
    assert worker.outcome(key).status == "succeeded"


def test_orderly_stop_tells_of_each_job(worker):
    """Jobs that run when the worker stops are ended and reported."""
    key = worker.start("sleep 1000")
    worker.wait_started(key)
    worker.send(Leave())
    assert worker.outcome(key).status == "cancelled"
    assert worker.wait() == 0


def test_lease_that_runs_out_ends_the_jobs(tmp_path):
    """Nobody renews: the jobs end, and so does the supervisor. As long as somebody does, they live."""
    lease_s = min(4 * slowness(), 12.0)
    with fake_worker(tmp_path, run_setup(tmp_path, lease_s=lease_s)) as worker:
        key = worker.start("sleep 1000")
        pid = worker.wait_started(key)
        renew(worker, 1.5 * lease_s, 0.1)  # far oftener than it would run out
        assert alive(pid)
        outcome = worker.outcome(key)
        assert (outcome.status, alive(pid)) == ("lost", False)
        assert "no renewal" in outcome.detail
        assert worker.wait() == 0


def renew(worker, seconds, every_s):
    """Renew the lease for so long."""
    until, number = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        worker.send(Renew(number))
        number += 1
        time.sleep(every_s)


def test_a_job_that_meets_the_supervisors_end_is_lost_and_has_not_failed(tmp_path):
    """It was on its way when the supervisor began to end, has no process, and runs elsewhere."""
    with fake_worker(tmp_path) as worker:
        worker.send(Leave())
        key = worker.start(f"touch {tmp_path}/ran")
        assert worker.outcome(key).status == "lost"
        assert worker.others[-1:] == [Ending()]
        assert worker.wait() == 0
    assert not (tmp_path / "ran").exists()


def test_stopped_supervisor_does_not_take_late_renewals(tmp_path):
    """Renewals that waited while the supervisor stood still do not revive its lease."""
    lease_s = min(4 * slowness(), 12.0)
    with fake_worker(tmp_path, run_setup(tmp_path, lease_s=lease_s)) as worker:
        key = worker.start("sleep 1000")
        pid = worker.wait_started(key)
        os.kill(worker.process.pid, signal.SIGSTOP)
        renew(worker, 1.5 * lease_s, lease_s / 4)  # a few: who reads nothing has no room for many
        os.kill(worker.process.pid, signal.SIGCONT)
        assert worker.outcome(key).status == "lost"
        assert not alive(pid)


def test_unwritable_log_directory_does_not_lose_the_job(worker, tmp_path):
    """A log that cannot be made goes elsewhere, and the outcome says where."""
    (tmp_path / "file").write_text("")
    outcome = worker.outcome(worker.start("echo out; exit 3", log_path=str(tmp_path / "file" / "sub" / "job.log")))
    assert (outcome.status, outcome.log_tail) == ("failed", "out")
    assert outcome.log_path != str(tmp_path / "file" / "sub" / "job.log")
    assert "could not be written (Not a directory)" in outcome.detail
    os.unlink(outcome.log_path)


def test_a_log_elsewhere_goes_with_a_success(tmp_path):
    """It would stay on its node for ever. Its last lines are told, and the directory is left to other logs."""
    (tmp_path / "file").write_text("")
    logs = tmp_path / "tmp" / f"snakemake-dask-{os.getuid()}"
    logs.parent.mkdir()
    places = {"TMPDIR": str(logs.parent)}
    for keep in (False, True):
        setup = run_setup(tmp_path, keep_logs=keep, environment={**os.environ, **places})
        with fake_worker(tmp_path, setup) as worker:
            path = str(tmp_path / "file" / "job.log")
            outcome = worker.outcome(worker.start("echo fine", log_path=path))
            assert (outcome.status, outcome.log_path) == ("succeeded", str(logs / "job.log"))
            assert outcome.log_tail == ("" if keep else "fine")
            assert logs.exists() is keep
    assert (logs / "job.log").read_text() == "fine\n"


def test_local_copies_of_an_earlier_run_are_gone_before_the_job_starts(worker, tmp_path):
    """A lost run of the same attempt may have left half of them; what this run puts there goes after it."""
    place = tmp_path / "copies" / "job"
    (place / "deep").mkdir(parents=True)
    (place / "deep" / "half").write_text("half")
    code = f"ls -A {tmp_path}/copies; mkdir {place} && touch {place}/whole; exit 3"
    outcome = worker.outcome(worker.start(code, local_copies=str(place)))
    assert (outcome.exit_code, outcome.log_tail) == (3, "")
    assert list((tmp_path / "copies").iterdir()) == []
    outcome = worker.outcome(worker.start("exit 0", local_copies=f"{tmp_path}/{'long' * 100}"))
    assert outcome.status == "not-started"
    assert "could not be moved away: File name too long" in outcome.detail


#: A file server that does not answer whoever wants to read this one file, as long as another one is there.
HANGING = """\
import os, time

def opened(path, flags, *more, open=os.open, **others):
    if os.fspath(path) == {log!r} and flags & os.O_ACCMODE == os.O_RDONLY:
        with open_file({asked!r}, "w"):
            pass
        while os.path.exists({hangs!r}):
            time.sleep(0.02)
    return open(path, flags, *more, **others)

open_file, os.open = open, opened
"""


def test_log_that_cannot_be_read_holds_up_nobody_else(tmp_path):
    """While the last lines of one job's log do not come, as on a file server that hangs, other jobs start and end."""
    log, asked, hangs = (os.fspath(tmp_path / name) for name in ("job.log", "asked", "hangs"))
    Path(hangs).touch()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HANGING.format(log=log, asked=asked, hangs=hangs))
    with fake_worker(tmp_path, environment={**os.environ, "PYTHONPATH": str(tmp_path / "site")}) as worker:
        held = worker.start("echo last; exit 3", log_path=log)
        wait_for(Path(asked).exists, "the log was not read")
        assert worker.outcome(worker.start("true")).status == "succeeded"
        assert held not in worker.outcomes
        Path(hangs).unlink()
        outcome = worker.outcome(held)
    assert (outcome.status, outcome.exit_code, outcome.log_tail) == ("failed", 3, "last")


def test_a_log_that_a_job_replaced_by_a_pipe_is_not_waited_for(worker, tmp_path):
    """Nobody writes to it, and nobody has to."""
    log = tmp_path / "job.log"
    outcome = worker.outcome(worker.start(f"rm {log}; mkfifo {log}; exit 3", log_path=str(log)))
    assert (outcome.status, outcome.exit_code, outcome.log_tail) == ("failed", 3, "")


def test_supervisor_that_cannot_prepare_leaves(tmp_path):
    """Without a directory for its jobs it would be of no use, and must not look alive by its lease."""
    with fake_worker(tmp_path, run_setup(tmp_path, scratch=str(tmp_path / "missing"))) as worker:
        worker.start("true")
        assert worker.wait() == 0
        assert "No such file or directory" in worker.stderr.read_text()


def test_full_disk_under_the_logs_does_not_lose_the_job(worker, tmp_path):
    """A file system that makes the file but takes no byte is noticed before the job starts."""
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", full], check=True)
    try:
        with open(full / "ballast", "wb", buffering=0) as file:
            assert file.write(b"x" * 100_000) < 100_000
        outcome = worker.outcome(worker.start("echo out", log_path=str(full / "job.log")))
    finally:
        subprocess.run(["umount", "-l", full], check=True)
    assert (outcome.status, outcome.log_tail) == ("succeeded", "out")
    assert "No space left on device" in outcome.detail
    assert not os.path.exists(outcome.log_path)


def test_job_that_cannot_start_says_why(tmp_path):
    """A missing Python and a missing working directory are this job's outcome, with host and path."""
    with fake_worker(tmp_path, run_setup(tmp_path, python="/no/python")) as worker:
        outcome = worker.outcome(worker.submit(arguments=("--version",)))
        assert outcome.status == "not-started"
        assert "/no/python cannot be executed: No such file or directory" in outcome.detail
        assert outcome.host in outcome.detail
    with fake_worker(tmp_path, run_setup(tmp_path / "gone")) as worker:
        outcome = worker.outcome(worker.start("true"))
        assert outcome.status == "not-started"
        assert f"the working directory {tmp_path}/gone cannot be entered" in outcome.detail


def test_no_more_processes_is_one_jobs_trouble(worker):
    """When no process can be made, that job says so, and the next one runs."""
    worker.outcome(worker.start("true"))
    many = resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{worker.process.pid}/fd"))
    resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (used, many[1]))
    outcome = worker.outcome(worker.start("true"))
    assert (outcome.status, "Too many open files" in outcome.detail) == ("not-started", True)
    resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, many)
    assert worker.outcome(worker.start("true")).status == "succeeded"


def test_job_has_what_a_local_job_has(tmp_path):
    """Environment to the byte, working directory, umask, limits, signals, stdin, and a session of its own."""
    environment = {
        **os.environ,
        "ODD": os.fsdecode(b"a\xff\n'$(x)"),
        os.fsdecode(b"N\xfe"): "v",
        "EMPTY": "",
        "GONE": "1",
    }
    (tmp_path / "wd").mkdir()
    limits = ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 333), (resource.RLIMIT_STACK, resource.RLIM_INFINITY))
    setup = run_setup(tmp_path / "wd", environment=environment, umask=0o027, soft_limits=limits)
    code = (
        "import os, resource as r, signal as s, json, sys\n"
        "signals = [n for n in s.valid_signals() if s.getsignal(n) == s.SIG_IGN]\n"
        "print(json.dumps([os.getcwd(), os.umask(0), [r.getrlimit(n)[0] for n in (r.RLIMIT_CORE, r.RLIMIT_NOFILE)],\n"
        "  [int(n) for n in signals], sorted(s.pthread_sigmask(s.SIG_BLOCK, ())), sys.stdin.read(),\n"
        "  os.getsid(0) == os.getpid(),\n"
        '  sorted(int(n) for n in os.listdir("/proc/self/fd"))]))\n'
        'sys.stdout.flush(); sys.stdout.buffer.write(open("/proc/self/environ", "rb").read())'
    )
    with fake_worker(tmp_path, setup, environment=environment) as worker:
        script = tmp_path / "wd" / "show.py"
        script.write_text(f"#!{PYTHON}\n{code}\n")
        script.chmod(0o700)
        key = worker.submit(script=str(script), environment=(("SET", "é"), ("GONE", None)))
        outcome = worker.outcome(key)
    line, _, environ = Path(outcome.log_path).read_bytes().partition(b"\n")
    cwd, umask, soft, ignored, blocked, stdin, leads, descriptors = json.loads(line)
    assert (cwd, umask, soft) == (str(tmp_path / "wd"), 0o027, [0, 333])
    # Python itself ignores these two, in every process.
    assert set(ignored) <= {signal.SIGPIPE, signal.SIGXFSZ}
    assert (blocked, stdin, leads) == ([], "", True)
    assert descriptors[:3] == [0, 1, 2]
    assert len(descriptors) == 4, "no descriptor of the supervisor is inherited; the fourth is the listing's own"
    expected = {**environment, "SET": "é", "SNAKEMAKE_DASK_JOB": key}
    del expected["GONE"]
    assert set(environ.rstrip(b"\0").split(b"\0")) == {
        os.fsencode(f"{name}={value}") for name, value in expected.items()
    }


def test_many_short_jobs(worker):
    """Hundreds of jobs that end at once are all started, reported, and leave nothing open."""
    worker.outcome(worker.start("true"))
    before = len(os.listdir(f"/proc/{worker.process.pid}/fd"))
    keys = [worker.start("true") for _ in range(300)]
    assert {worker.outcome(key).status for key in keys} == {"succeeded"}
    wait_for(lambda: len(os.listdir(f"/proc/{worker.process.pid}/fd")) <= before + 2, "descriptors are left open")
    assert worker.stderr.read_text() == ""


def test_killing_a_worker_ends_a_frozen_supervisor_and_its_jobs(tmp_path):
    """When worker and supervisor both stand still, another process can end everything of this worker, and only that."""
    run = tmp_path / RUN_ID
    run.mkdir()
    config = {"host": "127.0.0.1", "port": 1, "ca": "/dev/null", "cert": "", "key": "", "worker": "w-1"}
    (run / "lease-w-1.json").write_text(json.dumps(config))
    other = tmp_path / "other"
    other.mkdir()
    with fake_worker(other) as beside:
        bystander = beside.wait_started(beside.start("sleep 1000"))
        # Its command line is that of a worker's supervisor; without certificates it cannot connect.
        with fake_worker(run) as worker:
            key = worker.start(f"setsid -f bash -c 'echo $$ > {tmp_path}/pids; exec sleep 1000'; sleep 1000")
            leader, (daemon,) = worker.wait_started(key), pids_in(tmp_path / "pids", 1)
            worker.process.send_signal(signal.SIGKILL)
            worker.wait()
            assert kill_worker(str(run), "w-1", [RUN_ID])
            assert not any(map(alive, (leader, daemon)))
            assert alive(bystander)
