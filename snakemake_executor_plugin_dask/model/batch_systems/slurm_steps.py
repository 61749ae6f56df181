"""Slurm's job steps, which no other batch system has: what `srun` sets in them, and what it reads. Pure."""

import re
from collections.abc import Mapping, MutableMapping, Sequence

Changes = list[tuple[str, str | None]]

#: Step numbers from here on are Slurm's own: batch script, interactive step, extern.
_SPECIAL_STEPS = 0xFFFFFFF0
#: The number that Slurm 26.05 gives its batch scripts for a step; earlier ones give none.
_BATCH_SCRIPT = ("-5", str(0xFFFFFFFB))
#: Of a job step: with them an inner `srun` or `mpirun` takes itself for a part of the launched step.
_PREFIXES = ("SLURM_STEP_", "SLURM_SRUN_", "SLURM_PMI")
_NAMES = {
    *("SLURM_STEPID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_GTIDS", "SLURM_TASK_PID", "SLURM_LAUNCH_NODE_IPADDR"),
    *("SLURM_UMASK", "SLURM_PRIO_PROCESS", "SLURM_WORKING_CLUSTER"),
}
#: Settings for `srun`. In a step they are those of the `srun` that made it, elsewhere those of the user or the site.
_SETTINGS = ("SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_GPU_BIND", "SLURM_DISTRIBUTION", "SLURM_MPI_TYPE")

HOSTFILE = "SLURM_HOSTFILE"
#: With NONE, as `sbatch --export=NONE` sets it, an inner `srun` would start its program without the job's environment.
EXPORT = "SLURM_EXPORT_ENV"
#: Lets steps in beside others: one that holds all of the allocation would let an inner `srun` wait for ever, or fail.
OVERLAP = {"SLURM_OVERLAP": "1"}
#: Variables by which `sbatch` tells its own options; `srun` would take them for the step's.
OPTIONS = frozenset({
    "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_CPUS_PER_TASK",
    "SRUN_CPUS_PER_TASK", "SLURM_DISTRIBUTION", HOSTFILE, "SLURM_NTASKS_PER_CORE", "SLURM_NTASKS_PER_SOCKET",
    "SLURM_THREADS_PER_CORE", "SLURM_HINT", "SLURM_EXACT", "SLURM_EXCLUSIVE", "SLURM_CPU_BIND", "SLURM_CPU_BIND_TYPE",
    "SLURM_CPU_BIND_LIST", "SLURM_CPU_BIND_VERBOSE", "SLURM_MPI_TYPE", EXPORT,
    # What a task gets; the step has one on each node, which is to have all that the allocation holds there.
    "SLURM_TRES_PER_TASK", "SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU", "SLURM_NTASKS_PER_TRES", "SLURM_CPUS_PER_GPU",
})  # fmt: skip


def one_on_each(nodes: int) -> list[str]:
    """Arguments of `srun` for one process on each of so many nodes, beside whatever else runs there."""
    # Without --overlap the step would wait for what the allocation's other steps hold, or let none in beside it.
    return [
        *("--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpu-bind=none"),
        *("--kill-on-bad-exit=0", "--wait=0", "--no-kill", "--input=none", "--job-name=snakemake-dask"),
    ]


