"""Slurm 22-26."""

import re
from collections.abc import Collection
from functools import partial
from typing import Any

from snakemake_executor_plugin_dask.model.batch_systems import advice, slurm_steps
from snakemake_executor_plugin_dask.model.batch_systems.listings import Seen, local_time, states
from snakemake_executor_plugin_dask.model.batch_systems.record import BatchSystem
from snakemake_executor_plugin_dask.model.batch_systems.scripts import (
    Setting,
    gpus,
    option_given,
    parse_walltime,
    skipped,
)
from snakemake_executor_plugin_dask.model.batch_systems.variables import Variables

_STATES = states(
    queued="PENDING CONFIGURING EXPEDITING REQUEUED REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT RESV_DEL_HOLD",
    running="RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING",
    gone="BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED "
    "TIMEOUT",
)
#: Reasons for which a job waits until somebody changes something (squeue(1), JOB REASON CODES).
_STUCK = re.compile(
    "Bad|Held|Hold|Invalid|launch failed|NeverSatisfied|NotAllowed|account not|Partition(Config|NodeLimit|TimeLimit)"
    "|PerJob|PerNode"
)
_LIMIT = (
    "a limit of the account or QOS is reached: it starts when others of yours end, or with fewer or smaller workers"
)
_FORMAT = "--format=%i|%T|%r|%S|%N"
CLUSTERS = ("--clusters", "-M")
_EXCLUDE = ("--exclude", "-x")


def _clusters(where: str | None) -> list[str]:
    return [f"--clusters={where}"] if where else []


def _squeue(where: str | None, *more: str) -> list[str]:
    # `--all`: those in partitions that the site hides, too.
    return ["squeue", *_clusters(where), "--all", "--noheader", "--states=all", *more]


def _query(_ids: Collection[str], user: str, where: str | None) -> list[str]:
    return _squeue(where, f"--user={user}", _FORMAT)


def _parse(out: str) -> dict[str, Seen]:
    seen = {}
    for line in out.splitlines():
        number, state, reason, start, nodes = (*line.split("|"), "", "", "", "")[:5]
        if not state:
            continue  # "CLUSTER: name"
        kind = _STATES.get(state, "unknown")
        reason = "" if reason == "None" else reason
        # A user who holds an allocation by hand means to release it.
        stuck = kind == "queued" and reason != "JobHeldUser" and bool(_STUCK.search(reason))
        reason = reason or ("" if kind in ("queued", "running") else state)
        expected = local_time(start) if kind == "queued" else None
        seen[number.strip()] = Seen(kind, reason, stuck, expected, nodes.strip())
    return seen


def _was_preempted(out: str) -> bool:
    lines = [line.strip() for line in out.splitlines() if line.strip() and not line.startswith("CLUSTER:")]
    return bool(lines) and lines[-1] != "N/A"


_parse_walltime = partial(parse_walltime, one="minutes")


def _limits(queue: str | None, where: str | None) -> list[str]:
    which = f"--partition={queue}" if queue else "--all"  # it refuses both at once
    return ["sinfo", "--noheader", "--format=%P|%l", *_clusters(where), which]


def _parse_limits(out: str, named: bool) -> dict[str, float | None]:
    """``main*|1-00:00:00``, with a star behind the default one."""
    limits: dict[str, float | None] = {}
    for line in out.splitlines():
        name, bar, limit = line.strip().partition("|")
        if bar and (named or name.endswith("*")):
            try:
                limits[name.rstrip("*")] = _parse_walltime(limit)
            except ValueError:
                limits[name.rstrip("*")] = None
    return limits


def _directives(pool: Any, setting: Setting, _name: str, _logs: str) -> tuple[list[str], dict[str, Any]]:
    own: list[str] = []
    arguments: dict[str, Any] = {}
    if pool.left_out:
        excluded = option_given(setting, _EXCLUDE)
        own += [f"--exclude={','.join(filter(None, [excluded, *pool.left_out]))}"]
    if number := gpus(pool, setting):
        own += [f"--gres=gpu:{number}"]
    if pool.nodes is not None:
        # A task for each core: what `srun` and `mpirun` inside take for the number of slots.
        arguments["job_directives_skip"] = [*skipped(setting), "#SBATCH -n 1", "#SBATCH --cpus-per-task"]
        own += [f"--nodes={pool.nodes}", f"--ntasks-per-node={pool.cores}", "--cpus-per-task=1"]
    return own, arguments


