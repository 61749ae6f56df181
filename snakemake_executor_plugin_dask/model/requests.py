"""What a job needs while it runs, from the resources that its rule declares. Pure."""

import difflib
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace

from snakemake_executor_plugin_dask.model.errors import RequestError
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster


@dataclass(frozen=True, slots=True)
class Origin:
    """Which resources a request's numbers came from, so that advice names those. No part of what a job needs."""

    cores: str = "threads"  # what is multiplied: threads, cpus_per_task, cpus_per_gpu
    times: str | None = None  # by the number of tasks in: tasks, tasks_per_node, tasks_per_gpu
    tasks: int = 1  # so many, in total
    #: Settings with `{}` for their number of GPUs, and what it is multiplied by: ("gres=gpu:a100:{}", nodes).
    gpus: tuple[tuple[str, int], ...] = ()
    pending: tuple[str, ...] = ()  # declared by functions of inputs that do not exist yet
    members: tuple[str, ...] = ()  # the rules of a group; empty: the request is one job's


@dataclass(frozen=True, slots=True)
class Request:
    """A job's request. ``cores`` and ``gpus`` are totals over its nodes, ``memory_mb`` is for each node.

    ``None`` for memory or runtime means that the rule did not declare it. ``memory_mb`` of a job whose number of nodes
    follows from the nodes' size is what it takes on one node alone; `memory_mb_on_node` says it for others.
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
    mb_per_cpu: int | None = None  # where the memory comes from mem_mb_per_cpu
    cluster: JobCluster | None = None  # from dask_workers; cores, memory_mb and gpus are then those of all its parts
    origin: Origin = Origin()

    @property
    def spreads(self) -> bool:
        """Whether the number of nodes follows from the nodes' size: an MPI job that declares none."""
        return self.mpi and self.nodes == 1 and self.origin.times != "tasks_per_node"


