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
from collections.abc import Sequence
from dataclasses import replace

from snakemake_executor_plugin_dask.config.configure import check_interface
from snakemake_executor_plugin_dask.config.poolsfile import SchedulerPlace
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request

Named = tuple[str, Request]


@dataclass(frozen=True, slots=True)
class Question:
    """The settings, and the requests of the jobs that are known, by rule.

    For a plan also the rules of the other jobs, and the problems that were found already.
    """

    options: Options
    named: tuple[Named, ...] = ()
    plan: bool = False
    unknown: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """``options`` with complete pools; ``complaints`` where they cannot work; ``plan`` for `--dask-plan`."""

    options: Options
    notes: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()
    plan: str = ""
    possible: bool = True


def ask(question: Question) -> Answer:
    """Ask in a process of its own. Raises ConfigurationError with its complaints, or where it failed.

    In a plan complaints are part of the text.
    """
    command = [sys.executable, "-P", "-c", "from snakemake_executor_plugin_dask.frontend.preflight import main; main()"]
    done = subprocess.run(command, input=pickle.dumps(question), capture_output=True, check=False)
    if done.returncode != 0:
        msg = f"The pools could not be checked: {done.stderr.decode(errors='replace').strip()}"
        raise ConfigurationError(msg)
    answer: Answer = pickle.loads(done.stdout)
    if answer.complaints and not question.plan:
        raise ConfigurationError("\n".join(answer.complaints))
    return answer


def answer(question: Question) -> Answer:
    """The answer itself. Imports Dask, and asks batch systems what they have."""
    options, notes, complaints, refused = _completed(question)
    if not question.plan:
        return Answer(options, tuple(notes), tuple(complaints))
    from snakemake_executor_plugin_dask.frontend.plan import plan_text

    completed = replace(question, options=options, problems=(*question.problems, *complaints))
    text, possible = plan_text(completed, refused)
    return Answer(options, tuple(notes), plan=text, possible=possible)


def _completed(question: Question) -> tuple[Options, list[str], list[str], set[Named]]:
    """The options with complete pools, notes, every complaint about a pool, and the jobs that can have none."""
    from snakemake_executor_plugin_dask.backends import backend_for

    options = question.options
    complaints: list[str] = []
    notes: list[str] = []
    refused: set[Named] = set()
    if options.make_slurm_pools:
        from snakemake_executor_plugin_dask.backends.jobqueue import JobqueueBackend

        pools, complaints, refused = _slurm_pools(options.pools[0], question.named)
        template = options.pools[0]
        try:
            template = JobqueueBackend(template.cluster).rooted(template)
        except ConfigurationError as error:
            complaints.append(str(error))
        options = replace(options, pools=pools, slurm_template=template)
    complete = []
    for pool in options.pools:
        if pool.kind.found:
            complete.append(pool)
            continue
        backend = backend_for(pool.cluster)
        try:
            backend.check(pool)
            notes += getattr(backend, "notes", lambda _: ())(pool)
            complete.append(backend.complete(pool))
        except ConfigurationError as error:
            complaints.append(str(error))
            complete.append(pool)
    options = replace(options, pools=tuple(complete))
    try:
        options = _placed(options)
    except ConfigurationError as error:
        complaints.append(str(error))
    return options, notes, list(dict.fromkeys(complaints)), refused  # pools share what a site's file says


def _slurm_pools(template: Pool, named: Sequence[Named]) -> tuple[tuple[Pool, ...], list[str], set[Named]]:
    """The pools for the jobs that can have one, the complaints about the others, and these."""
    from snakemake_executor_plugin_dask.backends.jobqueue import JobqueueBackend
    from snakemake_executor_plugin_dask.backends.slurm_pools import make_pools

    def refusal(some: Sequence[Named]) -> str | None:
        try:
            make_pools(template, some)
        except ConfigurationError as error:
            return str(error)
        return None

    try:
        JobqueueBackend(template.cluster).check_commands(template)
        return tuple(make_pools(template, named)), [], set()
    except ConfigurationError as error:
        complaints = [str(error)]
    # Jobs that agree in their resources share a pool, and so what is wrong with it, unless that is one rule's size.
    together: dict[object, list[Named]] = {}
    for item in named:
        together.setdefault(item[1].slurm or (), []).append(item)
    good: list[Named] = []
    refused: list[str] = []
    for some in together.values():
        if (why := refusal(some)) is None:
            good += some
            continue
        by_rule = [[item for item in some if item[0] == rule] for rule in dict.fromkeys(rule for rule, _ in some)]
        alone = [refusal(jobs) for jobs in by_rule]
        fitting = [item for jobs, complaint in zip(by_rule, alone, strict=True) if not complaint for item in jobs]
        if not fitting or refusal(fitting) is not None:
            refused.append(why)
            continue
        refused += [complaint for complaint in alone if complaint]
        good += fitting
    if not good or refusal(good) is not None:
        return (), refused or complaints, set(named)
    return tuple(make_pools(template, good)), refused, set(named).difference(good)


def _placed(options: Options) -> Options:
    """With where the scheduler listens: what the user said, else the site, else the workers' network.

    ConfigurationError where the latter is not on this host.
    """
    from snakemake_executor_plugin_dask.backends import backend_for

    pools = [pool for pool in options.pools if not pool.kind.found]
    if options.scheduler_interface is None and options.scheduler_host is None:
        for pool in pools:
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
        check_interface(options.scheduler_interface, here)
        return options
    for pool in pools:
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
