"""A job's environment on a worker. Pure.

The contract: the environment that Snakemake was started in (without its batch system's variables, where workers run
in other allocations), then the worker's own allocation's variables, then what the pool's prologue changed, and nothing
that Dask and launchers add. Names and values are text as `os.fsdecode` makes it, so undecodable bytes pass unchanged.
"""

import base64
import binascii
import os
import re
from collections.abc import Collection, Mapping

from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS, named, slurm_steps
from snakemake_executor_plugin_dask.model.batch_systems.slurm import SLURM
from snakemake_executor_plugin_dask.model.batch_systems.slurm_steps import is_of_step
from snakemake_executor_plugin_dask.model.jobs import Size
from snakemake_executor_plugin_dask.node.rank import RESTARTS

#: The environment as it stood before the pool's prologue: base64 of what `env -0` prints.
BEFORE_PROLOGUE = "SNAKEMAKE_DASK_BEFORE_PROLOGUE"
#: Marks each process of a job with the attempt's key.
JOB = "SNAKEMAKE_DASK_JOB"

_VARIABLES = tuple(system.variables for system in SYSTEMS.values())
_ALLOCATION_PREFIXES, _SETTINGS = named("prefixes"), frozenset(named("settings"))
#: What an allocation, or its prolog, sets for one node.
OF_THE_NODE = {
    *("TMPDIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    *("GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK", "HOSTNAME", *named("of_node")),
}

_LAUNCHER_PREFIXES = ("PMI_", "PMI2_", "PMIX_", "OMPI_", "ORTE_", "PRTE_", "PALS_", "HYDI_", "HYDRA_", "MPIEXEC_")
_LAUNCHER = {"MPI_LOCALNRANKS", "MPI_LOCALRANKID", "PMI_RANK", "PMI_FD", "GFORTRAN_UNBUFFERED_PRECONNECTED"}
#: Any of these: the process is a rank that a launcher started.
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MPI_LOCALRANKID")

#: What Dask's nanny sets in the environment of its worker, with these very values.
_NANNY = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "PYTHONHASHSEED": "6640",
}
_REFERENCE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)
_SHELL = {"_", "SHLVL", "PWD", "OLDPWD"}


def base_environment(environment: Mapping[str, str], replace: bool, own: Mapping[str, str]) -> dict[str, str]:
    """The environment that all jobs of a run have on this worker.

    ``environment`` is Snakemake's (`RunSetup.environment`), ``replace`` is `RunSetup.replace_environment`, ``own`` is
    the worker's. Where both belong to the same place (no batch system, or the same allocation and no step in between)
    the result is Snakemake's environment, byte for byte.
    """
    if not replace:
        return {**_cleaned(own), **environment}
    if _of_allocation(own) == _of_allocation(environment) and BEFORE_PROLOGUE not in own:
        return dict(environment)
    if _same_allocation(environment, own):
        rank = any(name in environment for name in _RANKS)
        base = {
            name: value
            for name, value in environment.items()
            # A user's own OMPI_MCA_… stay.
            if not (is_of_step(name, environment) or (rank and _is_launcher(name)))
        }
        base.update({name: own[name] for name in OF_THE_NODE if name in own})
    else:
        base = _without_allocation(environment)
        base.update({name: value for name, value in _of_allocation(own).items() if not is_of_step(name, own)})
        slurm_steps.leave(base, own)
    _let_steps_in(base, own)
    base.pop(slurm_steps.EXPORT, None)
    _apply_prologue(base, own)
    return base


def job_environment(
    base: Mapping[str, str], key: str, changes: tuple[tuple[str, str | None], ...] = ()
) -> dict[str, str]:
    """The environment of one attempt. In ``changes`` a value of None removes the variable."""
    result = dict(base)
    for name, value in changes:
        if value is None:
            result.pop(name, None)
        else:
            result[name] = value
    result[JOB] = key
    return result