def on_node(name: str, environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The command that starts a process on one node of the allocation, and its environment."""
    return ["srun", *one_on_each(1), f"--nodelist={name}", "--quit-on-interrupt"], for_launcher(environment)


def for_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for `srun` without what would change the shape of its step."""
    return {name: value for name, value in environment.items() if name not in OPTIONS}


def _step(environment: Mapping[str, str]) -> str:
    """The number of the step that the environment is of; empty: none, or the batch script."""
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    return "" if step in _BATCH_SCRIPT else step


def _in_step(environment: Mapping[str, str]) -> bool:
    step = _step(environment)
    return step.isdecimal() and int(step) < _SPECIAL_STEPS


def is_of_step(name: str, environment: Mapping[str, str]) -> bool:
    """Whether a variable of ``environment`` belongs to a step, and not to its allocation."""
    if name.startswith(_SETTINGS):
        return _in_step(environment)
    return name in _NAMES or name.startswith(_PREFIXES)


def task(environment: Mapping[str, str]) -> tuple[int, int, int] | None:
    """This process's number among its step's tasks, how many these are, and how many of them are on this node.

    None: it is no task. A batch step has SLURM_PROCID and SLURM_NTASKS too, and is one process.
    """
    if "SLURM_PROCID" not in environment or not _in_step(environment):
        return None
    here: list[int] = []  # by node, as in `2(x3),1`
    for count, repeated in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")):
        here += [int(count)] * int(repeated or 1)
    node = number(environment, "SLURM_NODEID", 0)
    on_node = here[node] if node < len(here) else 1
    return number(environment, "SLURM_PROCID", 0), number(environment, "SLURM_STEP_NUM_TASKS", 1), on_node


def leave(base: MutableMapping[str, str], own: Mapping[str, str]) -> None:
    """Where `srun` started the process of ``own``, sizes are those of its step: make them the allocation's again."""
    if not _step(own):
        return
    for name in ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE"):
        base.pop(name, None)
    for name, whole in (("SLURM_NNODES", "SLURM_JOB_NUM_NODES"), ("SLURM_NODELIST", "SLURM_JOB_NODELIST")):
        if whole in own:
            base[name] = own[whole]
    if "SLURM_JOB_CPUS_PER_NODE" in own:  # Open MPI takes its slots from it, and fails without
        base["SLURM_TASKS_PER_NODE"] = own["SLURM_JOB_CPUS_PER_NODE"]


def let_in(base: MutableMapping[str, str], own: Mapping[str, str], *, of_others: bool) -> None:
    """Let steps in beside the one of ``own``. ``of_others``: the plugin has not started that one itself."""
    base.update(OVERLAP)
    if _step(own) and of_others:
        # Overlapping does not hold for the memory of a step of others, which was itself started without. None for a
        # step means all of the allocation's, together with other steps.
        for name in ("SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU"):
            base.pop(name, None)
        base["SLURM_MEM_PER_NODE"] = "0"


def node_of_several(environment: Mapping[str, str]) -> str | None:
    """This node's name, where the allocation holds several; None elsewhere."""
    count = environment.get("SLURM_JOB_NUM_NODES", environment.get("SLURM_NNODES", "1"))
    return environment.get("SLURMD_NODENAME") if "SLURM_JOB_ID" in environment and count != "1" else None


def on_one_node(node: str) -> dict[str, str]:
    """Variables that let an allocation look as if it held this node alone, beside the host file, which decides."""
    one = dict.fromkeys(("SLURM_JOB_NODELIST", "SLURM_NODELIST"), node)
    return one | dict.fromkeys(("SLURM_JOB_NUM_NODES", "SLURM_NNODES"), "1")


def on_hosts(hosts: Sequence[tuple[str, int]], path: str) -> Changes:
    """Variables for these nodes, each with its number of ranks; ``path`` is where a line for each rank was written."""
    names, nodes, ranks = ",".join(name for name, _ in hosts), str(len(hosts)), str(sum(ranks for _, ranks in hosts))
    return [
        (HOSTFILE, path),  # srun then places rank by rank, as the file says
        ("SLURM_JOB_NODELIST", names),
        ("SLURM_NODELIST", names),
        ("SLURM_JOB_NUM_NODES", nodes),
        ("SLURM_NNODES", nodes),
        ("SLURM_NTASKS", ranks),
        ("SLURM_NPROCS", ranks),
        ("SLURM_TASKS_PER_NODE", ",".join(str(ranks) for _, ranks in hosts)),
        ("SLURM_JOB_CPUS_PER_NODE", None),
        ("SLURM_NTASKS_PER_NODE", None),
    ]


def granted(environment: Mapping[str, str], cores: int) -> tuple[int, int]:
    """Cores and MiB of memory (0: not told) that the allocation holds on this node, which has so many cores."""
    held = number(environment, "SLURM_CPUS_ON_NODE", cores)
    per_node = number(environment, "SLURM_MEM_PER_NODE", 0)
    return held, per_node or number(environment, "SLURM_MEM_PER_CPU", 0) * held


def number(environment: Mapping[str, str], name: str, default: int) -> int:
    """A variable's value, where it is a number."""
    text = environment.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else default


def expand_nodes(text: str) -> tuple[str, ...]:
    """``n[1-3,7],gpu01`` as single names, as `scontrol show hostnames` does it."""
    names: list[str] = []
    for item in _split_outside_brackets(text):
        head, bracket, rest = item.partition("[")
        if not bracket:
            names.append(item)
            continue
        inside, _, tail = rest.partition("]")
        tails = expand_nodes(tail) if tail else ("",)
        for part in inside.split(","):
            first, dash, last = part.partition("-")
            numbers = range(int(first), int(last if dash else first) + 1)
            names.extend(f"{head}{each:0{len(first)}d}{suffix}" for each in numbers for suffix in tails)
    return tuple(names)


def _split_outside_brackets(text: str) -> list[str]:
    items, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            items.append(text[start:position])
            start = position + 1
    items.append(text[start:])
    return [item for item in items if item]
