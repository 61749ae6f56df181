"""Jobs that are a real Snakemake: cold, through the entry module, and from the warm process."""

import dataclasses
import os
import pickle
import signal
from pathlib import Path

import pytest
from running import wait_for
from snakemake_interface_executor_plugins.utils import TargetSpec
from supervising import RUN_ID, alive, fake_worker, pids_in, run_setup
from system.warm_harness import plan

from snakemake_executor_plugin_dask.frontend.arguments import job_arguments
from snakemake_executor_plugin_dask.model.job_messages import Kill, Said, Start
from snakemake_executor_plugin_dask.node import processes, versions

SNAKEFILE = """
rule named:
    output: "out/{name}.txt"
    shell: "echo $SNAKEMAKE_DASK_JOB > {output:q}"

rule sleeps:
    output: "slept"
    shell: "echo $$ >> pids; sleep 1000; touch {output}"

# What these two hold they hold for longer than from one look at a job's memory to the next.
rule holds:
    output: "held"
    run:
        import time
        data = bytearray(300_000_000)
        time.sleep(2.5)
        open(output[0], "w").write("x")

rule shells:
    output: "shelled"
    shell: "python3 -S -c 'import time; x = bytearray(200_000_000); time.sleep(2.5)'; touch {output}"
"""

GENERAL = (
    *("--snakefile", "Snakefile", "--cores", "1", "--executor", "local", "--nolock", "--quiet", "--force"),
    *("--force-use-threads", "--mode", "remote", "--max-jobs-per-timespan", "1000/0s"),
)


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    return tmp_path


def target(rule):
    return ("--target-jobs", f"{rule}:", "--allowed-rules", rule)


def log(outcome):
    return Path(outcome.log_path).read_text()


def test_cold_job(workdir):
    """`python -m snakemake` makes the output."""
    with fake_worker(workdir, run_setup(workdir, general_arguments=GENERAL)) as worker:
        arguments = ("--target-jobs", "named:name=a", "--allowed-rules", "named")
        outcome = worker.outcome(key := worker.submit(arguments=arguments))
        assert outcome.status == "succeeded", log(outcome)
        assert (workdir / "out" / "a.txt").read_text() == key + "\n"


def test_entry_takes_what_a_command_line_cannot(workdir):
    """A wildcard with commas, quotes and `$()` is a value and not text; nothing is executed by it."""
    hostile = "a,b=c it's $(touch HACKED)"
    target = [TargetSpec("named", {"name": hostile})]
    arguments, overrides = job_arguments(
        snakefile="Snakefile",
        target=target,
        rules=["named"],
        cores=1,
        max_threads=1,
        attempt=1,
        groupid=None,
        unneeded_temp_files=[],
        wait_for_files=[],
    )
    assert overrides is not None
    with fake_worker(workdir, run_setup(workdir, general_arguments=GENERAL)) as worker:
        outcome = worker.outcome(worker.submit(arguments=arguments, overrides=overrides))
        assert outcome.status == "succeeded", log(outcome)
        assert (workdir / "out" / f"{hostile}.txt").exists()
        assert not (workdir / "HACKED").exists()
        wrong = pickle.dumps({"no_such_argument": 1})
        outcome = worker.outcome(worker.submit(arguments=("--allowed-rules", "named"), overrides=wrong))
        assert (outcome.status, outcome.exit_code) == ("failed", 1)
        assert "no argument with the destination `no_such_argument`" in outcome.log_tail


@pytest.mark.parametrize(("rule", "expected_mb"), [("holds", 300), ("shells", 203)])
def test_own_snakemake_does_not_count(workdir, rule, expected_mb):
    """The peak of a cold job is that of its work: in Snakemake's own process, and in one that it starts."""
    with fake_worker(workdir, run_setup(workdir, general_arguments=GENERAL)) as worker:
        outcome = worker.outcome(worker.submit(arguments=target(rule), memory_limit_mb=1000))
        assert outcome.status == "succeeded", log(outcome)
        assert outcome.peak_memory_mb == pytest.approx(expected_mb, rel=0.05)


def test_job_script_with_a_snakemake_of_its_own(workdir):
    """A custom job script's Snakemake is found below it, and does not count either."""
    setup = run_setup(workdir, general_arguments=GENERAL)
    command = " ".join([setup.python, "-m", "snakemake", *target("shells"), *GENERAL])
    with fake_worker(workdir, setup) as worker:
        outcome = worker.outcome(worker.start(command, memory_limit_mb=1000))
        assert outcome.status == "succeeded", log(outcome)
        assert outcome.peak_memory_mb == pytest.approx(205, rel=0.08)


