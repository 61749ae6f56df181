"""A workflow that a warm process keeps, and what a forked child does with it to run one job.

A child makes one job and calls its function, as Snakemake's local executor does (depth 3), or goes on as a cold job's
Snakemake does once that has read the workflow, with a DAG and a scheduler (depth 2). Nearly all of this is private to
Snakemake, and was read in 9.27.1. None of it is looked for by name: before the first job a child runs jobs of its own
(`WarmWorkflow.lay_trial`), and what those cannot do is not relied on. So what is set must be there (`_put`).
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from snakemake_executor_plugin_dask.interior.instead import Instead
from snakemake_executor_plugin_dask.interior.snakemake_command_line import Parser
from snakemake_executor_plugin_dask.interior.snakemake_commands import ShellCommands, is_static
from snakemake_executor_plugin_dask.model.jobs import JobSpec
from snakemake_executor_plugin_dask.model.shellcommand import Shell, shell_text, variables
from snakemake_executor_plugin_dask.model.warmcall import Call
from snakemake_executor_plugin_dask.node.sources import stamps

_ALL_END_S = 0.1
#: A shell's executable, its command, and its environment.
ShellOptions = tuple[str, str, dict[str, str]]
_EFFECTS = ("cache", "persistence_backend", "persistence_backend_db_url")


class NotWarm(Exception):
    """The workflow, or this job, cannot be kept warm so far; the text says why."""


class OtherOutput(Exception):
    """The job would make other files than Snakemake expects; the text says which."""


def in_a_line(error: BaseException) -> str:
    """An error in one line, for people."""
    lines = str(error).strip().splitlines()
    return lines[0] if isinstance(error, NotWarm) and lines else ": ".join([type(error).__name__, *lines[:1]])


@contextlib.contextmanager
def report_shell(report: Callable[[int, str], None], expected: ShellOptions | None = None) -> Iterator[None]:
    """The shell of a job's command leads a session of its own, and its process id is told as soon as there is one.

    ``report`` gets it, and in what the shell is not ``expected``.
    """

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options, start_new_session=True)
            report(self.pid, "" if expected is None else _unlike(expected, arguments, options))

    with _shells_are(Popen):
        yield


@contextlib.contextmanager
def ended_shell(status: int) -> Iterator[None]:
    """A job's command is over, as ``wait`` said, and is not run again."""

    class Popen:
        pid = os.getpid()
        returncode = os.waitstatus_to_exitcode(status)

        def __init__(self, *_: Any, **__: Any) -> None:
            """As the real one."""

        def wait(self) -> int:
            return self.returncode

    with _shells_are(Popen):
        yield


@contextlib.contextmanager
def _shells_are(popen: type) -> Iterator[None]:
    module: Any = sys.modules["snakemake.shell"]  # the package's attribute of this name is the class in it
    with Instead(module, "sp", types.SimpleNamespace(**(vars(subprocess) | {"Popen": popen}))):
        yield


