"""Pools made for Slurm resources: jobs that agree in partition, account, constraint and the like share one.

Pure, but for calls of `sinfo` for each pool, which are passed in. A worker's size is what the settings or Dask's
configuration say, else a share of the partition's nodes: as much as the known jobs need, spread over the workers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from snakemake_executor_plugin_dask.batch.allocations import Ran, run_here
from snakemake_executor_plugin_dask.batch.sinfo import MIB, NodeKind, node_kinds
from snakemake_executor_plugin_dask.decide import remedies
from snakemake_executor_plugin_dask.decide.routing import (
    Shortage,
    describe,
    make_it_fit,
    model_matches,
    rule_names,
    shape_of,
    shortages,
    spread_over,
    who,
)
from snakemake_executor_plugin_dask.model.amounts import UNKNOWN, Amounts
from snakemake_executor_plugin_dask.model.batch_systems.scripts import option_given
from snakemake_executor_plugin_dask.model.batch_systems.slurm import CLUSTERS, SLURM
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.pools import Pool, Shape, unique_name, usable_memory_mb
from snakemake_executor_plugin_dask.model.requests import Request, cores_on_node, memory_mb_on_node, with_cluster

Key = tuple[tuple[str, str], ...]
Named = Sequence[tuple[str, Request]]  # requests with their rules, as far as those are known

#: An allocation is worth its wait only if it lives for more than one short job; unused time is given back anyway.
_LEAST_WALLTIME_S = 3600.0
#: A pool beside smaller ones of the same resources has so much more than its jobs ask for, so that few are needed
#: where each job asks for a little more than the one before.
_FURTHER = 1.5
_LEAST_JOBS = 4  # of the largest kind that a worker is to hold at once, where so many are known and a node has room
_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class Size:
    """One node of a worker. ``memory_mib`` is what to ask for; None: Slurm does not count memory there."""

    cores: int
    memory_mb: int
    memory_mib: int | None
    gpus: int


class _Nodes:
    """What sinfo tells of the nodes on which jobs with the same Slurm resources can run. ConfigurationError."""

    def __init__(
        self,
        template: Pool,
        wanted: Mapping[str, str],
        named: Named,
        setting: Callable[[str], Any],
        run: Callable[[Sequence[str]], Ran],
    ) -> None:
        rules = list(dict.fromkeys(rule for rule, _ in named if rule))
        whose = f"R{rule_names(rules)[1:]}" if rules else f"Pool {wanted.get('slurm_partition') or template.name}"
        self._template = template
        self.partition = wanted.get("slurm_partition") or setting("queue")
        cluster = option_given(
            lambda key: _extra(wanted, setting) if key == "job_extra_directives" else setting(key), CLUSTERS
        )
        self.kinds, self.problem = node_kinds(whose, wanted, self.partition, cluster, run)

    def needed(self, request: Request, model: str | None) -> int:
        """How many nodes the request takes: as many as it says, or, of a job that spreads, as few as hold its tasks."""
        if not request.spreads:
            return request.nodes
        template = self._template
        sizes = [
            Shape(
                template.cores or kind.cores,
                usable_memory_mb(memory_mb) if (memory_mb := template.memory_mb or kind.memory_mb) else None,
                template.gpus or _of_model(kind, model),
            )
            for kind in self.kinds
        ]
        return min(spread_over(request, size) for size in sizes or [shape_of(template)])


def make_pools(
    template: Pool,
    named: Named,
    *,
    setting: Callable[[str], Any] | None = None,
    run: Callable[[Sequence[str]], Ran] = run_here,
    further: bool = False,
) -> list[Pool]:
    """The pools that these requests need, in the order in which they are met. ConfigurationError, which names rules.

    ``setting`` gives an argument of Dask-Jobqueue's class from ``template.options`` or Dask's configuration.
    ``further``: there are pools of the same resources already, which are too small.
    """
    if setting is None:
        from snakemake_executor_plugin_dask.backends.jobqueue import JobqueueBackend

        backend = JobqueueBackend(SLURM.name)
        pool = template = backend.with_site_walltime(template)
        setting = lambda key: backend.setting(pool, key)  # noqa: E731
    template = _from_configuration(template, setting)
    pools: list[Pool] = []
    for key, of_key in (_by_key(named) or {(): []}).items():
        nodes = _Nodes(template, dict(key), of_key, setting, run)
        groups: dict[tuple[int, str | None], list[tuple[str, Request]]] = {}
        models = list(dict.fromkeys(request.gpu_model for _, request in of_key if request.gpu_model))
        for rule, request in ((rule, _for_one_worker(each, nodes.kinds, template)) for rule, each in of_key):
            # One model or none: one pool for all of them. Several models: a pool for each.
            model = request.gpu_model or (models[0] if models else None)
            groups.setdefault((nodes.needed(request, model), model), []).append((rule, request))
        for (number, model), members in (groups or {(1, None): []}).items():
            wide = dict(key) | ({"nodes": str(number)} if number > 1 else {})
            for part in _parts(nodes.kinds, members, model, number, template):
                name = _name(wide, template, model if len(models) > 1 else None, {pool.name for pool in pools})
                growth = _FURTHER if further else 1.0
                pools.append(_make(template, name, tuple(sorted(wide.items())), model, part, nodes, setting, growth))
    return pools


def _for_one_worker(request: Request, kinds: Sequence[NodeKind], template: Pool) -> Request:
    """Of a job whose Dask cluster may lie on several workers: with as many Dask workers as a node holds."""
    cluster = request.cluster
    if cluster is None or template.workers_max < 2 or not kinds:
        return request
    rooms = [
        Amounts(
            template.cores or kind.cores,
            usable_memory_mb(template.memory_mb or kind.memory_mb) or UNKNOWN,
            template.gpus or _of_model(kind, request.gpu_model),
        )
        for kind in kinds
    ]
    fitting = max(cluster.fitting(room) for room in rooms)
    here = replace(cluster, workers=fitting) if fitting else replace(cluster, workers=1, script_cores=0)
    return with_cluster(request, here)


def _parts(kinds: Sequence[NodeKind], named: Named, model: str | None, nodes: int, template: Pool) -> Sequence[Named]:
    """The jobs by workers of one size: all together where some kind of node holds the largest of each amount."""
    sized = template.cores is not None and template.memory_mb is not None
    single = [_holding(kinds, [request], model, nodes) for _, request in named]
    if (
        sized
        or not kinds
        or not named
        or not all(single)
        or _holding(kinds, [request for _, request in named], model, nodes)
    ):
        return [named]
    parts, rest = [], list(zip(named, single, strict=True))
    while rest:
        chosen = max(kinds, key=lambda kind: sum(kind in fitting for _, fitting in rest))
        parts.append([each for each, fitting in rest if chosen in fitting])
        rest = [(each, fitting) for each, fitting in rest if chosen not in fitting]
    return parts


def _from_configuration(template: Pool, setting: Callable[[str], Any]) -> Pool:
    from snakemake_executor_plugin_dask.backends.siteconfig import memory_mb

    cores, memory = setting("cores"), setting("memory")
    return replace(
        template,
        cores=int(cores) if template.cores is None and cores is not None else template.cores,
        memory_mb=memory_mb(memory) if template.memory_mb is None and memory is not None else template.memory_mb,
    )


def _by_key(named: Named) -> dict[Key, list[tuple[str, Request]]]:
    found: dict[Key, list[tuple[str, Request]]] = {}
    for rule, request in named:
        if request.pool is None:
            found.setdefault(request.slurm or (), []).append((rule, request))
    return found


def _name(key: Mapping[str, str], template: Pool, model: str | None, taken: set[str]) -> str:
    parts = [key.get("slurm_partition") or template.name]
    parts += [f"{key['nodes']}nodes"] if "nodes" in key else []
    parts += [model] if model else []
    return unique_name(parts, taken, "slurm")


def _make(
    template: Pool,
    name: str,
    key: Key,
    model: str | None,
    named: Named,
    found: _Nodes,
    setting: Callable[[str], Any],
    growth: float,
) -> Pool:
    requests = [request for _, request in named]
    wanted = dict(key)
    nodes = int(wanted["nodes"]) if "nodes" in wanted else None
    sized = template.cores is not None and template.memory_mb is not None
    kinds = found.kinds
    if found.problem and not sized:
        msg = (
            f"Pool {name}: sinfo does not tell what its nodes have ({found.problem}); try again once it does, or give "
            "--dask-worker-cores and --dask-worker-memory."
        )
        raise ConfigurationError(msg)
    gpus = template.gpus
    options = dict(template.options)
    pool = replace(template, name=name, nodes=nodes, slurm=key, gpu_model=model)
    if sized:
        most = max((-(-request.gpus // (nodes or 1)) for request in requests), default=0)
        pool = replace(pool, gpus=gpus if gpus is not None else most)
    else:
        if complaint := _too_large(kinds, named, pool):
            raise ConfigurationError(complaint)
        size = _share(kinds, requests, template, model, nodes, growth)
        pool = replace(pool, cores=size.cores, memory_mb=size.memory_mb, gpus=size.gpus)
        if template.memory_mb is None and setting("job_mem") is None:
            # Exact: Dask-Jobqueue rounds up to whole GiB, which may be more than the node has.
            options["job_mem"] = "0" if size.memory_mib is None else f"{size.memory_mib}M"
    options |= _options(wanted, pool, setting)
    return replace(pool, walltime_s=_walltime_s(template, kinds, requests, growth), options=options)


def _extra(wanted: Mapping[str, str], setting: Callable[[str], Any]) -> list[str]:
    """The directives that options and resources give, but for GPUs."""
    given = setting("job_extra_directives") or setting("job_extra") or []
    extra = [given] if isinstance(given, str) else list(given)
    extra += [f"--{name}={wanted[name]}" for name in ("constraint", "qos", "clusters") if name in wanted]
    return [*extra, wanted["slurm_extra"]] if "slurm_extra" in wanted else extra


def _options(wanted: Mapping[str, str], pool: Pool, setting: Callable[[str], Any]) -> dict[str, Any]:
    """Arguments of the class for the resources by which the pool is made."""
    options: dict[str, Any] = {}
    if "slurm_partition" in wanted:
        options["queue"] = wanted["slurm_partition"]
    if "slurm_account" in wanted:
        options["account"] = wanted["slurm_account"]
    extra = _extra(wanted, setting)
    gres = [wanted["gres"]] if "gres" in wanted else []
    if pool.gpus and (gres or pool.gpu_model):
        # In one option, since a second --gres would replace the first.
        gres.append(f"gpu:{pool.gpu_model}:{pool.gpus}" if pool.gpu_model else f"gpu:{pool.gpus}")
    if gres:
        extra.append(f"--gres={','.join(gres)}")
    return options | {"job_extra_directives": extra}


# Sizes


def _too_large(kinds: Sequence[NodeKind], named: Named, pool: Pool) -> str | None:
    """The complaint where no kind of node holds the jobs, a paragraph for each rule; None: one holds them all."""
    requests = [request for _, request in named]
    nodes = pool.nodes or 1
    if not named or _holding(kinds, requests, pool.gpu_model, nodes):
        return None
    partition = kinds[0].partition
    shapes = [_shape(kind, pool) for kind in kinds]
    told: dict[str, str] = {}
    for rule, request in dict.fromkeys(named):
        short = [_short(request, pool, kind, shape) for kind, shape in zip(kinds, shapes, strict=True)]
        if rule in told or not all(short):
            continue
        told[rule] = _complaint(rule, request, pool, partition, kinds, shapes, short)
    return "\n".join(told.values())


def _short(request: Request, pool: Pool, kind: NodeKind, shape: Shape) -> tuple[Shortage, ...]:
    """What this kind of node lacks for the request: on each of them, and their number."""
    short = shortages(request, pool, shape)
    nodes = pool.nodes or 1
    if nodes <= kind.nodes:
        return short
    room = replace(shape, nodes=kind.nodes)
    fewer = (f"nodes={kind.nodes}",) if request.nodes > 1 else remedies.cores(request, room)
    return (*short, Shortage(f"{nodes} nodes are more than there are", fewer, kind.nodes / nodes))


def _complaint(
    rule: str,
    request: Request,
    pool: Pool,
    partition: str,
    kinds: Sequence[NodeKind],
    shapes: Sequence[Shape],
    short: Sequence[tuple[Shortage, ...]],
) -> str:
    """The paragraph about one rule: what it asks for, what the largest nodes have, and what to change."""
    largest = max(shapes, key=lambda shape: (shape.gpus or 0, shape.cores or 0, shape.memory_mb or 0))
    has = [f"{largest.cores} cores"]
    has += [f"{largest.memory_mb} MB usable"] if largest.memory_mb is not None else []
    has += [f"{largest.gpus} {f'{pool.gpu_model} ' if pool.gpu_model else ''}GPUs"] if request.gpus else []
    nodes = pool.nodes or 1
    if all(kind.nodes < nodes for kind in kinds):
        over = "" if request.nodes > 1 else f", for which {nodes} nodes are needed"
        what = (
            f"asks for {describe(request)}{over}: partition {partition} has {max(kind.nodes for kind in kinds)} nodes"
        )
    elif nodes > 1:
        what = f"asks for {describe(request)}, which {nodes} nodes of partition {partition} do not hold"
    else:
        what = f"asks for {describe(request)}, which no node of partition {partition} holds"
    calls = [make_it_fit(rule, request, short)]
    if request.nodes > 1 and request.origin.times == "tasks":
        more = min((spread_over(replace(request, nodes=1, mpi=True), shape) for shape in shapes), default=0)
        if request.nodes < more <= max(kind.nodes for kind in kinds):
            calls.insert(0, f"--set-resources {rule or 'RULE'}:nodes={more}")
    if request.mpi and nodes == 1 and request.origin.times == "tasks_per_node":
        what += " (tasks_per_node without nodes is one node; with tasks instead, they spread over several)"
    told = ", or ".join(filter(None, calls))
    return (
        f"{who(rule, request)} {what}; the largest has {', '.join(has)}.\n"
        f"  To make it fit{f': {told}' if told else ', change what the rule asks for'}; "
        "or name another slurm_partition."
    )


def _shape(kind: NodeKind, pool: Pool) -> Shape:
    """A worker that holds the whole node."""
    return Shape(
        cores=kind.cores,
        memory_mb=usable_memory_mb(kind.memory_mb) if kind.memory_mb else None,
        gpus=_of_model(kind, pool.gpu_model),
        nodes=pool.nodes or 1,
    )


def _largest(requests: Sequence[Request], nodes: int) -> Amounts:
    """The most that any job has on one of its nodes; the memory is that of a worker that leaves enough of it."""
    return Amounts(
        max((cores_on_node(request, nodes) for request in requests), default=1),
        max((granting(memory_mb_on_node(request, nodes) or 0) for request in requests), default=0),
        max((-(-request.gpus // nodes) for request in requests), default=0),
    )


def _holding(kinds: Sequence[NodeKind], requests: Sequence[Request], model: str | None, nodes: int) -> list[NodeKind]:
    """The kinds of node that hold the largest job, and are enough of them."""
    largest = _largest(requests, nodes)
    return [
        kind
        for kind in kinds
        if largest <= Amounts(kind.cores, kind.memory_mb or UNKNOWN, _of_model(kind, model)) and nodes <= kind.nodes
    ]


def _share(
    kinds: Sequence[NodeKind],
    requests: Sequence[Request],
    template: Pool,
    model: str | None,
    nodes: int | None,
    growth: float = 1.0,
) -> Size:
    """The part of a node that one worker is to have, where some kind of node holds the largest job.

    At least one job's (and ``growth`` times as much), better four; and so much that all known jobs, spread over the
    workers, find room at once. GPUs come in multiples of the largest job's, so that none is left over; cores and memory
    in proportion.
    """
    largest = _largest(requests, nodes or 1)
    cores, memory_mb, gpus = largest.cores, largest.memory_mb, largest.gpus
    fitting = _holding(kinds, requests, model, nodes or 1) or list(kinds)
    # The commonest small node: a larger one is scarce, and holds these workers too.
    kind = min(fitting, key=lambda kind: (_of_model(kind, model), kind.cores, kind.memory_mib))
    has_gpus = _of_model(kind, model)
    memory_of_node = kind.memory_mb
    one = min(1.0, growth * max(cores / kind.cores, memory_mb / memory_of_node if memory_of_node else 0.0))
    part = one
    if nodes is None:  # a wide worker's nodes are leased whole
        total = max(
            sum(request.cores for request in requests) / kind.cores,
            sum(granting(request.memory_mb or 0) for request in requests) / memory_of_node if memory_of_node else 0.0,
            sum(request.gpus for request in requests) / has_gpus if gpus else 0.0,
        )
        part = max(one, total / max(1, template.workers_max), min(total, _LEAST_JOBS * one))
    part = min(1.0, part)
    if gpus:
        jobs = min(has_gpus // gpus, max(1, math.ceil(part * has_gpus / gpus - _TINY)))
        part = max(one, jobs * gpus / has_gpus)
        gpus *= jobs
    else:
        part = math.ceil(part * kind.cores - _TINY) / kind.cores
    worker_cores = template.cores or max(cores, math.floor(part * kind.cores + _TINY))
    if template.memory_mb is not None:
        worker_mb, mib = template.memory_mb, None
    elif memory_of_node:
        mib = min(kind.memory_mib, max(math.ceil(memory_mb * 10**6 / MIB), math.floor(part * kind.memory_mib + _TINY)))
        worker_mb = mib * MIB // 10**6
    else:
        worker_mb, mib = max(memory_mb, 1000 * worker_cores), None
    return Size(worker_cores, worker_mb, mib, template.gpus if template.gpus is not None else gpus)


def _of_model(kind: NodeKind, model: str | None) -> int:
    return sum(number for found, number in kind.gpus if not model or not found or model_matches(model, found))


def granting(memory_mb: int) -> int:
    """The memory of the smallest worker that leaves so much to jobs (the inverse of `usable_memory_mb`)."""
    worker_mb = memory_mb
    while usable_memory_mb(worker_mb) < memory_mb:
        worker_mb += memory_mb - usable_memory_mb(worker_mb)
    return worker_mb


def _walltime_s(template: Pool, kinds: Sequence[NodeKind], requests: Sequence[Request], growth: float) -> float:
    """The setting, else the longest runtime and its margin, at most the partition's limit."""
    if template.walltime_s is not None:
        return template.walltime_s
    # Of several partitions the longest: Slurm starts the allocation in one that allows it.
    limit = max((math.inf if kind.limit_s is None else kind.limit_s for kind in kinds), default=math.inf)
    longest = growth * max((request.runtime_s or 0.0 for request in requests), default=0.0)
    if any(request.runtime_s is None for request in requests):
        # What Slurm itself gives to jobs that say nothing.
        longest = max(longest, *(kind.default_time_s or 0.0 for kind in kinds), 0.0)
    margin_s = template.margin_s if template.margin_s is not None else min(300.0, longest / 9)
    return min(limit, max(_LEAST_WALLTIME_S, math.ceil((longest + margin_s) / 60) * 60.0))