def cores_on_node(request: Request, nodes: int) -> int:
    """The most cores that the job has on one of so many nodes: of whole tasks, where it says how many there are."""
    if nodes == 1:
        return request.cores
    tasks = request.tasks
    if tasks and request.cores % tasks == 0:
        return -(-tasks // nodes) * (request.cores // tasks)
    return -(-request.cores // nodes)


def memory_mb_on_node(request: Request, nodes: int) -> int | None:
    """The memory that it takes on each of so many nodes; None: it declares none."""
    if request.mb_per_cpu is None:
        return request.memory_mb
    return request.mb_per_cpu * max(1, cores_on_node(request, nodes))


SLURM_NAMES = ("clusters", "constraint", "gres", "nodes", "qos", "slurm_account", "slurm_extra", "slurm_partition")

#: Other names for `clusters`, which the Slurm executor takes, too; the first that is declared counts.
_CLUSTERS = ("cluster", "clusters", "slurm_cluster")
_KNOWN_SLURM = ("slurm_account", "slurm_cluster", "slurm_extra", "slurm_partition")

#: Not `extra`: what a Request has a field for, what Snakemake keeps for itself, and the twins it derives (`mem`, …).
_NOT_EXTRA = frozenset(SLURM_NAMES) | frozenset(_CLUSTERS) | {
    "_cores", "_nodes", "attempt", "threads", "tmpdir", "mem", "mem_mb", "mem_mib", "disk", "disk_mib", "runtime",
    "cpus_per_task", "mem_mb_per_cpu", "tasks", "tasks_per_node", "gpu", "gpus", "gpu_model", "gpu_manufacturer", "mpi",
    "cpus_per_gpu", "tasks_per_gpu", "dask_pool", "dask_job_start", "dask_workers", "dask_workers_max",
    "dask_script_threads", "dask_script_mem_mb", "dask_worker_options",
}  # fmt: skip

_TBD = "<TBD>"  # Snakemake's word for a value that depends on inputs which do not exist yet


def request_from_resources(resources: Mapping[str, object], threads: int) -> Request:
    """What a job with these resources needs, by the table in the documentation ("What a rule declares").

    A value that is not known yet (``<TBD>``) counts as not declared; so does 0 for memory, runtime and tasks, and 0 or
    less for cores of a task or of a GPU, as for the Slurm executor. Raises RequestError, which names the resource, for
    values that make no sense.
    """
    if threads < 0:
        msg = f"threads={threads} must be a whole number of at least 0; change it in the rule."
        raise RequestError(msg)
    mpi = bool(_declared(resources, "mpi"))
    nodes = _count(resources, "nodes", least=1)
    tasks, per_node = _count(resources, "tasks") or None, _count(resources, "tasks_per_node") or None
    times = "tasks" if tasks else None
    if tasks and per_node and mpi and nodes is None:
        nodes = -(-tasks // per_node)
    nodes = nodes or 1
    if tasks is None and per_node:
        tasks, times = per_node * nodes, "tasks_per_node"
    slurm, declared_gpus = _slurm(resources, nodes, tasks or 1)
    gpus, model, gpu_settings = _gpus(resources, declared_gpus)
    if tasks is None and gpus and (per_gpu := max(0, _whole(resources, "tasks_per_gpu") or 0)):
        tasks, times = per_gpu * gpus, "tasks_per_gpu"
    cores, base = _cores(resources, threads, tasks or 1, gpus)
    memory_mb = _count(resources, "mem_mb") or None
    per_cpu_mb = (_count(resources, "mem_mb_per_cpu") or None) if memory_mb is None else None
    runtime_min = _count(resources, "runtime")
    request = Request(
        cores=cores,
        runtime_s=runtime_min * 60.0 if runtime_min else None,
        gpus=gpus,
        gpu_model=model,
        nodes=nodes,
        mpi=mpi,
        extra=_extra(resources),
        pool=_text(resources, "dask_pool"),
        slurm=slurm,
        tasks=tasks if mpi or nodes > 1 else None,
        mb_per_cpu=per_cpu_mb,
        origin=Origin(
            cores=base,
            times=times,
            tasks=tasks or 1,
            gpus=gpu_settings,
            pending=pending(resources),
        ),
    )
    request = replace(request, memory_mb=memory_mb or memory_mb_on_node(request, nodes))
    workers = _count(resources, "dask_workers")
    if not workers:
        return request
    if nodes > 1 or mpi or times is not None:
        msg = (
            f"The resource dask_workers={workers} cannot be combined with nodes, tasks or mpi: a job has either a Dask "
            "cluster of its own or MPI ranks; remove one of them from the rule."
        )
        raise RequestError(msg)
    return with_cluster(request, _cluster(resources, request, workers))


def with_cluster(request: Request, cluster: JobCluster) -> Request:
    """The request of a job with this Dask cluster of its own: all that script, scheduler and workers hold."""
    total = cluster.total
    memory_mb = None if cluster.memory_mb is None else total.memory_mb
    return replace(request, cores=total.cores, memory_mb=memory_mb, gpus=total.gpus, mb_per_cpu=None, cluster=cluster)


def _cluster(resources: Mapping[str, object], request: Request, workers: int) -> JobCluster:
    """The Dask cluster whose workers each have what the rule declares, which ``request`` is of."""
    most = _count(resources, "dask_workers_max")
    if most is not None and most < workers:
        msg = (
            f"The resource dask_workers_max={most} must be at least dask_workers, which is {workers}; change one of "
            "them in the rule."
        )
        raise RequestError(msg)
    script_cores = _count(resources, "dask_script_threads")
    script_memory_mb = _count(resources, "dask_script_mem_mb")
    return JobCluster(
        workers=workers,
        cores=max(1, request.cores),
        memory_mb=request.memory_mb,
        gpus=request.gpus,
        script_cores=1 if script_cores is None else script_cores,
        script_memory_mb=request.memory_mb if script_memory_mb is None else script_memory_mb,
        most=most or 0,
    )


def pending(resources: Mapping[str, object]) -> tuple[str, ...]:
    """Of mem_mb and runtime, what is declared by a function that cannot say yet."""
    unknown = {name for name, value in resources.items() if isinstance(value, str) and value == _TBD}
    memory = ("mem_mb",) if unknown & {"mem_mb", "mem_mb_per_cpu", "mem"} else ()
    return (*memory, "runtime") if "runtime" in unknown else memory


def _cores(resources: Mapping[str, object], threads: int, tasks: int, gpus: int) -> tuple[int, str]:
    """The cores in total, and the resource that says them."""
    per_task = _whole(resources, "cpus_per_task") or 0
    if per_task > 0:
        return per_task * tasks, "cpus_per_task"
    per_gpu = _whole(resources, "cpus_per_gpu") or 0
    if gpus and per_gpu > 0:
        return per_gpu * gpus, "cpus_per_gpu"
    return threads * tasks, "threads"


def _gpus(
    resources: Mapping[str, object], declared: Sequence["_Gpus"]
) -> tuple[int, str | None, tuple[tuple[str, int], ...]]:
    """The GPUs in total, their model, and the settings that say how many: from `gpu`, `gpu_model`, gres, slurm_extra.

    A model without a number is one GPU.
    """
    found = list(declared)
    model = _text(resources, "gpu_model")
    name = next((name for name in ("gpu", "gpus") if _declared(resources, name) is not None), None)
    if name is not None:
        number, kind = _gpu_number(resources, name)
        template = f"{name}={kind}:{{}}" if kind else f"{name}={{}}"
        found.insert(0, _Gpus(number, kind, ((template, 1),)))
    elif model is not None and not any(each.total for each in found):
        found.append(_Gpus(1, model, ()))
    kinds = [each.model for each in found if each.model]
    return (
        max((each.total for each in found), default=0),
        model or next(iter(kinds), None),
        tuple(setting for each in found for setting in each.settings),
    )


def _gpu_number(resources: Mapping[str, object], name: str) -> tuple[int, str | None]:
    """The number in `gpu`, which may name a model as `sbatch --gpus` takes it: `2`, `a100:2`, `a100`."""
    value = _declared(resources, name)
    if isinstance(value, str) and not value.isdecimal() and not value.startswith("-"):
        number, model, _ = _numbers_and_kind(value, name, value)
        return number, model
    return _count(resources, name) or 0, None


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
            if (name.startswith("slurm_") or name in _CLUSTERS or (name in SLURM_NAMES and name != "nodes"))
            and _declared(resources, name) is not None
        )
    )


def unknown_slurm_names(resources: Mapping[str, object]) -> tuple[str, ...]:
    """Declared resources that look like Slurm's and mean nothing, such as a misspelt `slurm_partion`."""
    return tuple(name for name in slurm_names(resources) if name.startswith("slurm_") and name not in _KNOWN_SLURM)


def unknown_slurm_warning(name: str, rule: str) -> str:
    """The sentence about one of them, with a rule that declares it."""
    close = difflib.get_close_matches(name, _KNOWN_SLURM, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    known = ", ".join(_KNOWN_SLURM)
    return f"Rule {rule} declares {name}, which is ignored; {meant}Resources of that kind are {known}."


def _declared(resources: Mapping[str, object], name: str) -> object:
    value = resources.get(name)
    return None if isinstance(value, str) and value in (_TBD, "") else value


def _count(resources: Mapping[str, object], name: str, least: int = 0) -> int | None:
    """The whole number that a resource holds; None where it is not declared or not known yet."""
    what = f"a whole number of at least {least}"
    number = _whole(resources, name, what)
    if number is not None and number < least:
        msg = f"The resource {name}={resources[name]!r} must be {what}; change it in the rule."
        raise RequestError(msg)
    return number


def _whole(resources: Mapping[str, object], name: str, what: str = "a whole number") -> int | None:
    """As `_count`, for a number that may be negative."""
    value = _declared(resources, name)
    if value is None:
        return None
    if isinstance(value, float) and math.isfinite(value):
        return round(value)
    if (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.isdecimal()):
        return int(value)
    msg = f"The resource {name}={value!r} must be {what}; change it in the rule."
    raise RequestError(msg)


def _text(resources: Mapping[str, object], name: str) -> str | None:
    value = _declared(resources, name)
    if value is None:
        return None
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    msg = f"The resource {name}={value!r} must be a string; change it in the rule."
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


@dataclass(frozen=True, slots=True)
class _Gpus:
    """GPUs that one declaration asks for, in total, and the settings that say how many."""

    total: int
    model: str | None
    settings: tuple[tuple[str, int], ...]


def _slurm(
    resources: Mapping[str, object], nodes: int, tasks: int
) -> tuple[tuple[tuple[str, str], ...] | None, list[_Gpus]]:
    """What a pool is made from, and the GPUs that were taken out of it."""
    pairs = {name: text for name in SLURM_NAMES if name != "nodes" and (text := _text(resources, name)) is not None}
    cluster = next((text for name in _CLUSTERS if (text := _text(resources, name)) is not None), None)
    if cluster is not None:
        pairs["clusters"] = cluster
    for name, text in pairs.items():
        _check_for_script(name, text)
    gpus: list[_Gpus] = []
    if "gres" in pairs:
        rest, number, model, template = _gpus_in_gres(_unquoted(pairs.pop("gres")), "gres")
        gpus.append(_Gpus(number * nodes, model, ((f"gres={template}", nodes),) if template else ()))
        if rest:
            pairs["gres"] = rest
    if "slurm_extra" in pairs:
        rest, more = _gpus_in_options(pairs.pop("slurm_extra"), nodes, tasks)
        gpus += more
        if rest:
            pairs["slurm_extra"] = rest
    if nodes > 1:
        pairs["nodes"] = str(nodes)
    return tuple(sorted(pairs.items())) or None, gpus


#: What ends a line, or a word, of a batch script. `slurm_extra` is options, in which blanks and quotes have a meaning.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_NAME = re.compile(r"[\s\"'\\]|^-")


def _check_for_script(name: str, text: str) -> None:
    """Raises RequestError where a name would be more than one word of a batch script, or an option of its own."""
    bare = text if name == "slurm_extra" else re.sub(r", +", ",", _unquoted(text))
    found = _CONTROL.search(bare) or (None if name == "slurm_extra" else _NO_NAME.search(bare))
    if found is not None:
        what = "begins with" if found.group() == "-" else "holds"
        msg = (
            f"The resource {name}={text!r} {what} {found.group()!r}, which no name in Slurm does; in the batch script "
            "it could act as more than a name. Change it in the rule."
        )
        raise RequestError(msg)


def _unquoted(text: str) -> str:
    """The text without the quotes around all of it, which profiles carry since earlier executors needed them."""
    text = text.strip()
    while len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def _gpus_in_gres(gres: str, name: str) -> tuple[str, int, str | None, str]:
    """Splits `gpu:a100:2,license:1` into what is not a GPU, the number of GPUs, their model, and `gpu:a100:{}`.

    The last one has the rest along; it is empty where no single number says how many GPUs there are.
    """
    rest, template, gpus, model, entries = [], [], 0, None, 0
    for entry in filter(None, (part.strip() for part in gres.split(","))):
        parts = entry.removeprefix("gres/").removeprefix("gres:").replace("=", ":").split(":")
        if parts[0] != "gpu":
            rest.append(entry)
            template.append(entry)
            continue
        found, kind = _number_and_kind(":".join(parts[1:]), name, gres)
        gpus, model, entries = gpus + found, model or kind, entries + 1
        template.append(f"gpu:{kind}:{{}}" if kind else "gpu:{}")
    return ",".join(rest), gpus, model, ",".join(template) if entries == 1 else ""


def _number_and_kind(text: str, name: str, whole: str) -> tuple[int, str | None]:
    """Reads `2`, `a100:2`, `a100` or nothing."""
    kind, colon, number = text.rpartition(":")
    if not colon and number and not number.isdecimal():
        kind, number = number, "1"
    if not (number or "1").isdecimal() or ":" in kind:
        example = "2 or a100:2" if name.startswith("gpu") else "gpu:2 or gpu:a100:2"
        msg = f"The GPUs in the resource {name}={whole!r} cannot be read; write them as {example}."
        raise RequestError(msg)
    return int(number or "1"), kind or None


def _numbers_and_kind(text: str, name: str, whole: str) -> tuple[int, str | None, str]:
    """Reads `a100:2,h100:1` as `--gpus` takes it: the sum, the first model, and `a100:{}` where there is one entry."""
    read = [_number_and_kind(part.strip(), name, whole) for part in text.split(",")]
    number, kind = sum(number for number, _ in read), next((kind for _, kind in read if kind), None)
    template = (f"{kind}:{{}}" if kind else "{}") if len(read) == 1 else ""
    return number, kind, template


def _gpus_in_options(text: str, nodes: int, tasks: int) -> tuple[str, list[_Gpus]]:
    """Takes the options that ask for GPUs out of sbatch's options."""
    try:
        words = shlex.split(_unquoted(text))
    except ValueError as error:
        msg = f"The resource slurm_extra={text!r} cannot be read ({error}); close its quotes."
        raise RequestError(msg) from error
    times = {"--gres": nodes, "--gpus": 1, "-G": 1, "--gpus-per-node": nodes, "--gpus-per-task": tasks}
    rest: list[str] = []
    shown: list[str] = []  # all of the options, with `{}` for the number of GPUs
    found: list[_Gpus] = []
    template, unit = "", 1
    remaining = iter(words)
    for word in remaining:
        option, equals, value = word.partition("=")
        if word.startswith("-G") and len(word) > 2:
            option, equals, value = "-G", "=", word[2:].removeprefix("=")
        if option not in times:
            rest.append(word)
            shown.append(shlex.quote(word))
            continue
        value = value if equals else next(remaining, "")
        if option == "--gres":
            left, number, kind, template = _gpus_in_gres(value, "slurm_extra")
            if left:
                rest.append(f"--gres={left}")
        else:
            number, kind, template = _numbers_and_kind(value, "slurm_extra", text)
        unit = times[option]
        shown.append(f"{'--gpus' if option == '-G' else option}={template}")
        found.append(_Gpus(number * unit, kind, ()))
    if len(found) == 1 and template:
        found = [replace(found[0], settings=((f"slurm_extra={' '.join(shown)}", unit),))]
    return shlex.join(rest), found
