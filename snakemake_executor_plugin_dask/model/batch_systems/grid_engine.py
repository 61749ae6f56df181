"""Grid Engine 8, of any of its makers."""

import re
from typing import Any

from snakemake_executor_plugin_dask.model.batch_systems import advice
from snakemake_executor_plugin_dask.model.batch_systems.listings import Seen
from snakemake_executor_plugin_dask.model.batch_systems.record import BatchSystem
from snakemake_executor_plugin_dask.model.batch_systems.scripts import Setting, given, texts
from snakemake_executor_plugin_dask.model.batch_systems.variables import Variables
from snakemake_executor_plugin_dask.model.errors import ConfigurationError


def _parse(out: str) -> dict[str, Seen]:
    """`job-ID prior name user state …`; E in a waiting state is an error that an operator must clear."""
    seen = {}
    for line in out.splitlines():
        words = line.split()
        if len(words) < 5 or not words[0].isdigit():
            continue
        state = words[4]
        waiting = "w" in state or state == "E"
        stuck = waiting and "E" in state
        reason = f"error state {state}; `qstat -j {words[0]}` says why" if stuck else state
        seen[words[0]] = Seen("queued" if waiting else "running", reason, stuck)
    return seen


def _directives(pool: Any, setting: Setting, _name: str, _logs: str) -> tuple[list[str], dict[str, Any]]:
    extra = [text.strip() for text in texts(given(setting))]
    if pool.cores and pool.cores > 1 and not any(re.match(r"-pe\b", text) for text in extra):
        msg = (
            f"Pool {pool.name} asks for {pool.cores} cores, and Grid Engine grants one unless a parallel environment "
            f'is named: add it to options, as job_extra_directives: ["-pe smp {pool.cores}"] (`qconf -spl` lists them).'
        )
        raise ConfigurationError(msg)
    # A queue may start scripts with csh, whatever their first line says.
    return ([] if any(text.startswith("-S") for text in extra) else ["-S /bin/bash"]), {}


GRID_ENGINE = BatchSystem(
    name="sge",
    title="Grid Engine",
    job_class="SGEJob",
    several_nodes=False,
    variables=Variables(
        prefixes=("SGE_",),
        unprefixed=frozenset(
            "JOB_ID JOB_NAME JOB_SCRIPT NHOSTS NQUEUES NSLOTS PE PE_HOSTFILE QUEUE REQNAME REQUEST RESTARTED ARC "
            "ENVIRONMENT TASK_ID".split()
        ),
        settings=frozenset("SGE_ROOT SGE_CELL SGE_CLUSTER_NAME SGE_QMASTER_PORT SGE_EXECD_PORT".split()),
        id="JOB_ID",
        marks=("SGE_TASK_ID",),
        node_counts=("NHOSTS",),
        node_files=("PE_HOSTFILE",),
        cores=("NSLOTS",),
    ),
    submit="qsub",
    no_requeue=("-r n",),
    rehearsal=("-w", "v"),
    submitted=r"[Yy]our job (\d+)",
    query=lambda _ids, user, _where: ["qstat", "-u", user],
    parse=_parse,
    queues=("qconf", "-sql"),
    cancel=lambda job, _where: ["qdel", job],
    cancel_name=lambda name, _where: ["qdel", name],
    directives=_directives,
    own_directives=frozenset("-o -e -N -t -sync -terse -wd".split()),
    gpu_example='resource_spec: "gpu=2"',
    refusals=(
        (r"unknown queue", advice.QUEUE),
        (r"project .*(does not exist|not allowed|no access)|no access to project", advice.PROJECT),
        (r"unknown resource|parallel environment .* does not exist|(invalid|unknown) option", advice.OPTION),
    ),
)
