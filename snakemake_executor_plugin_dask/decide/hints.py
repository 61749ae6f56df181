"""What is said of a run's jobs before the first one: what they do not declare, and what keeps workers idle. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from snakemake_executor_plugin_dask.decide.routing import rule_names, shape_of, shortages
from snakemake_executor_plugin_dask.model.pools import Pool, Shape
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.model.units import count

_MANY_READY = 5000  # among so many `greedy` chooses for half a minute or so


def missing(named: Iterable[tuple[str, Request]], *, ending: bool) -> tuple[str, ...]:
    """A sentence about the rules whose jobs declare no mem_mb, and one about those that declare no runtime.

    The latter only where workers come to an end (``ending``); elsewhere nothing depends on it.
    """
    no_memory: dict[str, None] = {}
    no_runtime: dict[str, None] = {}
    for name, request in named:
        # What a function of inputs declares is known once these are there.
        if request.memory_mb is None and "mem_mb" not in request.origin.pending:
            no_memory[name] = None
        if request.runtime_s is None and "runtime" not in request.origin.pending:
            no_runtime[name] = None
    sentences = []
    if no_memory:
        sentences.append(
            f"No mem_mb is declared by {rule_names(no_memory)}: each job holds its cores' share of the worker's "
            "memory, and no limit is enforced."
        )
    if no_runtime and ending:
        sentences.append(
            f"No runtime is declared by {rule_names(no_runtime)}: no time limit is enforced, and a worker's remaining "
            "walltime is judged by the pool's default_runtime."
        )
    return tuple(sentences)


def few_jobs(
    jobs: int | None, named: Sequence[tuple[str, Request]], pools: Sequence[Pool], shapes: Mapping[str, Shape]
) -> str | None:
    """The hint where `--jobs` lets fewer jobs through than the workers could run at once; None: it does not.

    Jobs are taken to be of average size; a pool whose size is not known yet counts as its least.
    """
    if not jobs or len(named) <= jobs:
        return None
    cores = sum(pool.workers_max * (shapes[pool.name].cores or 1) * (pool.nodes or 1) for pool in pools)
    average = sum(max(1, request.cores) for _, request in named) / len(named)
    if jobs * average >= cores:
        return None
    return (
        f"--jobs {jobs} lets the plugin see {count(jobs, 'job')} at once, and its workers have "
        f"{count(cores, 'core')}: --jobs limits what runs. Give several times what they hold, such as --jobs 10000; "
        "--cores caps the threads of one job, and --dask-workers and --dask-worker-cores cap how much runs at once."
    )


def capped_threads(
    cores: int | None, named: Sequence[tuple[str, Request]], pools: Sequence[Pool], shapes: Mapping[str, Shape]
) -> str | None:
    """The hint where `--cores` keeps jobs from the threads that would use idle workers; None: it does not.

    What a job would have without it is not known any more, so those that have as many as it allows are taken.
    """
    capped = {rule: None for rule, request in named if request.cores == cores}
    held = sum(max(1, request.cores) for _, request in named)
    largest = max((shapes[pool.name].cores or 0 for pool in pools), default=0)
    if not cores or not capped or cores >= largest or held >= largest:
        return None
    rules = ", ".join(list(capped)[:3]) + ", …" * (len(capped) > 3)
    return (
        f"--cores {cores} lets no job have more than {count(cores, 'thread')}, and a worker has "
        f"{count(largest, 'core')}, which all jobs together do not use; rules with as many: {rules}. --cores does not "
        "say how many cores are used at once: omit it."
    )


def slow_choice(scheduler: str | None, ready: int) -> str | None:
    """The hint where Snakemake itself takes long to choose, before the plugin hears of any job; None: it does not.

    The time of its own two schedulers grows with the square of the jobs that are ready.
    """
    if scheduler not in ("ilp", "greedy") or ready < _MANY_READY:
        return None
    return (
        f"{ready:,} jobs are ready, among which --scheduler {scheduler} takes long to choose: its time grows with the "
        "square of their number. --scheduler firstfit, which comes with the plugin, lets the first job start sooner."
    )


def unused(pools: Sequence[Pool], named: Iterable[tuple[str, Request]], shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """The pools that none of these requests could use; for a warning."""
    requests = {request for _, request in named}
    return tuple(
        pool.name
        for pool in pools
        if not any(
            request.pool in (None, pool.name) and not shortages(request, pool, shapes.get(pool.name) or shape_of(pool))
            for request in requests
        )
    )


def slurm_on_local(named: Iterable[tuple[str, tuple[str, ...]]]) -> str | None:
    """The complaint about Slurm's resources on the default local pool, or None, from (rule, `slurm_names`)."""
    names, rules = _slurm_declared(named)
    if not rules:
        return None
    return (
        f"Slurm's resources ({names}) are declared by {rule_names(rules)}, but no cluster is named and the jobs "
        "would run on this machine: "
        "give --dask-cluster slurm to run them on the cluster, or --dask-cluster local to run them here."
    )


def slurm_ignored(named: Iterable[tuple[str, tuple[str, ...]]]) -> str | None:
    """The warning about Slurm's resources beside a pools file, or None, from (rule, `slurm_names`)."""
    names, rules = _slurm_declared(named)
    if not rules:
        return None
    gpus = ", but for GPUs in them" if "gres" in names or "slurm_extra" in names else ""
    return (
        f"Slurm's resources ({names}) of {rule_names(rules)} are ignored{gpus}: the file of --dask-pools says what "
        "pools there are, and dask_pool in a rule names one."
    )


def _slurm_declared(named: Iterable[tuple[str, tuple[str, ...]]]) -> tuple[str, list[str]]:
    """The names of Slurm's resources, and the rules that declare some."""
    rules: dict[str, tuple[str, ...]] = {name: names for name, names in named if names}
    return ", ".join(sorted({name for of_rule in rules.values() for name in of_rule})), list(rules)
