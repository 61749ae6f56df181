"""Runs with a Snakemake, Dask or dask-cuda in which one private name is another.

Promises are kept, or the run is refused. What the warm process uses is in `system/test_interior_worker.py`.
"""

import os
import sys
from pathlib import Path

import pytest
from mutations import Change, attribute, changed, field
from running import SnakemakeRun

from snakemake_executor_plugin_dask.interior import checks, cuda, jobqueue
from snakemake_executor_plugin_dask.interior.declared import Private

DASK_CUDA = Path(sys.executable).parents[1] / "dask-cuda"
VALUE = "two  blanks, it's a \\ and $HOME"

#: One job fails at once; on two cores most of the others wait meanwhile.
SNAKEFILE = """
rule all:
    input: expand("out/{i}", i=range(20)), *["bad"][:config["failing"]]

rule work:
    output: "out/{i}"
    params: text=config["text"]
    shell: "sleep 1; printf %s {params.text:q} > {output}"

rule bad:
    output: "bad"
    priority: 100
    shell: "exit 3"
"""
JOBS = 20

#: In every run, since they take paths of their own; the others are for `./run tests interior`.
SAMPLE = ("JobScheduler._errors", "JobScheduler._handle_error", "TLSListener._handle_stream")


def word(name: str, modules: str = r"snakemake(\..*)?") -> tuple[Change, ...]:
    """A name that stands for one thing alone."""
    return (Change(name, modules),)


SPECIAL: dict[str, tuple[Change, ...]] = {
    "ResourceSettings.cores": field("resource_settings", "cores"),
    "ResourceSettings.max_threads": field("resource_settings", "max_threads"),
    "ResourceSettings.nodes": field("resource_settings", "nodes", "jobs"),
    "ExecutionSettings.keep_going": field("execution_settings", "keep_going"),
    "ExecutionSettings.lock": (
        *field("execution_settings", "lock"),
        Change("lock", r"snakemake\.cli", r"\block(?==not args\.nolock)", "lock_renamed"),
    ),
    "ExecutionSettings.latency_wait": (
        # Its option is named after it, but for here.
        Change(
            "latency_wait",
            r"snakemake\.spawn_jobs",
            r'"execution_settings\.latency_wait"',
            '"execution_settings.latency_wait", flag="--latency-wait"',
        ),
        *field("execution_settings", "latency_wait"),
    ),
    "WorkflowSettings.cache": field("workflow_settings", "cache"),
    "Rule.is_notebook": attribute("is_notebook", "rule", r"snakemake\.rules"),
    "Rule.cache": attribute("cache", "rule", r"snakemake\.rules"),
    "Workflow.rules": attribute("rules", "workflow", r"snakemake\.workflow"),
    "JobScheduler._lock": word("_lock", r"snakemake\.scheduling\.job_scheduler"),
    "Server.handlers": word("handlers", r"distributed\.(core|node|scheduler|worker|nanny)"),
    "Client.scheduler": (Change("scheduler", r"distributed\.client", r"(?<=self\.)scheduler\b", "scheduler_renamed"),),
    "Scheduler.identity": word("identity", r"distributed\.(core|client|scheduler)"),
    "Server.listeners": word("listeners", r"distributed\.(core|node|scheduler|worker|nanny)"),
    # Keys of Dask's configuration have these names, too.
    "Worker.heartbeat": (
        Change("heartbeat", r"distributed\.worker", r"(?:(?<=self\.)|(?<=def ))heartbeat\b", "heartbeat_renamed"),
    ),
    "BatchedSend.interval": (
        Change("interval", r"distributed\.batched", r"(?<=self\.)interval\b", "interval_renamed"),
    ),
}
#: Names that belong to a package beneath, or are arguments that everybody may give: they cannot be changed in a copy.
NOT_CHANGED = {
    *("TCPServer._sockets", "TCPServer._handlers", "RoutingApplication.find_handler"),
    *("dask.config.defaults", "dask.config.collect_yaml", "dask.config.paths"),  # it does not run without
    *("TLSListener.start", "TLSListener.port", "TLSListener.ip", "Worker.state", "WorkerState.nthreads"),
    *("SchedulerState.tasks", "dask._task_spec.Task"),  # words of many meanings there
}


def changes_of(name: Private) -> tuple[Change, ...]:
    package = name.owner.partition(":")[0].partition(".")[0]
    # Dask's own packages use its configuration's functions.
    packages = "(dask|distributed|dask_jobqueue)" if package == "dask" else package
    return SPECIAL.get(str(name)) or word(name.name, rf"{packages}(\..*)?")


