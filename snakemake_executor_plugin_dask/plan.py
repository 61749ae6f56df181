"""The text of `--dask-plan`: the pools, where each rule's jobs would run and why, and what would be submitted.

Imports Dask for the batch scripts; starts nothing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from snakemake_executor_plugin_dask import routing, units
from snakemake_executor_plugin_dask.backends import backend_for
from snakemake_executor_plugin_dask.options import Options
from snakemake_executor_plugin_dask.pools import ATTACHED, Pool
from snakemake_executor_plugin_dask.requests import Request
from snakemake_executor_plugin_dask.routing import NoPool, Shape


def plan_text(options: Options, named: Iterable[tuple[str, Request]]) -> tuple[str, bool]:
    """The plan, and whether every request is possible. ``named``: (rule, request) of each known job."""
    pools = options.pools
    shapes = {pool.name: routing.shape_of(pool) for pool in pools}
    rules, impossible = _rules(Counter(named), pools, shapes)
    parts = [
        "Pools",
        *(f"  {_pool(pool, shapes[pool.name])}" for pool in pools),
        "",
        "Jobs",
        *(rules or ["  No job is to be run on a worker."]),
    ]
    if impossible:
        parts += ["", "Impossible", *(f"  {line}" for message in impossible for line in message.splitlines())]
    for pool in pools:
        parts += ["", f"What starts a worker of pool {pool.name}", "", *_what_starts(pool, options)]
    return "\n".join(parts), not impossible


def _pool(pool: Pool, shape: Shape) -> str:
    size = []
    if shape.cores is not None:
        size.append(f"{shape.cores} {'core' if shape.cores == 1 else 'cores'}")
    if pool.memory_mb is not None and shape.memory_mb is not None:
        memory, usable = units.format_memory(pool.memory_mb), units.format_memory(shape.memory_mb)
        size.append(f"{memory} of memory ({usable} usable)")
    if shape.gpus:
        size.append(
            f"{shape.gpus} {f'{shape.gpu_model} ' if shape.gpu_model else ''}GPU{'' if shape.gpus == 1 else 's'}"
        )
    size += [f"{name}={amount}" for name, amount in shape.extra]
    each = f" on each of {pool.nodes} nodes" if pool.nodes is not None else ""
    text = f"{pool.name}: {pool.cluster}"
    if pool.cluster != ATTACHED:
        one = pool.workers_min == pool.workers_max == 1
        text += f", {units.format_range(pool.workers_min, pool.workers_max)} worker{'' if one else 's'}"
    if size:
        text += f", each with {', '.join(size)}{each}"
    if pool.walltime_s is not None:
        text += f", for {units.format_duration(pool.walltime_s)}"
    if pool.slurm:
        text += f"; for jobs with {', '.join(f'{name}={value}' for name, value in pool.slurm)}"
    return text + "."


def _rules(
    counted: Mapping[tuple[str, Request], int], pools: Sequence[Pool], shapes: Mapping[str, Shape]
) -> tuple[list[str], list[str]]:
    lines, impossible = [], []
    for (rule, request), count in counted.items():
        jobs = f"{count} {'job' if count == 1 else 'jobs'} of rule {rule}, each {routing.describe(request)}"
        try:
            chosen = routing.route(request, pools, shapes, name=rule)
        except NoPool as error:
            lines.append(f"  {jobs}: no pool can hold {'it' if count == 1 else 'them'}.")
            impossible.append(str(error))
            continue
        lines.append(f"  {jobs}: pool {chosen}{_why(request, chosen, pools, shapes)}.")
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


def _what_starts(pool: Pool, options: Options) -> list[str]:
    if pool.cluster == ATTACHED:
        return [f"  Nothing: the workers of {options.scheduler} are used."]
    return [f"  {line}".rstrip() for line in backend_for(pool.cluster).describe(pool).strip().splitlines()]
