"""The event log of a run: one JSON object a line. Writes and reads files; what the events mean is in `model`.

The schema is documented in docs/observe.md. Lines are written whole, and soon, to a file opened for appending, so that
they survive SIGKILL of the writer; only the very last line can be torn, and readers pass over it.
"""

import collections
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.node.private import append_private
from snakemake_executor_plugin_dask.node.state import EVENTS, RUNS

SCHEMA_VERSION = 1  # raised when a field changes its meaning or goes; new kinds and new fields do not raise it
_LATEST = 1e11

#: Fields that are of no use after the run, or that only the run itself should know.
_LEFT_OUT = frozenset({"environment", "near", "affinity"})

#: Settings that may hold what others must not read, such as a token in a prologue: only their names are kept.
_NAMES_ALONE = frozenset({"options"})

#: Fields of a request that stand in the log also where they are as by default; most requests differ in few others.
_ALWAYS = frozenset({"cores", "gpus", "nodes"})
_KINDS_OF_REQUESTS = 1_000

# ASCII only: undecodable bytes in names (lone surrogates) are escaped, and no terminal takes harm.
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode
_decode = json.JSONDecoder().raw_decode

Event = dict[str, Any]


class EventLog:
    """Appends events to a file. Never raises for a file that cannot be written: that is told once, to ``on_error``.

    ``also`` gets each event as well (the model from which status and report are made), in the form that is in the file.
    ``soon``: has what it is given done on another thread, in order. Without it events are written at once.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        on_error: Callable[[str], None] = lambda _: None,
        also: Callable[[Event], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        soon: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        self._path = os.fspath(path)
        self._soon = soon
        self._lines = collections.deque[bytes]()
        self._problem = ""
        self._on_error = on_error
        self._also = also
        self._clock = clock
        self._torn = False
        self._told = False
        self._descriptor: int | None = None

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event. Values may be dataclasses, mappings, sequences, sets, paths."""
        event = {"v": SCHEMA_VERSION, "t": round(self._clock(), 3), "kind": kind}
        event.update((name, plain(value)) for name, value in fields.items() if name not in _LEFT_OUT)
        self._also(event)
        self._lines.append(_encode(event).encode("ascii"))
        if len(self._lines) == 1:  # else they are about to be written
            self._soon(self._append)
        self._tell()

    def close(self) -> None:
        """Close the file, once all is written. May be repeated."""
        self._tell()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _append(self) -> None:
        """Write the lines that are there."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft() + b"\n")
        if not lines:
            return  # those before took them along
        try:
            if self._descriptor is None:
                self._descriptor = append_private(Path(self._path))
            # A line that was cut off by a full disk must not swallow the next one.
            data = (b"\n" if self._torn else b"") + b"".join(lines)
            written = os.write(self._descriptor, data)
            self._torn = written < len(data)
        except OSError as error:
            self._problem = error.strerror or str(error)
        else:
            self._problem = "the file system is full" if self._torn else self._problem

    def _tell(self) -> None:
        if self._problem and not self._told:
            self._told = True
            self._on_error(
                f"The event log {self._path} cannot be written ({self._problem}): "
                "the run goes on, and its report will lack what happens meanwhile."
            )


def plain(value: Any) -> Any:
    """The value as JSON can hold it: dataclasses and mappings as objects, sequences as lists, no infinities."""
    if value is None or isinstance(value, str | int):  # bool is an int
        return value
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    if isinstance(value, Request):
        return dict(_plain_request(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return {name: _plain_field(name, getattr(value, name)) for name in names if name not in _LEFT_OUT}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value)


@functools.lru_cache(_KINDS_OF_REQUESTS)
def _plain_request(request: Request) -> dict[str, Any]:
    """Without what is as by default. Thousands of jobs ask for the same."""
    return {
        field.name: plain(value)
        for field in dataclasses.fields(request)
        if (value := getattr(request, field.name)) != field.default or field.name in _ALWAYS
    }


def _plain_field(name: str, value: Any) -> Any:
    if name in _NAMES_ALONE and isinstance(value, Mapping):
        return {str(key): None for key in value}
    return plain(value)


class Tail:
    """Reads on in a log that grows, whole lines at a time."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises OSError."""
        self._stream = open(path, "rb")  # noqa: SIM115 - it stays open for as long as somebody looks
        self._rest = b""

    def lines(self) -> Iterator[bytes]:
        """Those that are whole by now and were not given before, without their ends. Raises OSError."""
        while data := self._stream.read(1 << 16):
            *whole, self._rest = (self._rest + data).split(b"\n")
            yield from whole


def read_events(path: str | os.PathLike[str]) -> Iterator[Event]:
    """The events of a log, in order. Lines that are no event (a torn one) are passed over. Raises OSError."""
    with open(path, "rb") as file:
        for line in file:
            if (event := event_of(line)) is not None:
                yield event


def event_of(line: bytes) -> Event | None:
    """The event in a line of a log; None where it holds none."""
    try:
        text = line.decode().strip()
        event, end = _decode(text)
    except (ValueError, RecursionError):
        return None
    whole = end == len(text) and isinstance(event, dict)
    return event if whole and isinstance(event.get("kind"), str) and _is_time(event.get("t")) else None


def logs_in(directory: Path) -> list[Path]:
    """The logs of a working directory's runs (or in the directory of logs itself), that which was written last last."""
    logs = [path for folder in (directory / RUNS, directory) for path in folder.glob(f"*{EVENTS}")]
    return sorted(logs, key=lambda path: (path.stat().st_mtime, path))


def _is_time(value: Any) -> bool:
    """Seconds since the epoch, of this age."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LATEST