def run(place: Path, site: str, *arguments: str, executor: str = "dask", failing: int = 0) -> SnakemakeRun:
    place.mkdir(exist_ok=True)
    os.environ["PYTHONPATH"] = site
    try:
        started = SnakemakeRun(
            place, SNAKEFILE, "--config", f"text={VALUE}", f"failing={failing}", *arguments, executor=executor
        )
    finally:
        del os.environ["PYTHONPATH"]
    started.wait(300.0)
    return started


def contents(place: Path) -> list[str]:
    return [path.read_text() for path in sorted(place.glob("out/*"))]


def refused(name: Private, started: SnakemakeRun) -> bool:
    """Whether the run ended before it began anything, with the sentence that names what is missing and lost."""
    text = " ".join(started.output.split())
    if "lacks what the plugin cannot do without" not in text:
        return False
    assert str(name) in text
    assert name.lost in text
    assert "install a version that it was tried with" in text
    assert not started.events("job-started")
    assert "Traceback" not in started.output
    return True


def verdict(name: Private, tmp_path: Path, *arguments: str) -> str:
    """Run what is to stop after an error, and what is to end well. AssertionError where a promise was not kept."""
    site = changed(tmp_path / "site", *changes_of(name))
    place = tmp_path / "stops"
    (place / "out").mkdir(parents=True)
    for number in range(JOBS):
        (place / f"out/{number}").write_text("old")
    options = ("--dask-worker-cores", "2", *arguments)
    stopped = run(place, site, "--forceall", *options, failing=1)
    if refused(name, stopped):
        return "refused"
    if name.needed and run(tmp_path / "local", site, executor="local").process.returncode:
        pytest.skip(f"Snakemake itself does not run with another {name}")
    assert not name.needed, stopped.output
    assert stopped.process.returncode == 1, stopped.output
    found = contents(place)
    assert len(found) == JOBS, stopped.output
    assert set(found) <= {"old", VALUE}
    assert found.count("old") >= JOBS // 2, f"jobs were started after the error:\n{stopped.output}"
    done = run(tmp_path / "ends", site, *options)
    assert done.process.returncode == 0, done.output
    assert contents(tmp_path / "ends") == [VALUE] * JOBS
    for started in (stopped, done):
        assert name.lost in " ".join(started.output.split()), started.output
    return "goes on"


def cases(names: tuple[Private, ...]) -> list[object]:
    return [
        pytest.param(name, id=str(name), marks=() if str(name) in SAMPLE else pytest.mark.interior)
        for name in dict.fromkeys(names)
        if str(name) not in NOT_CHANGED
    ]


def note(name: Private, found: str) -> None:
    """For the table in the documentation, where one is being made."""
    if path := os.environ.get("SNAKEMAKE_DASK_TABLE"):
        with open(path, "a") as table:
            table.write(f"| `{name}` | {found} | {name.lost} |\n")


@pytest.mark.parametrize("name", cases(checks.NAMES))
def test_another_snakemake(name: Private, tmp_path: Path) -> None:
    """All jobs are done, and nothing starts after an error; or nothing begins at all. What is lost is said."""
    note(name, verdict(name, tmp_path))


@pytest.mark.parametrize("name", cases(checks.dask_names()))
def test_another_dask(name: Private, tmp_path: Path) -> None:
    """As above, for what the driver and its workers use of Dask."""
    note(name, verdict(name, tmp_path))


@pytest.mark.parametrize("name", cases(jobqueue.NAMES))
def test_another_jobqueue(name: Private, tmp_path: Path) -> None:
    """No allocation is asked for: the pool is refused before the batch system's commands are looked for."""
    found = verdict(name, tmp_path, "--dask-cluster", "slurm", "--dask-worker-memory", "4GB")
    assert found == "refused"
    note(name, found)


@pytest.mark.parametrize("name", cases(checks.attached_names()))
def test_another_dask_of_an_attached_cluster(name: Private, tmp_path: Path) -> None:
    """The run is refused before it connects."""
    site = changed(tmp_path / "site", *changes_of(name))
    started = run(tmp_path / "run", site, "--dask-scheduler", "tcp://127.0.0.1:1")
    assert refused(name, started), started.output
    note(name, "refused")


@pytest.mark.parametrize("name", cases(cuda.NAMES))
def test_another_dask_cuda(name: Private, tmp_path: Path) -> None:
    """The pool is refused before a worker is brought up. A stand-in takes the place of NVIDIA's library."""
    standins = Path(__file__).parents[1] / "clusters" / "nvml"
    site = f"{changed(tmp_path / 'site', *changes_of(name))}:{DASK_CUDA}:{standins}"
    started = run(tmp_path / "run", site, "--dask-cluster", "cuda")
    assert refused(name, started), started.output
    note(name, "refused")
