"""What a batch script must say beyond what Dask-Jobqueue's classes write: nodes, GPUs, no requeueing, units. Pure."""

import math
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from snakemake_executor_plugin_dask.batch.systems import SYSTEMS
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.pools import Pool

Setting = Callable[[str], Any]  # an argument of the class by name: the pool's option, else Dask's configuration

#: Parameters of the classes that are the plugin's own, or have keys of their own in a pool.
OWNED = frozenset({
    "self", "scheduler", "name", "cores", "memory", "processes", "nanny", "protocol", "security", "death_timeout",
    "extra", "worker_command", "worker_extra_args", "job_name", "walltime", "base_class_kwargs",
})  # fmt: skip

#: Lets the worker tell what the prologue changed. Backquotes, since HTCondor reads `$(…)` itself; and it starts a shell
#: without a PATH, whose own one is to count as what was there before.
BEFORE_PROLOGUE = "export PATH; export SNAKEMAKE_DASK_BEFORE_PROLOGUE=`env -0 | base64 -w0`"

_MIB = 2**20


def granted_bytes(pool: Pool) -> int:
    """The memory to ask for: whole MiB, rounded up, since batch systems count in 2^20 and round as they like."""
    return math.ceil((pool.memory_mb or 0) * 10**6 / _MIB) * _MIB


def plain(path: str) -> bool:
    """Whether a path means itself in every batch script."""
    return re.fullmatch(r"[\w./+,:@=-]+", path, re.ASCII) is not None


#: What turns a path into something else in the places where batch systems are told of output, be it only the directory
#: of submission: Slurm and LSF replace `%j` and the like, Slurm reads a backslash, Grid Engine and HTCondor a dollar.
_CHANGED = re.compile(r"[%\\$\x00-\x1f\x7f]")


def unfit_output(path: str) -> str | None:
    """The character for which no batch system could be told to write output in this directory; None: it can."""
    found = _CHANGED.search(path)
    return found.group() if found else None


#: Directives that the plugin gives itself: where output goes and what an allocation is called, by which both are found
#: again; and those after which a submission makes several allocations, waits, or says something else than usual. The
#: exact words of each, short ones of Slurm and PBS also with their value attached.
_OWN_DIRECTIVES: dict[str, tuple[frozenset[str], bool]] = {
    "slurm": (
        frozenset("-o --output -e --error -i --input -J --job-name -a --array -D --chdir -W --wait -Q --quiet "
                  "--parsable --test-only --wrap".split()),
        True,
    ),
    "pbs": (frozenset("-o -e -N -J -t -I -z".split()), True),
    "moab": (frozenset("-o -e -N -J -t -I -z".split()), True),
    "lsf": (frozenset("-o -oo -e -eo -J -I -Ip -Is -K".split()), False),
    "sge": (frozenset("-o -e -N -t -sync -terse -wd".split()), False),
    "oar": (frozenset("-O --stdout -E --stderr -n --name -d --directory --array --array-param-file -I".split()), False),
    "htcondor": (frozenset("output error log queue executable batch_name".split()), False),
}  # fmt: skip


def owned(system: str, extra: object) -> str | None:
    """The first of a user's own directives that the plugin has to give itself; None where there is none."""
    words, attached = _OWN_DIRECTIVES[system]
    if isinstance(extra, dict):
        return next((str(key) for key in extra if str(key).lower() in words), None)
    for text in _texts(extra):
        try:
            given = shlex.split(text)
        except ValueError:
            given = text.split()
        for word in given:
            name = word.partition("=")[0]
            if name in words or (attached and word[:2] in words and not word.startswith("--")):
                return name
            # The first letters of a long option are enough for it.
            if len(name) > 4 and name.startswith("--") and any(known.startswith(name) for known in words):
                return name
    return None


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

#: Settings that are shell text by what they mean, and may have several lines.
_SHELL = frozenset({"job_script_prologue", "env_extra", "python"})


def with_control_character(settings: Mapping[str, object]) -> str | None:
    """The first setting that would end its line of a batch script and begin one of its own; None: there is none."""
    for name, value in settings.items():
        if name not in _SHELL and any(_CONTROL.search(text) for text in _strings(value)):
            return name
    return None


