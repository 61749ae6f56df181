"""`--dask-plan`: the pools, where each rule's jobs would run and why, every problem at once, and the batch scripts.

Imports Dask for the batch scripts; starts nothing. As a program (`python -m`) it is what a script that was written by
`--dask-plan-scripts` runs in its allocation, in the place of a worker.
"""

import platform
import shlex
import socket
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from snakemake_executor_plugin_dask.backends import backend_for
from snakemake_executor_plugin_dask.backends.jobqueue import JobqueueBackend
from snakemake_executor_plugin_dask.decide import routing
from snakemake_executor_plugin_dask.decide.routing import NoPool
from snakemake_executor_plugin_dask.frontend.preflight import Named, Question
from snakemake_executor_plugin_dask.model import units
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.pools import Pool, Shape
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.node.machine import this_machine

KINDS_SHOWN = 5  # of jobs of one rule that ask for different things


def plan_text(question: Question, refused: Collection[Named] = ()) -> tuple[str, bool]:
    """The plan, and whether the run could start as it is. Writes the batch scripts where the options want them.

    ``question`` has complete pools and every problem so far. ``refused``: those of its jobs for which no pool can be
    made.
    """
    options = question.options
    shapes = {pool.name: routing.shape_of(pool) for pool in options.pools}
    jobs, impossible = _jobs(question, refused, shapes)
    starts, unmade = _starts(options)
    problems = list(dict.fromkeys((*question.problems, *impossible, *unmade)))
    lines = ["Pools", *(f"  {_pool(pool, shapes[pool.name])}" for pool in options.pools)]
    lines += [] if options.pools else ["  None: see the problems."]
    lines += ["", "Jobs", *(f"  {line}" for line in jobs or ["No job is to be run on a worker."])]
    if problems:
        lines += ["", f"Problems: {len(problems)}"]
        for number, problem in enumerate(problems, 1):
            first, *more = problem.splitlines()
            lines += [f"  {number}. {first}", *(f"     {line}" for line in more)]
    return "\n".join([*lines, *starts]), not problems


def _pool(pool: Pool, shape: Shape) -> str:
    size = []
    if shape.cores is not None:
        size.append(units.count(shape.cores, "core"))
    if pool.memory_mb is not None and shape.memory_mb is not None:
        memory, usable = units.format_memory(pool.memory_mb), units.format_memory(shape.memory_mb)
        size.append(f"{memory} of memory ({usable} usable)")
    if shape.gpus:
        size.append(units.count(shape.gpus, f"{shape.gpu_model} GPU" if shape.gpu_model else "GPU"))
    size += [f"{name}={amount}" for name, amount in shape.extra]
    each = f" on each of {pool.nodes} nodes" if pool.nodes is not None else ""
    text = f"{pool.name}: {pool.cluster}"
    if not pool.kind.found:
        one = pool.workers_min == pool.workers_max == 1
        text += f", {units.format_range(pool.workers_min, pool.workers_max)} worker{'' if one else 's'}"
    if size:
        text += f", each with {', '.join(size)}{each}"
    if pool.walltime_s is not None:
        text += f", for {units.format_duration(pool.walltime_s)}"
    if pool.slurm:
        text += f"; for jobs with {', '.join(f'{name}={value}' for name, value in pool.slurm)}"
    return text + "."


