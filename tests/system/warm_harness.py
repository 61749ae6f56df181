"""Plays the supervisor to a warm process, and makes a run's setup and jobs as Snakemake's main process would.

Also a program: ``python warm_harness.py FILE ARGUMENT…`` writes the pickled (RunSetup, [JobSpec]) of the jobs that are
ready now into the file.
"""

import contextlib
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import snakemake_executor_plugin_dask
from snakemake_executor_plugin_dask.model import job_messages
from snakemake_executor_plugin_dask.model.job_messages import Exited, Forked, Setup, Spawned, Start
from snakemake_executor_plugin_dask.model.jobs import JobSpec, RunSetup
from snakemake_executor_plugin_dask.model.wire import Channel

PATIENCE_S = 280.0


def environment(first_on_path: str = "", **more: str) -> dict[str, str]:
    """What a job gets: this process's environment, where the package is importable."""
    package = Path(snakemake_executor_plugin_dask.__file__).parents[1]
    own = {
        name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"
    }  # differs from run to run
    return {**own, "PYTHONPATH": os.pathsep.join(filter(None, (first_on_path, str(package)))), **more}


def plan(workdir: Path, *arguments: str, depth: int = 3) -> tuple[RunSetup, list[JobSpec]]:
    """The setup of a run and its jobs that are ready now."""
    with tempfile.NamedTemporaryFile() as file:
        command = [sys.executable, __file__, file.name, "--executor", "dask", "--jobs", "100", "--nocolor", "--nolock"]
        done = subprocess.run(
            [*command, "--rerun-triggers", "mtime", *arguments],
            cwd=workdir, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        data = Path(file.name).read_bytes()
    if not data:
        raise RuntimeError(done.stdout + done.stderr)
    setup, specs = pickle.loads(data)
    return replace(setup, warm_depth=depth), specs


def planned(workdir: Path, snakefile: str, *arguments: str, depth: int = 3) -> tuple[RunSetup, list[JobSpec]]:
    """The same for a workflow that is given as text."""
    (workdir / "Snakefile").write_text(snakefile)
    return plan(workdir, *arguments, depth=depth)


@dataclass(frozen=True)
class Ended:
    """How an attempt ended, and what it wrote."""

    status: int  # as wait() tells
    cpu_s: float
    log: str
    seconds: float

    @property
    def code(self) -> int:
        return os.waitstatus_to_exitcode(self.status)


class Warm:
    """A warm process of one's own. On leaving, all that belongs to jobs whose end was not read is killed."""

    def __init__(
        self,
        setup: RunSetup,
        *,
        idle_children: int = 2,
        stderr: Any = None,
        limit_files: int = 0,
        first_on_path: str = "",
        **more: str,
    ) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE_S)
        command = [sys.executable, "-m", "snakemake_executor_plugin_dask.worker.warm", "--workdir", setup.workdir]
        command += ["--fd", str(theirs.fileno()), "--idle-children", str(idle_children)]
        if limit_files:
            command = ["/bin/sh", "-c", f'ulimit -Sn {limit_files}; exec "$@"', "sh", *command]
        self.process = subprocess.Popen(
            command,
            cwd="/",
            env=environment(first_on_path) | more,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
        )
        theirs.close()
        self.socket = ours
        self.channel = Channel(ours)
        self.channel.send(Setup(setup))
        self.messages: list[Any] = []
        self._leaders: dict[str, int] = {}  # of the jobs whose end was not read; each leads a process group
        ready = self.wait_for(job_messages.Warm)
        self.depth, self.reason, self.dag_reason = ready.depth, ready.reason, ready.dag_reason

    def wait_for(self, *kinds: type, key: str | None = None) -> Any:
        """The first message, old or new, of one of these kinds (and of this job); it is taken out."""
        while True:
            for message in self.messages:
                if isinstance(message, kinds) and key in (None, getattr(message, "key", None)):
                    self.messages.remove(message)
                    return message
            try:
                self.messages.append(self.channel.receive())
            except TimeoutError:
                raise AssertionError(f"not heard from the warm process: {kinds} {key or ''}") from None

    def start(self, spec: JobSpec) -> int:
        """The pid of the job."""
        self.channel.send(Start(spec))
        pid = self._leaders[spec.key] = int(self.wait_for(Forked, Spawned, key=spec.key).pid)
        return pid

    def end_of(self, spec: JobSpec, since: float = 0.0) -> Ended:
        exited = self.wait_for(Exited, key=spec.key)
        self._leaders.pop(spec.key, None)
        return Ended(exited.status, exited.cpu_s, read(spec), time.monotonic() - since)

    def run(self, spec: JobSpec) -> Ended:
        since = time.monotonic()
        self.start(spec)
        return self.end_of(spec, since)

    def close(self) -> int:
        self.socket.close()
        return self.process.wait(PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for leader in self._leaders.values():  # what the supervisor is a subreaper for
            with contextlib.suppress(ProcessLookupError):
                os.killpg(leader, signal.SIGKILL)


def run_cold(setup: RunSetup, spec: JobSpec, first_on_path: str = "") -> Ended:
    """The job as a Snakemake of its own."""
    since = time.monotonic()
    environ = environment(first_on_path, SNAKEMAKE_DASK_JOB=spec.key)
    for name, value in spec.environment:
        environ.pop(name, None) if value is None else environ.update({name: value})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = [*spec.arguments, *setup.general_arguments]
    with open(spec.log_path, "ab") as log, tempfile.TemporaryFile() as overrides:
        module = ["snakemake"]
        if spec.overrides:
            module = ["snakemake_executor_plugin_dask.worker.entry", str(overrides.fileno())]
            overrides.write(spec.overrides)
            overrides.seek(0)
        process = subprocess.Popen(
            [setup.python, "-m", *module, *arguments], cwd=setup.workdir, env=environ, pass_fds=[overrides.fileno()],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ended(code << 8 if code >= 0 else -code, cpu_s, read(spec), time.monotonic() - since)


def read(spec: JobSpec) -> str:
    path = Path(spec.log_path)
    return path.read_text(errors="replace") if path.exists() else ""


def _plan(out: str, arguments: Sequence[str]) -> None:
    import snakemake.cli
    import snakemake.workflow
    from snakemake_interface_executor_plugins.settings import CommonSettings

    from snakemake_executor_plugin_dask.frontend import arguments as cold
    from snakemake_executor_plugin_dask.interior import snakemake_calls
    from snakemake_executor_plugin_dask.interior.snakemake_commands import ShellCommands

    common = CommonSettings(
        job_deploy_sources=False,
        non_local_exec=True,
        implies_no_shared_fs=False,
        pass_default_storage_provider_args=True,
        pass_default_resources_args=True,
        pass_envvar_declarations_to_cmd=False,
        auto_deploy_default_storage_provider=False,
    )

    class Scheduler:
        def __init__(self, workflow: Any, *_: object) -> None:
            setup = RunSetup(
                run_id="abcdefgh",
                workdir=workflow.workdir_init,
                umask=0o022,
                soft_limits=(),
                environment={},
                replace_environment=True,
                python=sys.executable,
                snakefile=workflow.main_snakefile,
                general_arguments=(
                    *cold.general_arguments(workflow.spawned_job_args_factory, common), "--mode", "remote",
                ),
                snakemake_version=snakemake.workflow.__dict__.get("__version__") or _version(),
                plugin_version="0",
                cores=workflow.resource_settings.cores,
            )  # fmt: skip
            specs = [_spec(workflow, job) for job in sorted(workflow.dag.ready_jobs, key=lambda job: str(job.jobid))]
            Path(out).write_bytes(pickle.dumps((setup, specs)))
            os._exit(0)

    def _spec(workflow: Any, job: Any) -> JobSpec:
        job.reset_params_and_resources()
        own, overrides = cold.job_arguments(
            snakefile=workflow.main_snakefile,
            target=job.get_target_spec(),
            rules=job.rules,
            cores=2 if job.is_group() else workflow.resource_settings.cores or 2,
            max_threads=2,
            attempt=1,
            groupid=str(job.jobid) if job.is_group() else None,
            unneeded_temp_files=(),
            wait_for_files=(),
        )
        name = job.name if not job.is_group() else job.groupid
        logs = Path(workflow.workdir_init) / ".logs"
        logs.mkdir(exist_ok=True)
        return JobSpec(
            key=f"{name}-{job.jobid}",
            name=name,
            jobid=str(job.jobid),
            attempt=1,
            arguments=own,
            max_threads=2,
            log_path=str(logs / f"{name}-{job.jobid}.log"),
            overrides=overrides,
            call=snakemake_calls.describe(job, workflow),
            command=None if job.is_group() else ShellCommands(workflow).of(job, 2),
        )

    snakemake.workflow.JobScheduler = Scheduler
    snakemake.cli.main(list(arguments))


def _version() -> str:
    from snakemake.common import __version__

    return str(__version__)


if __name__ == "__main__":
    _plan(sys.argv[1], sys.argv[2:])
