"""Sizes, durations and ranges as people write them, and back for messages. Pure.

A text that could mean two things is refused: each function raises ValueError with the second half of a sentence, which
the caller begins with the setting's name and what was found.
"""

import math
import re

_MB = 10**6

#: As Dask reads them: `G` and `GB` are decimal, `Gi` and `GiB` binary.
_SIZES = {
    "b": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "p": 10**15,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
    "pi": 2**50,
}
_SIZES |= {f"{unit}b": size for unit, size in _SIZES.items() if unit != "b"}

_DURATIONS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86400),
}

_NUMBER = r"\d{1,18}(?:\.\d{1,9})?"
_SIZE = re.compile(rf"({_NUMBER})\s*([a-z]+)", re.IGNORECASE | re.ASCII)
_BARE = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_PART = re.compile(rf"({_NUMBER})\s*([a-z]+)\s*", re.IGNORECASE | re.ASCII)
_CLOCK = re.compile(r"(?:(\d{1,6})-)?(\d{1,6}):([0-5]\d):([0-5]\d)", re.ASCII)
_DAYS = re.compile(r"(\d{1,6})-(\d{1,2})(?::([0-5]\d))?", re.ASCII)
_TWO_PARTS = re.compile(r"\d+:\d+", re.ASCII)
_RANGE = re.compile(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?", re.ASCII)

DURATION_FORMS = 'write it with a unit, such as 2h, 90m or 45s, or as "04:00:00" or "1-12:00:00" in quotes'
SECONDS_FORMS = "write a number of seconds, or a duration with a unit, such as 2m"
SIZE_FORMS = "write it with a unit, such as 180 GB, 16GiB or 500MB"


def parse_memory_mb(value: object) -> int:
    """Memory in 10^6 bytes, rounded down, from a text such as `180 GB` or `16GiB`; ValueError.

    A number without a unit is refused: Dask would take it for bytes, Snakemake for 10^6 bytes.
    """
    text = str(value).strip()
    if isinstance(value, int | float) or _BARE.fullmatch(text):
        msg = f"has no unit; {SIZE_FORMS}"
        raise ValueError(msg)
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _SIZES:
        msg = f"is not a size; {SIZE_FORMS}"
        raise ValueError(msg)
    memory_mb = _times(match[1], _SIZES[match[2].lower()]) // _MB
    if memory_mb < 1:
        msg = "is less than 1 MB"
        raise ValueError(msg)
    return memory_mb


def parse_duration_s(value: object) -> float:
    """Seconds from a text such as `2h`, `1h 30m`, `04:00:00` or `1-12:00:00` (days first); ValueError.

    A number without a unit is refused, since Snakemake reads profiles as YAML 1.1, where `12:00:00` unquoted is 43200;
    so are two parts with a colon: to some batch systems hours and minutes, to others minutes and seconds.
    """
    text = str(value).strip()
    if isinstance(value, int | float) or _BARE.fullmatch(text):
        msg = f"has no unit{_sixty(text)}; {DURATION_FORMS}"
        raise ValueError(msg)
    if match := _CLOCK.fullmatch(text):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    elif match := _DAYS.fullmatch(text):
        days, hours, minutes = (int(part or 0) for part in match.groups())
        seconds = 0
    else:
        return _positive(_sum_of_parts(text))
    if match[1] and hours > 23:
        msg = f"has more than 23 hours beside its days; {DURATION_FORMS}"
        raise ValueError(msg)
    return _positive(float(((days * 24 + hours) * 60 + minutes) * 60 + seconds))


def parse_seconds(value: object) -> float:
    """Seconds from a number that is meant in seconds, or from a text with a unit; 0 is allowed; ValueError."""
    text = str(value).strip()
    try:
        seconds = math.nan if isinstance(value, bool) else float(text)
    except ValueError:
        try:
            return parse_duration_s(text)
        except ValueError as error:
            msg = str(error).replace(DURATION_FORMS, SECONDS_FORMS)
            raise ValueError(msg) from None
    if not math.isfinite(seconds) or seconds < 0:
        msg = "is not a number of seconds; it must be 0 or more"
        raise ValueError(msg)
    return seconds


def parse_range(value: object) -> tuple[int, int]:
    """The least and the greatest number, from `4` (both are 4) or `0-10`; ValueError."""
    match = None if isinstance(value, bool) else _RANGE.fullmatch(str(value).strip())
    if match is None:
        msg = "is neither a number nor a range; write 4, or 0-10 for a range"
        raise ValueError(msg)
    least = int(match[1])
    greatest = least if match[2] is None else int(match[2])
    if greatest < least:
        msg = f"ends before it starts; write {greatest}-{least}"
        raise ValueError(msg)
    if greatest == 0:
        msg = "allows no worker at all; the greatest number must be 1 or more"
        raise ValueError(msg)
    return least, greatest


def parse_count(value: object, least: int = 0) -> int:
    """A whole number of at least ``least``; ValueError."""
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"[+-]?\d{1,9}", text, re.ASCII):
        msg = f"is not a whole number; it must be {least} or more"
        raise ValueError(msg)
    if int(text) < least:
        msg = f"is too small; it must be {least} or more"
        raise ValueError(msg)
    return int(text)