def _unlike(expected: ShellOptions, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
    executable, text, environment = expected
    found = options.get("env") or {}
    names = sorted(name for name in environment.keys() | found.keys() if environment.get(name) != found.get(name))
    if arguments != (text,) or not options.get("shell") or options.get("executable") != executable:
        return "a shell's arguments"
    if options.get("cwd") or options.get("preexec_fn"):
        return "a shell's surroundings"
    return f"a shell's environment ({', '.join(names)})" if names else ""


class WarmWorkflow:
    """The workflow as Snakemake has it just before it would build a DAG."""

    def __init__(self, parser: Parser) -> None:
        import snakemake.cli
        import snakemake.workflow

        self._parser = parser
        self._reads_cores = False
        self._captured: dict[str, Any] = {}
        self._calls = False  # depth 3
        self._adopted = False  # by a child that runs several jobs
        self._commands: dict[str, bool] = {}
        self._trying = False
        known_modules = set(sys.modules)
        directory = tempfile.gettempdir()  # which sets tempfile.tempdir
        owner = snakemake.workflow.Workflow
        with (
            Instead(owner, "execute", lambda workflow, **more: self._captured.update(more, workflow=workflow)),
            Instead(owner, "cores", property(self._note_cores)),
            Instead(snakemake.cli, "SnakemakeApi", self._make_api),
            Instead(snakemake.workflow, "tempfile", _LateDirectories()),
        ):
            snakemake.cli.args_to_api(parser.arguments, parser.parser)
        if "workflow" not in self._captured:
            msg = f"the workflow could not be read: {self._api.failure}"
            raise NotWarm(msg)
        self.workflow = self._captured["workflow"]
        self._keeps_tempdir = tempfile.tempdir != directory
        self._check_possible()
        self._drop_asyncio()
        self._modules = dict(self._own_modules(known_modules))
        self.files = tuple(dict.fromkeys(self._read_files()))

    def _make_api(self, output_settings: Any) -> Any:
        import snakemake.api

        warm = self

        class Api(snakemake.api.SnakemakeApi):  # type: ignore[misc]
            """Keeps the workflow where Snakemake would tear it down, and gives it where Snakemake would read it."""

            failure = ""
            keep = True
            begin = staticmethod(lambda: None)

            def _cleanup(self) -> None:
                if not self.keep:
                    super()._cleanup()

            def print_exception(self, ex: Exception) -> None:
                self.failure = self.failure or (str(ex).strip().splitlines() or [type(ex).__name__])[0]
                super().print_exception(ex)

            def workflow(self, **settings: Any) -> Any:
                if self.keep:
                    return super().workflow(**settings)
                # The only settings of a workflow that differ from job to job.
                resources = settings["resource_settings"]
                warm.set_cores(resources.cores, resources.max_threads)
                unneeded = settings["storage_settings"].unneeded_temp_files
                _put(warm.workflow.storage_settings, "unneeded_temp_files", unneeded)
                found = self._workflow_api
                self.begin()
                return found

        self._api = Api(output_settings)
        return self._api

    def _note_cores(self, workflow: Any) -> int:
        self._reads_cores = True
        return int(workflow._cores)

    def _check_possible(self) -> None:
        from snakemake_interface_executor_plugins.settings import SharedFSUsage

        if self.workflow.storage_settings.shared_fs_usage != SharedFSUsage.all():
            msg = "not everything is on a shared file system"
            raise NotWarm(msg)

    def _drop_asyncio(self) -> None:
        """Give up event loops and threads that reading the workflow left behind; a child makes its own."""
        from concurrent.futures import ThreadPoolExecutor

        workflow = self.workflow
        for runner in workflow._async_runners.values():
            if runner._loop is not None:
                runner._loop._default_executor = None
            runner.close()
        workflow._async_runners.clear()
        workflow._async_executor.shutdown(wait=True)
        workflow._async_executor = ThreadPoolExecutor()

    def _own_modules(self, known: set[str]) -> Iterator[tuple[str, Any]]:
        """Python modules of the workflow's author, which are not installed, by path."""
        installed = tuple(os.path.realpath(path) + os.sep for path in (sys.prefix, sys.base_prefix))
        real_directory = functools.cache(os.path.realpath)
        for name in set(sys.modules) - known:
            path = getattr(sys.modules[name], "__file__", None)
            if path and not f"{real_directory(os.path.dirname(path))}/".startswith(installed):
                yield os.path.abspath(path), sys.modules[name]

    def namespaces(self) -> list[dict[str, Any]]:
        """Where the workflow's author may keep something."""
        workflow = self.workflow
        of_modules = [rule.module_globals for rule in workflow.rules if rule.module_globals is not None]
        return [workflow.globals, *of_modules, *map(vars, self._modules.values())]

    def _read_files(self) -> Iterator[str]:
        """The local files that the workflow consists of, scripts apart: those are read by each job."""
        from snakemake.sourcecache import LocalSourceFile

        for source in self.workflow.included:
            if isinstance(source, LocalSourceFile):
                yield os.path.abspath(source.get_path_or_uri(secret_free=False))
        for path in (*self.workflow.configfiles, *self.workflow.config_settings.configfiles):
            yield os.path.abspath(path)
        yield from self._modules

    def prepare_calls(self) -> None:
        """Depth 3: what does not differ from job to job of a DAG and its persistence."""
        from snakemake.shell import shell

        workflow = self.workflow
        settings, execution = workflow.deployment_settings, workflow.execution_settings
        _put(shell, "conda_block_conflicting_envvars", not settings.conda_not_block_search_path_envvars)
        _put(workflow, "_executor_plugin", self._captured["executor_plugin"])
        _put(workflow, "executor_settings", self._captured["executor_settings"])
        workflow._prepare_dag(
            forceall=False,
            ignore_incomplete=True,
            lock_warn_only=False,
            nolock=True,
            shadow_prefix=execution.shadow_prefix,
        )
        workflow.persistence.deactivate_cache()
        workflow.iocache.deactivate()
        self._calls = True

    def shell(self) -> Shell | None:
        """How shell commands are run; None where none of the workflow's rules is one alone."""
        commands = ShellCommands(self.workflow)
        digests = commands.digests()
        if not digests:
            return None
        executable, prefix, suffix = commands.shell()
        return Shell(
            executable=executable,
            prefix=prefix,
            suffix=suffix,
            directory=os.getcwd(),
            temporary=tempfile.gettempdir(),
            environment=dict(os.environ),
            digests=digests,
            sources=stamps(self.files),
        )

    def expected_shell(self, job: Any) -> ShellOptions | None:
        """In a trial: how the supervisor would start the job's command."""
        if not self._trying:
            return None
        executable, prefix, suffix = ShellCommands(self.workflow).shell()
        text = shell_text(prefix, getattr(job, "shellcmd", ""), suffix)
        return executable, text, dict(os.environ) | variables(job.threads, tempfile.gettempdir())

    def rehearse(self) -> None:
        """Do what every job does once, so that children share what that leaves in memory.

        With a rule in which nothing is the user's code, and without effects.
        """
        from snakemake.logging import logger

        streams = [handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler)]
        if len(streams) != len(logger.handlers):
            return
        saved = [handler.setStream(io.StringIO()) for handler in streams]
        try:
            self._rehearse()
        except Exception as error:  # noqa: BLE001 - a job of the trial, or such a one, will say it itself
            logger.debug(f"No rehearsal: {error}")
        finally:
            for handler, stream in zip(streams, saved, strict=True):
                handler.setStream(stream)
            self._drop_asyncio()

    def _rehearse(self) -> None:
        rule = next(filter(is_static, self.workflow.rules), None)
        if rule is None:
            return
        dag = self.workflow.dag
        self.set_cores(1, 1)
        job = self._make_job(Call(rule.name, dict.fromkeys(rule.wildcard_names, "0"), [], [], [], [], 0, {}))
        job.log_info()
        self.workflow.async_run(job.check_protected_output())
        for table in (dag._jobid, dag._reason, dag._priority):
            del table[job]

    # For each job

    def is_command(self, spec: JobSpec) -> bool:
        """Whether the job is one shell command for which nothing of the workflow's author runs in Python."""
        if not self._calls or spec.call is None or spec.start != "warm":
            return False
        from snakemake.io import is_flagged

        name = Call(*pickle.loads(spec.call)).rule
        if name not in self._commands:
            rule = self.workflow.get_rule(name)
            self._commands[name] = (
                is_static(rule)
                and not any(callable(value) for value in (rule.benchmark, rule.message, *rule.log))
                and not is_flagged(rule.benchmark, "repeat")  # it would have a shell for each
            )
        return self._commands[name]

    def forget(self) -> None:
        """What a child that runs another job must not carry on."""
        dag = self.workflow.dag
        for table in (dag._jobid, dag._reason, dag._priority):
            table.clear()
        self.workflow._snakemake_tmp_dir.cleanup()
        self.workflow._snakemake_tmp_dir = _LateDirectory()

    def unfit(self, spec: JobSpec) -> str:
        """Why this job must read the workflow itself; empty if it need not."""
        if self._reads_cores and spec.is_group:
            return "the workflow asks for its number of cores while it is read, and a group has its own"
        return ""

    def set_cores(self, cores: int, max_threads: int) -> None:
        """What the job's `--cores` and `--max-threads` would set."""
        _put(self.workflow.resource_settings, "cores", cores)
        _put(self.workflow.resource_settings, "max_threads", max_threads)
        self.workflow.global_resources["_cores"] = cores

    def adopt(self, spec: JobSpec) -> None:
        """In a child, before each of its jobs: make the workflow its own. What it removes must not be shared."""
        workflow = self.workflow
        if not self._adopted:
            self._adopted = True
            workflow._snakemake_tmp_dir.leave()
            workflow._snakemake_tmp_dir = _LateDirectory()
        if not self._keeps_tempdir:
            tempfile.tempdir = None  # it is looked for anew in the job's environment
        if hasattr(workflow, "start_time"):  # from 9.26 on; only for a line in the log
            workflow.start_time = datetime.now()  # noqa: DTZ005 - as Snakemake has it

    def run(self, spec: JobSpec, begin: Callable[[], None]) -> bool:
        """Depth 2: what a cold job's Snakemake does once it has read the workflow. ``begin``: see `Parser.run`.

        Raises NotWarm where it did not get so far that ``begin`` was called.
        """
        import snakemake.cli

        begun = False

        def note_and_begin() -> None:
            nonlocal begun
            begun = True
            begin()

        _put(self._api, "_is_in_context", False)
        self._api.keep, self._api.begin = False, note_and_begin
        with Instead(snakemake.cli, "SnakemakeApi", lambda _: self._api):
            succeeded = self._parser.run(spec, lambda: None)
        if not begun:
            raise NotWarm(self._api.failure or "Snakemake did not ask for the workflow")
        return succeeded

    def make_job(self, spec: JobSpec) -> Any:
        """Depth 3: the job of ``spec.call``, announced in the log.

        Raises whatever its rule's functions raise, NotWarm and OtherOutput; nothing has happened then.
        """
        assert spec.call is not None
        _put(self.workflow.execution_settings, "attempt", spec.attempt)
        self.set_cores(self._parser.setup.cores or spec.max_threads, spec.max_threads)
        call = Call(*pickle.loads(spec.call))
        job = self._make_job(call)
        if [str(file) for file in job.output] != call.output:
            raise OtherOutput(_other_output(call.rule, call.output, [str(file) for file in job.output]))
        if spec.ended is None:
            job.log_info()
        return job

    def _make_job(self, call: Call) -> Any:
        from snakemake.io import IOFile, flag
        from snakemake.iocontainers import InputFiles
        from snakemake.jobs import Job
        from snakemake.resources import Resource

        workflow, dag = self.workflow, self.workflow.dag
        rule = workflow.get_rule(call.rule)
        for name, value in call.resources.items():
            rule.resources[name] = Resource(name, value)
        directories = frozenset(call.directories)
        files = []
        for index, name in enumerate(call.input):
            file = IOFile(flag(name, "directory") if index in directories else name, rule=None)
            file.rule = rule  # set afterwards: the name is final, and must not be expanded again
            files.append(file)
        job_input = InputFiles(files)
        job_input._take_names(call.input_names)
        with Instead(type(rule), "expand_input", lambda *_, **__: (job_input, {}, {}, False)):
            job = Job(rule, dag, call.wildcards)
        if job.input is not job_input:
            msg = "Snakemake gives a job other input files than those of Rule.expand_input"
            raise NotWarm(msg)
        dag._jobid[job] = call.jobid
        _put(dag._reason[job], "forced", True)
        dag._priority[job] = rule.expand_priority(job.wildcards_dict, job.input, job.attempt)
        # What needs a checkpoint's output needs a DAG. Resources would take 0 for it and go on.
        with Instead(workflow._checkpoints, "_created_output", _NoCheckpoints()):
            for name in ("resources", "params", "log", "benchmark"):
                getattr(job, name)
        return job

    def conclude(self, job: Any, key: str, status: int, begin: Callable[[], None]) -> bool:
        """Depth 4: what `call` does once the job's command is over, of which ``wait`` gave ``status``."""

        async def prepared(_: Any) -> None:
            """That was done, and done again it would remove what the command has made."""

        with ended_shell(status), Instead(type(job), "prepare", prepared):
            return self.call(job, key, begin)

    def call(self, job: Any, key: str, begin: Callable[[], None]) -> bool:
        """Depth 3: run the job as the local executor would, and say what it would say.

        ``key``: the attempt's, for the mark that outputs are incomplete. The main process makes one too, but hears of
        the start only later: where all is killed in between, half an output would count as whole. ``begin`` is called
        before anything of the workflow's author runs; NotWarm is raised where it does not come to that.
        """
        from snakemake.exceptions import print_exception
        from snakemake.executors import local
        from snakemake.logging import logger
        from snakemake.shell import shell
        from snakemake_interface_logger_plugins.common import LogEvent

        workflow = self.workflow
        log_error, linemaps, run = job.log_error, workflow.linemaps, local.run_wrapper
        shell.cleanup()
        executor = types.SimpleNamespace(workflow=workflow, dag=workflow.dag)
        with contextlib.suppress(OSError):  # the main process says so
            job.register(external_jobid=key)
        try:
            try:
                arguments = local.Executor.job_args_and_prepare(executor, job)
            except (AttributeError, LookupError, TypeError) as error:  # what this Snakemake wants to have besides
                raise NotWarm(in_a_line(error)) from error
            begin()
            run(*arguments)
            workflow.async_run(job.postprocess(store_in_storage=False))
        except NotWarm:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as the local executor does
            begin()
            print_exception(error, linemaps)
            log_error()
            # Who ends all processes of a job may reach its shell first: then nothing is undone, and the mark stays.
            time.sleep(_ALL_END_S)
            workflow.async_run(job.postprocess(error=True))
            logger.error("Exiting because a job execution failed. Look above for error messages")
            return False
        finished = {"event": LogEvent.JOB_FINISHED, "job_id": job.jobid}
        logger.info(f"Finished jobid: {job.jobid} (Rule: {job.rule.name})", extra=finished)
        return True

    def lay_trial(self, snakefile: str, directory: str | None) -> None:
        """In a child, for its trial: the rules of another Snakefile.

        Nothing that the workflow's author wrote has a part in their jobs. Those that are to be called work in
        ``directory`` alone.
        """
        from snakemake.resources import Resource
        from snakemake.shell import shell

        workflow = self.workflow
        self._trying = True
        known = set(workflow.rules)
        with contextlib.suppress(AttributeError):  # without it a copy of the Snakefile stays where the run has its own
            _put(workflow.sourcecache, "_runtime_cache_path", os.path.dirname(snakefile))
        workflow.include(snakefile)
        for rule in set(workflow.rules) - known:
            for name in list(rule.resources):
                # From the command line, where they may need what only the workflow's own rules have.
                if not name.startswith(("_", "snakemake_dask_trial")):
                    value = "system_tmpdir" if name == "tmpdir" else "1"
                    rule.resources[name] = Resource.from_cli_expression(name, value)
        shell.executable("bash")
        shell.prefix("")
        shell.suffix("")
        if directory is not None:
            os.chdir(directory)
            # The user's cache and database have no part in it, either.
            settings = workflow.workflow_settings
            own = {field.name: field.default for field in dataclasses.fields(settings) if field.name in _EFFECTS}
            _put(workflow, "workflow_settings", dataclasses.replace(settings, **own))
            self.prepare_calls()

    def note(self, text: str, *, always: bool = False) -> None:
        """A line in the job's log; without ``always`` only with ``--verbose``."""
        from snakemake.logging import logger

        logger.log(logging.ERROR if always else logging.DEBUG, text)

    def discard(self) -> None:
        """The warm process's own end."""
        self.workflow._snakemake_tmp_dir.cleanup()

    def close(self) -> None:
        """A child's end, after `call`; `run` has done it itself."""
        self._api.keep = False
        self._api._cleanup()


