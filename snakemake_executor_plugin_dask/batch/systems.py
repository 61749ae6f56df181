"""What the plugin must know of each batch system beyond Dask's Job classes: how to ask its queue, how to cancel. Pure.

Standard library only: Snakemake's own process cancels recorded allocations with it, without Dask. Commands and the
meaning of their output come from the manual pages of Slurm 22-25, PBS Pro and Torque, LSF 10, Grid Engine 8,
OAR 2.5-2.6, Moab 9 and HTCondor 10-25.
"""

import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["queued", "running", "gone", "unknown"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the queue says of one allocation. ``stuck``: it is queued and will never start by itself."""

    kind: Kind
    reason: str = ""
    stuck: bool = False
    expected: float | None = None  # when it is likely to start, in seconds since the epoch
    nodes: str = ""  # that it has or had, as the batch system writes them
    again: str = ""  # it is gone, and the batch system has submitted it once more by itself, under this id


GONE = Seen("gone")


@dataclass(frozen=True, slots=True)
class System:
    """One batch system. ``where`` in the calls is another cluster's name (Slurm's --clusters), or None."""

    name: str
    job_class: str  # of dask_jobqueue
    submit: str
    cancel: Callable[[str, str | None], list[str]]
    query: Callable[[Collection[str], str, str | None], list[str]]  # ids, user's name, where
    parse: Callable[[str], dict[str, Seen]]  # standard output of the query, to states by `bare` id
    #: Options of the submit command after which the batch system never starts an allocation a second time.
    no_requeue: tuple[str, ...] = ()
    #: In the query's standard error: ids that the batch system does not know (any more); group 1 is the id.
    missing: str | None = None
    none: str | None = None  # likewise, where the query fails since none of the ids is there any more
    queues: tuple[str, ...] = ()  # prints the names of its queues, first word of each line
    #: Prints `queue|longest time` for a queue (None: for all, with a star behind the default one).
    limits: Callable[[str | None, str | None], list[str]] | None = None
    #: Options with which the submit command only says whether it would take a script.
    rehearsal: tuple[str, ...] = ()
    #: How a script's directives begin, where variables of the environment (SBATCH_ACCOUNT) would win over them.
    overruled: str | None = None
    submitted: str | None = None  # in the submit command's output; group 1 is the id
    #: Asks for these ids alone. Believed where the query above does not list them; `missing` says which do not exist.
    confirm: Callable[[Collection[str], str | None], list[str]] | None = None
    #: Prints `id|path of the script` of all the user's allocations: finds one whose submission got no answer.
    find: Callable[[str, str | None], list[str]] | None = None  # user's name, where
    #: Prints when an allocation was taken away for others, from the moment when that is decided; `N/A`: it was not.
    preempted: Callable[[str, str | None], list[str]] | None = None
    id: str = r"[1-9]\d*"  # what an id looks like; `bkill 0` would end all of a user's jobs
    #: Cancels by name, for an allocation whose submission was cut off before its id was known.
    cancel_name: Callable[[str, str | None], list[str]] | None = None

    @property
    def commands(self) -> tuple[str, ...]:
        """What must be on PATH."""
        return (self.submit, self.cancel("0", None)[0], self.query(("0",), "", None)[0])


_CLUSTER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,-]{0,199}")


def is_id(system: System, text: str) -> bool:
    """Whether a text can be the id of one allocation: no option, no user's name, and no word for all of them."""
    return len(text) < 100 and re.fullmatch(system.id, text, re.ASCII) is not None


def is_cluster(text: object) -> bool:
    """Whether it can name Slurm's clusters."""
    return isinstance(text, str) and _CLUSTER.fullmatch(text) is not None


def bare(allocation_id: str) -> str:
    """The number in an id such as ``123.server`` or ``Moab.123``."""
    found = re.search(r"\d+", allocation_id)
    return found.group() if found else allocation_id


#: Variables that change which allocations the queries list, which ones are cancelled, or how that is printed.
_CHOOSING = ("SQUEUE_", "SCANCEL_", "SINFO_", "LSB_BJOBS_")
#: And those by which one submission would become several, wait for its end, go somewhere else, be none at all, lose
#: its directives, or not tell its id; and Torque's, by which `qstat` does not see what waits in a routing queue.
_SUBMITTING = frozenset({
    "SBATCH_ARRAY_INX", "SBATCH_WAIT", "SBATCH_JOB_NAME", "SBATCH_TEST_ONLY", "SBATCH_WAIT_ALL_NODES", "SBATCH_HINT",
    "BSUB_CHK_RESREQ", "BSUB_QUIET", "BSUB_STDERR", "PBS_DPREFIX", "PBS_QSTAT_EXECONLY",
})  # fmt: skip


