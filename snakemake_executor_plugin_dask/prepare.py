"""What only Dask and the batch systems can tell, before the run.

Pools completed and checked, pools made for Slurm resources.

Importing Dask changes signal handlers and takes time, so this runs in a process of its own, which Snakemake starts
where a pool is not on this machine: a pickled `Question` on its standard input, a pickled `Answer` on its standard
output. It looks, and starts nothing.
"""

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, replace

from snakemake_executor_plugin_dask.errors import ConfigurationError
from snakemake_executor_plugin_dask.options import Options
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
        options = replace(options, pools=tuple(complete))
    except ConfigurationError as error:
        return Answer(question.options, complaint=str(error))
    if not question.plan:
        return Answer(options, tuple(notes))
    from snakemake_executor_plugin_dask.plan import plan_text

    text, possible = plan_text(options, question.named)
    return Answer(options, tuple(notes), plan=text, possible=possible)


def main() -> None:
    """Read a question from standard input, and write the answer to standard output."""
    # Whatever a library prints must not end up in the answer.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        out.write(pickle.dumps(answer(pickle.load(sys.stdin.buffer))))
