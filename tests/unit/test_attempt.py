"""The command of a cold start, and what an attempt's end is called."""

import subprocess
import sys

import pytest
from supervising import run_setup

from snakemake_executor_plugin_dask.jobs import JobSpec
from snakemake_executor_plugin_dask.worker.attempt import cold_command, seconds

HOSTILE = ("--target-jobs", "a:x=it's $(touch HACKED),b\\c", "--", "\n", "", "é;")


def spec(**changes):
    values = {"key": "k", "name": "r", "jobid": "1", "attempt": 1, "cores": 1, "log_path": "/l", "arguments": HOSTILE}
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