@pytest.mark.parametrize("depth", [1, 2])
def test_warm_job(workdir, depth):
    """A job that the warm process forks is watched, limited and ended as any other."""
    setup = run_setup(workdir, general_arguments=GENERAL, job_start="warm", warm_depth=depth)
    with fake_worker(workdir, setup) as worker:
        arguments = ("--target-jobs", "named:name=a", "--allowed-rules", "named")
        outcome = worker.outcome(key := worker.submit(arguments=arguments))
        assert (outcome.status, outcome.start) == ("succeeded", "warm"), (log(outcome), outcome.detail)
        assert (workdir / "out" / "a.txt").read_text() == key + "\n"
        assert outcome.cpu_s > 0
        outcome = worker.outcome(worker.submit(arguments=target("shells"), memory_limit_mb=100))
        assert (outcome.status, outcome.start) == ("out-of-memory", "warm"), (log(outcome), outcome.detail)
        key = worker.submit(arguments=target("sleeps"))
        (pid,) = pids_in(workdir / "pids", 1)
        worker.send(Kill(key, "enough"))
        outcome = worker.outcome(key)
        assert (outcome.status, outcome.start, alive(pid)) == ("cancelled", "warm", False)


def warm_process(worker):
    table = processes.process_table()
    return next(
        stat.pid
        for stat in table.values()
        if stat.ppid == worker.process.pid
        and b"snakemake_executor_plugin_dask.worker.warm" in processes.command_line(stat.pid)
    )


def test_dead_warm_process_is_replaced(workdir):
    """Its job is lost, with no process left; the next job starts from a new one."""
    setup = run_setup(workdir, general_arguments=GENERAL, job_start="warm", warm_depth=2)
    with fake_worker(workdir, setup) as worker:
        key = worker.submit(arguments=target("sleeps"))
        (pid,) = pids_in(workdir / "pids", 1)
        os.kill(warm_process(worker), signal.SIGKILL)
        outcome = worker.outcome(key)
        assert (outcome.status, alive(pid)) == ("lost", False)
        assert "warm process" in outcome.detail
        arguments = ("--target-jobs", "named:name=b", "--allowed-rules", "named")
        outcome = worker.outcome(worker.submit(arguments=arguments))
        assert (outcome.status, outcome.start) == ("succeeded", "warm"), (log(outcome), outcome.detail)


def test_runner_that_dies_takes_its_shell_along(workdir):
    """The kernel's out-of-memory killer may take a job's own Snakemake alone; no second attempt meets its shell."""
    setup, (spec,) = plan(workdir, "--", "slept")
    setup = dataclasses.replace(setup, run_id=RUN_ID, plugin_version=versions.plugin_version())
    with fake_worker(workdir, setup) as worker:
        worker.send(Start(spec))
        (shell,) = pids_in(workdir / "pids", 1)
        assert worker.wait_started(spec.key) == shell
        os.kill(processes.read_stat(shell).ppid, signal.SIGKILL)
        outcome = worker.outcome(spec.key)
        assert (outcome.status, outcome.start, outcome.signal, alive(shell)) == ("failed", "warm", 9, False)


def test_snakefile_that_cannot_be_read_fails_the_job_with_its_reason(workdir):
    """However far the warm process gets, the job ends, and its log says what is wrong."""
    (workdir / "Snakefile").write_text("import no_such_module\n")
    setup = run_setup(workdir, general_arguments=GENERAL, job_start="warm")
    with fake_worker(workdir, setup) as worker:
        outcome = worker.outcome(worker.submit(arguments=target("named")))
        assert outcome.status == "failed"
        assert "No module named 'no_such_module'" in outcome.log_tail
        assert worker.process.poll() is None


def test_a_warm_process_that_is_killed_in_its_trial_leaves_nothing(workdir, tmp_path_factory):
    """The trial's files are in the worker's own directory, whatever its name, and go with that."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    own = tmp_path_factory.mktemp("worker") / 'it\'s {n} "x" $HOME \\n'
    own.mkdir()
    setup, (spec,) = plan(workdir, "--", "shelled")
    environment = {**setup.environment, **os.environ, "TMPDIR": str(elsewhere)}
    changes = {"run_id": RUN_ID, "plugin_version": versions.plugin_version(), "environment": environment}
    setup = dataclasses.replace(setup, **changes)
    with fake_worker(workdir, setup, "--scratch", str(own)) as worker:
        wait_for(lambda: list(own.glob("snakemake-dask-trial-*")), "the trial did not begin")
        os.kill(warm_process(worker), signal.SIGKILL)
        outcome = worker.outcome(worker.submit(arguments=spec.arguments))
        assert (outcome.status, outcome.start) == ("succeeded", "cold"), log(outcome)
        (said,) = [message.text for message in worker.others if isinstance(message, Said)]
        assert said.startswith("Jobs start cold, since: the warm process ended before it was ready. So each starts a")
    assert not own.exists()
    own.mkdir()
    with fake_worker(workdir, setup, "--scratch", str(own)) as worker:
        worker.send(Start(spec))
        outcome = worker.outcome(spec.key)
        assert (outcome.status, outcome.start) == ("succeeded", "warm"), log(outcome)
        assert not [message for message in worker.others if isinstance(message, Said)]
    assert not own.exists()
    assert list(elsewhere.iterdir()) == []
