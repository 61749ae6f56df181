"""From Snakemake's settings and this machine to `Options`: every complaint comes from here, before anything is started.

Reads files, and tries whether directories can be written; that leaves nothing behind. What a batch system's pool does
not say, its backend completes from Dask's configuration in the driver, so nothing of Dask is imported here.
"""

import os
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from snakemake_executor_plugin_dask.config.dashboard import parse_dashboard
from snakemake_executor_plugin_dask.config.poolsfile import (
    SchedulerPlace,
    default_workers,
    did_you_mean,
    parse_cluster,
    read_options,
    read_pools_file,
)
from snakemake_executor_plugin_dask.config.schedulerfile import scheduler_address
from snakemake_executor_plugin_dask.config.site import keep_at_most_s, parse_keep_s
from snakemake_executor_plugin_dask.model import units
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.kinds import ATTACHED, KINDS
from snakemake_executor_plugin_dask.model.options import REPORT_ENDINGS, Options
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.node.allocation import allocation_nodes
from snakemake_executor_plugin_dask.node.machine import Machine, this_machine
from snakemake_executor_plugin_dask.settings import ExecutorSettings

T = TypeVar("T")

_SHAPE = ("workers", "worker_cores", "worker_memory", "worker_gpus", "walltime", "options")


def configure_here(settings: ExecutorSettings) -> tuple[Options, tuple[str, ...]]:
    """`configure` with the environment and machine of this process."""
    return configure(settings, os.environ, this_machine())


def configure(
    settings: ExecutorSettings, environment: Mapping[str, str], machine: Machine
) -> tuple[Options, tuple[str, ...]]:
    """The checked settings, and warnings, each one sentence; ConfigurationError.

    Relative paths are meant from the working directory of the process.
    """
    warnings: list[str] = []
    idle_timeout_s = _read(settings, "idle_timeout", units.parse_seconds)
    local_by_default = False
    pools: tuple[Pool, ...]
    place = SchedulerPlace()
    if settings.scheduler is not None:
        pools = (_attached(settings, warnings),)
    elif settings.pools is not None:
        given = [name for name in ("cluster", *_SHAPE) if getattr(settings, name) is not None]
        if given:
            warnings.append(f"--dask-pools is given, so {_ignored(given)}.")
        pools, place = read_pools_file(
            Path(settings.pools).expanduser(),
            mpi_workers=allocation_nodes(environment),
            idle_timeout_s=idle_timeout_s,
        )
    else:
        pool, place = _single_pool(settings, environment, idle_timeout_s, warnings)
        pools = (pool,)
        local_by_default = settings.cluster is None
    pools = _fit_machine(pools, machine, warnings)
    if not all(pool.kind.here for pool in pools):  # whose scheduler listens on loopback only
        check_interface(place.interface, machine.interfaces)
    system = pools[0].kind.system
    runtime, memory, cgroup = _read(settings, "enforce", _parse_enforce)
    options = Options(
        pools=pools,
        make_slurm_pools=settings.pools is None and system is not None and system.pools_for_resources,
        scheduler=None if settings.scheduler is None else _read(settings, "scheduler", _parse_scheduler),
        keep_s=_keep_s(settings, pools, environment, warnings),
        scheduler_interface=place.interface,
        scheduler_host=place.host,
        scheduler_port=place.port,
        job_start="cold" if _read(settings, "job_start", _parse_job_start) == "cold" else "warm",
        enforce_runtime=runtime,
        enforce_memory=memory,
        enforce_cgroup=cgroup,
        lost_worker_retries=_read(settings, "lost_worker_retries", units.parse_count),
        logdir=_log_directory(settings),
        keep_successful_logs=settings.keep_successful_logs,
        dashboard=_read(settings, "dashboard", parse_dashboard),
        report=None if settings.report is None else _report_file(settings.report),
        plan=settings.plan or settings.plan_scripts is not None,
        plan_scripts=None if settings.plan_scripts is None else str(_absolute(settings.plan_scripts)),
        local_by_default=local_by_default,
    )
    return options, tuple(warnings)


# Pools


def _attached(settings: ExecutorSettings, warnings: list[str]) -> Pool:
    for name in ("cluster", "pools"):
        if getattr(settings, name) is not None:
            msg = (
                f"--dask-scheduler {settings.scheduler} attaches to a cluster that already runs, but {_flag(name)} "
                f"{getattr(settings, name)} asks for workers to be brought up; remove one of the two."
            )
            raise ConfigurationError(msg)
    given = [name for name in _SHAPE if getattr(settings, name) is not None]
    if given:
        warnings.append(f"--dask-scheduler takes the workers as they are, so {_ignored(given)}.")
    return Pool(ATTACHED, ATTACHED)


