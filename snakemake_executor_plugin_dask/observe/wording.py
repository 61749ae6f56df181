"""Numbers, times and foreign text as people read them in a terminal and in a report. Pure."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from snakemake_executor_plugin_dask.model.jobs import job_text, members_text, wildcard_text
from snakemake_executor_plugin_dask.model.printed import clean_block
from snakemake_executor_plugin_dask.model.units import count, format_duration, format_memory
from snakemake_executor_plugin_dask.observe.records import Attempt

_TIMES = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
_REASONS = 5  # for starts that were not as deep as they could be
_CORE_TIMES = ((3600.0, "core-hours"), (60.0, "core-minutes"), (1.0, "core-seconds"))


def share(part: float, whole: float) -> str:
    """A part of a whole in per cent; a dash where there is no whole."""
    return f"{part / whole:.0%}" if whole else "-"


def core_time(core_seconds: float) -> str:
    """As "4 h", "2.5 min", "0.3 s" of one core, with two or three digits that matter."""
    size, unit = next(((size, unit) for size, unit in _TIMES if core_seconds >= size), _TIMES[-1])
    return f"{_digits(core_seconds / size)} {unit}" if core_seconds > 0 else "0"


def core_times(*core_seconds: float) -> str:
    """As "4 core-hours", "2 of 4 core-hours": in the unit that suits the last one."""
    size, unit = next((known for known in _CORE_TIMES if core_seconds[-1] >= known[0] / 10), _CORE_TIMES[-1])
    return f"{' of '.join(_digits(each / size) for each in core_seconds)} {unit}"


def _digits(number: float) -> str:
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number >= 1 else f"{number:.2g}" if number >= 0.001 else "0"


def rough(seconds: float) -> str:
    """A duration with two digits below ten seconds, in whole seconds below an hour, in whole minutes above."""
    if 0 < seconds < 9.95:
        return f"{max(seconds, 0.01):.2g}s"
    return format_duration(round(seconds) if seconds < 3600 else round(seconds / 60) * 60)


def about(seconds: float) -> str:
    """A time to come, as exact as a guess can be: "about 10 min"."""
    if seconds < 90:
        return f"about {max(10, round(seconds, -1)):.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def clock(when: float) -> str:
    """Time of day on this machine; with the date where it is another day."""
    local = time.localtime(when)
    return time.strftime("%H:%M" if local[:3] == time.localtime()[:3] else "%Y-%m-%d %H:%M", local)


def clean(text: str, limit: int = 1000) -> str:
    """One line without control characters or terminal sequences, and at most ``limit`` characters long."""
    text = clean_block(text).replace("\n", " ")
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def amount(what: str, number: int) -> str:
    """As "64 GB", "8 cores", "2 GPUs", "3 licences"."""
    if what == "memory":
        return format_memory(number)
    noun = {"cores": "core", "gpus": "GPU", "nodes": "node", "workers": "worker", "coreless": "place"}.get(what)
    return count(number, noun) if noun else f"{number:,} {what}"


def short_memory(memory_mb: float) -> str:
    """With two or three digits: what was measured is no more exact."""
    if memory_mb < 10:
        return f"{memory_mb:.2g} MB" if memory_mb >= 0.1 else "<0.1 MB"
    if memory_mb < 1000:
        return f"{memory_mb:.0f} MB"
    return f"{memory_mb / 1000:.1f} GB".replace(".0 ", " ") if memory_mb < 10**6 else f"{memory_mb / 10**6:.1f} TB"


def short_id(jobid: str) -> str:
    """A job's number; of a group's long name as much as tells it from others."""
    return jobid if jobid.isdecimal() else jobid[:8]


def named(attempt: Attempt, members: int = 3) -> str:
    """What tells a job from others of its rule: its wildcards, or a group's members. Empty: nothing does."""
    return members_text(attempt.members, members) if attempt.members else wildcard_text(attempt.wildcards)


def full_name(attempt: Attempt, members: int = 3) -> str:
    """Rule or group, and what tells the job from others of it."""
    return job_text(attempt.rule, attempt.wildcards, attempt.members, members)


def cause(attempt: Attempt) -> str:
    """Why an attempt did not succeed: the last line of the rule's own log, and what is known of its end."""
    why = attempt.message or (f"exit code {attempt.exit_code}" if attempt.exit_code else "")
    lines = [line.strip() for _, tail in attempt.rule_logs for line in tail.splitlines() if line.strip()]
    return f"{lines[-1]} ({why})" if lines and why else lines[-1] if lines else why


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with aligned columns; the last column is not padded."""
    cleaned = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cleaned, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cleaned]


def starts(found: Mapping[tuple[int, str], int]) -> list[str]:
    """How attempts started, from their number by depth and reason: a line, and one for each reason for less depth."""
    if not found:
        return []
    depths: Counter[int] = Counter()
    for (depth, _), attempts in found.items():
        depths[depth] += attempts
    parts = [
        f"{depths[depth]:,} {f'warm at depth {depth}' if depth else 'cold'}" for depth in sorted(depths, reverse=True)
    ]
    shallow = sorted(((attempts, depth, why) for (depth, why), attempts in found.items() if why), reverse=True)
    lines = [f"Attempts started: {', '.join(parts)}."]
    for attempts, depth, why in shallow[:_REASONS]:
        how = f"at depth {depth} and not deeper" if depth else "cold"
        lines.append(f"{attempts:,} {how}, since: {clean(why, 300)}")
    return lines
