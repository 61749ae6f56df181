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

from snakemake_executor_plugin_dask.model.jobs import Size
from snakemake_executor_plugin_dask.node.allocation import SLURM_SPECIAL_STEPS
from snakemake_executor_plugin_dask.node.rank import RESTARTS

#: The environment as it stood before the pool's prologue: base64 of what `env -0` prints.
BEFORE_PROLOGUE = "SNAKEMAKE_DASK_BEFORE_PROLOGUE"
#: Marks each process of a job with the attempt's key.
JOB = "SNAKEMAKE_DASK_JOB"

_ALLOCATION_PREFIXES = ("SLURM_", "SLURMD_", "PBS_", "LSB_", "LS_", "OAR_", "MOAB_", "_CONDOR_", "SGE_")
#: Configuration of a batch system's commands, which stays valid on every node.
_SETTINGS = {
    *("SLURM_CONF", "SLURM_TIME_FORMAT", "PBS_CONF_FILE", "PBS_DEFAULT", "PBS_SERVER", "PBS_HOME", "PBS_EXEC"),
    *("SGE_ROOT", "SGE_CELL", "SGE_CLUSTER_NAME", "SGE_QMASTER_PORT", "SGE_EXECD_PORT", "LS_COLORS", "LSB_CONFDIR"),
}
#: Names of Grid Engine and Condor without a prefix; they mean a batch system only beside SGE_TASK_ID and the like.
_GRID_ENGINE = {
    *("JOB_ID", "JOB_NAME", "JOB_SCRIPT", "NHOSTS", "NQUEUES", "NSLOTS", "PE", "PE_HOSTFILE", "QUEUE", "REQNAME"),
    *("REQUEST", "RESTARTED", "ARC", "ENVIRONMENT", "TASK_ID"),
}
#: Any of these: the process runs inside an allocation.
_ALLOCATION_IDS = (
    *("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "OAR_JOB_ID", "OAR_JOBID", "MOAB_JOBID", "_CONDOR_SCRATCH_DIR"),
    "SGE_TASK_ID",
)
#: What an allocation, or its prolog, sets for one node.
_OF_THE_NODE = {
    *("TMPDIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    *("GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK", "HOSTNAME", "SLURMD_NODENAME", "SLURM_NODEID", "SLURM_CPUS_ON_NODE"),
    *("SLURM_TOPOLOGY_ADDR", "SLURM_TOPOLOGY_ADDR_PATTERN", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"),
}
#: Of a job step or rank of Slurm: with them an inner `srun` or `mpirun` takes itself for a part of the launched step.
_STEP_PREFIXES = ("SLURM_STEP_", "SLURM_SRUN_", "SLURM_PMI")
_STEP = {
    *("SLURM_STEPID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_GTIDS", "SLURM_TASK_PID", "SLURM_LAUNCH_NODE_IPADDR"),
    *("SLURM_UMASK", "SLURM_PRIO_PROCESS", "SLURM_WORKING_CLUSTER"),
}
#: The number that Slurm 26.05 gives its batch scripts for a step; earlier ones give none.
_BATCH_SCRIPT = ("-5", str(0xFFFFFFFB))
#: Settings for `srun`. In a step they are those of the `srun` that made it, elsewhere those of the user or the site.
_STEP_SETTINGS = ("SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_GPU_BIND", "SLURM_DISTRIBUTION", "SLURM_MPI_TYPE")
#: With NONE, as `sbatch --export=NONE` sets it, an inner `srun` would start its program without the job's environment.
_EXPORT = "SLURM_EXPORT_ENV"

# What states the size of the whole allocation; docs/slurm.md has the table.
#: Becomes the number of cores that a job holds on its node.
_CORES = (
    *("SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE", "PBS_NCPUS", "PBS_NP", "PBS_NUM_PPN", "MOAB_PROCCOUNT"),
    *("LSB_DJOB_NUMPROC", "LSB_MAX_NUM_PROCESSORS"),
)
_PER_TASK = ("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK")
_TASKS = ("SLURM_NTASKS", "SLURM_NPROCS")
_MEMORY = ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU")
#: `srun` takes them for what each of its steps asks for, which may be more than, or contradict, what it is told.
_OF_THE_WHOLE = (
    *("SLURM_NTASKS_PER_NODE", "SLURM_NTASKS_PER_CORE", "SLURM_NTASKS_PER_SOCKET", "SLURM_NTASKS_PER_GPU"),
    *("SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_SOCKET", "SLURM_GPUS_PER_TASK", "SLURM_CPUS_PER_GPU"),
    *("SLURM_JOB_GPUS", "SLURM_TRES_PER_TASK", "SLURM_EXCLUSIVE", "SLURM_EXACT"),
)
#: How the launcher was called; right for the allocation only where no launcher stands between.
_STEP_SIZE = {"SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES", "SLURM_NODELIST"}

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
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)
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
            if not (_is_step(name, environment) or (rank and _is_launcher(name)))  # a user's own OMPI_MCA_… stay
        }
        base.update({name: own[name] for name in _OF_THE_NODE if name in own})
    else:
        base = _without_allocation(environment)
        base.update({name: value for name, value in _of_allocation(own).items() if not _is_step(name, own)})
        _undo_step_size(base, own)
    _let_steps_in(base, own)
    base.pop(_EXPORT, None)
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
    tasks = size.tasks or 1
    stated: dict[str, int | None] = dict.fromkeys(_CORES, size.cores)
    stated |= dict.fromkeys(_PER_TASK, size.cores_per_task)
    stated |= dict.fromkeys(_TASKS, tasks)
    stated |= dict.fromkeys(_OF_THE_WHOLE)
    stated["SLURM_TASKS_PER_NODE"] = size.tasks or size.cores  # the slots of Open MPI; `srun` does not read it
    if "SGE_TASK_ID" in base:
        stated["NSLOTS"] = size.cores
    if size.devices is not None:
        stated["SLURM_GPUS_ON_NODE"] = size.devices
    # No memory for a step means all of the allocation's, together with other steps (see `_let_steps_in`).
    memory = [name for name in _MEMORY if name in base]
    if memory and size.memory_mb and base.get(_MEMORY[0]) != "0" and not any(name in kept for name in _MEMORY):
        stated |= dict.fromkeys(memory)
        return (*_changes(base, stated, kept), (_MEMORY[0], str(max(1, size.memory_mb * 10**6 // 2**20))))
    return _changes(base, stated, kept)


def node_changes(base: Mapping[str, str], host_file: str, kept: Collection[str]) -> tuple[tuple[str, str | None], ...]:
    """Let `srun` in a job on one node stay on it, where the allocation of Slurm holds several.

    ``host_file`` is a file that names this node once for each core. It is what decides; empty: nothing is changed.
    """
    node = base.get("SLURMD_NODENAME")
    if not host_file or node is None or "SLURM_HOSTFILE" in kept:
        return ()
    one = dict.fromkeys(("SLURM_JOB_NODELIST", "SLURM_NODELIST"), node)
    one |= dict.fromkeys(("SLURM_JOB_NUM_NODES", "SLURM_NNODES"), "1")
    return (*_changes(base, one, kept), ("SLURM_HOSTFILE", host_file))


def holds_several_nodes(base: Mapping[str, str]) -> bool:
    """Whether the environment is that of an allocation of Slurm with more than one node."""
    count = base.get("SLURM_JOB_NUM_NODES", base.get("SLURM_NNODES", "1"))
    return "SLURM_JOB_ID" in base and count != "1"


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
    return _VARIABLE.sub(lambda found: environment.get(found[1] or found[2], found[0]), text)


def _of_allocation(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the batch system's allocation, and of its node."""
    grid_engine = "SGE_TASK_ID" in environment
    return {
        name: value
        for name, value in environment.items()
        if name in _OF_THE_NODE or _is_allocation(name) or (grid_engine and name in _GRID_ENGINE)
    }


def _is_allocation(name: str) -> bool:
    return name.startswith(_ALLOCATION_PREFIXES) and name not in _SETTINGS


def _is_step(name: str, environment: Mapping[str, str]) -> bool:
    """Whether a variable of ``environment`` belongs to a step of Slurm, and not to its allocation."""
    if name.startswith(_STEP_SETTINGS):
        return _in_step(environment)
    return name in _STEP or name.startswith(_STEP_PREFIXES)


def _step(environment: Mapping[str, str]) -> str:
    """The number of the step of Slurm that the environment is of; empty: none, or the batch script."""
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    return "" if step in _BATCH_SCRIPT else step


def _in_step(environment: Mapping[str, str]) -> bool:
    step = _step(environment)
    return step.isdecimal() and int(step) < SLURM_SPECIAL_STEPS


def _is_launcher(name: str) -> bool:
    return name in _LAUNCHER or name.startswith(_LAUNCHER_PREFIXES)


def _inside_allocation(environment: Mapping[str, str]) -> bool:
    return any(name in environment for name in _ALLOCATION_IDS)


def _same_allocation(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return any(name in one and one[name] == other.get(name) for name in _ALLOCATION_IDS if name != "SGE_TASK_ID")


def _without_allocation(environment: Mapping[str, str]) -> dict[str, str]:
    """Snakemake's environment, for a worker elsewhere."""
    gone = set(_of_allocation(environment))
    if not _inside_allocation(environment):
        # Then TMPDIR and the like are the user's own, and hold until the worker's allocation says otherwise.
        gone -= _OF_THE_NODE - {"HOSTNAME"}
    rank = any(name in environment for name in _RANKS)
    return {
        name: value for name, value in environment.items() if name not in gone and not (rank and _is_launcher(name))
    }


def _undo_step_size(base: dict[str, str], own: Mapping[str, str]) -> None:
    """Where `srun` started the worker, the number of tasks is that of its step and not the allocation's."""
    if not _step(own):
        return
    for name in _STEP_SIZE - {"SLURM_NNODES", "SLURM_NODELIST"}:
        base.pop(name, None)
    for name, whole in (("SLURM_NNODES", "SLURM_JOB_NUM_NODES"), ("SLURM_NODELIST", "SLURM_JOB_NODELIST")):
        if whole in own:
            base[name] = own[whole]
    if "SLURM_JOB_CPUS_PER_NODE" in own:  # Open MPI takes its slots from it, and fails without
        base["SLURM_TASKS_PER_NODE"] = own["SLURM_JOB_CPUS_PER_NODE"]


def _let_steps_in(base: dict[str, str], own: Mapping[str, str]) -> None:
    """The step that the worker runs in holds all of the allocation: an inner `srun` would wait for ever, or fail."""
    if "SLURM_JOB_ID" not in base:
        return
    base["SLURM_OVERLAP"] = "1"
    if _step(own) and RESTARTS not in own:
        # Overlapping does not hold for the memory of a step of others, which was itself started without. None for a
        # step means all of the allocation's, together with other steps.
        for name in ("SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU"):
            base.pop(name, None)
        base["SLURM_MEM_PER_NODE"] = "0"


def _cleaned(own: Mapping[str, str]) -> dict[str, str]:
    """A worker's own environment without what Dask, its nanny and launchers added."""
    nanny = own.get("PYTHONHASHSEED") == _NANNY["PYTHONHASHSEED"]
    rank = any(name in own for name in _RANKS)
    result = {
        name: value
        for name, value in own.items()
        if not name.startswith(("DASK_", "SNAKEMAKE_DASK_"))
        and not _is_step(name, own)
        and name != _EXPORT
        and not (rank and _is_launcher(name))
        and not (nanny and _NANNY.get(name) == value)
    }
    if "SLURM_JOB_ID" in own:
        _undo_step_size(result, own)
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
        and not _is_step(name, own)
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
