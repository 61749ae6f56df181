"""What only Dask and the batch systems can tell, before the run.

Pools completed and checked, pools made for Slurm resources.

Importing Dask changes signal handlers and takes time, so this runs in a process of its own, which Snakemake starts
where a pool is not on this machine: a pickled `Question` on its standard input, a pickled `Answer` on its standard
output. It looks, and starts nothing.
"""

import os
import pickle
import socket
import subprocess
import sys
from dataclasses import dataclass, replace

from snakemake_executor_plugin_dask.errors import ConfigurationError
from snakemake_executor_plugin_dask.options import Options
from snakemake_executor_plugin_dask.poolsfile import SchedulerPlace
from snakemake_executor_plugin_dask.requests import Request


@dataclass(frozen=True, slots=True)
class Question:
    """The settings, and the requests of the jobs that are known, by rule."""

    options: Options
    named: tuple[tuple[str, Request], ...]
    plan: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """``options`` with complete pools; ``complaint`` where they cannot work; ``plan`` for `--dask-plan`."""

    options: Options
    notes: tuple[str, ...] = ()
    complaint: str | None = None
    plan: str = ""
    possible: bool = True


def ask(question: Question) -> Answer:
    """Ask in a process of its own. Raises ConfigurationError with its complaint, or where it failed."""
    command = [sys.executable, "-P", "-c", "from snakemake_executor_plugin_dask.prepare import main; main()"]
    done = subprocess.run(command, input=pickle.dumps(question), capture_output=True, check=False)
    if done.returncode != 0:
        msg = f"The pools could not be checked: {done.stderr.decode(errors='replace').strip()}"
        raise ConfigurationError(msg)
    answer: Answer = pickle.loads(done.stdout)
    if answer.complaint is not None:
        raise ConfigurationError(answer.complaint)
    return answer


def answer(question: Question) -> Answer:
    """The answer itself. Imports Dask, and asks batch systems what they have."""
    from snakemake_executor_plugin_dask.backends import backend_for

    options = question.options
    try:
        if options.make_slurm_pools:
            from snakemake_executor_plugin_dask.backends.jobqueue import JobqueueBackend
            from snakemake_executor_plugin_dask.slurm_resources import make_pools

            JobqueueBackend("slurm").check_commands(options.pools[0])
            pools = make_pools(options.pools[0], question.named)
            options = replace(options, pools=tuple(pools), slurm_template=options.pools[0])
        notes: list[str] = []
        complete = []
        for pool in options.pools:
            backend = backend_for(pool.cluster)
            backend.check(pool)
            notes += getattr(backend, "notes", lambda _: ())(pool)
            complete.append(backend.complete(pool))
        options = _placed(replace(options, pools=tuple(complete)))
    except ConfigurationError as error:
        return Answer(question.options, complaint=str(error))
    if not question.plan:
        return Answer(options, tuple(notes))
    from snakemake_executor_plugin_dask.plan import plan_text

    text, possible = plan_text(options, question.named)
    return Answer(options, tuple(notes), plan=text, possible=possible)


def _placed(options: Options) -> Options:
    """With where the scheduler listens: what the user said, else the site, else the workers' network.

    ConfigurationError where the latter is not on this host.
    """
    from snakemake_executor_plugin_dask.backends import backend_for

    if options.scheduler_interface is None and options.scheduler_host is None:
        for pool in options.pools:
            place = getattr(backend_for(pool.cluster), "place", lambda _: SchedulerPlace())(pool)
            if place != SchedulerPlace():
                port = options.scheduler_port or place.port
                options = replace(
                    options, scheduler_interface=place.interface, scheduler_host=place.host, scheduler_port=port
                )
                break
    if options.scheduler_host is not None:
        return options
    here = [name for _, name in socket.if_nameindex()]
    if options.scheduler_interface is not None:
        if options.scheduler_interface not in here:
            msg = (
                f"The scheduler is to listen on the network interface {options.scheduler_interface}, but this host has "
                f"{', '.join(here)}; name the one by which the workers reach this host."
            )
            raise ConfigurationError(msg)
        return options
    for pool in options.pools:
        name = backend_for(pool.cluster).interface(pool)
        if name is not None and name not in here:
            msg = (
                f"Pool {pool.name}: interface {name!r} does not exist on this host, which has {', '.join(here)}; "
                "choose one of them, or, if only the workers have it, name the scheduler's own: `scheduler: "
                "{interface: …}` in the pools file, or scheduler_options in --dask-options or jobqueue.yaml."
            )
            raise ConfigurationError(msg)
    return options


def main() -> None:
    """Read a question from standard input, and write the answer to standard output."""
    # Whatever a library prints must not end up in the answer.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        out.write(pickle.dumps(answer(pickle.load(sys.stdin.buffer))))
