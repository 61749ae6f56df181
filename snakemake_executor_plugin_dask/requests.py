"""What a job needs while it runs, from the resources that its rule declares. Pure."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from snakemake_executor_plugin_dask.errors import RequestError


@dataclass(frozen=True, slots=True)
class Request:
    """A job's request. ``cores`` and ``gpus`` are totals over its nodes, ``memory_mb`` is for each node.

    ``None`` for memory or runtime means that the rule did not declare it.
    """

    cores: int
    memory_mb: int | None = None  # 10^6 bytes, as Snakemake means mem_mb
    runtime_s: float | None = None
    gpus: int = 0
    gpu_model: str | None = None
    nodes: int = 1
    mpi: bool = False
    extra: tuple[tuple[str, int], ...] = ()  # every other integer resource, sorted by name
    pool: str | None = None  # dask_pool
    #: slurm_partition, slurm_account, constraint, qos, slurm_extra, gres, clusters, nodes: what a pool made for Slurm
    #: resources is made from; sorted, GPUs taken out. None: the rule declares none of them.
    slurm: tuple[tuple[str, str], ...] | None = None
    tasks: int | None = None  # ranks of a job that declares `mpi` or several nodes, where it says how many


SLURM_NAMES = ("clusters", "constraint", "gres", "nodes", "qos", "slurm_account", "slurm_extra", "slurm_partition")

#: Not `extra`: what a Request has a field for, what Snakemake keeps for itself, and the twins it derives (`mem`, …).
_NOT_EXTRA = frozenset(SLURM_NAMES) | {
    "_cores", "_nodes", "attempt", "threads", "tmpdir", "mem", "mem_mb", "mem_mib", "disk", "disk_mib", "runtime",
    "cpus_per_task", "mem_mb_per_cpu", "tasks", "tasks_per_node", "gpu", "gpus", "gpu_model", "gpu_manufacturer", "mpi",
    "dask_pool", "dask_job_start",
}  # fmt: skip

_TBD = "<TBD>"  # Snakemake's word for a value that depends on inputs which do not exist yet


def request_from_resources(resources: Mapping[str, object], threads: int) -> Request:
    """What a job with these resources needs, by the table in the documentation («What a rule declares»).

    A value that is not known yet (``<TBD>``) counts as not declared; so does 0 for memory and runtime, as for Slurm.
    Raises RequestError, which names the resource, for values that make no sense.
    """
    if threads < 0:
        msg = f"threads={threads} must be a whole number of at least 0; change it in the rule."
        raise RequestError(msg)
    nodes = _count(resources, "nodes", least=1) or 1
    tasks = declared = _count(resources, "tasks", least=1)
    if tasks is None:
        per_node = _count(resources, "tasks_per_node", least=1)
        tasks = 1 if per_node is None else per_node * nodes
        declared = None if per_node is None else tasks
    mpi = bool(_declared(resources, "mpi"))
    per_task = _count(resources, "cpus_per_task")
    cores = (threads if per_task is None else per_task) * tasks
    memory_mb = _count(resources, "mem_mb")
    per_cpu_mb = _count(resources, "mem_mb_per_cpu")
    if not memory_mb and per_cpu_mb:
        memory_mb = per_cpu_mb * max(1, -(-cores // nodes))
    runtime_min = _count(resources, "runtime")
    gpus = _count(resources, "gpu")
    if gpus is None:
        gpus = _count(resources, "gpus") or 0
    model = _text(resources, "gpu_model")
    slurm, slurm_gpus, slurm_model = _slurm(resources, nodes, tasks)
    return Request(
        cores=cores,
        memory_mb=memory_mb or None,
        runtime_s=runtime_min * 60.0 if runtime_min else None,
        gpus=max(gpus, slurm_gpus),
        gpu_model=model or slurm_model,
        nodes=nodes,
        mpi=mpi,
        extra=_extra(resources),
        pool=_text(resources, "dask_pool"),
        slurm=slurm,
        tasks=declared if mpi or nodes > 1 else None,
    )


def starts_cold(resources: Mapping[str, object]) -> bool:
    """Whether the rule wants a Snakemake of its own for each job. Raises RequestError for an unknown word."""
    found = _text(resources, "dask_job_start")
    if found not in (None, "warm", "cold"):
        msg = f"The resource dask_job_start={found!r} must be warm or cold; change it in the rule."
        raise RequestError(msg)
    return found == "cold"


def slurm_names(resources: Mapping[str, object]) -> tuple[str, ...]:
    """The resources by which a rule asks for something of a Slurm cluster; a bare `nodes` is not one of them."""
    return tuple(
        sorted(
            name
            for name in resources
            if (name.startswith("slurm_") or (name in SLURM_NAMES and name != "nodes"))
            and _declared(resources, name) is not None
        )
    )


def _declared(resources: Mapping[str, object], name: str) -> object:
    value = resources.get(name)
    return None if isinstance(value, str) and value in (_TBD, "") else value


def _count(resources: Mapping[str, object], name: str, least: int = 0) -> int | None:
    """The whole number that a resource holds; None where it is not declared or not known yet."""
    value = _declared(resources, name)
    if value is None:
        return None
    number: int | None = None
    if isinstance(value, float) and math.isfinite(value):
        number = round(value)
    elif (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.isdecimal()):
        number = int(value)
    if number is None or number < least:
        msg = f"The resource {name}={value!r} must be a whole number of at least {least}; change it in the rule."
        raise RequestError(msg)
    return number


def _text(resources: Mapping[str, object], name: str) -> str | None:
    value = _declared(resources, name)
    if value is None:
        return None
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    msg = f"The resource {name}={value!r} must be a text; change it in the rule."
    raise RequestError(msg)


def _extra(resources: Mapping[str, object]) -> tuple[tuple[str, int], ...]:
    # Zero and negative amounts hold nothing, whatever a pool lists.
    return tuple(
        sorted(
            (name, int(value))
            for name, value in resources.items()
            if name not in _NOT_EXTRA and isinstance(value, int) and not isinstance(value, bool) and value > 0
        )
    )


def _slurm(
    resources: Mapping[str, object], nodes: int, tasks: int
) -> tuple[tuple[tuple[str, str], ...] | None, int, str | None]:
    """What a pool is made from, and the GPUs (in total) and their model that were taken out of it."""
    pairs = {name: text for name in SLURM_NAMES if name != "nodes" and (text := _text(resources, name)) is not None}
    gpus, model = 0, None
    if "gres" in pairs:
        rest, per_node, model = _gpus_in_gres(_unquoted(pairs.pop("gres")), "gres")
        gpus = per_node * nodes
        if rest:
            pairs["gres"] = rest
    if "slurm_extra" in pairs:
        rest, more, other = _gpus_in_options(pairs.pop("slurm_extra"), nodes, tasks)
        gpus, model = max(gpus, more), model or other
        if rest:
            pairs["slurm_extra"] = rest
    if nodes > 1:
        pairs["nodes"] = str(nodes)
    return tuple(sorted(pairs.items())) or None, gpus, model


def _unquoted(text: str) -> str:
    """The text without the quotes around all of it, which profiles carry since earlier executors needed them."""
    text = text.strip()
    while len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def _gpus_in_gres(gres: str, name: str) -> tuple[str, int, str | None]:
    """Splits `gpu:a100:2,license:1` into what is not a GPU, the number of GPUs, and their model."""
    rest, gpus, model = [], 0, None
    for entry in filter(None, (part.strip() for part in gres.split(","))):
        parts = entry.removeprefix("gres/").removeprefix("gres:").replace("=", ":").split(":")
        if parts[0] != "gpu":
            rest.append(entry)
            continue
        found, kind = _number_and_kind(":".join(parts[1:]), name, gres)
        gpus, model = gpus + found, model or kind
    return ",".join(rest), gpus, model


def _number_and_kind(text: str, name: str, whole: str) -> tuple[int, str | None]:
    """Reads `2`, `a100:2`, `a100` or nothing."""
    kind, colon, number = text.rpartition(":")
    if not colon and number and not number.isdecimal():
        kind, number = number, "1"
    if not (number or "1").isdecimal() or ":" in kind:
        msg = f"The GPUs in the resource {name}={whole!r} cannot be read; write them as gpu:2 or gpu:a100:2."
        raise RequestError(msg)
    return int(number or "1"), kind or None


def _gpus_in_options(text: str, nodes: int, tasks: int) -> tuple[str, int, str | None]:
    """Takes the options that ask for GPUs out of sbatch's options; the number is a total over nodes."""
    try:
        words = shlex.split(_unquoted(text))
    except ValueError as error:
        msg = f"The resource slurm_extra={text!r} cannot be read ({error}); close its quotes."
        raise RequestError(msg) from error
    times = {"--gres": nodes, "--gpus": 1, "-G": 1, "--gpus-per-node": nodes, "--gpus-per-task": tasks}
    rest: list[str] = []
    gpus, model = 0, None
    remaining = iter(words)
    for word in remaining:
        option, equals, value = word.partition("=")
        if word.startswith("-G") and len(word) > 2:
            option, equals, value = "-G", "=", word[2:].removeprefix("=")
        if option not in times:
            rest.append(word)
            continue
        value = value if equals else next(remaining, "")
        if option == "--gres":
            left, found, kind = _gpus_in_gres(value, "slurm_extra")
            if left:
                rest.append(f"--gres={left}")
        else:
            found, kind = 0, None
            for part in value.split(","):
                number, of_kind = _number_and_kind(part, "slurm_extra", text)
                found, kind = found + number, kind or of_kind
        gpus, model = max(gpus, found * times[option]), model or kind
    return shlex.join(rest), gpus, model