def _jobs(
    question: Question, without_pool: Collection[Named], shapes: Mapping[str, Shape]
) -> tuple[list[str], list[str]]:
    """Lines about each rule's jobs, and for each rule what the first impossible one of its requests lacks."""
    pools = question.options.pools
    kinds: dict[str, list[tuple[Request, int]]] = defaultdict(list)
    for (rule, request), count in Counter(question.named).items():
        kinds[rule].append((request, count))
    lines: list[str] = []
    impossible: list[str] = []
    for rule, requests in kinds.items():
        refused: dict[str, int] = {}
        for place, (request, count) in enumerate(requests):
            if (rule, request) in without_pool:
                where = "no pool can be made for it" if count == 1 else "no pool can be made for them"
            else:
                try:
                    chosen = routing.route(request, pools, shapes, name=rule)
                    where = f"pool {chosen}{_why(request, chosen, pools, shapes)}"
                except NoPool as error:
                    refused[str(error)] = count
                    where = f"no pool can hold {'it' if count == 1 else 'them'}"
            if place < KINDS_SHOWN:
                jobs = f"{units.count(count, 'job')} of rule {rule}"
                lines.append(f"{jobs}, {'each ' if count > 1 else ''}{routing.describe(request)}: {where}.")
        if further := sum(count for _, count in requests[KINDS_SHOWN:]):
            verb = "asks" if further == 1 else "ask"
            lines.append(f"{units.count(further, 'further job')} of rule {rule}, which {verb} for other amounts.")
        if refused:
            others = sum(refused.values()) - next(iter(refused.values()))
            more = f"\n  (the same holds for {units.count(others, 'more job')} of this rule)" if others else ""
            impossible.append(next(iter(refused)) + more)
    for rule, count in Counter(question.unknown).items():
        what = (
            "it asks for is known only once its input is"
            if count == 1
            else "they ask for is known only once their input is"
        )
        lines.append(f"{units.count(count, 'job')} of rule {rule}: what {what} there.")
    return lines, impossible


def _why(request: Request, chosen: str, pools: Sequence[Pool], shapes: Mapping[str, Shape]) -> str:
    if request.pool is not None:
        return ", which dask_pool names"
    reasons = []
    for pool in pools:
        if pool.name != chosen and (short := routing.shortages(request, pool, shapes[pool.name])):
            reasons.append(f"not {pool.name}: {'; '.join(part.text for part in short)}")
        elif pool.name != chosen:
            reasons.append(f"{pool.name} could hold it too")
    return f" ({', '.join(reasons)})" if reasons else ""


def _starts(options: Options) -> tuple[list[str], list[str]]:
    """What starts a worker of each pool, and why some of the scripts cannot be made or written."""
    lines: list[str] = []
    problems: list[str] = []
    for pool in options.pools:
        title = f"What starts a worker of pool {pool.name}"
        if pool.kind.found:
            lines += ["", title, "", f"Nothing: the workers of {options.scheduler} are used."]
            continue
        backend = backend_for(pool.cluster)
        try:
            text = backend.describe(pool).strip()
        except ConfigurationError as error:
            problems.append(str(error))
            continue
        if options.plan_scripts is not None and isinstance(backend, JobqueueBackend):
            try:
                title += f" (to try it: {_written(backend, pool, Path(options.plan_scripts))})"
            except OSError as error:
                problems.append(
                    f"--dask-plan-scripts {options.plan_scripts}: the script of pool {pool.name} could not be written: "
                    f"{error.strerror or error}."
                )
        # Not indented, so that what is copied from here is a script.
        lines += ["", title, "", *text.splitlines()]
    return lines, problems


def _written(backend: JobqueueBackend, pool: Pool, directory: Path) -> str:
    """Write the script; returns the command that submits it. OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{pool.name}.sh"
    text, submit = backend.trial(pool, __name__, directory)
    path.write_text(text)
    path.chmod(0o755)  # some submit commands run the file itself
    return submit.format(shlex.quote(str(path)))


def _trial() -> None:
    """Say what an allocation has, where a worker would start in a run."""
    machine = this_machine()
    memory = units.format_memory(machine.memory_mb)
    print(  # noqa: T201 - it goes into the allocation's output
        f"This allocation has started, on {socket.gethostname()}: {units.count(machine.cores, 'core')}, {memory}, "
        f"Python {platform.python_version()} ({sys.executable}). In a run a worker would start here."
    )


if __name__ == "__main__":
    _trial()
