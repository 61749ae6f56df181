"""Which pool takes a job's request, or why none can. Pure.

A pool can hold a request when one of its workers, empty and new, can (in an `mpi` pool: as many workers as the job asks
nodes for). What is not known of a pool yet counts as enough; the same question is asked again once a worker was seen.
"""

import difflib
import math
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from snakemake_executor_plugin_dask.decide import remedies
from snakemake_executor_plugin_dask.model.amounts import UNKNOWN
from snakemake_executor_plugin_dask.model.errors import RequestError
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.jobs import WorkerFacts
from snakemake_executor_plugin_dask.model.pools import Pool, Shape, usable_memory_mb
from snakemake_executor_plugin_dask.model.requests import Request, cores_on_node, memory_mb_on_node, with_cluster
from snakemake_executor_plugin_dask.model.units import count

_MAX_NAMES = 8  # rules named in one sentence
#: With the batch system's name.
_DASK_WORKERS_WIDE = (
    "its workers hold several nodes and, with {}, supervise one: a job's own Dask workers need a pool without nodes, "
    "over whose workers they may lie"
)
_GIVEN_UP = "it was given up, since its workers could not be brought up"


@dataclass(frozen=True, slots=True)
class Shortage:
    """What one pool lacks for a request: the sentence's part, and the setting for a rule that would make it fit."""

    text: str
    settings: tuple[str, ...] = ()  # as `mem_mb=1000` or `threads=4`; none: no smaller number would help
    kept: float = 0.0  # part of what was asked for that the setting leaves


class NoPool(RequestError):
    """No pool can ever hold a request."""


def counts_devices(pool: Pool) -> bool:
    """Whether the pool's GPUs are leased; elsewhere a job finds the devices as the worker does."""
    return bool(pool.gpus) or (pool.gpus is None and pool.kind.finds_devices)


def places(pool: Pool, cluster: JobCluster) -> int:
    """Over so many of the pool's workers a job's own Dask cluster may lie. Of a wide one it may have all nodes."""
    if cluster.together or pool.nodes is not None:
        return 1
    return UNKNOWN if pool.kind.found else pool.workers_max  # how many there will be is for others to say


def shape_of(pool: Pool, seen: Shape | None = None) -> Shape:
    """A new worker of this pool: what was seen of one wins over what the pool declares."""
    gpus = pool.gpus
    if gpus is None and not counts_devices(pool):
        gpus = 0
    memory_mb = None if pool.memory_mb is None else usable_memory_mb(pool.memory_mb)
    declared = Shape(
        cores=pool.cores,
        memory_mb=memory_mb,
        gpus=gpus,
        gpu_model=pool.gpu_model,
        nodes=pool.nodes or 1,
        extra=pool.resources,
        lifetime_s=pool.walltime_s,
    )
    if seen is None:
        return declared
    return replace(
        declared,
        cores=declared.cores if seen.cores is None else seen.cores,
        memory_mb=declared.memory_mb if seen.memory_mb is None else seen.memory_mb,
        gpus=declared.gpus if seen.gpus is None else seen.gpus,
        # A worker that joins has lost some of its life to starting, so a walltime that is known counts.
        lifetime_s=seen.lifetime_s if declared.lifetime_s is None else declared.lifetime_s,
    )


def shape_of_worker(pool: Pool, facts: WorkerFacts) -> Shape:
    """The shape that a worker which joined really has."""
    gpus = len(facts.devices[: pool.gpus]) if counts_devices(pool) else 0
    lifetime_s = None if pool.kind.beside_snakemake else facts.remaining_s
    seen = Shape(cores=facts.cores, memory_mb=facts.memory_mb, gpus=gpus, lifetime_s=lifetime_s)
    return shape_of(pool, seen)


def largest(shapes: Sequence[Shape]) -> Shape:
    """What the largest of a pool's workers has, each amount by itself, where they differ."""
    return replace(
        shapes[0],
        cores=max(shape.cores or 0 for shape in shapes),
        memory_mb=max(shape.memory_mb or 0 for shape in shapes),
        gpus=max(shape.gpus or 0 for shape in shapes),
        extra=tuple((name, max(dict(shape.extra).get(name, 0) for shape in shapes)) for name, _ in shapes[0].extra),
    )


def nodes_needed(request: Request, pool: Pool, node: Shape) -> int:
    """How many nodes of this size the job takes.

    An MPI job that names no number of nodes spreads over as many as it needs, where a pool allows that.
    """
    if not request.spreads or (pool.nodes is None and not pool.kind.launched):
        return request.nodes
    return spread_over(request, node)


