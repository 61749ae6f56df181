"""Moab 9, in front of Torque."""

from functools import partial
from typing import Any

from snakemake_executor_plugin_dask.model.batch_systems import advice
from snakemake_executor_plugin_dask.model.batch_systems.listings import Seen, bare, states
from snakemake_executor_plugin_dask.model.batch_systems.pbs import PBS
from snakemake_executor_plugin_dask.model.batch_systems.record import BatchSystem
from snakemake_executor_plugin_dask.model.batch_systems.scripts import (
    MIB,
    Setting,
    gpus,
    granted_bytes,
    parse_walltime,
)
from snakemake_executor_plugin_dask.model.batch_systems.variables import Variables

_STATES = states(
    queued="Idle Hold Deferred BatchHold SystemHold UserHold NotQueued Migrated Staging",
    running="Running Starting Suspended Canceling Completing",
    gone="Completed Removed Vacated",
)
_STUCK = {"BatchHold", "SystemHold"}


def _parse(out: str) -> dict[str, Seen]:
    """`showq` lists active, eligible and blocked jobs: JOBID USERNAME STATE …"""  # noqa: D400 - an ellipsis
    seen = {}
    for line in out.splitlines():
        words = line.split()
        if len(words) >= 3 and words[2] in _STATES:
            seen[bare(words[0])] = Seen(_STATES[words[2]], words[2], words[2] in _STUCK)
    return seen


def _directives(pool: Any, setting: Setting, _name: str, _logs: str) -> tuple[list[str], dict[str, Any]]:
    if setting("resource_spec") is not None or (pool.nodes is None and not pool.gpus):
        return [], {}
    nodes, number = pool.nodes or 1, gpus(pool, setting)
    spec = f"nodes={nodes}:ppn={pool.cores}" + (f":gpus={number}" if number else "")
    return [f"-l mem={nodes * granted_bytes(pool) // MIB}mb"], {"resource_spec": spec}


MOAB = BatchSystem(
    name="moab",
    title="Moab",
    job_class="MoabJob",
    variables=Variables(prefixes=("MOAB_",), id="MOAB_JOBID", ids=("MOAB_JOBID",), cores=("MOAB_PROCCOUNT",)),
    submit="msub",
    no_requeue=("-r n",),
    id=r"(\w+\.)?[1-9]\d*(\.[\w-]+)*",
    query=lambda _ids, user, _where: ["showq", "-u", user],
    parse=_parse,
    cancel=lambda job, _where: ["canceljob", job],
    directives=_directives,
    own_directives=PBS.own_directives,
    values_attached=True,
    parse_walltime=partial(parse_walltime, four=True),
    refusals=(
        (r"unknown queue|invalid (queue|class)|not authorized to use queue", advice.QUEUE),
        (r"invalid account|not authorized to use account", advice.PROJECT),
        (r"invalid qos", advice.QOS),
        (r"max walltime", advice.TIME),
        (r"exceeds (queue|server) resource limits|violates queue and/or server resource limits", advice.LIMITS),
        (r"unknown resource|illegal|invalid (option|resource|node)", advice.OPTION),
    ),
)
