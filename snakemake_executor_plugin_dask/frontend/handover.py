"""From a Snakemake job to what travels: `RunSetup` once, a `QueuedJob` for each attempt.

Writes only custom job scripts, where the user gave one.
"""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors import remote
from snakemake_interface_executor_plugins.settings import DeploymentMethod, SharedFSUsage

from snakemake_executor_plugin_dask.config import plainyaml
from snakemake_executor_plugin_dask.config.owned import WORKER_CLASS_OPTIONS
from snakemake_executor_plugin_dask.config.schedulerfile import scheduler_address
from snakemake_executor_plugin_dask.frontend.arguments import general_arguments, job_arguments
from snakemake_executor_plugin_dask.frontend.beginning import begins
from snakemake_executor_plugin_dask.interior import snakemake_calls, snakemake_jobs
from snakemake_executor_plugin_dask.interior import snakemake_settings as settings
from snakemake_executor_plugin_dask.interior.snakemake_commands import ShellCommands
from snakemake_executor_plugin_dask.model.errors import RequestError
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.jobs import GroupMember, JobSpec, RunSetup, Update, task_key
from snakemake_executor_plugin_dask.model.messages import QueuedJob
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.requests import Request, pending, request_from_resources, starts_cold
from snakemake_executor_plugin_dask.node import updates
from snakemake_executor_plugin_dask.node.versions import plugin_version, snakemake_version

_UNSAFE = re.compile(r"[^\w.=+-]+")
_NAME_BYTES = 100  # two of them and some numbers make a file name, which may have 255


def members(job: Any) -> Iterable[Any]:
    """The single jobs of a job, which may be a group."""
    return job.jobs if job.is_group() else (job,)


def wildcards(job: Any) -> dict[str, str]:
    """A single job's; those of a group's members differ, and it has none of its own."""
    return {} if job.is_group() else dict(job.get_target_spec()[0].wildcards_dict)


def group_members(job: Any) -> tuple[GroupMember, ...]:
    """The jobs of a group job, for people; none of a single job."""
    if not job.is_group():
        return ()
    return tuple(GroupMember(each.name, str(each.jobid), wildcards(each)) for each in job.jobs)