def spread_over(request: Request, node: Shape) -> int:
    """As many nodes of this size as a job that spreads needs, with whole tasks on each."""
    most: float = math.inf if node.cores is None else node.cores
    if node.memory_mb is not None and request.mb_per_cpu:
        most = min(most, node.memory_mb // request.mb_per_cpu)
    nodes = 1.0
    if most and not math.isinf(most):
        tasks = request.tasks
        per_task = request.cores // tasks if tasks and request.cores % tasks == 0 else 1
        # A task that no node holds is told as such, and not as a number of nodes.
        nodes = -(-(tasks or 1) // (most // per_task)) if tasks and 0 < per_task <= most else -(-request.cores // most)
    by_gpus = -(-request.gpus // node.gpus) if node.gpus else 1
    return max(1, int(nodes), by_gpus)


def model_matches(wanted: str, found: str) -> bool:
    """Whether a GPU model is the wanted one: `a100` is in `NVIDIA A100-SXM4-40GB`, `a10` is not."""
    return re.search(rf"(?<![a-z0-9]){re.escape(wanted.lower())}(?![a-z0-9])", found.lower()) is not None


def made_for(pool: Pool, request: Request) -> bool:
    """Whether the pool takes jobs with the request's Slurm resources: those it was made for, or any.

    What a job spreads over is not known from its resources, so the number of nodes in a pool's key is not compared.
    """
    if pool.slurm is None:
        return True
    wanted, key = request.slurm or (), pool.slurm
    return wanted == (tuple(pair for pair in key if pair[0] != "nodes") if request.spreads else key)


def shortages(request: Request, pool: Pool, shape: Shape) -> tuple[Shortage, ...]:
    """What an empty, new worker of this pool lacks for the request; nothing: the pool can hold it."""
    if not made_for(pool, request):
        return (Shortage("it is made for other Slurm resources"),)
    if pool.nodes is not None and request.nodes == 1 and not request.mpi:
        if request.cluster is None:
            return (Shortage("it takes only jobs that declare nodes, mpi or dask_workers"),)
        if pool.kind.system is None or pool.kind.system.on_node is None:
            return (Shortage(_DASK_WORKERS_WIDE.format(pool.kind.system.title if pool.kind.system else pool.cluster)),)
    short: list[Shortage] = []
    if request.cluster is not None and (number := places(pool, request.cluster)) > 1:
        short, request = _cluster_shortages(request, request.cluster, number, shape, f"its {number} workers")
    elif request.cluster is not None and pool.nodes is not None and not request.cluster.together:
        whose = f"the {count(pool.nodes, 'node')} of a worker"
        short, request = _cluster_shortages(request, request.cluster, pool.nodes, shape, whose)
    nodes = nodes_needed(request, pool, shape)
    most = pool.workers_max if pool.kind.launched and pool.nodes is None else shape.nodes
    room = replace(shape, nodes=min(nodes, most))
    too_wide = nodes > most
    if too_wide:
        what = f"nodes={nodes}" if request.nodes > 1 else f"an MPI job of {nodes} nodes"
        held = "a job may have one node" if most == 1 else f"a job may have {most} nodes"
        settings = (f"nodes={most}",) if request.nodes > 1 else remedies.cores(request, room)
        short.append(Shortage(f"{what} is too much, {held}", settings, most / nodes))
        nodes = most
    on_node = "" if nodes == 1 else " on each node"
    cores, memory_mb = cores_on_node(request, nodes), memory_mb_on_node(request, nodes)
    if shape.cores is not None and cores > shape.cores and not (too_wide and request.spreads):
        text = f"{count(cores, 'core')}{_of_tasks(request, nodes)}{on_node} is more than the {shape.cores} of a worker"
        if request.origin.times == "tasks_per_node" and request.mpi and nodes == 1:
            text += "; tasks_per_node without nodes is one node: declare tasks, or nodes"
        short.append(Shortage(text, remedies.cores(request, room), shape.cores / cores))
    if memory_mb is not None and shape.memory_mb is not None and memory_mb > shape.memory_mb:
        parts = "" if request.cluster is None else f" ({of_cluster(request.cluster)})"
        text = f"mem_mb={memory_mb}{parts}{on_node} is more than the {shape.memory_mb} MB usable on a worker"
        short.append(Shortage(text, remedies.memory(request, room), shape.memory_mb / memory_mb))
    short += _gpu_shortages(request, nodes, shape, on_node, room)
    for name, amount in shape.extra:
        wanted = dict(request.extra).get(name, 0)
        if wanted > amount:
            text = f"{name}={wanted} is more than the {amount} of a worker"
            short.append(Shortage(text, (f"{name}={amount}",), amount / wanted))
    if request.runtime_s is not None and shape.lifetime_s is not None and request.runtime_s > shape.lifetime_s:
        largest = int((shape.lifetime_s - pool.effective_margin_s) // 60)
        text = (
            f"runtime={_minutes(request.runtime_s)} min is more than the walltime of {_minutes(shape.lifetime_s)} min"
            f" (the largest that fits beside the margin is {largest})"
        )
        settings = (f"runtime={largest}",) if largest > 0 else ()
        short.append(Shortage(text, settings, largest * 60 / request.runtime_s))
    return tuple(short)


def _cluster_shortages(
    request: Request, cluster: JobCluster, nodes: int, shape: Shape, whose: str
) -> tuple[list[Shortage], Request]:
    """Where some of a job's Dask workers fit: that not all do. And the request that one node is left to hold.

    ``nodes`` may have parts of it; ``whose`` names them.
    """
    fitting = cluster.fitting(shape.amounts, nodes)
    if not fitting:
        return [], with_cluster(request, replace(cluster, workers=1))
    one = replace(request, cores=cluster.cores, memory_mb=cluster.memory_mb, gpus=cluster.gpus, cluster=None)
    if fitting == cluster.workers:
        return [], one
    text = f"{of_cluster(cluster)} are too much for {whose}, which hold {count(fitting, 'Dask worker')}"
    return [Shortage(text, (f"dask_workers={fitting}",), fitting / cluster.workers)], one


def _of_tasks(request: Request, nodes: int) -> str:
    """As " (3 tasks)", where the cores of a node are those of several tasks, or of a Dask cluster's parts."""
    if request.cluster is not None:
        return f" ({of_cluster(request.cluster)})"
    if not request.tasks or request.cores % request.tasks:
        return ""
    return f" ({count(-(-request.tasks // nodes), 'task')})"


def of_cluster(cluster: JobCluster) -> str:
    """As "4 Dask workers with 2 cores and mem_mb=1000 each, and 1 core and mem_mb=1000 for the script"."""
    each, script = count(cluster.cores, "core"), count(cluster.script_cores, "core")
    if cluster.memory_mb is not None:
        each += f" and mem_mb={cluster.memory_mb}"
        script += f" and mem_mb={cluster.script_memory_mb or 0}"
    where = f", {cluster.together} and thus all on one node" if cluster.together else ""
    more = f", and up to {cluster.most} while there is room," if cluster.most > cluster.workers else ""
    return f"{count(cluster.workers, 'Dask worker')}{more} with {each} each, and {script} for the script{where}"


def _gpu_shortages(request: Request, nodes: int, shape: Shape, on_node: str, room: Shape) -> list[Shortage]:
    if not request.gpus:
        return []
    short: list[Shortage] = []
    gpus = -(-request.gpus // nodes)
    if shape.gpus is not None and gpus > shape.gpus:
        held = f"is more than the {shape.gpus} of a worker" if shape.gpus else "is asked for and it has none"
        short.append(Shortage(f"{count(gpus, 'GPU')}{on_node} {held}", remedies.gpus(request, room), shape.gpus / gpus))
    model = request.gpu_model
    if shape.gpus != 0 and model and shape.gpu_model and not model_matches(model, shape.gpu_model):
        short.append(Shortage(f"gpu_model={model} is wanted and it has {shape.gpu_model}"))
    return short


def route(
    request: Request,
    pools: Sequence[Pool],
    shapes: Mapping[str, Shape],
    given_up: Collection[str] = (),
    name: str = "",
    closed: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The name of the first pool, in the file's order, that can hold the request and was not given up.

    ``name`` is the rule's, for the message; ``closed``: why the nodes of a pool's wide workers have no companions.
    Raises NoPool, whose message lists each pool and what to change.
    """
    candidates = [pool for pool in pools if request.pool in (None, pool.name)]
    if not candidates:
        names = [pool.name for pool in pools]
        close = difflib.get_close_matches(request.pool or "", names, n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        msg = f"{who(name, request)} asks for dask_pool={request.pool}, but the pools are {', '.join(names)}{hint}"
        raise NoPool(msg)
    short: dict[str, tuple[Shortage, ...]] = {}
    fitting: list[Pool] = []
    for pool in candidates:
        short[pool.name] = shortages(request, pool, shapes.get(pool.name) or shape_of(pool))
        if pool.name in given_up:
            short[pool.name] += (Shortage(_GIVEN_UP),)
        if pool.name in closed and request.cluster is not None:
            short[pool.name] += (Shortage(f"the nodes of its workers take no Dask workers: {closed[pool.name]}"),)
        if not short[pool.name]:
            fitting.append(pool)
    if request.spreads:
        fitting.sort(key=lambda pool: pool.slurm is not None and (pool.nodes or 0))  # no more nodes than it needs
    if request.cluster is not None:
        fitting.sort(key=lambda pool: pool.nodes is not None)  # where whole nodes are held, whatever is used of them
    if fitting and request.gpus and request.gpu_model:
        # A pool that states the model is a surer choice than one that states none.
        fitting.sort(key=lambda pool: pool.gpu_model is None)
    if fitting:
        return fitting[0].name
    raise NoPool(_message(request, candidates, short, name))


def check_all(
    named: Iterable[tuple[str, Request]],
    pools: Sequence[Pool],
    shapes: Mapping[str, Shape],
) -> str | None:
    """One message about every (rule, request) that no pool can hold, a paragraph for each rule; None: all fit."""
    told: dict[str, str] = {}
    more: dict[str, int] = {}
    known: dict[tuple[str, Request], str | None] = {}
    for name, request in named:
        if (name, request) not in known:
            try:
                route(request, pools, shapes, name=name)
            except NoPool as error:
                known[name, request] = str(error)
            else:
                known[name, request] = None
        problem = known[name, request]
        if problem is None:
            continue
        if name in told:
            more[name] = more.get(name, 0) + 1
        told.setdefault(name, problem)
    if not told:
        return None
    return "\n".join(
        text + (f"\n  (the same holds for {count(more[name], 'more job')} of this rule)" if name in more else "")
        for name, text in told.items()
    )


def _message(request: Request, pools: Sequence[Pool], short: Mapping[str, tuple[Shortage, ...]], name: str) -> str:
    lines = [f"{who(name, request)} asks for {describe(request)}, which no pool can hold:"]
    lines += [f"  pool {pool.name}: {'; '.join(part.text for part in short[pool.name])}." for pool in pools]
    calls = make_it_fit(name, request, short.values())
    if calls:
        lines.append(f"  To make it fit: {calls}")
    elif any(part.text == _GIVEN_UP for parts in short.values() for part in parts if len(parts) == 1):
        lines.append("  The reason was given when the pool was given up; fix that, and run Snakemake again.")
    else:
        lines.append(f"  To make it fit, change what {_its_rules(request)} for, or add a pool that holds it.")
    return "\n".join(lines)


def _its_rules(request: Request) -> str:
    members = request.origin.members
    return f"{rule_names(members)} {'asks' if len(members) == 1 else 'ask'}" if members else "the rule asks"


def make_it_fit(name: str, request: Request, short: Iterable[tuple[Shortage, ...]]) -> str:
    """What makes a rule's jobs fit where the fewest things have to change, and those the least; or nothing.

    A call for a rule. A group has no resources of its own: what its jobs may ask for together, and by which rules.
    """
    fixable = [parts for parts in short if all(part.settings for part in parts)]
    if not fixable:
        return ""
    nearest = min(fixable, key=lambda parts: (len(parts), -min(part.kept for part in parts)))
    settings = list(dict.fromkeys(text for part in nearest for text in part.settings))
    if request.origin.members:
        return (
            f"the jobs that run at once in the group may ask for {' and '.join(settings)} together: set less for "
            f"{rule_names(request.origin.members)} (--set-resources, --set-threads), or take some of its rules out "
            "(--groups RULE=OTHER)."
        )
    rule = name or "RULE"
    resources = [shlex.quote(f"{rule}:{text}") for text in settings if not text.startswith("threads=")]
    threads = [f"--set-threads {rule}={text.partition('=')[2]}" for text in settings if text.startswith("threads=")]
    return " ".join(([f"--set-resources {' '.join(resources)}"] if resources else []) + threads)


def describe(request: Request) -> str:
    """A request in words, as `4 cores, mem_mb=1000, runtime=30 min`."""
    parts = [count(request.cores, "core")]
    if request.memory_mb is not None:
        parts.append(f"mem_mb={request.memory_mb}")
    if request.runtime_s is not None:
        parts.append(f"runtime={_minutes(request.runtime_s)} min")
    if request.gpus:
        parts.append(count(request.gpus, "GPU") + (f" ({request.gpu_model})" if request.gpu_model else ""))
    if request.nodes > 1:
        parts.append(f"{request.nodes} nodes")
    if request.mpi:
        parts.append("MPI")
    if request.pool is not None:
        parts.append(f"dask_pool={request.pool}")
    if request.cluster is not None:
        parts[0] += f" ({of_cluster(request.cluster)})"
    return ", ".join(parts)


def who(name: str, request: Request | None = None) -> str:
    """As "Rule a", "Group g (rules a, b)"."""
    if request is not None and request.origin.members:
        return f"Group {name} ({rule_names(request.origin.members)})"
    return f"Rule {name}" if name else "The job"


def rule_names(names: Collection[str]) -> str:
    """As "rule a", "rules a, b and 3 more"."""
    listed = list(names)
    text = ", ".join(listed[:_MAX_NAMES])
    if len(listed) > _MAX_NAMES:
        text += f" and {len(listed) - _MAX_NAMES} more"
    return f"{'rule' if len(listed) == 1 else 'rules'} {text}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g}"
