"""The pools file and the options of a backend's class: every key, type and value checked. Reads the file, nothing else.

Each complaint names the file (or setting), the key's path, what was found, and what is allowed.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from snakemake_executor_plugin_dask.config import plainyaml
from snakemake_executor_plugin_dask.model import units
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.kinds import BACKENDS, KINDS
from snakemake_executor_plugin_dask.model.pools import GPU_VENDORS, Pool

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}", re.ASCII)
#: What may be said of a pool.
POOL_KEYS = (
    "cluster",
    "workers",
    "cores",
    "memory",
    "gpus",
    "gpu_model",
    "gpu_vendor",
    "nodes",
    "walltime",
    "margin",
    "default_runtime",
    "idle_timeout",
    "resources",
    "options",
)
_SCHEDULER_KEYS = ("interface", "host", "port")

#: Resources that a pool has a key of its own for; counting them twice would let them disagree.
_RESOURCE_KEYS = {
    "mem": "memory",
    "mem_mb": "memory",
    "mem_mib": "memory",
    "mem_mb_per_cpu": "memory",
    "gpu": "gpus",
    "gpus": "gpus",
    "gpu_model": "gpu_model",
    "nodes": "nodes",
    "_nodes": "nodes",
    "runtime": "walltime",
    "threads": "cores",
    "_cores": "cores",
    "cpus_per_task": "cores",
    "tasks": "cores",
    "tasks_per_node": "cores",
}

#: Options of dask-jobqueue's classes that a setting or a pool's key says: (key in a pools file, setting).
_SAID_ELSEWHERE = {
    "cores": ("cores", "--dask-worker-cores"),
    "memory": ("memory", "--dask-worker-memory"),
    "walltime": ("walltime", "--dask-walltime"),
    "n_workers": ("workers", "--dask-workers"),
}

#: Options of dask-jobqueue's classes that are lists, of whose text it would write each letter on a line of its own.
LISTS = (
    *("cancel_command_extra", "env_extra", "header_skip", "job_directives_skip", "job_extra", "job_extra_directives"),
    *("job_script_prologue", "submit_command_extra"),
)

#: Options of dask-jobqueue's classes that would break what the plugin promises, with the reason.
_OWNED = {
    "asynchronous": "the plugin runs the cluster",
    "dashboard_address": "--dask-dashboard says it",
    "death_timeout": "a worker that finds no scheduler ends after 60 s",
    "extra": "the plugin makes the worker's command",
    "host": "workers of a batch system listen where the interface says",
    "job_cls": "the plugin chooses the class",
    "job_name": "allocations are named after the run and the pool",
    "loop": "the plugin runs the cluster",
    "name": "workers are named after the pool",
    "nanny": "workers run without one",
    "processes": "each worker is one process",
    "protocol": "all connections are TLS",
    "scheduler": "the plugin brings up the scheduler",
    "scheduler_cls": "the plugin brings up the scheduler",
    "security": "certificates are made for the run",
    "shared_temp_directory": "keys lie in the run's own directory",
    "silence_logs": "the plugin configures Dask's logging",
    "worker_command": "the plugin makes the worker's command",
    "worker_extra_args": "the plugin makes the worker's command",
}

#: What the plugin does anyway may be said.
_HARMLESS = {"processes": 1, "nanny": False, "asynchronous": True, "n_workers": 0}


@dataclass(frozen=True, slots=True)
class SchedulerPlace:
    """Where the run's scheduler listens for workers on other hosts."""

    interface: str | None = None
    host: str | None = None
    port: int = 0


def read_pools_file(
    path: Path, *, mpi_workers: int = 1, idle_timeout_s: float = 60.0
) -> tuple[tuple[Pool, ...], SchedulerPlace]:
    """The pools of a file, in its order, and where its scheduler listens; ConfigurationError.

    ``mpi_workers`` and ``idle_timeout_s`` are what a pool gets that does not say it.
    """
    top = _Section(str(path), "", _load(str(path), _read(path, "--dask-pools")))
    if not top.values:
        _complain(str(path), "", "is empty; it must hold `pools:` with at least one pool")
    top.check_keys(("scheduler", "pools"))
    place = _scheduler_place(top.section("scheduler")) if "scheduler" in top else SchedulerPlace()
    if "pools" not in top:
        _complain(str(path), "", "has no key `pools`; add it with at least one pool")
    section = top.section("pools")
    if not section.values:
        _complain(str(path), "pools", "is empty; name at least one pool under it")
    return tuple(_pool(section.section(name), name, mpi_workers, idle_timeout_s) for name in section.values), place


