"""LSF 10."""

import math
from functools import partial
from typing import Any

from snakemake_executor_plugin_dask.model.batch_systems import advice
from snakemake_executor_plugin_dask.model.batch_systems.listings import Seen, states
from snakemake_executor_plugin_dask.model.batch_systems.record import BatchSystem
from snakemake_executor_plugin_dask.model.batch_systems.scripts import Setting, gpus, parse_walltime, skipped
from snakemake_executor_plugin_dask.model.batch_systems.variables import Variables

#: What is UNKWN or ZOMBI may still run: LSF does not reach its host, and what is killed meanwhile becomes a ZOMBI.
_STATES = states(queued="PEND PSUSP WAIT PROV", running="RUN USUSP SSUSP", gone="DONE EXIT")


def _parse(out: str) -> dict[str, Seen]:
    """`bjobs -w` prints JOBID USER STAT QUEUE …"""  # noqa: D400 - an ellipsis
    seen = {}
    for line in out.splitlines():
        words = line.split()
        if len(words) >= 3 and words[0].isdigit():
            seen[words[0]] = Seen(_STATES.get(words[2], "unknown"), words[2])
    return seen


def _format_walltime(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _directives(pool: Any, setting: Setting, _name: str, _logs: str) -> tuple[list[str], dict[str, Any]]:
    own: list[str] = []
    arguments: dict[str, Any] = {}
    if number := gpus(pool, setting):
        own += [f"-gpu num={number}"]
    if pool.nodes is not None:
        arguments["ncpus"] = pool.nodes * (pool.cores or 1)
        arguments["job_directives_skip"] = [*skipped(setting), "span[hosts=1]"]
        own += [f'-R "span[ptile={pool.cores}]"']
    return own, arguments


LSF = BatchSystem(
    name="lsf",
    title="LSF",
    job_class="LSFJob",
    variables=Variables(
        prefixes=("LSB_", "LS_"),
        settings=frozenset({"LSB_CONFDIR", "LS_COLORS"}),  # the latter is of `ls`
        id="LSB_JOBID",
        ids=("LSB_JOBID",),
        node_files=("LSB_DJOB_HOSTFILE",),
        node_list="LSB_HOSTS",
        cores=("LSB_DJOB_NUMPROC", "LSB_MAX_NUM_PROCESSORS"),
        choosing=("LSB_BJOBS_",),
        submitting=frozenset({"BSUB_CHK_RESREQ", "BSUB_QUIET", "BSUB_STDERR"}),
    ),
    submit="bsub",
    no_requeue=("-rn",),
    submitted=r"Job <(\d+)>",
    before_script=" < ",  # it reads scripts from its standard input
    query=lambda ids, _user, _where: ["bjobs", "-w", *ids],
    parse=_parse,
    missing=r"Job <(\d+)> is not found",
    none="No unfinished job found",  # with LSB_BJOBS_CONSISTENT_EXIT_CODE=Y this is a failure
    queues=("bqueues", "-w"),
    cancel=lambda job, _where: ["bkill", job],
    cancel_name=lambda name, _where: ["bkill", "-J", name, "0"],
    directives=_directives,
    own_directives=frozenset("-o -oo -e -eo -J -I -Ip -Is -K".split()),
    parse_walltime=partial(parse_walltime, one="minutes", two="hours"),
    format_walltime=_format_walltime,
    refusals=(
        (r"no such queue|user cannot use the queue", advice.QUEUE),
        (r"(project|account|user group).*(not exist|not a (valid )?member|invalid|unknown)", advice.PROJECT),
        (r"run ?limit", advice.TIME),
        (r"queue's hard limit|too many processors requested", advice.LIMITS),
        (r"bad resource requirement|illegal option|cannot parse|no such (application|resource)", advice.OPTION),
    ),
    endings="TERM_[A-Z]+",
    preemptions="TERM_PREEMPT",
    of_others="TERM_(OWNER|ADMIN|RUNLIMIT|MEMLIMIT|PREEMPT)",
)
