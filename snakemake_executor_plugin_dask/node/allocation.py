"""Whether Snakemake was started as one of several ranks, and what its allocation holds. Reads host files.

The settings are made before Snakemake locks the workflow, so a rank that notices leaves no lock behind.
"""

from collections.abc import Mapping
from pathlib import Path

#: Step numbers from here on are Slurm's own: batch script, interactive step, extern.
SLURM_SPECIAL_STEPS = 0xFFFFFFF0

#: Where launchers say how many ranks they started; MPICH's and Intel's say it in PMI_SIZE.
_SIZES = (
    ("OMPI_COMM_WORLD_SIZE", "Open MPI's launcher"),
    ("MV2_COMM_WORLD_SIZE", "MVAPICH's launcher"),
    ("PMI_SIZE", "an MPI launcher"),
)

_NODE_COUNTS = ("SLURM_JOB_NUM_NODES", "SLURM_NNODES", "NHOSTS")  # the last one is Grid Engine's
_ALLOCATIONS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "OAR_JOB_ID", "FLUX_JOB_ID", "COBALT_JOBID", "LSB_HOSTS")
_NODE_FILES = ("PBS_NODEFILE", "OAR_NODEFILE", "OAR_FILE_NODES", "LSB_DJOB_HOSTFILE", "PE_HOSTFILE")


def started_as_rank(environment: Mapping[str, str]) -> str | None:
    """The complaint where this process is one of several ranks of an MPI launcher or of `srun`, else None.

    A batch script is no rank, whatever `SLURM_NTASKS` says: that is what the allocation holds.
    """
    for variable, launcher in _SIZES:
        size = _number(environment, variable)
        if size is not None and size > 1:
            return _complaint(size, launcher)
    size = _number(environment, "SLURM_STEP_NUM_TASKS")
    if size is not None and size > 1 and "SLURM_PROCID" in environment:
        step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
        if step.isdecimal() and int(step) < SLURM_SPECIAL_STEPS:
            return _complaint(size, "srun")
    return None


def allocation_nodes(environment: Mapping[str, str]) -> int:
    """How many nodes the allocation holds that this process runs in; 1 outside one, or where nothing says it."""
    for variable in _NODE_COUNTS:
        count = _number(environment, variable)
        if count:
            return count
    for variable in _NODE_FILES:
        path = environment.get(variable)
        if path:
            try:
                text = Path(path).read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            hosts = {line.split()[0] for line in text.splitlines() if line.strip()}
            if hosts:
                return len(hosts)
    hosts = set(environment.get("LSB_HOSTS", "").split())
    return max(1, len(hosts))


def in_allocation(environment: Mapping[str, str]) -> bool:
    """Whether a batch system says anything of an allocation that this process runs in."""
    return any(environment.get(name) for name in (*_NODE_COUNTS, *_NODE_FILES, *_ALLOCATIONS))


def _number(environment: Mapping[str, str], variable: str) -> int | None:
    text = environment.get(variable, "")
    return int(text) if text.isascii() and text.isdecimal() else None


def _complaint(size: int, launcher: str) -> str:
    return (
        f"Snakemake was started as one of {size} ranks by {launcher}, and each would run the whole workflow: "
        "start it once, without a launcher, as in `snakemake --executor dask --dask-cluster mpi --jobs 5000`; "
        "it then starts one worker on each node of the allocation by itself."
    )