class _LateDirectories:
    """For Snakemake's module `tempfile`: a process that is killed must not leave a directory that nobody needed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(tempfile, name)

    @staticmethod
    def TemporaryDirectory(prefix: str) -> "_LateDirectory":  # noqa: N802 - as the module has it
        if prefix != "snakemake":
            msg = f"Snakemake makes a directory for temporary files of another kind ({prefix})"
            raise NotWarm(msg)
        return _LateDirectory()


class _LateDirectory:
    """Snakemake's directory for temporary files, which few jobs need, made when its name is asked for."""

    _made: Any = None  # a tempfile.TemporaryDirectory

    @property
    def name(self) -> str:
        if self._made is None:
            self._made = tempfile.TemporaryDirectory(prefix="snakemake")
        return str(self._made.name)

    def cleanup(self) -> None:
        if self._made is not None:
            self._made.cleanup()

    def leave(self) -> None:
        """It belongs to another process now."""
        if self._made is not None:
            self._made._finalizer.detach()


class _NoCheckpoints:
    def __bool__(self) -> bool:
        msg = "the output of a checkpoint is needed to evaluate this job"
        raise NotWarm(msg)


def _put(owner: Any, name: str, value: Any) -> None:
    """Set an attribute that the object, or its class, must have; else AttributeError."""
    getattr(owner, name)
    setattr(owner, name, value)


def _other_output(rule: str, expected: list[str], found: list[str]) -> str:
    pairs = itertools.zip_longest(expected, found, fillvalue="no file")
    one, other = next(pair for pair in pairs if pair[0] != pair[1])
    return (
        f"The output files of rule {rule} have other names each time the workflow is read: Snakemake expects {one}, "
        f"but the job would make {other}. Names of files must not depend on the time, on random numbers, on the "
        "process or on a job's environment; pass such a value with --config."
    )