def format_memory(memory_mb: int) -> str:
    """10^6 bytes as `180 GB`, `17.2 GB` or `500 MB`: exact wherever it is a whole number of the unit."""
    for unit, size in (("TB", 10**6), ("GB", 10**3)):
        if memory_mb % size == 0 and memory_mb:
            return f"{memory_mb // size} {unit}"
    for unit, size in (("TB", 10**6), ("GB", 10**3)):
        if memory_mb >= 10 * size:
            return f"{memory_mb / size:.1f} {unit}"
    return f"{memory_mb} MB"


def format_duration(seconds: float) -> str:
    """Seconds as `2h`, `1h30m`, `1d12h` or `45s`: in whole seconds, rounded up."""
    rest = math.ceil(seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def format_range(least: int, greatest: int) -> str:
    """`4` or `0-10`."""
    return str(least) if least == greatest else f"{least}-{greatest}"


def _times(number: str, factor: int) -> int:
    """A decimal number times a factor, exactly, rounded down: binary fractions would lose a byte."""
    whole, _, fraction = number.partition(".")
    return int(whole + fraction) * factor // int(10 ** len(fraction))


def _sum_of_parts(text: str) -> float:
    total = 0.0
    position = 0
    smaller_than = math.inf
    while match := _PART.match(text, position):
        unit = _DURATIONS.get(match[2].lower())
        if unit is None or unit >= smaller_than:
            break
        smaller_than = unit
        total += float(match[1]) * unit
        position = match.end()
    if position != len(text) or not text:
        if _TWO_PARTS.fullmatch(text):
            msg = f"could be hours and minutes or minutes and seconds; {DURATION_FORMS}"
        else:
            msg = f"is not a duration; {DURATION_FORMS}"
        raise ValueError(msg)
    return total


def _positive(seconds: float) -> float:
    if seconds <= 0:
        msg = "is no time at all; it must be more than 0"
        raise ValueError(msg)
    return seconds


def _sixty(text: str) -> str:
    """The hint at a number that YAML may have made from a text with colons."""
    if not re.fullmatch(r"\d{2,9}", text, re.ASCII):
        return ""
    number = int(text)
    if number >= 3600:
        written = f"{number // 3600}:{number // 60 % 60:02}:{number % 60:02}"
    elif number >= 60:
        written = f"{number // 60}:{number % 60:02}"
    else:
        return ""
    return f" (in a profile YAML reads an unquoted {written} as {number})"


def count(number: int, noun: str) -> str:
    """As "1 job", "2 jobs", "12,000 jobs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
