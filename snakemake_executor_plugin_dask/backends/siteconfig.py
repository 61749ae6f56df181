"""What a site's own configuration of Dask-Jobqueue says: each value checked, and which file or variable it is from.

Reads Dask's configuration files; Dask itself merges them and remembers none of it.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

from snakemake_executor_plugin_dask.config.poolsfile import LISTS, SchedulerPlace, parse_port, show
from snakemake_executor_plugin_dask.interior import dask_files
from snakemake_executor_plugin_dask.model import units
from snakemake_executor_plugin_dask.model.batch_systems import BatchSystem
from snakemake_executor_plugin_dask.model.errors import ConfigurationError

#: A size without a unit is meant in bytes. Below this one it was meant otherwise: no worker has so little memory.
_LEAST_BYTES = 100 * 10**6


def origin(section: str, key: str) -> str | None:
    """The variable, or the file, that sets ``jobqueue.<section>.<key>``; None: what is packaged with Dask-Jobqueue."""
    wanted = f"jobqueue__{section}__{key}".replace("-", "_").lower()
    for variable in os.environ:
        if variable.startswith("DASK_") and variable.removeprefix("DASK_").replace("-", "_").lower() == wanted:
            return variable
    # The last file wins.
    for path, values in reversed(dask_files.files()):
        found: Any = values
        for name in ("jobqueue", section, key):
            names = {name, name.replace("-", "_"), name.replace("_", "-")}
            found = next((found[n] for n in names if n in found), None) if isinstance(found, Mapping) else None
        if found is not None:
            return str(path)
    return None


def checked(system: BatchSystem, section: str, key: str, value: object) -> Any:
    """The value as the plugin uses it: a number of cores, a `SchedulerPlace`, all else as it is. ConfigurationError.

    ``key`` is an argument of Dask-Jobqueue's class, with underscores.
    """
    read = (_READ | _OF_DESCRIPTION if system.description else _READ).get(key)
    if value is None or read is None:
        return value
    try:
        return read(value)
    except ValueError as error:
        dashed = key.replace("_", "-")
        where = origin(section, dashed) or "Dask's configuration"
        msg = f"{where}: jobqueue.{section}.{dashed} is {show(value)}, which {error}."
        raise ConfigurationError(msg) from None


def memory_mb(value: object) -> int:
    """Memory in 10^6 bytes from a size with its unit, or from bytes as Dask reads a number; ValueError."""
    text = str(value).strip()
    number = float(text) if text.replace(".", "", 1).isdecimal() else None
    if isinstance(value, bool) or number is None:
        return units.parse_memory_mb(text)
    if number < _LEAST_BYTES:
        msg = f"Dask reads as {text} bytes; {units.SIZE_FORMS}"
        raise ValueError(msg)
    return int(number) // 10**6


def _cores(value: object) -> int:
    try:
        return units.parse_count(value, 1)
    except ValueError:
        msg = "is not a number of cores; write a whole number, such as 48"
        raise ValueError(msg) from None


def _memory(value: object) -> object:
    memory_mb(value)
    return value


def _text(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        msg = "is not a string; put it in quotes"
        raise ValueError(msg)  # noqa: TRY004 - the value is wrong, not the caller's type
    return value


def _texts(value: object) -> object:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str | int | float) for item in value):
        example = show(value) if isinstance(value, str) else '"first", "second"'
        msg = f"is not a list of strings; write a list, such as [{example}]"
        raise ValueError(msg)
    return value


def _mapping(value: object) -> Mapping[str, Any]:
    if value and not isinstance(value, Mapping):
        msg = "is not a mapping; write keys with values, such as {key: value}"
        raise ValueError(msg)
    return value or {}  # type: ignore[return-value]  # it is one


def _scheduler_options(value: object) -> SchedulerPlace:
    wanted = _mapping(value)
    interface, host = wanted.get("interface"), wanted.get("host")
    for text in (interface, host):
        if text is not None:
            _text(text)
    if interface is not None and host is not None:
        msg = "says by `interface` and by `host` where the scheduler listens; keep one of them"
        raise ValueError(msg)
    return SchedulerPlace(interface, host, parse_port(wanted.get("port") or 0))


_READ: dict[str, Callable[[object], Any]] = {
    "cores": _cores,
    "memory": _memory,
    "scheduler_options": _scheduler_options,
    **dict.fromkeys(
        ("account", "interface", "local_directory", "log_directory", "project", "python", "queue", "resource_spec"),
        _text,
    ),
    **dict.fromkeys(LISTS, _texts),
}
#: The Job classes of such batch systems take mappings where the others take lists of lines.
_OF_DESCRIPTION: dict[str, Callable[[object], Any]] = {"job_extra": _mapping, "job_extra_directives": _mapping}
