"""HTCondor 10-25."""

import math
from typing import Any

from snakemake_executor_plugin_dask.model.batch_systems import advice
from snakemake_executor_plugin_dask.model.batch_systems.listings import Kind, Seen
from snakemake_executor_plugin_dask.model.batch_systems.record import BatchSystem
from snakemake_executor_plugin_dask.model.batch_systems.scripts import Setting, given
from snakemake_executor_plugin_dask.model.batch_systems.variables import Variables
from snakemake_executor_plugin_dask.model.errors import ConfigurationError

#: Numbers of JobStatus; a removed job (3) may still be ending.
_STATES: dict[str, Kind] = {
    "1": "queued", "2": "running", "3": "running", "4": "gone", "5": "queued", "6": "running", "7": "running",
}  # fmt: skip
_COLUMNS = ("ClusterId", "ProcId", "JobStatus", "HoldReasonCode", "HoldReason", "LastRejMatchReason", "RemoteHost")
#: So long after the last word of a running job's node HTCondor gives it up. By its own default that takes 40 minutes,
#: also where only the job's starter died, and until then not even `condor_rm` takes the job out of the queue. Workers
#: that hear nothing end their jobs about as soon.
_LEASE_S = 45
_HELD_BY_THE_USER = "1"  # a code of HoldReasonCode; who does so means to release it


def _parse(out: str) -> dict[str, Seen]:
    seen = {}
    for line in out.splitlines():
        words = ["" if word == "undefined" else word.strip() for word in line.split("\t")]
        number, _, status, code, held, rejected, host = (*words, *[""] * 7)[:7]
        if number.isdigit() and status:
            reason = {"1": rejected, "5": held}.get(status, "")
            stuck = status == "5" and code != _HELD_BY_THE_USER
            nodes = host.rpartition("@")[2] if status == "2" else ""  # slot1_1@node
            seen[number] = Seen(_STATES.get(status, "unknown"), reason, stuck, nodes=nodes)
    return seen


def _directives(pool: Any, setting: Setting, name: str, _logs: str) -> tuple[dict[str, Any], dict[str, Any]]:
    extra = given(setting) or {}
    if not isinstance(extra, dict):
        msg = (
            f"Pool {pool.name}: job_extra_directives of HTCondor is a mapping, as in {{request_gpus: 1}}, "
            f"and not {extra!r}."
        )
        raise ConfigurationError(msg)
    # HTCondor runs an evicted job again, and holds one that used too much: they are removed instead. That is looked at
    # once in a minute, and until then no slot is to take it.
    remove = "((JobStatus == 1 || JobStatus == 5) && NumJobStarts > 0)"
    required = next((str(value) for key, value in extra.items() if str(key).lower() == "requirements"), None)
    once = "MY.NumJobStarts == 0" if required is None else f"({required}) && MY.NumJobStarts == 0"
    if pool.walltime_s is not None:
        remove += f" || (JobStatus == 2 && time() - JobCurrentStartDate > {math.ceil(pool.walltime_s)})"
    own: dict[str, Any] = {"batch_name": name, "requirements": once, "periodic_remove": remove}
    if pool.gpus and not any("gpu" in str(key).lower() for key in extra):
        own["request_gpus"] = pool.gpus
    if not any(str(key).lower() == "job_lease_duration" for key in extra):
        own["job_lease_duration"] = _LEASE_S
    return own, {}


HTCONDOR = BatchSystem(
    name="htcondor",
    title="HTCondor",
    job_class="HTCondorJob",
    several_nodes=False,
    variables=Variables(prefixes=("_CONDOR_",), id="_CONDOR_JOB_ID", ids=("_CONDOR_SCRATCH_DIR",)),
    submit="condor_submit",
    rehearsal=("-dry-run", "/dev/null"),
    id=r"[1-9]\d*(\.\d+)?",
    query=lambda ids, _user, _where: ["condor_q", *ids, "-af:t", *_COLUMNS],
    parse=_parse,
    cancel=lambda job, _where: ["condor_rm", job],
    cancel_name=lambda name, _where: ["condor_rm", "-constraint", f'JobBatchName == "{name}"'],
    description=True,
    directives=_directives,
    own_directives=frozenset("output error log queue executable batch_name".split()),
    refusals=(
        (r"accounting.?group|not (allowed|authorized).*group", advice.GROUP),
        (r"parse error|syntax error|invalid|unknown (command|universe)|don't know about|illegal", advice.OPTION),
    ),
    reasons=(
        (r"^no match found", "no slot can hold it now: wait, or ask for less (condor_q -better-analyze says more)"),
    ),
    endings="via condor_rm|PeriodicRemove expression",
    of_others="via condor_rm",
)
