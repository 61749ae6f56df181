"""Jobs that hold up or stop who tells of their end: the warm process and its children. None of them holds up others."""

import dataclasses
from pathlib import Path

import pytest
from running import wait_for
from supervising import RUN_ID, FakeWorker, alive, fake_worker
from system.warm_harness import plan

from snakemake_executor_plugin_dask.model.job_messages import Kill, Start
from snakemake_executor_plugin_dask.model.jobs import JobSpec
from snakemake_executor_plugin_dask.node import processes, versions

SNAKEFILE = """
rule all:
    input: expand("{n}.late", n=range(3)), "runner.stopped", "warm.stopped", "itself.stopped", "repeated"

rule late:
    output: "{n}.late"
    shell: "echo $PPID > {wildcards.n}.pid"

rule stops_runner:
    output: "runner.stopped"
    shell:
        "(while kill -0 $$; do sleep 0.1; done 2> /dev/null; kill -STOP $PPID; touch {output}) & "
        "until test -e known; do sleep 0.1; done"

rule stops_warm:
    output: "warm.stopped"
    run:
        import signal
        os.kill(os.getppid(), signal.SIGSTOP)
        open(output[0], "w").write("x")

rule stops_itself:
    output: "itself.stopped"
    run:
        import signal
        os.kill(os.getpid(), signal.SIGSTOP)
        open(output[0], "w").write("x")

rule repeated:
    output: "repeated"
    benchmark: repeat("bench.tsv", 2)
    shell: "echo $$ >> repeated.pid; test $(wc -l < repeated.pid) = 1 || sleep 1000; touch {output}"
"""


@pytest.fixture(scope="module")
def worker_and_specs(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("meddling")
    (workdir / "Snakefile").write_text(SNAKEFILE)
    setup, specs = plan(workdir, "--latency-wait", "60")
    setup = dataclasses.replace(setup, run_id=RUN_ID, plugin_version=versions.plugin_version(), lease_s=3600.0)
    with fake_worker(workdir, setup) as worker:
        yield worker, specs


def start(worker: FakeWorker, specs: list[JobSpec], name: str, number: int = 0, **changes: object) -> JobSpec:
    spec = [spec for spec in specs if spec.name == name][number]
    worker.send(Start(dataclasses.replace(spec, **changes)))
    worker.wait_started(spec.key)
    return spec


def log(outcome):
    return Path(outcome.log_path).read_text()


def test_waiting_for_outputs_ends_with_the_runtime(worker_and_specs):
    """A job whose command has ended, and whose outputs do not come, is ended by its time limit, which is told so."""
    worker, specs = worker_and_specs
    spec = start(worker, specs, "late", 0, runtime_limit_s=5.0)
    outcome = worker.outcome(spec.key)
    assert (outcome.status, outcome.start) == ("out-of-time", "warm")
    assert "while Snakemake waited for output files" in outcome.detail


def test_waiting_for_outputs_can_be_cancelled(worker_and_specs):
    """The same where it is to end."""
    worker, specs = worker_and_specs
    spec = start(worker, specs, "late", 1)
    pid = int(wait_for(lambda: (path := worker.directory / f"{number(spec)}.pid").exists() and path.read_text(), "pid"))
    worker.send(Kill(spec.key, "enough"))
    assert worker.outcome(spec.key).status == "cancelled"
    wait_for(lambda: not alive(pid), "who waited is gone")


def number(spec: JobSpec) -> str:
    return spec.arguments[spec.arguments.index("--target-jobs") + 1][-1]


@pytest.mark.parametrize("rule", ["stops_runner", "stops_warm", "stops_itself"])
def test_what_a_job_stops_goes_on(worker_and_specs, rule):
    """The job ends as it would have."""
    worker, specs = worker_and_specs
    spec = start(worker, specs, rule)
    (worker.directory / "known").touch()
    outcome = worker.outcome(spec.key)
    assert (outcome.status, outcome.start) == ("succeeded", "warm"), log(outcome)


def test_repeats_of_a_benchmark_are_ended(worker_and_specs):
    """The second shell of a repeated benchmark is the job's as the first was."""
    worker, specs = worker_and_specs
    spec = start(worker, specs, "repeated", memory_limit_mb=1000)
    path = worker.directory / "repeated.pid"
    pids = wait_for(lambda: path.exists() and len(found := path.read_text().split()) == 2 and found, "both shells")
    worker.send(Kill(spec.key, "enough"))
    outcome = worker.outcome(spec.key)
    assert (outcome.status, outcome.start) == ("cancelled", "warm")
    assert not any(processes.read_stat(int(pid)) for pid in pids)