def undisturbed(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a batch system's commands, without what users set there for their own use of them."""
    return {
        name: value for name, value in environment.items() if not name.startswith(_CHOOSING) and name not in _SUBMITTING
    }


def unlisted(system: System, ids: Collection[str], code: int, out: str) -> list[str]:
    """Ids that a successful query does not list, where they are worth another question: see `System.confirm`."""
    if system.confirm is None or code != 0:
        return []
    listed = system.parse(out)
    return [allocation_id for allocation_id in ids if bare(allocation_id) not in listed]


def confirmed(system: System, ids: Collection[str], code: int, out: str, err: str) -> dict[str, Seen]:
    """The answer to `System.confirm`: gone is what the batch system says that it does not know."""
    listed = system.parse(out)
    if code != 0 and not re.search("invalid job id", err, re.IGNORECASE):
        return look(system, ids, code, out, err)
    return {allocation_id: listed.get(bare(allocation_id), GONE) for allocation_id in ids}


def found_by_script(out: str, script: str) -> str | None:
    """The id of the allocation that was made from this script, in what `System.find` printed."""
    for line in out.splitlines():
        number, _, path = line.partition("|")
        if path.strip() == script:
            return number.strip()
    return None


def look(system: System, ids: Collection[str], code: int, out: str, err: str) -> dict[str, Seen]:
    """States by id. An id that is not listed is gone only if the query succeeded, or says that it is not there."""
    listed = system.parse(out)
    unknown = set(re.findall(system.missing, err, re.IGNORECASE)) if system.missing else set()
    answered = code == 0 or (system.none is not None and re.search(system.none, err) is not None)
    silent = Seen("unknown", (err.strip() or out.strip() or f"exit code {code}").splitlines()[0][:200])
    answer = {}
    for allocation_id in ids:
        number = bare(allocation_id)
        if number in listed:
            answer[allocation_id] = listed[number]
        else:
            answer[allocation_id] = GONE if answered or number in unknown else silent
    return answer


def _states(queued: str, running: str, gone: str) -> dict[str, Kind]:
    table: dict[str, Kind] = {}
    table |= dict.fromkeys(queued.split(), "queued")
    table |= dict.fromkeys(running.split(), "running")
    table |= dict.fromkeys(gone.split(), "gone")
    return table


# Slurm

#: Reasons for which a job waits until somebody changes something (squeue(1), JOB REASON CODES).
_SLURM_STUCK = re.compile(
    "Bad|Held|Hold|Invalid|launch failed|NeverSatisfied|NotAllowed|account not|Partition(Config|NodeLimit|TimeLimit)"
    "|PerJob|PerNode"
)
_SLURM = _states(
    "PENDING CONFIGURING EXPEDITING REQUEUED REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT RESV_DEL_HOLD",
    "RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING",
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT",
)


def _slurm_clusters(where: str | None) -> list[str]:
    return [f"--clusters={where}"] if where else []


def _squeue(where: str | None, *more: str) -> list[str]:
    # `--all`: those in partitions that the site hides, too.
    return ["squeue", *_slurm_clusters(where), "--all", "--noheader", "--states=all", *more]


_SQUEUE_FORMAT = "%i|%T|%r|%S|%N"


def _slurm_query(_ids: Collection[str], user: str, where: str | None) -> list[str]:
    return _squeue(where, f"--user={user}", f"--format={_SQUEUE_FORMAT}")


def _local_time(text: str) -> float | None:
    """Seconds since the epoch; None: Slurm cannot say (N/A), or SLURM_TIME_FORMAT asks for other words."""
    try:
        return time.mktime(time.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _slurm_parse(out: str) -> dict[str, Seen]:
    seen = {}
    for line in out.splitlines():
        number, state, reason, start, nodes = (*line.split("|"), "", "", "", "")[:5]
        if not state:
            continue  # «CLUSTER: name»
        kind = _SLURM.get(state, "unknown")
        reason = "" if reason == "None" else reason
        # A user who holds an allocation by hand means to release it.
        stuck = kind == "queued" and reason != "JobHeldUser" and bool(_SLURM_STUCK.search(reason))
        reason = reason or ("" if kind in ("queued", "running") else state)
        expected = _local_time(start) if kind == "queued" else None
        seen[number.strip()] = Seen(kind, reason, stuck, expected, nodes.strip())
    return seen


# PBS, Torque and OAR print a block for each job: `Job Id: 12.server` and lines of `name = value`.


def _blocks(out: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    block: dict[str, str] = {}
    for line in out.splitlines():
        if head := re.match(r"Job_?\s?Id:\s*(\S+)", line):
            block = found.setdefault(bare(head.group(1)), {})
        elif " = " in line:
            name, _, value = line.partition(" = ")
            block.setdefault(name.strip(), value.strip())
    return found


_PBS = _states("Q H W T", "R E S U B", "C F X M")
_PBS_STUCK = "Can Never Run"  # how the comment of PBS's scheduler begins


def _pbs_parse(out: str) -> dict[str, Seen]:
    seen = {}
    for number, block in _blocks(out).items():
        kind, comment = _PBS.get(block.get("job_state", ""), "unknown"), block.get("comment", "")
        seen[number] = Seen(kind, comment, stuck=kind == "queued" and comment.startswith(_PBS_STUCK))
    return seen


_OAR = _states(
    "Waiting Hold toAckReservation toLaunch",
    "Launching Running Suspended Resuming Finishing toError",
    "Terminated Error",
)
#: What its scheduler notes of a job that has a place: `R=1,W=0:10:0,J=B,N=name (Karma=0.000,quota_ok)`. No reason.
_OAR_PLACED = re.compile(r"R=\d+,W=|FIFO scheduling OK")
#: A job's events: `date> TYPE:[module] text`. Some only say what follows from others, and a user's wish is told last.
_OAR_EVENT = re.compile(r"[\d-]+ [\d:]+> (?!SWITCH_INTO|SEND_KILL|RESUBMIT)([A-Z_]+):(?:\[[^]]*\]\s*)?(.+)")
_OAR_AGAIN = re.compile(r"> RESUBMIT_JOB_AUTOMATICALLY:.*(?:=>|new id =) (\d+)")


def _oar_parse(out: str) -> dict[str, Seen]:
    """OAR submits a job that it could not start on its node once more by itself, under another id."""
    seen = {}
    for text in re.split(r"^(?=Job_Id:)", out, flags=re.MULTILINE):
        for number, block in _blocks(text).items():
            kind = _OAR.get(block.get("state", ""), "unknown")
            message = block.get("message", "")
            reason = "" if kind == "running" or _OAR_PLACED.match(message) else message
            if block.get("state") == "Hold":
                reason = "Hold"
            again = ""
            if kind == "gone":
                events = sorted(_OAR_EVENT.findall(text), key=lambda event: event[0].startswith("FRAG"))
                reason = (events[0][1].strip() if events else reason) or block["state"]
                again = found.group(1) if (found := _OAR_AGAIN.search(text)) else ""
            expected = _local_time(block.get("scheduledStart", "").replace(" ", "T")) if kind == "queued" else None
            seen[number] = Seen(kind, reason, False, expected, block.get("assigned_hostnames", ""), again)
    return seen


# Grid Engine: `job-ID prior name user state …`; E in a waiting state is an error that an operator must clear.


def _sge_parse(out: str) -> dict[str, Seen]:
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


# LSF: `bjobs -w` prints JOBID USER STAT QUEUE … What is UNKWN or ZOMBI may still run: LSF does not reach its host, and
# what is killed meanwhile becomes a ZOMBI.

_LSF = _states("PEND PSUSP WAIT PROV", "RUN USUSP SSUSP", "DONE EXIT")


def _lsf_parse(out: str) -> dict[str, Seen]:
    seen = {}
    for line in out.splitlines():
        words = line.split()
        if len(words) >= 3 and words[0].isdigit():
            kind = _LSF.get(words[2], "unknown")
            seen[words[0]] = Seen(kind, words[2])
    return seen


# Moab: `showq` lists active, eligible and blocked jobs: JOBID USERNAME STATE …

_MOAB = _states(
    "Idle Hold Deferred BatchHold SystemHold UserHold NotQueued Migrated Staging",
    "Running Starting Suspended Canceling Completing",
    "Completed Removed Vacated",
)
_MOAB_STUCK = {"BatchHold", "SystemHold"}


def _moab_parse(out: str) -> dict[str, Seen]:
    seen = {}
    for line in out.splitlines():
        words = line.split()
        if len(words) >= 3 and words[2] in _MOAB:
            seen[bare(words[0])] = Seen(_MOAB[words[2]], words[2], words[2] in _MOAB_STUCK)
    return seen


# HTCondor: numbers of JobStatus; a removed job (3) may still be ending.

_HTCONDOR: dict[str, Kind] = {
    "1": "queued", "2": "running", "3": "running", "4": "gone", "5": "queued", "6": "running", "7": "running",
}  # fmt: skip


_HTCONDOR_COLUMNS = (
    "ClusterId", "ProcId", "JobStatus", "HoldReasonCode", "HoldReason", "LastRejMatchReason", "RemoteHost",
)  # fmt: skip
_HELD_BY_THE_USER = "1"  # a code of HoldReasonCode; who does so means to release it


def _htcondor_parse(out: str) -> dict[str, Seen]:
    seen = {}
    for line in out.splitlines():
        words = ["" if word == "undefined" else word.strip() for word in line.split("\t")]
        number, _, status, code, held, rejected, host = (*words, *[""] * 7)[:7]
        if number.isdigit() and status:
            reason = {"1": rejected, "5": held}.get(status, "")
            stuck = status == "5" and code != _HELD_BY_THE_USER
            nodes = host.rpartition("@")[2] if status == "2" else ""  # slot1_1@node
            seen[number] = Seen(_HTCONDOR.get(status, "unknown"), reason, stuck, nodes=nodes)
    return seen


SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        System(
            name="slurm",
            job_class="SLURMJob",
            submit="sbatch",
            cancel=lambda job, where: ["scancel", *_slurm_clusters(where), "--", job],
            query=_slurm_query,
            parse=_slurm_parse,
            confirm=lambda ids, where: _squeue(where, f"--jobs={','.join(ids)}", f"--format={_SQUEUE_FORMAT}"),
            find=lambda user, where: _squeue(where, f"--user={user}", "--format=%i|%o"),
            preempted=lambda job, where: _squeue(where, f"--jobs={job}", "--Format=PreemptTime"),
            no_requeue=("--no-requeue",),
            queues=("sinfo", "--all", "--noheader", "--format=%R"),
            limits=lambda queue, where: [
                *("sinfo", "--noheader", "--format=%P|%l", *_slurm_clusters(where)),
                f"--partition={queue}" if queue else "--all",  # it refuses both at once
            ],
            rehearsal=("--test-only",),
            overruled="#SBATCH",
            submitted=r"Submitted batch job (\d+)",
            cancel_name=lambda name, where: ["scancel", *_slurm_clusters(where), f"--name={name}"],
        ),
        System(
            name="pbs",
            job_class="PBSJob",
            submit="qsub",
            cancel=lambda job, _where: ["qdel", job],
            query=lambda ids, _user, _where: ["qstat", "-f", *ids],
            parse=_pbs_parse,
            id=r"[1-9]\d*(\[\d*\])?(\.[\w-]+)*",
            no_requeue=("-r n",),
            missing=r"(?:Unknown Job Id(?: Error)?\s+|qstat:\s+(?=\d+\S*\s+Job has finished))(\d+)",
        ),
        System(
            name="lsf",
            job_class="LSFJob",
            submit="bsub",
            cancel=lambda job, _where: ["bkill", job],
            query=lambda ids, _user, _where: ["bjobs", "-w", *ids],
            parse=_lsf_parse,
            no_requeue=("-rn",),
            missing=r"Job <(\d+)> is not found",
            none="No unfinished job found",  # with LSB_BJOBS_CONSISTENT_EXIT_CODE=Y this is a failure
            queues=("bqueues", "-w"),
            submitted=r"Job <(\d+)>",
            cancel_name=lambda name, _where: ["bkill", "-J", name, "0"],
        ),
        System(
            name="sge",
            job_class="SGEJob",
            submit="qsub",
            cancel=lambda job, _where: ["qdel", job],
            query=lambda _ids, user, _where: ["qstat", "-u", user],
            parse=_sge_parse,
            no_requeue=("-r n",),
            queues=("qconf", "-sql"),
            rehearsal=("-w", "v"),
            submitted=r"[Yy]our job (\d+)",
            cancel_name=lambda name, _where: ["qdel", name],
        ),
        System(
            name="oar",
            job_class="OARJob",
            submit="oarsub",
            cancel=lambda job, _where: ["oardel", job],
            query=lambda _ids, user, _where: ["oarstat", "-f", "-u", user],
            parse=_oar_parse,
            confirm=lambda ids, _where: ["oarstat", "-f", *(word for number in ids for word in ("-j", number))],
            submitted=r"OAR_JOB_ID=(\d+)",
            cancel_name=lambda name, _where: [
                "oardel",
                "--sql",
                f"job_name = '{name}' AND state NOT IN ('Terminated', 'Error')",
            ],
        ),
        System(
            name="moab",
            job_class="MoabJob",
            submit="msub",
            cancel=lambda job, _where: ["canceljob", job],
            query=lambda _ids, user, _where: ["showq", "-u", user],
            parse=_moab_parse,
            id=r"(\w+\.)?[1-9]\d*(\.[\w-]+)*",
            no_requeue=("-r n",),
        ),
        System(
            name="htcondor",
            job_class="HTCondorJob",
            submit="condor_submit",
            cancel=lambda job, _where: ["condor_rm", job],
            query=lambda ids, _user, _where: ["condor_q", *ids, "-af:t", *_HTCONDOR_COLUMNS],
            parse=_htcondor_parse,
            rehearsal=("-dry-run", "/dev/null"),
            id=r"[1-9]\d*(\.\d+)?",
            cancel_name=lambda name, _where: ["condor_rm", "-constraint", f'JobBatchName == "{name}"'],
        ),
    )
}
