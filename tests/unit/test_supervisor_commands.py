"""Plain shell commands that the supervisor starts itself: what is prepared, what is left to a Snakemake, the start."""

import json
import os
import resource
import signal
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Update
from snakemake_executor_plugin_dask.model.shellcommand import Shell, ShellCommand
from snakemake_executor_plugin_dask.node import mounts
from snakemake_executor_plugin_dask.node.sources import stamps
from snakemake_executor_plugin_dask.worker.supervisor.commands import Commands

COMMAND = ShellCommand(
    rule="join",
    text="cat in.txt > out/deep/a.txt; echo $OMP_NUM_THREADS $TMPDIR; echo said >&2",
    digest="abc",
    threads=2,
    jobid=7,
    wildcards=(("name", "a"),),
    input=("in.txt",),
    output=("out/deep/a.txt",),
    logs=("logs/a.log",),
    marks=("marks/a",),
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # a supervisor goes to where its workflow works
    (tmp_path / "in.txt").write_text("input\n")
    (tmp_path / "Snakefile").write_text("rules\n")
    return tmp_path


def shell_of(place: Path, environment: Mapping[str, str] | None = None) -> Shell:
    return Shell(
        executable="/bin/bash",
        prefix="set -euo pipefail; ",
        suffix="",
        directory=str(place),
        temporary=str(place),
        environment=environment or {"PATH": os.environ["PATH"], "TMPDIR": "elsewhere"},
        digests={"join": "abc"},
        sources=stamps([str(place / "Snakefile")]),
    )


def spec_of(place: Path, command: ShellCommand = COMMAND) -> JobSpec:
    return JobSpec(
        key="join-k-7-1.1",
        name="join",
        jobid="7",
        attempt=1,
        arguments=(),
        max_threads=2,
        log_path=str(place / "job/logs/7.log"),
        command=replace(command, marks=tuple(str(place / mark) for mark in command.marks)),
    )


def launched(spec: JobSpec, commands: Commands) -> int | None:
    """The job's process, prepared and started."""
    command = commands.fits(spec)
    assert command is not None
    prepared = commands.prepare(spec, command, threading.Event())
    assert prepared is not None
    try:
        return commands.launch(spec, command, prepared)
    finally:
        os.close(prepared.log)


def run(spec: JobSpec, commands: Commands) -> int:
    """Run a job; its status."""
    pid = launched(spec, commands)
    assert pid is not None
    assert os.getsid(pid) == pid
    return os.waitpid(pid, 0)[1]


def test_a_command_runs_with_all_that_it_needs(place: Path) -> None:
    """Directories, the mark that its outputs are incomplete, an announced log, and Snakemake's variables."""
    spec = spec_of(place)
    commands = Commands(shell_of(place), [])
    assert run(spec, commands) == 0
    assert (place / "out/deep/a.txt").read_text() == "input\n"
    assert (place / "logs").is_dir()
    assert json.loads((place / "marks/a").read_text()) == {"external_jobid": spec.key}
    assert (place / "marks/a").stat().st_mode & 0o777 == 0o660
    announced, _, said = (place / "job/logs/7.log").read_text().partition("\n\n")
    assert announced.splitlines()[1:] == [
        "rule join:",
        "    input: in.txt",
        "    output: out/deep/a.txt",
        "    log: logs/a.log",
        "    jobid: 7",
        "    wildcards: name=a",
        "    threads: 2",
    ]
    assert said == f"2 {place}\nsaid\n"
    command = spec.command
    assert command is not None
    (place / "out/deep/a.txt").rename(place / "elsewhere")
    assert not commands.finish(command, threading.Event())
    assert (place / "marks/a").exists()
    (place / "elsewhere").rename(place / "out/deep/a.txt")
    assert commands.finish(command, threading.Event())
    assert not (place / "marks/a").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"command": None},
        {"command": replace(COMMAND, digest="abd")},
        {"command": replace(COMMAND, rule="other")},
        {"start": "cold"},
        {"script": "/job.sh"},
        {"cluster": JobCluster(workers=1, cores=1)},
        {"updates": (Update("a", "b", ""),)},
        {"environment": (("TMPDIR", "/other"),)},
    ],
)
def test_other_jobs_are_left_to_a_snakemake(place: Path, change: Mapping[str, object]) -> None:
    """Those that are more than a command, or of which the worker would make another one."""
    commands = Commands(shell_of(place), [])
    assert commands.fits(spec_of(place)) is not None
    assert commands.fits(replace(spec_of(place), **change)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", ["input", "output", "link", "log", "workflow", "job's log", "temporary", "mark"])
def test_files_that_are_not_as_they_should_be(place: Path, reason: str) -> None:
    """Snakemake removes them, waits for them, or says what is wrong."""
    shell, spec = shell_of(place), spec_of(place)
    match reason:
        case "input":
            (place / "in.txt").unlink()
        case "output" | "link":
            (place / "out/deep").mkdir(parents=True)
            output = place / "out/deep/a.txt"
            output.symlink_to("nowhere") if reason == "link" else output.touch()
        case "log":
            (place / "logs").mkdir()
            (place / "logs/a.log").touch()
        case "workflow":
            (place / "Snakefile").write_text("other rules\n")
        case "job's log":
            (place / "job").touch()
        case "temporary":
            shell = replace(shell, temporary=str(place / "gone"))
        case "mark":
            (place / "marks").touch()
    commands = Commands(shell, [])
    command = commands.fits(spec)
    assert command is not None
    assert commands.prepare(spec, command, threading.Event()) is None


@pytest.mark.parametrize("elsewhere", ["", "input", "output", "temporary", "workflow", "log"])
def test_what_may_hang_is_left_to_a_thread(place: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: str) -> None:
    """Only where all that a job takes is known to be on file systems of the node's own is it prepared at once."""
    far = {
        "input": place / "far",
        "output": place / "out/deep",
        "temporary": place / "scratch",
        "workflow": place / "rules",
        "log": place / "job/logs",
    }.get(elsewhere)
    monkeypatch.setattr(mounts, "own_file_system", lambda directory: "" if directory == str(far) else "ext4")
    for directory in ("far", "scratch", "rules"):
        (place / directory).mkdir()
    (place / "rules/Snakefile").write_text("rules\n")
    shell = replace(shell_of(place), temporary=str(place / "scratch"), sources=stamps([str(place / "rules/Snakefile")]))
    (place / "far/in.txt").write_text("input\n")
    command = replace(COMMAND, input=("far/in.txt",))
    spec, commands = spec_of(place, command), Commands(shell, [])
    assert not commands.at_once(spec, command)
    assert run(spec, commands) == 0
    assert commands.at_once(spec, command) is (far is None)
    (place / "far/in.txt").unlink()
    (place / "far/in.txt").symlink_to(place / "in.txt")
    assert not commands.at_once(spec, command)


def test_soft_limits_and_cores_are_the_jobs_own(place: Path) -> None:
    """This process has them only while it starts the shell."""
    files, core = resource.RLIMIT_NOFILE, resource.RLIMIT_CORE
    before = resource.getrlimit(files), resource.getrlimit(core), os.sched_getaffinity(0)
    soft = before[0][0] - 1
    first = min(before[2])
    command = replace(COMMAND, text="{ ulimit -Sn; ulimit -Sc; } > out/deep/a.txt; grep allowed_list /proc/self/status")
    spec = replace(spec_of(place, command), affinity=(first,))
    assert run(spec, Commands(shell_of(place), [(files, soft), (core, 0)])) == 0
    assert (place / "out/deep/a.txt").read_text() == f"{soft}\n0\n"
    assert f"Cpus_allowed_list:\t{first}\n" in (place / "job/logs/7.log").read_text()
    assert (resource.getrlimit(files), resource.getrlimit(core), os.sched_getaffinity(0)) == before


def test_limits_that_would_hurt_the_supervisor(place: Path) -> None:
    """A job with a limit of CPU time or memory has a process around it that can be given it."""
    commands = Commands(shell_of(place), [(resource.RLIMIT_CPU, 10)])
    assert commands.fits(spec_of(place)) is None
    assert commands.refusal == "soft limits of the run differ from the worker's (RLIMIT_CPU)"


def test_too_few_descriptors_for_a_moment(place: Path) -> None:
    """Other threads may open files just then."""
    assert launched(spec_of(place), Commands(shell_of(place), [(resource.RLIMIT_NOFILE, 20)])) is None


@pytest.mark.parametrize("environment", [{"PATH": "x" * 3_000_000}, {"A": "a\0b"}])
def test_a_shell_that_cannot_be_started(place: Path, environment: Mapping[str, str]) -> None:
    """It is left to a Snakemake, which says why."""
    assert launched(spec_of(place), Commands(shell_of(place, environment), [])) is None


def test_signals_that_python_ignores_end_a_shell(place: Path) -> None:
    """As they end any program that a user starts."""
    command = replace(COMMAND, text="kill -PIPE $$; sleep 60")
    assert os.WTERMSIG(run(spec_of(place, command), Commands(shell_of(place), []))) == signal.SIGPIPE


def test_what_nobody_waits_for_any_more_changes_nothing(place: Path) -> None:
    """A file server may answer when the job was started in another way, or when its next attempt runs."""
    spec, commands, given_up = spec_of(place), Commands(shell_of(place), []), threading.Event()
    command = commands.fits(spec)
    assert command is not None
    given_up.set()
    assert commands.prepare(spec, command, given_up) is None
    assert sorted(path.name for path in place.iterdir()) == ["Snakefile", "in.txt"]
    assert run(spec, commands) == 0
    assert commands.finish(command, given_up)
    assert (place / "marks/a").exists()
