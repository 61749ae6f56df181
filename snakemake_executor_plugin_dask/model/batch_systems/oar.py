"""OAR 2.5-2.6."""

import re
from functools import partial
from typing import Any

from snakemake_executor_plugin_dask.model.batch_systems import advice
from snakemake_executor_plugin_dask.model.batch_systems.listings import Seen, blocks, local_time, states
from snakemake_executor_plugin_dask.model.batch_systems.record import BatchSystem
from snakemake_executor_plugin_dask.model.batch_systems.scripts import Setting, parse_walltime
from snakemake_executor_plugin_dask.model.batch_systems.variables import Variables

_STATES = states(
    queued="Waiting Hold toAckReservation toLaunch",
    running="Launching Running Suspended Resuming Finishing toError",
    gone="Terminated Error",
)
#: What its scheduler notes of a job that has a place: `R=1,W=0:10:0,J=B,N=name (Karma=0.000,quota_ok)`. No reason.
_PLACED = re.compile(r"R=\d+,W=|FIFO scheduling OK")
#: A job's events: `date> TYPE:[module] text`. Some only say what follows from others, and a user's wish is told last.
_EVENT = re.compile(r"[\d-]+ [\d:]+> (?!SWITCH_INTO|SEND_KILL|RESUBMIT)([A-Z_]+):(?:\[[^]]*\]\s*)?(.+)")
_AGAIN = re.compile(r"> RESUBMIT_JOB_AUTOMATICALLY:.*(?:=>|new id =) (\d+)")


def _parse(out: str) -> dict[str, Seen]:
    """OAR submits a job that it could not start on its node once more by itself, under another id."""
    seen = {}
    for text in re.split(r"^(?=Job_Id:)", out, flags=re.MULTILINE):
        for number, block in blocks(text).items():
            kind = _STATES.get(block.get("state", ""), "unknown")
            message = block.get("message", "")
            reason = "" if kind == "running" or _PLACED.match(message) else message
            if block.get("state") == "Hold":
                reason = "Hold"
            again = ""
            if kind == "gone":
                events = sorted(_EVENT.findall(text), key=lambda event: event[0].startswith("FRAG"))
                reason = (events[0][1].strip() if events else reason) or block["state"]
                again = found.group(1) if (found := _AGAIN.search(text)) else ""
            expected = local_time(block.get("scheduledStart", "").replace(" ", "T")) if kind == "queued" else None
            seen[number] = Seen(kind, reason, False, expected, block.get("assigned_hostnames", ""), again)
    return seen


def _directives(pool: Any, setting: Setting, _name: str, logs: str) -> tuple[list[str], dict[str, Any]]:
    # Dask-Jobqueue's class knows no directory for output, and OAR writes it where it was submitted.
    output = [f"-O {logs}/%jobname%.%jobid%.out", f"-E {logs}/%jobname%.%jobid%.err"]
    if setting("resource_spec") is None and pool.nodes is not None:
        return output, {"resource_spec": f"/nodes={pool.nodes}/core={pool.cores}"}
    return output, {}


OAR = BatchSystem(
    name="oar",
    title="OAR",
    job_class="OARJob",
    variables=Variables(
        prefixes=("OAR_",),
        id="OAR_JOB_ID",
        ids=("OAR_JOB_ID", "OAR_JOBID"),
        node_files=("OAR_NODEFILE", "OAR_FILE_NODES"),
        handed_on=("OAR_JOB_ID",),
    ),
    submit="oarsub",
    submitted=r"OAR_JOB_ID=(\d+)",
    before_script=" -S ",  # it looks for options in the script only then
    query=lambda _ids, user, _where: ["oarstat", "-f", "-u", user],
    parse=_parse,
    confirm=lambda ids, _where: ["oarstat", "-f", *(word for number in ids for word in ("-j", number))],
    cancel=lambda job, _where: ["oardel", job],
    cancel_name=lambda name, _where: [
        *("oardel", "--sql", f"job_name = '{name}' AND state NOT IN ('Terminated', 'Error')"),
    ],
    directives=_directives,
    own_directives=frozenset("-O --stdout -E --stderr -n --name -d --directory --array --array-param-file -I".split()),
    gpu_example='resource_spec: "/nodes=1/gpu=2"',
    parse_walltime=partial(parse_walltime, one="hours", two="hours"),
    refusals=(
        (r"queue .*(not exist|unknown)|unknown queue", advice.QUEUE),
        (r"not? enough resources", advice.NODE),
        (r"project .*(not exist|not allowed)", advice.PROJECT),
        (r"bad resource request|cannot recognize|unknown (column|option|job type)|invalid", advice.OPTION),
    ),
    reasons=(
        (r"^Hold$", "you hold it: release it with oarresume"),
        (
            r"[Nn]o enough matching resources",
            "the nodes that could hold it are down or taken out: wait, or ask for other ones",
        ),
    ),
    endings="## OAR .* KILLED ##",
    of_others="## OAR .* KILLED ##",
    states_of_others="User .* requested to frag",
)
