"""The command of a cold start, and what an attempt's end is called."""

import asyncio
import signal
import subprocess
import sys

import pytest
from supervising import run_setup

from snakemake_executor_plugin_dask.model.jobs import JobSpec
from snakemake_executor_plugin_dask.worker.supervisor.attempt import Attempt, cold_command, seconds

HOSTILE = ("--target-jobs", "a:x=it's $(touch HACKED),b\\c", "--", "\n", "", "é;")


def spec(**changes):
    values = {
        "key": "k",
        "name": "r",
        "jobid": "1",
        "attempt": 1,
        "max_threads": 1,
        "log_path": "/l",
        "arguments": HOSTILE,
    }
    return JobSpec(**{**values, **changes})


def test_arguments_are_a_list(tmp_path):
    """A job's own arguments come before the general ones; nothing is quoted."""
    setup = run_setup(tmp_path, python="/p", general_arguments=("--nolock",))
    assert cold_command(setup, spec(), None) == ["/p", "-m", "snakemake", *HOSTILE, "--nolock"]
    entry = cold_command(setup, spec(overrides=b"x"), 7)
    assert entry[:5] == ["/p", "-m", "snakemake_executor_plugin_dask.worker.entry", "7", "--target-jobs"]


def test_job_script_is_executed_or_read_by_sh(tmp_path):
    """A script with the executable bit is run itself, another by sh."""
    script = tmp_path / "job.sh"
    script.write_text("")
    setup = run_setup(tmp_path)
    assert cold_command(setup, spec(script=str(script)), None) == ["/bin/sh", str(script)]
    script.chmod(0o700)
    assert cold_command(setup, spec(script=str(script)), None) == [str(script)]


@pytest.mark.parametrize("precommand", ["true", "true # remark", "X=1; export X", "cd /\ntrue"])
def test_precommand_is_shell_but_the_arguments_are_not(tmp_path, precommand):
    """The precommand is shell text; the arguments pass the shell untouched."""
    setup = run_setup(tmp_path, python=sys.executable, precommand=precommand)
    command = cold_command(setup, spec(), None)
    show = ["-c", "import sys; print(repr(sys.argv[1:]))"]
    at = command.index("-m")
    done = subprocess.run([*command[:at], *show, *command[at + 2 :]], capture_output=True, text=True, check=True)
    assert done.stdout == repr(list(HOSTILE)) + "\n"


def test_failing_precommand_fails_the_job(tmp_path):
    """Without its precommand a job's Snakemake does not start."""
    setup = run_setup(tmp_path, precommand="exit_of_nothing() { return 3; }; exit_of_nothing")
    assert subprocess.run(cold_command(setup, spec(), None), check=False).returncode == 3


def test_durations_for_people():
    """Whole minutes and hours are said as such."""
    assert [seconds(value) for value in (0.5, 9.87, 61, 60, 5400, 7200)] == [
        "0.5 s",
        "9.87 s",
        "61 s",
        "1 min",
        "90 min",
        "2 h",
    ]


@pytest.mark.parametrize(
    ("wait_status", "log", "told"),
    [
        (int(signal.SIGKILL), "", True),
        (1 << 8, "Command 'x' died with <Signals.SIGKILL: 9>.", True),
        (1 << 8, "Command 'x' returned non-zero exit status 137.", True),
        (1 << 8, "Command 'x' returned non-zero exit status 9.", False),
        (0, "", False),
    ],
)
def test_the_kernel_is_named_only_where_something_of_the_job_was_killed(tmp_path, wait_status, log, told):
    """Its count is that of the whole machine: most jobs that fail meanwhile failed by themselves."""
    path = tmp_path / "log"
    path.write_text(f'CalledProcessError in file "/w/Snakefile", line 6:\n{log}\n')

    async def ended():
        loop = asyncio.get_running_loop()
        attempt = Attempt(spec(), loop.create_future(), loop.create_future(), log=str(path))
        attempt.leader.set_result(wait_status)
        attempt.words = attempt.read_log(str(tmp_path))
        return attempt.outcome(None, lambda: 1)

    assert ("the kernel killed processes" in asyncio.run(ended()).detail) is told


SHELL_ENDED = "CalledProcessError in file \"Snakefile\", line 3:\nCommand 'set -euo pipefail; x' {}\n"
KILLED = SHELL_ENDED.format("died with <Signals.SIGKILL: 9>.")
TERMINATED = SHELL_ENDED.format("returned non-zero exit status 143.")
FAILED = SHELL_ENDED.format("returned non-zero exit status 7.")


@pytest.mark.parametrize(
    ("status", "log", "verdict", "doubt"),
    [
        (0, "", None, 0),
        (signal.SIGTERM, "", None, 1),
        (signal.SIGSEGV, "", None, 0.1),
        (143 << 8, "", None, 1),
        (1 << 8, KILLED, None, 1),
        (1 << 8, TERMINATED, None, 1),
        (1 << 8, FAILED, None, 0.1),
        (signal.SIGKILL, "", "out-of-memory", 0),
        (signal.SIGKILL, "", "lost", 1),
    ],
)
def test_whether_a_job_failed_by_itself_is_doubted(tmp_path, status, log, verdict, doubt):
    """Longest where a signal ended it that ends whole allocations; not at all where the reason is known."""
    (tmp_path / "log").write_text(log)

    async def doubted():
        loop = asyncio.get_running_loop()
        attempt = Attempt(spec(), loop.create_future(), loop.create_future(), log=str(tmp_path / "log"))
        attempt.leader.set_result(status)
        attempt.verdict = verdict and (verdict, "why")
        attempt.words = attempt.read_log(str(tmp_path))
        return attempt.doubt_s()

    assert asyncio.run(doubted()) == doubt
