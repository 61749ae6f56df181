"""Workers in allocations of a batch system: what is set and by whom, checks, and scripts by Dask-Jobqueue's classes.

Writes each worker's configuration and script into the run's state directory; `allocation` submits it.
"""

import asyncio
import difflib
import math
import os
import re
import shlex
import shutil
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask

from snakemake_executor_plugin_dask.backends import WORKER_MODULE, siteconfig, worker_command
from snakemake_executor_plugin_dask.backends.allocation import (
    LOOK_EVERY_S,
    STUCK_S,
    Allocation,
    QueueView,
    SubmitError,
    Unanswered,
    allocation_name,
    run_command,
)
from snakemake_executor_plugin_dask.backends.base import (
    Backend,
    Link,
    shown_config,
    shown_link,
    write_worker_config,
)
from snakemake_executor_plugin_dask.batch import directives
from snakemake_executor_plugin_dask.batch.allocations import TIMED_OUT, run_here, user_name
from snakemake_executor_plugin_dask.batch.answers import (
    found_by_script,
    is_id,
    outside_allocation,
)
from snakemake_executor_plugin_dask.batch.meanings import no_such, outlook, rehearsed
from snakemake_executor_plugin_dask.config.poolsfile import SchedulerPlace, left_to_users
from snakemake_executor_plugin_dask.interior import jobqueue
from snakemake_executor_plugin_dask.interior.declared import missing, refusal
from snakemake_executor_plugin_dask.model import units
from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS
from snakemake_executor_plugin_dask.model.batch_systems.scripts import granted_bytes, option_given
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.node.private import opened, write_private
from snakemake_executor_plugin_dask.node.state import RUNS

#: When a submission that got no answer is looked for in the queue; what comes later is cancelled at the run's end.
_FIND_AFTER_S = (1.0, 4.0, 10.0)
_REHEARSAL_S = 10.0  # a batch system that is slow to answer keeps no run from starting