class Handover:
    """Describes the jobs of one run."""

    def __init__(self, executor: Any, options: Options, run_id: str, *, keeps_updated: bool) -> None:
        self._updated: dict[str, tuple[Update, ...]] = {}  # by key
        self._log_directories: set[str] = set()
        self._made_for_logs = () if os.path.isdir(options.logdir) else (options.logdir,)
        self._workflow = executor.workflow
        self._dag = executor.dag
        self._options = options
        self._run_id = run_id
        usage = self._workflow.storage_settings.shared_fs_usage
        self._python = sys.executable if SharedFSUsage.SOFTWARE_DEPLOYMENT in usage else "python"
        self._wait_for_inputs = SharedFSUsage.INPUT_OUTPUT in usage
        self._keeps_updated = keeps_updated and SharedFSUsage.INPUT_OUTPUT in usage
        sources_shared = SharedFSUsage.SOURCES in usage
        snakefile = self._workflow.main_snakefile
        self._snakefile = os.fspath(snakefile if sources_shared else os.path.relpath(snakefile))
        factory = self._workflow.spawned_job_args_factory
        common_settings = executor.common_settings
        # `--cache` alone means all rules that are eligible; Snakemake hands on only names, and no 0.
        omitted: tuple[str, ...] = ("--cache",) if settings.caches_all(self._workflow) else ()
        omitted += ("--latency-wait", "0") if settings.waits_not(self._workflow) else ()
        copies_shared = SharedFSUsage.STORAGE_LOCAL_COPIES in usage
        general = general_arguments(factory, common_settings, copies_shared=copies_shared)
        self._general = (*general, *omitted, *self._directory(), "--mode", "remote")
        # Two jobs that use the same place would take each other's half-written copies, and remove each other's.
        copies, copies_here = (None, "") if copies_shared else settings.places_of_copies(self._workflow)
        self._copies, self._copies_here = copies, os.path.join(copies_here, "")
        self._precommand = factory.precommand(executor_common_settings=common_settings)
        together = {
            *(SharedFSUsage.SOURCES, SharedFSUsage.INPUT_OUTPUT, SharedFSUsage.PERSISTENCE),
            SharedFSUsage.STORAGE_LOCAL_COPIES,
        }
        self._scratch = "" if together.isdisjoint(usage) else None
        scheduler = self._options.scheduler
        self._encrypted = scheduler is None or scheduler_address(scheduler).startswith("tls://")
        self._jobscript = self._read_jobscript()
        self._warm_possible = not self._jobscript and not self._precommand and os.path.isabs(self._python)
        self._calls = self._warm_possible and snakemake_calls.possible()
        self._commands = ShellCommands(self._workflow)
        self._scripts: Path | None = None

    def setup(self, environment: dict[str, str]) -> RunSetup:
        """What is the same for every job. ``environment`` is Snakemake's own, of the moment."""
        options = self._options
        factory = self._workflow.spawned_job_args_factory
        # What is declared by `envvars:` and by storage plugins may not stand in the environment itself.
        own = (environment if self._encrypted else {}) | dict(factory.envvars())
        begun = begins(self._workflow.workdir_init, own, self._python, replace_environment=self._encrypted)
        return RunSetup(
            **dataclasses.asdict(begun),
            run_id=self._run_id,
            snakefile=self._snakefile,
            general_arguments=self._general,
            snakemake_version=snakemake_version(),
            plugin_version=plugin_version(),
            precommand=self._precommand,
            scratch=self._scratch,
            files_dir=os.getcwd(),
            job_start=options.job_start if self._warm_possible else "cold",
            warm_depth=int(environment.get("SNAKEMAKE_DASK_WARM_DEPTH", "4")),
            enforce_runtime=options.enforce_runtime,
            enforce_memory=options.enforce_memory,
            enforce_cgroup=options.enforce_cgroup,
            cores=settings.cores(self._workflow),
            keep_logs=options.keep_successful_logs,
        )

    def _directory(self) -> tuple[str, ...]:
        """Jobs start where Snakemake works, but a `workdir:` in the Snakefile must not lead them away from there."""
        workflow = self._workflow
        if not settings.sets_workdir(workflow) or not workflow.storage_settings.assume_common_workdir:
            return ()
        return "--directory", os.fspath(workflow.workdir_init)

    def request(self, job: Any) -> Request:
        """Raises RequestError where the declared resources make no sense."""
        resources = dict(job.resources.items())
        starts_cold(resources)  # so that a misspelt word is told before the first job
        request = request_from_resources(resources, job.threads)
        if request.cluster is not None:
            cluster = dataclasses.replace(
                cluster_with_options(request.cluster, resources), together=self._together(job)
            )
            request = dataclasses.replace(request, cluster=cluster)
        if not job.is_group():
            return request
        if request.cluster is not None:
            names = ", ".join(sorted({member.rule.name for member in job.jobs if member.resources.get("dask_workers")}))
            msg = f"dask_workers is declared by rules of a group ({names}); only a job by itself has a Dask cluster."
            raise RequestError(msg)
        # A group's resources leave out what is not known of its members.
        unknown = dict.fromkeys(name for member in job.jobs for name in pending(dict(member.resources.items())))
        members = tuple(dict.fromkeys(sorted(member.rule.name for member in job.jobs)))
        origin = dataclasses.replace(request.origin, pending=tuple(unknown), members=members)
        return dataclasses.replace(request, origin=origin)

    def _together(self, job: Any) -> str:
        """Why a job's own Dask cluster has to be on one node; empty: it need not."""
        method = self._workflow.deployment_settings.deployment_method
        if DeploymentMethod.APPTAINER in method and not job.is_group() and job.is_containerized:
            return "in a container"
        # Its secrets are in files that its nodes share, or are sent encrypted.
        return "" if self._encrypted or self._scratch is None else "without encryption or a shared file system"

    def queued(self, job: Any, request: Request) -> QueuedJob:
        """One attempt of a job, as it waits in the driver. Raises OSError or WorkflowError for a custom job script."""
        held = max(1, request.cores, cores_at_once(job))
        max_threads = min(held, settings.max_threads(self._workflow) or held)
        copies = None
        unneeded = [str(path) for path in self._dag.get_unneeded_temp_files(job)]
        if self._copies is not None:
            copies = os.path.join(self._copies, f"{self._run_id}-{job.jobid}-{job.attempt}")
            unneeded = [_moved(path, self._copies_here, copies) for path in unneeded]
        arguments, overrides = job_arguments(
            snakefile=self._snakefile,
            target=job.get_target_spec(),
            rules=job.rules,
            # A rule may ask for a part of `workflow.cores`, of which a group's Snakemake has no more than it may use.
            cores=held if job.is_group() else settings.cores(self._workflow) or held,
            max_threads=max_threads,
            attempt=job.attempt,
            groupid=job.jobid if job.is_group() else None,
            unneeded_temp_files=unneeded,
            wait_for_files=job.get_wait_for_files() if self._wait_for_inputs else (),
            local_copies=copies,
        )
        wants_cold = starts_cold(dict(job.resources.items()))
        key = task_key(job.name, self._run_id, job.jobid, job.attempt, 1)
        updated = tuple(self._updates(job)) if self._keeps_updated else ()
        if updated:
            self._updated[key] = updated
        call = None
        if self._calls and not wants_cold and self._options.job_start == "warm":
            call = snakemake_calls.describe(job, self._workflow)
        spec = JobSpec(
            key=key,
            name=job.name,
            jobid=str(job.jobid),
            attempt=job.attempt,
            arguments=arguments,
            max_threads=max_threads,
            log_path=self._log_path(job),
            overrides=overrides,
            call=call,
            command=None if call is None or copies is not None else self._commands.of(job, max_threads),
            start="cold" if wants_cold or not self._warm_possible else "warm",
            local_copies=copies,
            cluster=request.cluster,
            wildcards=tuple(wildcards(job).items()),
            members=group_members(job),
            input_mb=snakemake_jobs.input_mb(job),
            rule_logs=tuple(
                str(path) for single in members(job) for path in single.log if not snakemake_jobs.is_in_storage(path)
            ),
            updates=updated,
            output_dirs=tuple({os.path.dirname(os.path.abspath(path)) for path in job.output}),
        )
        if self._jobscript:
            spec = dataclasses.replace(spec, script=self._write_script(job, spec))
        return QueuedJob.of(spec, request, float(job.priority), last=self.is_last(job))

    def ended(self, key: str, how: updates.Ended) -> None:
        """Before Snakemake hears of an attempt's end: what it was to update becomes as it was, or stays. OSError."""
        problem: OSError | None = None
        for update in self._updated.pop(key, ()):
            try:
                if not updates.ended(update, how) and how == "failed" and os.path.lexists(update.output):
                    snakemake_jobs.back_up(self._workflow.persistence, update.output)
            except OSError as error:
                problem = problem or error
        if problem is not None:
            raise problem

    def left_updated(self) -> list[tuple[str, str]]:
        """Files that attempts may have updated in part, whose ends were not heard; each with its copy."""
        left = [update for found in self._updated.values() for update in found]
        self._updated.clear()
        return [(update.output, update.before) for update in left if os.path.lexists(update.before)]

    def _updates(self, job: Any) -> Iterable[Update]:
        attempt = f"{self._run_id}-{job.jobid}-{job.attempt}"
        for single in members(job):
            for output, backup in snakemake_jobs.updated(single, self._workflow.persistence):
                yield updates.before_the_job(output, backup, attempt)

    def is_last(self, job: Any) -> bool:
        """Whether Snakemake starts no more jobs once this attempt of the job has failed."""
        return job.attempt > snakemake_jobs.restarts(job) and not settings.keeps_going(self._workflow)

    def close(self) -> None:
        """Remove the job scripts, and directories for logs that are empty, if the run has made them."""
        if self._scripts is not None:
            for path in self._scripts.iterdir():
                path.unlink()
            self._scripts.rmdir()
            self._scripts = None
        for directory in (*self._log_directories, *self._made_for_logs):
            with contextlib.suppress(OSError):
                os.rmdir(directory)

    def _log_path(self, job: Any) -> str:
        values = ",".join(f"{key}={value}" for key, value in wildcards(job).items())
        parts = [_safe(values)] if values else []
        parts += [str(job.jobid)[:8], str(job.attempt), self._run_id, "log"]
        path = os.path.abspath(os.path.join(self._options.logdir, _safe(job.name), ".".join(parts)))
        self._log_directories.add(os.path.dirname(path))
        return path

    def _read_jobscript(self) -> str:
        """The user's own job script; empty where there is none."""
        given = self._workflow.remote_execution_settings
        if "{jobid}" not in given.jobname:
            msg = f'Defined jobname ("{given.jobname}") has to contain the wildcard {{jobid}}.'
            raise WorkflowError(msg)
        default = Path(remote.__file__).with_name("jobscript.sh")
        if given.jobscript is None or Path(given.jobscript) == default:
            return ""
        try:
            return Path(given.jobscript).read_text()
        except OSError as error:
            msg = f"The job script {given.jobscript} cannot be read: {error.strerror}."
            raise WorkflowError(msg) from error

    def _write_script(self, job: Any, spec: JobSpec) -> str:
        if self._scripts is None:
            self._scripts = Path(".snakemake", f"dask_scripts.{self._run_id}").absolute()
            self._scripts.mkdir(mode=0o700, parents=True)
        name = job.format_wildcards(self._workflow.remote_execution_settings.jobname)
        if os.path.sep in name:
            msg = f"Path separator ({os.path.sep}) found in job name {name}. This is not supported."
            raise WorkflowError(msg)
        path = self._scripts / f"{name}.{job.attempt}"
        arguments = [*spec.arguments, *self._general]
        if spec.overrides is None:
            command = shlex.join([self._python, "-m", "snakemake", *arguments])
        else:
            values = path.with_suffix(".overrides")
            values.write_bytes(spec.overrides)
            entry = [self._python, "-m", "snakemake_executor_plugin_dask.worker.entry", "3", *arguments]
            command = f"{shlex.join(entry)} 3< {shlex.quote(os.fspath(values))}"
        exec_job = " && ".join(filter(None, [self._precommand, command]))
        try:
            content = self._jobscript.format(properties=job.properties(), exec_job=exec_job)
        except KeyError as error:
            msg = f"The job script names {error}, which is not known; it may use {{exec_job}} and {{properties}}."
            raise WorkflowError(msg) from error
        path.write_text(content)
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IRUSR)
        return os.fspath(path)