def _single_pool(
    settings: ExecutorSettings, environment: Mapping[str, str], idle_timeout_s: float, warnings: list[str]
) -> tuple[Pool, SchedulerPlace]:
    cluster = "local" if settings.cluster is None else _read(settings, "cluster", parse_cluster)
    workers = default_workers(cluster, allocation_nodes(environment))
    if settings.workers is not None:
        workers = _read(settings, "workers", units.parse_range)
    if KINDS[cluster].launched and workers[0] != workers[1]:
        msg = f"--dask-workers is {settings.workers}, but an MPI launcher starts all workers at once; give one number."
        raise ConfigurationError(msg)
    walltime_s = None if settings.walltime is None else _read(settings, "walltime", units.parse_duration_s)
    if walltime_s is not None and not KINDS[cluster].queued:
        warnings.append(f"--dask-walltime is ignored: cluster {cluster} asks no batch system for allocations.")
        walltime_s = None
    options: dict[str, Any] = {}
    place = SchedulerPlace()
    if settings.options is not None:
        options, place = read_options(settings.options, cluster)
        if KINDS[cluster].here and options:
            msg = (
                f"--dask-options gives {', '.join(map(str, options))}, but workers on this machine take no options; "
                "remove it, or name a batch system by --dask-cluster."
            )
            raise ConfigurationError(msg)
    pool = Pool(
        name=cluster,
        cluster=cluster,
        workers_min=workers[0],
        workers_max=workers[1],
        cores=_optional(settings, "worker_cores", lambda value: units.parse_count(value, 1)),
        memory_mb=_optional(settings, "worker_memory", units.parse_memory_mb),
        gpus=_optional(settings, "worker_gpus", units.parse_count),
        walltime_s=walltime_s,
        idle_timeout_s=idle_timeout_s,
        options=options,
    )
    return pool, place


def _fit_machine(pools: tuple[Pool, ...], machine: Machine, warnings: list[str]) -> tuple[Pool, ...]:
    """Give pools on this machine the sizes they lack, and compare all of them with the machine."""
    here = [pool for pool in pools if pool.kind.here]
    if not here:
        return pools
    workers = sum(pool.workers_max for pool in here)
    share_mb = machine.memory_mb // workers
    if share_mb < 1:
        msg = f"{workers} workers on this machine would have less than 1 MB of memory each; ask for fewer."
        raise ConfigurationError(msg)
    sized = {
        pool.name: replace(
            pool,
            cores=max(1, machine.cores // workers) if pool.cores is None else pool.cores,
            memory_mb=share_mb if pool.memory_mb is None else pool.memory_mb,
        )
        for pool in here
    }
    has_cores = f"this machine has {units.count(machine.cores, 'core')}"
    has_memory = f"this machine has {machine.memory_mb} MB"
    for pool in sized.values():
        if (pool.cores or 0) > machine.cores:
            warnings.append(
                f"{_whose(pool, pools)} is to have {units.count(pool.cores or 0, 'core')}, but {has_cores} for this "
                "process (as affinity and cgroup limit it): jobs share them."
            )
        if (pool.memory_mb or 0) > machine.memory_mb:
            msg = (
                f"{_whose(pool, pools)} is to have {pool.memory_mb} MB of memory, but {has_memory} for this process "
                "(as its cgroup limits it); ask for at most that."
            )
            raise ConfigurationError(msg)
    memory_mb = sum(pool.workers_max * (pool.memory_mb or 0) for pool in sized.values())
    if memory_mb > machine.memory_mb:
        msg = (
            f"The {workers} workers on this machine are to have {memory_mb} MB of memory together, but {has_memory}; "
            f"ask for fewer workers, or for at most {share_mb} MB for each."
        )
        raise ConfigurationError(msg)
    cores = sum(pool.workers_max * (pool.cores or 0) for pool in sized.values())
    if cores > machine.cores and all((pool.cores or 0) <= machine.cores for pool in sized.values()):
        warnings.append(f"The {workers} workers on this machine have {cores} cores together, but {has_cores}.")
    return tuple(sized.get(pool.name, pool) for pool in pools)


def _keep_s(
    settings: ExecutorSettings, pools: tuple[Pool, ...], environment: Mapping[str, str], warnings: list[str]
) -> float:
    keep_s = _read(settings, "keep", parse_keep_s)
    if keep_s and any(pool.kind.found for pool in pools):
        warnings.append("--dask-keep is ignored: a cluster that others brought up stays as they want it.")
        return 0.0
    if keep_s and (limit := keep_at_most_s(environment)) is not None and limit[0] < keep_s:
        keep_s, where = limit
        allowed = f"{units.format_duration(keep_s)} at most" if keep_s else "no time"
        warnings.append(f"--dask-keep is {settings.keep}, and {where} lets clusters stay for {allowed}.")
    return keep_s


def _whose(pool: Pool, pools: tuple[Pool, ...]) -> str:
    return "A worker" if len(pools) == 1 else f"A worker of pool {pool.name}"


def check_interface(interface: str | None, here: Sequence[str]) -> None:
    """ConfigurationError where the scheduler's network interface is not on this host; ``here`` empty: not known."""
    if interface is not None and here and interface not in here:
        msg = (
            f"The scheduler is to listen on the network interface {interface}, but this host has "
            f"{', '.join(here)}{did_you_mean(interface, here)}; name the one by which the workers reach this host."
        )
        raise ConfigurationError(msg)


# Single values; each parser raises ValueError with the second half of a sentence


def _parse_scheduler(text: str) -> str:
    """As it is named: a scheduler that comes back has another address, so the file is read anew each time."""
    scheduler_address(text)
    return text if "://" in text else str(_absolute(text))


def _parse_enforce(text: str) -> tuple[bool, bool, bool]:
    """Whether runtime and memory are enforced, and memory by cgroups, too."""
    known = ("runtime", "memory", "cgroup", "none")
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            similar = did_you_mean(word, known)
            msg = (
                f"is not a list of limits{similar}; allowed: runtime,memory, or one of them, or none "
                "(and runtime,cgroup for memory limits that the kernel enforces, too)"
            )
            raise ValueError(msg)
    if "none" in words and len(words) > 1:
        msg = "contradicts itself; write none alone, or the limits without it"
        raise ValueError(msg)
    return "runtime" in words, "memory" in words or "cgroup" in words, "cgroup" in words


def _parse_job_start(text: str) -> str:
    if text not in {"warm", "cold"}:
        msg = f"is not a way to start jobs{did_you_mean(text, ('warm', 'cold'))}; allowed: warm and cold"
        raise ValueError(msg)
    return text


# Paths


def _log_directory(settings: ExecutorSettings) -> str:
    path = _absolute(settings.logdir)
    problem = "its name is empty" if not str(settings.logdir).strip() else _why_not_writable(path)
    if problem is not None:
        where = str(settings.logdir)
        msg = f"--dask-logdir is {where!r}, where nothing can be written: {problem}; name another directory."
        raise ConfigurationError(msg)
    return str(path)


def _report_file(text: str) -> str:
    path = _absolute(text)
    if path.suffix.lower() not in REPORT_ENDINGS:
        msg = f"--dask-report is {text!r}, whose ending is not known; let it end with .html, .tsv or .json."
        raise ConfigurationError(msg)
    problem = _why_not_writable(path.parent) or _why_not_replaceable(path)
    if problem is not None:
        msg = f"--dask-report is {text!r}, which cannot be written: {problem}; name another file."
        raise ConfigurationError(msg)
    return str(path)


def _absolute(text: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(str(text))))