@dataclass
class JobqueueBackend(Backend):
    """The pools of one batch system."""

    name: str
    run: Callable[..., Any] = run_command
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    look_every_s: float = LOOK_EVERY_S
    stuck_s: float = STUCK_S

    def __post_init__(self) -> None:
        self.system = SYSTEMS[self.name]
        self._views: dict[str | None, QueueView] = {}

    # What is set, by whom

    def setting(self, pool: Pool, key: str) -> Any:
        """An argument of the class: the pool's own options, else Dask's configuration `jobqueue.<name>`, checked."""
        value = pool.options.get(key)
        if value is not None:
            return value
        jobqueue.load()
        section = str(pool.options.get("config_name") or self.name)
        found = dask.config.get(f"jobqueue.{section}.{key.replace('_', '-')}", None)
        return siteconfig.checked(self.system, section, key, found)

    def where(self, pool: Pool) -> str | None:
        """The cluster that the pool's options or Dask's configuration name; None: the one that is there."""
        option = self.system.option_cluster
        return None if option is None else option_given(lambda key: self.setting(pool, key), option)

    def with_site_walltime(self, pool: Pool) -> Pool:
        """With the walltime that a file or a variable of the site or the user sets, where the pool has none.

        What is packaged with Dask-Jobqueue was chosen by nobody.
        """
        section = str(pool.options.get("config_name") or self.name)
        if pool.walltime_s is not None or siteconfig.origin(section, "walltime") is None:
            return pool
        return replace(pool, walltime_s=self._walltime_s(pool, self.setting(pool, "walltime")))

    def complete(self, pool: Pool) -> Pool:
        """Cores, memory and walltime from Dask's configuration, where the user set none."""
        filled: dict[str, Any] = {}
        if pool.cores is None and (cores := self.setting(pool, "cores")) is not None:
            filled["cores"] = cores
        if pool.memory_mb is None and (memory := self.setting(pool, "memory")) is not None:
            filled["memory_mb"] = siteconfig.memory_mb(memory)
        if pool.walltime_s is None and (walltime := self.setting(pool, "walltime")) is not None:
            filled["walltime_s"] = self._walltime_s(pool, walltime)
        return self.rooted(replace(pool, **filled))

    def rooted(self, pool: Pool) -> Pool:
        """With the directory for output as an absolute path: relative ones are meant from where Snakemake was started.

        Call it there.
        """
        given = self.setting(pool, "log_directory")
        if given is None or os.path.isabs(given):
            return pool
        return replace(pool, options={**pool.options, "log_directory": os.path.abspath(os.path.expanduser(given))})

    def _walltime_s(self, pool: Pool, walltime: object) -> float:
        try:
            return self.system.parse_walltime(str(walltime))
        except ValueError:
            section = str(pool.options.get("config_name") or self.name)
            where = siteconfig.origin(section, "walltime") or "Dask's configuration"
            msg = (
                f"{where}: jobqueue.{section}.walltime is {walltime!r}, which is not a walltime; write it as HH:MM:SS, "
                "in quotes."
            )
            raise ConfigurationError(msg) from None

    def interface(self, pool: Pool) -> str | None:
        """The workers'."""
        found = self.setting(pool, "interface")
        return None if found is None else str(found)

    def place(self, pool: Pool) -> SchedulerPlace:
        """Where the site's configuration lets the scheduler listen."""
        place: SchedulerPlace = self.setting(pool, "scheduler_options") or SchedulerPlace()
        return place

    def notes(self, pool: Pool) -> tuple[str, ...]:
        """What Dask's configuration wants and the plugin must decide itself, a sentence each."""
        wanted = []
        if self.setting(pool, "processes") not in (None, 1):
            wanted.append("processes (1: each worker holds its node, and starts a process for each job)")
        if self.setting(pool, "worker_command") not in (None, "distributed.cli.dask_worker"):
            wanted.append("worker-command")
        if self.setting(pool, "worker_extra_args") or self.setting(pool, "extra"):
            wanted.append("worker-extra-args")
        if self.setting(pool, "shared_temp_directory"):
            wanted.append("shared-temp-directory (keys lie in .snakemake/dask)")
        if not wanted:
            return ()
        said = f"Pool {pool.name}: of Dask's configuration jobqueue.{self.name} the plugin sets itself: "
        return (said + ", ".join(wanted) + ".",)

    # Looking

    def check(self, pool: Pool) -> None:
        jobqueue.load()
        if lacking := missing(jobqueue.NAMES):
            raise ConfigurationError(refusal(lacking))
        self.check_commands(pool)
        self.check_options(pool)
        self.check_output(pool)
        self._check_queue(pool)
        self._check_walltime(pool)
        self._check_submission(pool)

    def check_commands(self, pool: Pool) -> None:
        """That those of the batch system are there."""
        missing = [command for command in self.system.commands if shutil.which(command) is None]
        if missing:
            are = f"command {missing[0]} is" if len(missing) == 1 else f"commands {', '.join(missing)} are"
            msg = (
                f"Pool {pool.name} is of cluster {self.name}, and its {are} not on PATH "
                "here; run Snakemake where jobs are submitted, load the batch system's module, or choose another "
                "cluster."
            )
            raise ConfigurationError(msg)

    def check_options(self, pool: Pool) -> None:
        """That the class takes them, and that somebody says how large a worker is."""
        allowed = self.options()
        for key in sorted(allowed):
            self.setting(pool, key)  # what the site's configuration says makes sense
        for key in pool.options:
            if key not in allowed:
                close = difflib.get_close_matches(key, allowed, n=1)
                meant = f"did you mean {close[0]!r}? " if close else ""
                msg = (
                    f"Pool {pool.name}: {key!r} is not an option of {self.system.job_class.replace('Job', 'Cluster')}; "
                    f"{meant}It takes {', '.join(sorted(allowed))}."
                )
                raise ConfigurationError(msg)
        complete = self.complete(pool)
        for key, setting in (("cores", "--dask-worker-cores"), ("memory_mb", "--dask-worker-memory")):
            if getattr(complete, key) is None:
                what = key.removesuffix("_mb")
                msg = (
                    f"Pool {pool.name} does not say how much {what} a worker has: set `{what}` in the pools file, "
                    f"{setting}, or jobqueue.{self.name}.{what} in Dask's configuration."
                )
                raise ConfigurationError(msg)

    def check_output(self, pool: Pool) -> None:
        """That output can go where it is to go; each allocation would fail without a word of its own."""
        extra = self.setting(pool, "job_extra_directives") or self.setting(pool, "job_extra")
        if found := directives.owned(self.system, extra):
            where = "slurm_extra" if "slurm_extra" in dict(pool.slurm or ()) else "job_extra_directives"
            msg = (
                f"Pool {pool.name}: {found} in {where} is reserved for the plugin, which finds its allocations by "
                "their output, their name and the submit command's answer. Remove it; `log_directory` among the "
                "options says where output goes."
            )
            raise ConfigurationError(msg)
        given = self.setting(self.rooted(pool), "log_directory")
        path = os.fspath(given or RUNS.absolute())
        if character := directives.unfit_output(path):
            what = f"log_directory, {path!r}," if given else f"the working directory, {os.getcwd()!r},"
            msg = (
                f"Pool {pool.name}: {what} holds {character!r}, which {self.system.submit} does not take literally in "
                "the path of an allocation's output; "
                + (
                    "name another one."
                    if given
                    else "run the workflow in another directory (--directory), or name a "
                    "`log_directory` in the options."
                )
            )
            raise ConfigurationError(msg)
        above = Path(path)
        while not above.exists() and above != above.parent:
            above = above.parent
        if given and not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
            msg = f"Pool {pool.name}: log_directory {path}: nothing can be created in {above}; name another directory."
            raise ConfigurationError(msg)

    def options(self) -> set[str]:
        """The arguments that pools of this batch system take beside the plugin's own."""
        names = jobqueue.arguments(self.name, self.system.job_class)
        return left_to_users(names | {"interface", "scheduler_options"})

    def _check_queue(self, pool: Pool) -> None:
        queue = self.setting(pool, "queue")
        if queue is None or not self.system.queues or shutil.which(self.system.queues[0]) is None:
            return
        if self.where(pool) is not None or not set(str(queue)).isdisjoint("@:"):
            return
        done = run_here(self.system.queues)
        names = {words[0] for line in done.out.splitlines() if (words := line.split())}
        unknown = [name for name in str(queue).split(",") if name not in names]
        if done.code == 0 and names and unknown:
            by_rules = "slurm_partition" in dict(pool.slurm or ())
            change = "change slurm_partition of its rules" if by_rules else "change `queue` in its options"
            msg = f"Pool {pool.name}: {no_such('queue', unknown[0], names, change)}."
            raise ConfigurationError(msg)

    def _check_walltime(self, pool: Pool) -> None:
        """Many a Slurm takes an allocation that is longer than its partition allows, and never starts it."""
        walltime_s, system, queue = self.complete(pool).walltime_s, self.system, self.setting(pool, "queue")
        if walltime_s is None or system.limits is None:
            return
        command = system.limits(None if queue is None else str(queue), self.where(pool))
        if shutil.which(command[0]) is None:
            return
        if system.option_qos and option_given(lambda key: self.setting(pool, key), system.option_qos):
            return  # it may allow more
        done = run_here(command)
        limits = system.parse_limits(done.out, queue is not None) if done.code == 0 else {}
        allowed_s = max((math.inf if limit is None else limit for limit in limits.values()), default=math.inf)
        if walltime_s <= allowed_s:
            return
        which = f"partition{'s' * (len(limits) > 1)} {', '.join(limits)}"
        allow = "allows" if len(limits) == 1 else "allow"
        msg = (
            f"Pool {pool.name}: its walltime of {units.format_duration(walltime_s)} is more than the "
            f"{units.format_duration(allowed_s)} that {which} {allow}; give less by --dask-walltime, in the pools file "
            "or in jobqueue.yaml, or name another partition."
        )
        raise ConfigurationError(msg)

    def _check_submission(self, pool: Pool) -> None:
        """What the submit command says of the script, where it can be asked without queueing anything.

        Only what it would say each time is a reason to stop.
        """
        script = self.describe(pool)
        if not self.system.rehearsal:
            return
        with tempfile.TemporaryDirectory(prefix="snakemake-dask-") as directory:
            path = Path(directory, "script.sh")
            path.write_text(script)
            command = self.winning([self.system.submit, *self.system.rehearsal, os.fspath(path)])
            done = run_here(command, environment=outside_allocation(os.environ), timeout_s=_REHEARSAL_S)
        said = [line.strip() for line in (done.err.strip() or done.out.strip()).splitlines()]
        advice = rehearsed(self.system, " ".join(said))
        if done.code != 0 and advice is not None:
            msg = (
                f"Pool {pool.name}: {self.system.submit} refuses its batch script ({' / '.join(said[-2:])}); {advice}."
            )
            raise ConfigurationError(msg)

    def describe(self, pool: Pool) -> str:
        """The batch script as a run submits it, for worker 0; RUN stands for the run's name."""
        with tempfile.TemporaryDirectory(prefix="snakemake-dask-") as logs:
            link = shown_link("")
            python = self.setting(pool, "python") or link.python
            command = f"{python} -P -m {WORKER_MODULE} --config {shown_config(pool, link)}"
            job = self.job(pool, f"{pool.name}-0", link, command, Path(logs))
            return jobqueue.script_of(job).replace(logs, os.fspath(self.log_directory(self.rooted(pool), link)))

    def trial(self, pool: Pool, module: str, directory: Path) -> tuple[str, str]:
        """The same script with another module, its output going to ``directory``, and the call that submits it.

        In the call `{}` stands for the script's path, quoted for a shell.
        """
        link = Link(run_id="plan", scheduler="", lease=None, tls=None, state_dir="", setup=None)
        python = self.setting(pool, "python") or shlex.quote(link.python)
        job = self.job(pool, f"{pool.name}-0", link, f"{python} -P -m {module}", directory)
        return jobqueue.script_of(job), f"{jobqueue.submit_command(job)}{self.system.before_script}{{}}"

    # Submitting

    def worker(self, pool: Pool, name: str, link: Link) -> Allocation:
        where = self.where(pool)
        if where not in self._views:
            self._views[where] = QueueView(self.system, where, self.run, self.clock, self.sleep)
        if not directives.can_leave_out(self.system, lambda key: self.setting(pool, key)):
            pool = replace(pool, left_out=())
        return Allocation(self, self.complete(pool), name, link, self._views[where])

    def write(self, pool: Pool, name: str, link: Link) -> tuple[Any, Path]:
        """The Job object, and its script on disk, for one worker; OSError."""
        logs = self.log_directory(pool, link)
        if logs.parent != Path(link.state_dir):
            logs.parent.mkdir(parents=True, exist_ok=True)
        with opened(logs, make=True):
            pass
        python = self.setting(pool, "python")
        config = write_worker_config(
            pool, name, link,
            interface=self.setting(pool, "interface"),
            local_directory=self.setting(pool, "local_directory"),
            own_python=python is not None,
        )  # fmt: skip
        interpreter, *arguments = worker_command(config, link.python)
        # Like dask-jobqueue, as shell text: it may be a command that enters a container.
        command = f"{python or shlex.quote(interpreter)} {shlex.join(arguments)}"
        job = self.job(pool, name, link, command, logs)
        script = config.with_suffix(".sh")
        write_private(script, jobqueue.script_of(job).encode())
        return job, script

    def checked_id(self, number: str) -> str:
        """The id that the submit command gave; ValueError where it is none, and no command must be given it."""
        if not is_id(self.system, number):
            msg = f"{self.system.submit} gave {number[:100]!r} as the allocation's id, which is not a valid one"
            raise ValueError(msg)
        return number

    async def find(self, script: Path, where: str | None) -> str | None:
        """The id of the allocation made from a script, where the submit command did not tell it; None: it is not there.

        A controller that was busy may queue it only after a while.
        """
        if self.system.find is None:
            return None
        for wait_s in _FIND_AFTER_S:
            await self.sleep(wait_s)
            done = await self.run(self.system.find(user_name(), where))
            if done.code == 0 and (number := found_by_script(done.out, os.fspath(script))) is not None:
                return number
        return None

    def winning(self, command: list[str]) -> list[str]:
        """A submit command whose script's directives win over variables of the environment."""
        if self.system.overruled is None:
            return command
        *head, script = command
        return [*head, *directives.as_arguments(Path(script).read_text(), self.system.overruled), script]

    def log_directory(self, pool: Pool, link: Link) -> Path:
        """Of the run alone: others may be able to write where the user wants the output to be."""
        given = self.setting(pool, "log_directory")
        return Path(link.state_dir, "logs") if given is None else Path(given, f"snakemake-{link.run_id}")

    def cancel_command(self, pool: Pool, allocation_id: str) -> list[str]:
        """The command that cancels an allocation of the pool."""
        command = self.system.cancel(allocation_id, self.where(pool))
        return [command[0], *map(str, self.setting(pool, "cancel_command_extra") or ()), *command[1:]]

    def job(self, pool: Pool, name: str, link: Link, command: str, logs: Path) -> Any:
        """Dask-Jobqueue's object for one allocation: not submitted, nothing written. ConfigurationError."""
        pool = self.complete(pool)
        settings = {key: value for key, value in pool.options.items() if key in self.options()}
        settings.pop("scheduler_options", None)
        for key in ("interface", "python"):  # in the worker's configuration, in its command
            settings.pop(key, None)
        # Batch systems cut a path at a space, and Slurm reads patterns in it; the submit command runs there.
        output = os.fspath(logs) if directives.plain(os.fspath(logs)) else "."
        allocation = allocation_name(pool, link)
        settings |= directives.for_pool(self.system, pool, lambda key: self.setting(pool, key), allocation, output)
        settings["log_directory"] = output
        if name_of := directives.with_control_character(settings):
            msg = (
                f"Pool {pool.name}: {name_of} holds a line break or another control character, and would be a line of "
                f"its own in the batch script: {settings[name_of]!r}; remove it."
            )
            raise ConfigurationError(msg)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of deprecated names in a site's configuration: not the user's doing
                job = self._job_class()(
                    link.scheduler or "<scheduler>", name=name, job_name=allocation,
                    cores=pool.cores, memory=granted_bytes(pool), processes=1, python=link.python,
                    worker_command="snakemake_executor_plugin_dask.worker", worker_extra_args=[], **settings,
                )  # fmt: skip
        except (TypeError, ValueError, KeyError) as error:
            msg = f"Pool {pool.name}: dask_jobqueue does not take these options: {' '.join(str(error).split())}"
            raise ConfigurationError(msg) from error
        jobqueue.set_directory(job, os.fspath(logs))
        prologue = jobqueue.prologue_of(job)
        if prologue or self.setting(pool, "python") is not None:
            # Jobs get what the prologue changes, and what a wrapper around Python does.
            prologue.insert(0, directives.BEFORE_PROLOGUE)
        jobqueue.set_command(job, prologue, command, in_command=self.system.description)
        return job

    def _job_class(self) -> Any:
        """The class of dask_jobqueue, with commands run by `run`, so that a failure keeps the command's own words."""

        async def call(command: list[str], directory: str, stdin: str | None) -> str:
            done = await self.run(self.winning(command), cwd=directory, stdin=stdin)
            # OAR's command fails where its server does not answer, and has queued the job all the same.
            if done.code != 0 and found(done.out) is None:
                said = (done.err.strip() or done.out.strip() or "it printed nothing").splitlines()
                shown = [word if len(word) < 200 else "<script>" for word in command]
                msg = f"`{' '.join(shown)}` failed with exit code {done.code}: {' / '.join(said[-5:])}"
                if done.code == TIMED_OUT or outlook(self.system, msg) == "passing":
                    raise Unanswered(msg)
                raise SubmitError(msg)
            return str(done.out)

        def found(out: str) -> str | None:
            # Sites' own wrappers print other numbers before.
            match = re.search(self.system.submitted, out) if self.system.submitted else None
            return match.group(1) if match else None

        return jobqueue.submitting(self.name, self.system.job_class, call, found)