def cluster_with_options(cluster: JobCluster, resources: Mapping[str, object]) -> JobCluster:
    """With `dask_worker_options`. Raises RequestError where that is not what Dask's worker class can be given."""
    text = resources.get("dask_worker_options")
    if text in (None, ""):
        return cluster
    try:
        options = plainyaml.load(str(text))
    except plainyaml.YamlError as error:
        msg = f"The resource dask_worker_options={text!r} is not YAML: {error}; change it in the rule."
        raise RequestError(msg) from error
    if not isinstance(options, dict):
        msg = (
            f"The resource dask_worker_options={text!r} must name arguments of Dask's worker class and their values, "
            'such as "{local_directory: $TMPDIR}"; change it in the rule.'
        )
        raise RequestError(msg)
    if owned := sorted(WORKER_CLASS_OPTIONS & options.keys()):
        msg = (
            f"The resource dask_worker_options names {', '.join(owned)}, which follow from the rule's threads, "
            "mem_mb and dask_workers; remove it."
        )
        raise RequestError(msg)
    return dataclasses.replace(cluster, options=json.dumps(options))


def _moved(path: str, source: str, target: str) -> str:
    """A path below ``source`` (with a slash at its end) as it is below ``target``; others as they are."""
    return os.path.join(target, path.removeprefix(source)) if path.startswith(source) else path


def cores_at_once(job: Any) -> int:
    """The cores of the most members of a group job that pipes or services join, and that must therefore run at once.

    A group's Snakemake that has fewer refuses to run it, so it gets them also where the worker has less.
    """
    if not job.is_group():
        return 0
    joined: Counter[Any] = Counter()
    for member in job.jobs:
        if (group := snakemake_jobs.joined_by(member)) is not None:
            joined[group] += member.threads
    return max(joined.values(), default=0)


def _safe(text: str) -> str:
    """A part of a path that says what it is of, whatever the text holds."""
    name = _UNSAFE.sub("_", text).strip(".-")[:_NAME_BYTES]
    return name.encode()[:_NAME_BYTES].decode(errors="ignore") or "_"
