"""PBS Pro, OpenPBS and Torque."""

from typing import Any

from snakemake_executor_plugin_dask.model.batch_systems import advice
from snakemake_executor_plugin_dask.model.batch_systems.listings import Seen, blocks, states
from snakemake_executor_plugin_dask.model.batch_systems.record import BatchSystem
from snakemake_executor_plugin_dask.model.batch_systems.scripts import MIB, Setting, gpus, granted_bytes
from snakemake_executor_plugin_dask.model.batch_systems.variables import Variables

_STATES = states(queued="Q H W T", running="R E S U B", gone="C F X M")
_STUCK = "Can Never Run"  # how the comment of PBS's scheduler begins


def _parse(out: str) -> dict[str, Seen]:
    seen = {}
    for number, block in blocks(out).items():
        kind, comment = _STATES.get(block.get("job_state", ""), "unknown"), block.get("comment", "")
        seen[number] = Seen(kind, comment, stuck=kind == "queued" and comment.startswith(_STUCK))
    return seen


def _directives(pool: Any, setting: Setting, _name: str, _logs: str) -> tuple[list[str], dict[str, Any]]:
    if setting("resource_spec") is not None or (pool.nodes is None and not pool.gpus):
        return [], {}
    wide = "" if pool.nodes is None else f":mpiprocs={pool.cores}"
    number = gpus(pool, setting)
    spec = f"select={pool.nodes or 1}:ncpus={pool.cores}{wide}" + (f":ngpus={number}" if number else "")
    own = [] if pool.nodes is None else ["-l place=scatter"]
    return own, {"resource_spec": f"{spec}:mem={granted_bytes(pool) // MIB}MB"}


PBS = BatchSystem(
    name="pbs",
    title="PBS",
    job_class="PBSJob",
    variables=Variables(
        prefixes=("PBS_",),
        settings=frozenset({"PBS_CONF_FILE", "PBS_DEFAULT", "PBS_SERVER", "PBS_HOME", "PBS_EXEC"}),
        id="PBS_JOBID",
        ids=("PBS_JOBID",),
        node_files=("PBS_NODEFILE",),
        cores=("PBS_NCPUS", "PBS_NP", "PBS_NUM_PPN"),
        submitting=frozenset({"PBS_DPREFIX", "PBS_QSTAT_EXECONLY"}),
        handed_on=("PBS_JOBID",),
        chosen=frozenset({"PBS_ACCOUNT"}),
    ),
    submit="qsub",
    no_requeue=("-r n",),
    id=r"[1-9]\d*(\[\d*\])?(\.[\w-]+)*",
    query=lambda ids, _user, _where: ["qstat", "-f", *ids],
    parse=_parse,
    missing=r"(?:Unknown Job Id(?: Error)?\s+|qstat:\s+(?=\d+\S*\s+Job has finished))(\d+)",
    cancel=lambda job, _where: ["qdel", job],
    directives=_directives,
    own_directives=frozenset("-o -e -N -J -t -I -z".split()),
    values_attached=True,
    refusals=(
        (r"unknown queue|access to queue is denied|unauthorized request", advice.QUEUE),
        (
            r"invalid account|unknown (account|project)|not authorized to use (this |the )?(account|project)",
            advice.PROJECT,
        ),
        (r"max walltime", advice.TIME),
        (r"exceeds (queue|server) resource limits|violates queue and/or server resource limits", advice.LIMITS),
        (r"can never run", advice.NODE),
        (r"unknown resource|illegal|invalid option", advice.OPTION),
    ),
    endings="PBS: job killed",
)