def read_options(text: str, cluster: str) -> tuple[dict[str, Any], SchedulerPlace]:
    """The value of `--dask-options`: YAML text, or a file that holds it; ConfigurationError."""
    source = "--dask-options"
    try:
        is_file = Path(text).is_file()
    except (OSError, ValueError):  # longer than a name may be, or with characters that no name has
        is_file = False
    if is_file:
        source = text
        text = _read(Path(text), "--dask-options")
    value = _load(source, text)
    if value is None:
        return {}, SchedulerPlace()
    if isinstance(value, str):
        msg = (
            f"--dask-options: {show(value)} is neither a file nor a mapping; "
            "write YAML text such as '{queue: long, account: physics}', or the name of a file that holds it."
        )
        raise ConfigurationError(msg)
    return _options(_Section(source, "", value), cluster, flags=True)


def did_you_mean(word: object, allowed: Iterable[str]) -> str:
    """`` (did you mean "x"?)`` where one of the allowed words is close, else nothing."""
    close = difflib.get_close_matches(str(word).lower()[:100], list(allowed), n=1, cutoff=0.6)
    return f" (did you mean `{close[0]}`?)" if close else ""


class _Section:
    """A mapping with the path of keys that leads to it."""

    def __init__(self, source: str, path: str, value: object) -> None:
        self.source = source
        self.path = path
        if value is None:
            value = {}
        if not isinstance(value, dict):
            _complain(source, path, f"is {show(value)}; it must be a mapping of keys to values")
        for key in value:
            if not isinstance(key, str):
                _complain(source, self.at(key), f"is named by {show(key)}, which is not a string; put it in quotes")
        self.values: dict[str, Any] = value

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def at(self, key: object) -> str:
        text = str(key)
        shown = text if text.isprintable() and len(text) <= 60 else show(text)
        return f"{self.path}.{shown}" if self.path else shown

    def check_keys(self, allowed: tuple[str, ...]) -> None:
        for key in self.values:
            if key not in allowed:
                similar = did_you_mean(key.replace("-", "_"), allowed)
                self.complain(key, f"is not a known key{similar}; allowed: {', '.join(allowed)}")

    def section(self, key: str) -> "_Section":
        return _Section(self.source, self.at(key), self.values[key])

    def get(self, key: str, read: Callable[[Any], T]) -> T | None:
        """The key's value as ``read`` makes it; None where it is not given. ``read`` raises ValueError."""
        if key not in self:
            return None
        value = self.values[key]
        try:
            if isinstance(value, dict | list):
                msg = "is not a single value"
                raise ValueError(msg)  # noqa: TRY004, TRY301 - one way to complain
            return read(value)
        except ValueError as error:
            self.complain(key, f"is {show(value)}, which {error}")

    def complain(self, key: str, what: str) -> NoReturn:
        _complain(self.source, self.at(key), what)


def _pool(section: _Section, name: str, mpi_workers: int, idle_timeout_s: float) -> Pool:
    if not _NAME.fullmatch(name):
        _complain(
            section.source,
            section.path,
            "is not a valid name for a pool; use at most 40 letters, digits, dots, hyphens and underscores, "
            "and begin with a letter or digit",
        )
    section.check_keys(POOL_KEYS)
    if "cluster" not in section:
        _complain(section.source, section.path, f"has no `cluster`; it must be one of {', '.join(BACKENDS)}")
    cluster = section.get("cluster", parse_cluster) or ""
    workers = section.get("workers", units.parse_range) or default_workers(cluster, mpi_workers)
    pool = Pool(
        name=name,
        cluster=cluster,
        workers_min=workers[0],
        workers_max=workers[1],
        cores=section.get("cores", lambda value: units.parse_count(value, 1)),
        memory_mb=section.get("memory", units.parse_memory_mb),
        gpus=section.get("gpus", units.parse_count),
        gpu_model=section.get("gpu_model", _text),
        gpu_vendor=section.get("gpu_vendor", lambda value: _one_of(value, GPU_VENDORS)) or "nvidia",
        nodes=section.get("nodes", lambda value: units.parse_count(value, 1)),
        walltime_s=section.get("walltime", units.parse_duration_s),
        margin_s=section.get("margin", units.parse_seconds),
        default_runtime_s=section.get("default_runtime", units.parse_duration_s),
        idle_timeout_s=_or(section.get("idle_timeout", units.parse_seconds), idle_timeout_s),
        resources=_resources(section.section("resources")) if "resources" in section else (),
        options=_options(section.section("options"), cluster)[0] if "options" in section else {},
    )
    _check_together(section, pool)
    return pool