SLURM = BatchSystem(
    name="slurm",
    title="Slurm",
    job_class="SLURMJob",
    pools_for_resources=True,
    variables=Variables(
        prefixes=("SLURM_", "SLURMD_"),
        settings=frozenset({"SLURM_CONF", "SLURM_TIME_FORMAT"}),
        id="SLURM_JOB_ID",
        ids=("SLURM_JOB_ID",),
        end="SLURM_JOB_END_TIME",
        node="SLURMD_NODENAME",
        node_counts=("SLURM_JOB_NUM_NODES", "SLURM_NNODES"),
        node_list="SLURM_JOB_NODELIST",
        parse_node_list=slurm_steps.expand_nodes,
        of_node=frozenset(
            {
                *("SLURMD_NODENAME", "SLURM_NODEID", "SLURM_CPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"),
                *("SLURM_TOPOLOGY_ADDR", "SLURM_TOPOLOGY_ADDR_PATTERN"),
            }
        ),
        cores=("SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE"),
        cores_per_task=("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK"),
        tasks=("SLURM_NTASKS", "SLURM_NPROCS"),
        slots=("SLURM_TASKS_PER_NODE",),  # `srun` does not read it
        gpus=("SLURM_GPUS_ON_NODE",),
        memory=("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU"),
        of_whole=(
            *("SLURM_NTASKS_PER_NODE", "SLURM_NTASKS_PER_CORE", "SLURM_NTASKS_PER_SOCKET", "SLURM_NTASKS_PER_GPU"),
            *("SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_SOCKET", "SLURM_GPUS_PER_TASK"),
            *("SLURM_CPUS_PER_GPU", "SLURM_JOB_GPUS", "SLURM_TRES_PER_TASK", "SLURM_EXCLUSIVE", "SLURM_EXACT"),
        ),
        choosing=("SQUEUE_", "SCANCEL_", "SINFO_"),
        submitting=frozenset(
            {
                *("SBATCH_ARRAY_INX", "SBATCH_WAIT", "SBATCH_JOB_NAME", "SBATCH_TEST_ONLY", "SBATCH_WAIT_ALL_NODES"),
                "SBATCH_HINT",
            }
        ),
        handed_on=("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_JOB_NODELIST", "SLURM_PROCID"),
        chosen=frozenset({"SLURM_CLUSTERS", "SLURM_CONF_SERVER", "SLURM_JWT"}),
    ),
    granted=slurm_steps.granted,
    host_variables=slurm_steps.on_hosts,
    on_node=slurm_steps.on_node,
    submit="sbatch",
    no_requeue=("--no-requeue",),
    rehearsal=("--test-only",),
    doubtful="node configuration is not available",  # also of nodes that are only down
    overruled="#SBATCH",
    submitted=r"Submitted batch job (\d+)",
    query=_query,
    parse=_parse,
    confirm=lambda ids, where: _squeue(where, f"--jobs={','.join(ids)}", _FORMAT),
    confirm_missing="invalid job id",
    find=lambda user, where: _squeue(where, f"--user={user}", "--format=%i|%o"),
    preempted=lambda job, where: _squeue(where, f"--jobs={job}", "--Format=PreemptTime"),
    was_preempted=_was_preempted,
    queues=("sinfo", "--all", "--noheader", "--format=%R"),
    limits=_limits,
    parse_limits=_parse_limits,
    cancel=lambda job, where: ["scancel", *_clusters(where), "--", job],
    cancel_name=lambda name, where: ["scancel", *_clusters(where), f"--name={name}"],
    directives=_directives,
    own_directives=frozenset(
        "-o --output -e --error -i --input -J --job-name -a --array -D --chdir -W --wait -Q --quiet --parsable "
        "--test-only --wrap".split()
    ),
    values_attached=True,
    parse_walltime=_parse_walltime,
    option_cluster=CLUSTERS,
    option_qos=("--qos", "-q"),
    option_exclude=_EXCLUDE,
    refusals=(
        (r"invalid partition|not permitted to use this partition|access denied to partition", advice.QUEUE),
        (r"no partition specified", advice.QUEUE),
        (r"invalid ?account|AccountNotAllowed|account not (known|permitted|allowed)", advice.ACCOUNT),
        (r"invalid ?qos|QOSNotAllowed|qos not (known|permitted|allowed)", advice.QOS),
        (r"requested time limit is invalid|invalid time limit|PartitionTimeLimit", advice.TIME),
        (r"time limit specification required", advice.TIME),
        (r"(node|topology) configuration is not available|invalid feature|more processors requested", advice.NODE),
        (r"memory required by task is not available|(node|cpu) count specification invalid", advice.NODE),
        (r"(memory specification|cpu count per node) can ?not be satisfied", advice.NODE),
        (r"PartitionConfig|PartitionNodeLimit|BadConstraints|Per(Job|Node)", advice.NODE),
        (
            r"unrecognized option|invalid (option|directive|wckey|license|generic resource)|reservation is invalid",
            advice.OPTION,
        ),
        (r"invalid (--)?(gres|number|cpu|task|node)", advice.OPTION),
    ),
    reasons=(  # squeue(1), JOB REASON CODES
        (
            r"PartitionDown|PartitionInactive",
            "this queue starts nothing now: wait until it is up, or give the pool another",
        ),
        (r"ReqNodeNotAvail|Maintenance|Reserv", "nodes are down or reserved: a shorter walltime may fit in before"),
        (r"NodeDown|Nodes_required_for_job_are_DOWN", "nodes are down: wait, or give the pool another queue"),
        (r"Assoc\w*(Limit|Grp|Max)|QOS\w*(Limit|Grp|Max)|MaxJobs|MaxCpu|Max\w+Per(User|Account)", _LIMIT),
        (r"JobHeldAdmin", "administrators hold it: ask them"),
        (r"JobHeldUser", "you hold it: release it with scontrol"),
        (r"Licenses", "licences are in use"),
        (r"MaxPoweredUpNodes", "no more nodes may be switched on now: it starts when others are free"),
        (r"^Priority$", "others come first in this queue: fewer or smaller workers may start in between"),
        (r"^Resources$", "it is the next one, and waits for nodes to become free"),
        (r"^Dependency", "it waits for another one to end"),
        (r"^BeginTime$", "it is not to start before a time that was asked for, or was requeued a moment ago"),
    ),
    unopened="launch.?fail",
    endings="CANCELLED AT|DUE TO TIME LIMIT|DUE TO PREEMPTION|DUE TO NODE FAILURE|oom[-_ ]kill"
    "|Exceeded job memory limit",
    preemptions="DUE TO PREEMPTION",
    of_others="CANCELLED AT|TIME LIMIT|oom[-_ ]kill|memory limit",
    of_node="NODE FAILURE",
    states_of_others="CANCELLED|DEADLINE|OUT_OF_MEMORY|OutOfMemory|PREEMPTED|REVOKED|TIMEOUT|TimeLimit",
)