def size_changes(base: Mapping[str, str], size: Size, kept: Collection[str]) -> tuple[tuple[str, str | None], ...]:
    """What a job's variables say of its size, as changes for `job_environment`.

    Only what ``base`` has is changed, and nothing that is in ``kept``.
    """
    stated: dict[str, int | None] = {}
    for variables in _VARIABLES:
        if variables.unprefixed and not variables.inside(base):
            continue
        stated |= dict.fromkeys(variables.cores, size.cores)
        stated |= dict.fromkeys(variables.cores_per_task, size.cores_per_task)
        stated |= dict.fromkeys(variables.tasks, size.tasks or 1)
        stated |= dict.fromkeys(variables.of_whole)
        stated |= dict.fromkeys(variables.slots, size.tasks or size.cores)
        if size.devices is not None:
            stated |= dict.fromkeys(variables.gpus, size.devices)
    changes = _changes(base, stated, kept)
    for memory in (variables.memory for variables in _VARIABLES):
        told = [name for name in memory if name in base]
        # No memory for a step means all of the allocation's, together with other steps (see `_let_steps_in`).
        if told and size.memory_mb and base.get(memory[0]) != "0" and not any(name in kept for name in memory):
            changes += tuple((name, None) for name in told)
            changes += ((memory[0], str(max(1, size.memory_mb * 10**6 // 2**20))),)
    return changes


def node_changes(base: Mapping[str, str], host_file: str, kept: Collection[str]) -> tuple[tuple[str, str | None], ...]:
    """Let `srun` in a job on one node stay on it, where the allocation of Slurm holds several.

    ``host_file`` is a file that names this node once for each core. It is what decides; empty: nothing is changed.
    """
    node = slurm_steps.node_of_several(base)
    if not host_file or node is None or slurm_steps.HOSTFILE in kept:
        return ()
    return (*_changes(base, slurm_steps.on_one_node(node), kept), (slurm_steps.HOSTFILE, host_file))


def _changes(
    base: Mapping[str, str], stated: Mapping[str, str] | Mapping[str, int | None], kept: Collection[str]
) -> tuple[tuple[str, str | None], ...]:
    return tuple(
        (name, None if value is None else str(value))
        for name, value in stated.items()
        if name in base and name not in kept
    )


def expand(text: str, environment: Mapping[str, str]) -> str:
    """``$NAME`` and ``${NAME}`` as `os.path.expandvars` replaces them, by the values of another environment."""
    return _REFERENCE.sub(lambda found: environment.get(found[1] or found[2], found[0]), text)


def _of_allocation(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the batch system's allocation, and of its node."""
    further = OF_THE_NODE.union(*(variables.unprefixed for variables in _VARIABLES if variables.inside(environment)))
    return {name: value for name, value in environment.items() if name in further or _is_allocation(name)}


def _is_allocation(name: str) -> bool:
    return name.startswith(_ALLOCATION_PREFIXES) and name not in _SETTINGS


def _is_launcher(name: str) -> bool:
    return name in _LAUNCHER or name.startswith(_LAUNCHER_PREFIXES)


def _same_allocation(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return any(name in one and one[name] == other.get(name) for name in named("ids"))


def _without_allocation(environment: Mapping[str, str]) -> dict[str, str]:
    """Snakemake's environment, for a worker elsewhere."""
    gone = set(_of_allocation(environment))
    if not any(variables.inside(environment) for variables in _VARIABLES):
        # Then TMPDIR and the like are the user's own, and hold until the worker's allocation says otherwise.
        gone -= OF_THE_NODE - {"HOSTNAME"}
    rank = any(name in environment for name in _RANKS)
    return {
        name: value for name, value in environment.items() if name not in gone and not (rank and _is_launcher(name))
    }


def _let_steps_in(base: dict[str, str], own: Mapping[str, str]) -> None:
    """The step of Slurm that the worker runs in holds all of the allocation."""
    if SLURM.variables.inside(base):
        slurm_steps.let_in(base, own, of_others=RESTARTS not in own)


def _cleaned(own: Mapping[str, str]) -> dict[str, str]:
    """A worker's own environment without what Dask, its nanny and launchers added."""
    nanny = own.get("PYTHONHASHSEED") == _NANNY["PYTHONHASHSEED"]
    rank = any(name in own for name in _RANKS)
    result = {
        name: value
        for name, value in own.items()
        if not name.startswith(("DASK_", "SNAKEMAKE_DASK_"))
        and not is_of_step(name, own)
        and name != slurm_steps.EXPORT
        and not (rank and _is_launcher(name))
        and not (nanny and _NANNY.get(name) == value)
    }
    if SLURM.variables.inside(own):
        slurm_steps.leave(result, own)
    _let_steps_in(result, own)
    return result


def of_prologue(own: Mapping[str, str]) -> frozenset[str]:
    """The variables that the pool's prologue set, changed or removed. ``own`` is the worker's environment."""
    before = read_dump(own.get(BEFORE_PROLOGUE, ""))
    if not before:
        return frozenset()
    rank = any(name in own for name in _RANKS)
    return frozenset(
        name
        for name in before.keys() | own.keys()
        if own.get(name) != before.get(name)
        and name not in _SHELL
        and not name.startswith(("DASK_", "SNAKEMAKE_DASK_"))
        and not is_of_step(name, own)
        and not (rank and (_is_launcher(name) or _is_allocation(name)))
    )


def _apply_prologue(base: dict[str, str], own: Mapping[str, str]) -> None:
    before = read_dump(own.get(BEFORE_PROLOGUE, ""))
    for name in of_prologue(own):
        if name not in own:
            base.pop(name, None)
        else:
            base[name] = _changed(base.get(name), before.get(name), own[name])


def _changed(current: str | None, before: str | None, after: str) -> str:
    """``after``, or for a list such as PATH: what was put before and behind it, around the job's own list."""
    if not current or not before or current == before:
        return after
    head, found, tail = f":{after}:".partition(f":{before}:")
    if not found:
        return after
    return ":".join(part for part in (head[1:], current, tail[:-1]) if part)


def read_dump(text: str) -> dict[str, str]:
    """The environment in base64 of what `env -0` prints; empty where the text is none."""
    try:
        data = base64.b64decode(text)
    except (binascii.Error, ValueError):
        return {}
    pairs = (item.partition(b"=") for item in data.split(b"\0") if item)
    return {os.fsdecode(name): os.fsdecode(value) for name, equals, value in pairs if name and equals}