def _strings(value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [text for pair in value.items() for item in pair for text in _strings(item)]
    if isinstance(value, list | tuple | set | frozenset):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def other_cluster(setting: Setting) -> str | None:
    """The cluster that Slurm's --clusters names, whose queue is then the one to ask."""
    return option_given(setting, "--clusters", "-M")


def option_given(setting: Setting, long: str, short: str) -> str | None:
    """The value of an option of `sbatch` in the user's directives; each may hold several, and the last one counts."""
    found = None
    for text in _extra(setting):
        try:
            words = iter(shlex.split(text))
        except ValueError:
            words = iter(text.split())
        for word in words:
            name, equals, value = word.partition("=")
            if name == long or (len(name) > 6 and long.startswith(name)):  # as far as it is unmistakable
                found = value if equals else next(words, None)
            elif word == short:
                found = next(words, None)
            elif word.startswith(short) and not word.startswith("--"):
                found = word.removeprefix(short)
    return found


def can_leave_out(system: str, setting: Setting) -> bool:
    """Whether a script can say which nodes an allocation is not to get, beside those that the user leaves out."""
    # With a slash the user's value is the path of a list.
    return system == "slurm" and "/" not in (option_given(setting, "--exclude", "-x") or "")


def as_arguments(script: str, mark: str) -> list[str]:
    """The words of a script's directives, as the submit command would read them; none where it could not."""
    lines = [line.removeprefix(mark) for line in script.splitlines() if line.startswith(f"{mark} ")]
    try:
        return [word for line in lines for word in shlex.split(line)]
    except ValueError:
        return []


def parse_walltime(system: str, text: str) -> float:
    """Seconds, from a walltime as this batch system writes it (sbatch(1), bsub(1), qsub(1B), sge_types(1), oarsub(1)).

    One number is minutes in Slurm and LSF, hours in OAR, else seconds; two are hours and minutes in LSF and OAR, else
    minutes and seconds. ValueError.
    """
    days, dash, rest = text.strip().rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash and days.isdecimal():
        parts = [*parts, 0, 0][:3]
    elif len(parts) == 1:
        parts = {"slurm": [0, *parts, 0], "lsf": [0, *parts, 0], "oar": [*parts, 0, 0]}.get(system, [0, 0, *parts])
    elif len(parts) == 2:
        parts = [*parts, 0] if system in ("lsf", "oar") else [0, *parts]
    if len(parts) == 4 and system == "moab":
        days, parts = str(parts[0]), parts[1:]
    if len(parts) != 3 or (dash and not days):
        msg = f"{text!r} is not a walltime"
        raise ValueError(msg)
    hours, minutes, seconds = parts
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def slurm_limits(listed: str, *, named: bool) -> dict[str, float | None]:
    """The longest time by partition, from lines of `sinfo --format=%P|%l`; None: infinite.

    ``named``: only those that were asked for are listed; else the default one counts.
    """
    limits: dict[str, float | None] = {}
    for line in listed.splitlines():
        name, bar, limit = line.strip().partition("|")
        if bar and (named or name.endswith("*")):
            try:
                limits[name.rstrip("*")] = parse_walltime("slurm", limit)
            except ValueError:
                limits[name.rstrip("*")] = None
    return limits


def format_walltime(system: str, seconds: float) -> str:
    """As every one of them reads it: HH:MM:SS, in LSF HH:MM."""
    if system == "lsf":
        minutes = math.ceil(seconds / 60)
        return f"{minutes // 60:02d}:{minutes % 60:02d}"
    whole = math.ceil(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def for_pool(system: str, pool: Pool, setting: Setting, name: str, logs: str) -> dict[str, Any]:
    """Arguments of the Job class for this pool; ``logs`` is the directory for output. ConfigurationError."""
    arguments = _RENDER[system](pool, setting, name, logs)
    if pool.walltime_s is not None and system != "htcondor":
        arguments["walltime"] = format_walltime(system, pool.walltime_s)
    return arguments


def _extra(setting: Setting) -> list[str]:
    return _texts(setting("job_extra_directives") or setting("job_extra"))


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [str(item) for item in value] if isinstance(value, list | tuple) else []


def _skip(setting: Setting) -> list[str]:
    return _texts(list(setting("job_directives_skip") or setting("header_skip") or ()))


def asks_for_gpus(setting: Setting) -> bool:
    """Whether the user's own options ask for GPUs already; the plugin then adds nothing."""
    texts = [*_extra(setting), str(setting("resource_spec") or "")]
    return any(re.search(r"gpu|(^|\s)-G\b", text, re.IGNORECASE) for text in texts)


def _own(system: str) -> list[str]:
    # Last, so that they win over a directive of the user's that says otherwise.
    return list(SYSTEMS[system].no_requeue)


def _slurm(pool: Pool, setting: Setting, _name: str, _logs: str) -> dict[str, Any]:
    extra, own = _extra(setting), _own("slurm")
    arguments: dict[str, Any] = {}
    if pool.nodes is not None:
        # A task for each core: what `srun` and `mpirun` inside take for the number of slots.
        arguments["job_directives_skip"] = [*_skip(setting), "#SBATCH -n 1", "#SBATCH --cpus-per-task"]
        own = [f"--nodes={pool.nodes}", f"--ntasks-per-node={pool.cores}", "--cpus-per-task=1", *own]
    if pool.gpus and not asks_for_gpus(setting):
        own = [f"--gres=gpu:{pool.gpus}", *own]
    if pool.left_out:
        given = option_given(setting, "--exclude", "-x")
        own = [f"--exclude={','.join(filter(None, [given, *pool.left_out]))}", *own]
    return {**arguments, "job_extra_directives": [*extra, *own]}


def _pbs(pool: Pool, setting: Setting, _name: str, _logs: str) -> dict[str, Any]:
    extra, own = _extra(setting), _own("pbs")
    arguments: dict[str, Any] = {}
    if setting("resource_spec") is None and (pool.nodes is not None or pool.gpus):
        wide = "" if pool.nodes is None else f":mpiprocs={pool.cores}"
        gpus = f":ngpus={pool.gpus}" if pool.gpus and not asks_for_gpus(setting) else ""
        memory = f":mem={granted_bytes(pool) // _MIB}MB"
        arguments["resource_spec"] = f"select={pool.nodes or 1}:ncpus={pool.cores}{wide}{gpus}{memory}"
        if pool.nodes is not None:
            own = ["-l place=scatter", *own]
    return {**arguments, "job_extra_directives": [*extra, *own]}


def _moab(pool: Pool, setting: Setting, _name: str, _logs: str) -> dict[str, Any]:
    extra, own = _extra(setting), _own("moab")
    arguments: dict[str, Any] = {}
    if setting("resource_spec") is None and (pool.nodes is not None or pool.gpus):
        gpus = f":gpus={pool.gpus}" if pool.gpus and not asks_for_gpus(setting) else ""
        nodes = pool.nodes or 1
        arguments["resource_spec"] = f"nodes={nodes}:ppn={pool.cores}{gpus}"
        own = [f"-l mem={nodes * granted_bytes(pool) // _MIB}mb", *own]
    return {**arguments, "job_extra_directives": [*extra, *own]}


def _lsf(pool: Pool, setting: Setting, _name: str, _logs: str) -> dict[str, Any]:
    extra, own = _extra(setting), _own("lsf")
    arguments: dict[str, Any] = {}
    if pool.nodes is not None:
        arguments["ncpus"] = pool.nodes * (pool.cores or 1)
        arguments["job_directives_skip"] = [*_skip(setting), "span[hosts=1]"]
        own = [f'-R "span[ptile={pool.cores}]"', *own]
    if pool.gpus and not asks_for_gpus(setting):
        own = [f"-gpu num={pool.gpus}", *own]
    return {**arguments, "job_extra_directives": [*extra, *own]}


def _sge(pool: Pool, setting: Setting, _name: str, _logs: str) -> dict[str, Any]:
    extra, own = _extra(setting), _own("sge")
    _refuse_nodes(pool, "Grid Engine")
    _refuse_gpus(pool, setting, "Grid Engine", 'resource_spec: "gpu=2"')
    if pool.cores and pool.cores > 1 and not any(re.match(r"-pe\b", text.strip()) for text in extra):
        msg = (
            f"Pool {pool.name} asks for {pool.cores} cores, and Grid Engine grants one unless a parallel environment "
            f'is named: add it to options, as job_extra_directives: ["-pe smp {pool.cores}"] (`qconf -spl` lists them).'
        )
        raise ConfigurationError(msg)
    if not any(text.strip().startswith("-S") for text in extra):
        own = ["-S /bin/bash", *own]  # a queue may start scripts with csh, whatever their first line says
    return {"job_extra_directives": [*extra, *own]}


def _oar(pool: Pool, setting: Setting, _name: str, logs: str) -> dict[str, Any]:
    _refuse_gpus(pool, setting, "OAR", 'resource_spec: "/nodes=1/gpu=2"')
    # OAR's class knows no directory for output, and OAR writes it where it was submitted.
    output = [f"-O {logs}/%jobname%.%jobid%.out", f"-E {logs}/%jobname%.%jobid%.err"]
    arguments: dict[str, Any] = {"job_extra_directives": [*_extra(setting), *output]}
    if setting("resource_spec") is None and pool.nodes is not None:
        arguments["resource_spec"] = f"/nodes={pool.nodes}/core={pool.cores}"
    return arguments


#: So long after the last word of a running job's node HTCondor gives it up. By its own default that takes 40 minutes,
#: also where only the job's starter died, and until then not even `condor_rm` takes the job out of the queue. Workers
#: that hear nothing end their jobs about as soon.
_HTCONDOR_LEASE_S = 45


def _htcondor(pool: Pool, setting: Setting, name: str, _logs: str) -> dict[str, Any]:
    _refuse_nodes(pool, "HTCondor")
    extra = setting("job_extra_directives") or setting("job_extra") or {}
    if not isinstance(extra, dict):
        msg = (
            f"Pool {pool.name}: job_extra_directives of HTCondor is a mapping, as in {{request_gpus: 1}}, "
            f"and not {extra!r}."
        )
        raise ConfigurationError(msg)
    # HTCondor runs an evicted job again, and holds one that used too much: they are removed instead. That is looked at
    # once in a minute, and until then no slot is to take it.
    remove = "((JobStatus == 1 || JobStatus == 5) && NumJobStarts > 0)"
    given = next((str(value) for key, value in extra.items() if str(key).lower() == "requirements"), None)
    once = "MY.NumJobStarts == 0" if given is None else f"({given}) && MY.NumJobStarts == 0"
    if pool.walltime_s is not None:
        remove += f" || (JobStatus == 2 && time() - JobCurrentStartDate > {math.ceil(pool.walltime_s)})"
    own: dict[str, Any] = {"batch_name": name, "requirements": once, "periodic_remove": remove}
    if pool.gpus and not any("gpu" in str(key).lower() for key in extra):
        own["request_gpus"] = pool.gpus
    if not any(str(key).lower() == "job_lease_duration" for key in extra):
        own["job_lease_duration"] = _HTCONDOR_LEASE_S
    extra = {key: value for key, value in extra.items() if str(key).lower() not in own}
    return {"job_extra_directives": {**extra, **own}}


def _refuse_nodes(pool: Pool, system: str) -> None:
    if pool.nodes is not None:
        msg = (
            f"Pool {pool.name} asks for nodes: {pool.nodes}, and an allocation of several nodes is not possible with "
            f"{system}; remove `nodes`, or use slurm, pbs, lsf, oar or moab."
        )
        raise ConfigurationError(msg)


def _refuse_gpus(pool: Pool, setting: Setting, system: str, example: str) -> None:
    if pool.gpus and not asks_for_gpus(setting):
        msg = (
            f"Pool {pool.name} has gpus: {pool.gpus}, and each site of {system} names GPUs its own way; ask for them "
            f"in options, as in {example}."
        )
        raise ConfigurationError(msg)


_RENDER: dict[str, Callable[[Pool, Setting, str, str], dict[str, Any]]] = {
    "slurm": _slurm, "pbs": _pbs, "moab": _moab, "lsf": _lsf, "sge": _sge, "oar": _oar, "htcondor": _htcondor,
}  # fmt: skip