def _why_not_writable(directory: Path) -> str | None:
    """Why no file can be made in a directory that may have to be made first; None where one can.

    A file is tried, since permissions do not tell about read-only and special file systems, and do not bind root.
    """
    existing = directory
    try:
        existing = next(path for path in (directory, *directory.parents) if _is_there(path))
        if not existing.is_dir():
            return f"{existing} is not a directory"
        with tempfile.TemporaryFile(dir=existing):
            return None
    except FileNotFoundError:
        return f"{existing} takes no files"  # it exists: a special file system says so of what it does not make
    except OSError as error:
        return f"{existing}: {error.strerror}"


def _is_there(path: Path) -> bool:
    """Raises OSError where that cannot be told, as for too long a name: `Path.exists` says no since Python 3.14."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _why_not_replaceable(path: Path) -> str | None:
    """Why a file that may be there cannot be written; None where it can."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        return str(error.strerror)
    if stat.S_ISDIR(mode):
        return "it is a directory"
    return None if os.access(path, os.W_OK) else "the file must not be changed"


# Words


def _read(settings: ExecutorSettings, name: str, parse: Callable[[str], T]) -> T:
    """A setting as ``parse`` makes it from its text."""
    value = getattr(settings, name)
    try:
        return parse(str(value))
    except ValueError as error:
        msg = f"{_flag(name)} is {str(value)!r:.80}, which {error}."
        raise ConfigurationError(msg) from error


def _optional(settings: ExecutorSettings, name: str, parse: Callable[[str], T]) -> T | None:
    return None if getattr(settings, name) is None else _read(settings, name, parse)


def _flag(name: str) -> str:
    return "--dask-" + name.replace("_", "-")


def _ignored(names: list[str]) -> str:
    return f"{', '.join(map(_flag, names))} {'is' if len(names) == 1 else 'are'} ignored"