def _check_together(section: _Section, pool: Pool) -> None:
    if not pool.kind.queued:
        for key in ("walltime", "margin", "nodes"):
            if key in section:
                section.complain(
                    key, f"has no meaning for cluster {pool.cluster}, which uses no batch system; remove it"
                )
    if pool.kind.launched and pool.elastic:
        section.complain("workers", "is a range, but a launcher starts all workers at once; give one number")
    if pool.walltime_s is None:
        return
    if pool.effective_margin_s >= pool.walltime_s:
        section.complain(
            "margin",
            f"is {units.format_duration(pool.effective_margin_s)}, which leaves no time of the walltime of "
            f"{units.format_duration(pool.walltime_s)}; make it shorter",
        )
    longest = pool.walltime_s - pool.effective_margin_s
    if pool.default_runtime_s is not None and pool.default_runtime_s > longest:
        section.complain(
            "default_runtime",
            f"is {units.format_duration(pool.default_runtime_s)}, but walltime less margin leaves "
            f"{units.format_duration(longest)}; make it shorter, or the walltime longer",
        )


def _resources(section: _Section) -> tuple[tuple[str, int], ...]:
    for name in section.values:
        if name in _RESOURCE_KEYS:
            section.complain(name, f"has a key of its own; use `{_RESOURCE_KEYS[name]}` of the pool")
    return tuple((name, _or(section.get(name, units.parse_count), 0)) for name in sorted(section.values))


def _options(section: _Section, cluster: str, *, flags: bool = False) -> tuple[dict[str, Any], SchedulerPlace]:
    """The options that reach the backend, and where its scheduler is to listen. ``flags``: from `--dask-options`."""
    options = dict(section.values)
    place = SchedulerPlace()
    if (system := KINDS[cluster].system) is None:
        return options, place
    for key, value in section.values.items():
        name = key.replace("-", "_")
        if name in _HARMLESS and value == _HARMLESS[name]:
            del options[key]
        elif name in _SAID_ELSEWHERE:
            section.complain(key, f"is not one of the options; use {_instead(name, flags=flags)}")
        elif name == "scheduler_options":
            if not flags:
                section.complain(key, "cannot be set for one pool; use the key `scheduler` of the whole file")
            place = _scheduler_place(section.section(key))
            del options[key]
        elif name in _OWNED:
            section.complain(key, f"is set to {show(value)}, but the plugin sets it itself: {_OWNED[name]}; remove it")
        elif name != key:
            section.complain(key, f"is not an option; write `{name}`, with underscores")
        elif name in LISTS and isinstance(value, str) and not system.description:  # where the first two are mappings
            section.complain(key, f"is a string; it must be a list of strings, such as [{show(value)}]")
    return options, place


def left_to_users(arguments: set[str]) -> set[str]:
    """Of the arguments of one of dask-jobqueue's classes, those that a pool's options may hold."""
    return arguments - _OWNED.keys() - _SAID_ELSEWHERE.keys() - {"self", "base_class_kwargs"}


def _instead(name: str, *, flags: bool) -> str:
    key, setting = _SAID_ELSEWHERE[name]
    return setting if flags else f"the key `{key}` of the pool"


def _scheduler_place(section: _Section) -> SchedulerPlace:
    section.check_keys(_SCHEDULER_KEYS)
    place = SchedulerPlace(
        interface=section.get("interface", _text),
        host=section.get("host", _text),
        port=_or(section.get("port", parse_port), 0),
    )
    if place.interface is not None and place.host is not None:
        section.complain("host", "and `interface` both say where the scheduler listens; keep one of them")
    return place


def parse_cluster(value: object) -> str:
    """The name of a backend; ValueError."""
    return _one_of(value, BACKENDS)


def default_workers(cluster: str, mpi_workers: int) -> tuple[int, int]:
    """How many workers a pool has that does not say it."""
    if KINDS[cluster].queued:
        return 0, 10
    return (mpi_workers, mpi_workers) if KINDS[cluster].launched else (1, 1)


def _one_of(value: object, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        msg = f"is not one of {', '.join(allowed)}{did_you_mean(value, allowed)}"
        raise ValueError(msg)
    return str(value)


def parse_port(value: object) -> int:
    """A port that the scheduler may have; ValueError."""
    port = units.parse_count(value)
    if port > 65534:
        msg = "is not a port; it must be from 0 (any) to 65534, and the next one is used, too"
        raise ValueError(msg)
    return port


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        msg = "is not a string; put it in quotes"
        raise ValueError(msg)
    return value


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _read(path: Path, setting: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        msg = f"{setting}: {str(path)!r} cannot be read: {why}; name a YAML file that you can read."
        raise ConfigurationError(msg) from error


def _load(source: str, text: str) -> Any:
    try:
        return plainyaml.load(text)
    except plainyaml.YamlError as error:
        msg = f"{source}: not valid YAML: {error}."
        raise ConfigurationError(msg) from error


def show(value: object) -> str:
    """What was found, short, for a complaint."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _complain(source: str, path: str, what: str) -> NoReturn:
    msg = f"{source}: {path} {what}." if path else f"{source} {what}."
    raise ConfigurationError(msg)
