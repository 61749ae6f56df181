"""What batch scripts say, as far as several batch systems do it alike: walltimes, memory, users' directives. Pure."""

import math
import re
import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from snakemake_executor_plugin_dask.model.pools import Pool

Setting = Callable[[str], Any]  # an argument of the Job class by name: the pool's option, else Dask's configuration
Place = Literal["hours", "minutes", "seconds"]

MIB = 2**20
_PLACES: tuple[Place, ...] = ("hours", "minutes", "seconds")


def granted_bytes(pool: "Pool") -> int:
    """The memory to ask for: whole MiB, rounded up, since batch systems count in 2^20 and round as they like."""
    return math.ceil((pool.memory_mb or 0) * 10**6 / MIB) * MIB


def parse_walltime(text: str, *, one: Place = "seconds", two: Place = "minutes", four: bool = False) -> float:
    """Seconds from ``[days-]hours:minutes:seconds``.

    ``one``, ``two``: what the first of so few numbers counts. ``four``: the first of four numbers counts days.
    ValueError.
    """
    before, dash, rest = text.strip().rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash and before.isdecimal():
        parts = [*parts, 0, 0][:3]
    elif len(parts) < 3:
        parts = [*[0] * _PLACES.index(one if len(parts) == 1 else two), *parts, 0, 0][:3]
    elif len(parts) == 4 and four:
        before, parts = str(parts[0]), parts[1:]
    if len(parts) != 3 or (dash and not before):
        msg = f"{text!r} is not a walltime"
        raise ValueError(msg)
    hours, minutes, seconds = parts
    return float(((int(before or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def format_walltime(seconds: float) -> str:
    """HH:MM:SS, which all read but LSF."""
    whole = math.ceil(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def given(setting: Setting) -> Any:
    """The user's own directives."""
    return setting("job_extra_directives") or setting("job_extra")


def texts(value: object) -> list[str]:
    """As a list; of a mapping nothing."""
    if isinstance(value, str):
        return [value]
    return [str(item) for item in value] if isinstance(value, list | tuple) else []


def skipped(setting: Setting) -> list[str]:
    """The user's own words for directives that Dask-Jobqueue is to leave out."""
    return texts(list(setting("job_directives_skip") or setting("header_skip") or ()))


def words(text: str) -> list[str]:
    """As a shell splits it, where its quotes are closed."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def option_given(setting: Setting, option: tuple[str, str]) -> str | None:
    """The value of an option, long or short, in the user's directives; each may hold several, and the last counts."""
    long, short = option
    found = None
    for text in texts(given(setting)):
        rest: Iterator[str] = iter(words(text))
        for word in rest:
            name, equals, value = word.partition("=")
            if name == long or (len(name) > 6 and long.startswith(name)):  # as far as it is unmistakable
                found = value if equals else next(rest, None)
            elif word == short:
                found = next(rest, None)
            elif word.startswith(short) and not word.startswith("--"):
                found = word.removeprefix(short)
    return found


def gpus(pool: "Pool", setting: Setting) -> int:
    """How many GPUs are to be asked for on each node: none where the user's own options do so already."""
    said = [*texts(given(setting)), str(setting("resource_spec") or "")]
    own = any(re.search(r"gpu|(^|\s)-G\b", text, re.IGNORECASE) for text in said)
    return 0 if own else pool.gpus or 0
