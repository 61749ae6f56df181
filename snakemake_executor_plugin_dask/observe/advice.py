"""What each rule asked for and used, and what to ask for next time. Pure; from a `RunModel`.

Head-room: memory 20 % above the largest peak, runtime 50 % above the longest; of fewer than five measured jobs 50 % and
100 %. After a memory limit at least 1.5 times that limit, after a time limit at least twice it. Never less than 250 MB
and 5 minutes: nothing is gained by less. What is asked for already is left as it is where it lies between the
suggestion and 25 % above it; and where it is less than that least, and sufficed.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import yaml

from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.records import Attempt
from snakemake_executor_plugin_dask.observe.wording import rough, short_memory

FEW = 5
LEAST_MB = 250
LEAST_MIN = 5
#: Words that YAML 1.1 does not read as text.
_YAML_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and greatest of several values; the least, and what 19 of 20 do not exceed, where they matter."""

    least: float
    middle: float
    most: float
    high: float  # 95 % are not above it: one of the values


@dataclass(frozen=True, slots=True)
class RuleUse:
    """A rule's attempts together. Asked values are None where a job did not declare them, or there was none."""

    rule: str
    jobs: int
    attempts: int
    failed: int  # attempts that ended in another way than well
    group: bool
    cores: Spread
    gpus: int
    asked_memory_mb: Spread | None
    memory_mb: Spread | None  # peaks
    asked_runtime_s: Spread | None
    runtime_s: Spread | None
    cpu_efficiency: float | None
    core_s: float  # held
    measured: int
    suggested_memory_mb: int | None
    suggested_runtime_min: int | None
    exceeded_memory: bool  # an attempt was ended for it
    exceeded_runtime: bool


def rule_uses(model: RunModel) -> list[RuleUse]:
    """One for each rule, those that held most cores for longest first."""
    by_rule: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in model.attempts.values():
        by_rule[attempt.rule].append(attempt)
    uses = [_rule_use(rule, attempts, model.end_time) for rule, attempts in by_rule.items()]
    return sorted(uses, key=lambda use: (-use.core_s, use.rule))


def _rule_use(rule: str, attempts: Sequence[Attempt], end: float) -> RuleUse:
    ran = [attempt for attempt in attempts if attempt.ran_s is not None]
    good = [attempt for attempt in ran if attempt.status == "succeeded"]
    peaks = [a.peak_memory_mb for a in good if a.peak_memory_mb]  # none of a job that ended before it was looked at
    times = [a.ran_s for a in good if a.ran_s is not None]
    held = sum((a.ran_s or 0.0) * a.cores for a in ran if a.cpu_s is not None)
    asked_memory = spread([a.asked_memory_mb for a in attempts if a.asked_memory_mb is not None])
    asked_runtime = spread([a.runtime_s for a in attempts if a.runtime_s is not None])
    too_big = [a.asked_memory_mb for a in attempts if a.status == "out-of-memory" and a.asked_memory_mb]
    too_long = [a.runtime_s for a in attempts if a.status == "out-of-time" and a.runtime_s]
    return RuleUse(
        rule,
        jobs=len({attempt.jobid for attempt in attempts}),
        attempts=sum(1 for attempt in attempts if attempt.placed is not None),
        failed=sum(1 for a in attempts if a.state == "ended" and a.status not in ("succeeded", "cancelled")),
        group=any(attempt.group for attempt in attempts),
        cores=spread([attempt.cores for attempt in attempts]) or Spread(1, 1, 1, 1),
        gpus=max(attempt.gpus for attempt in attempts),
        asked_memory_mb=asked_memory,
        memory_mb=spread(peaks),
        asked_runtime_s=asked_runtime,
        runtime_s=spread(times),
        cpu_efficiency=sum(a.cpu_s or 0.0 for a in ran) / held if held else None,
        core_s=sum(((a.ended or end) - a.placed) * a.cores for a in attempts if a.placed is not None),
        measured=len(times),
        suggested_memory_mb=suggest_memory_mb(peaks, too_big),
        suggested_runtime_min=suggest_runtime_min(times, too_long),
        exceeded_memory=bool(too_big),
        exceeded_runtime=bool(too_long),
    )


def suggest_memory_mb(peaks_mb: Sequence[float], exceeded_mb: Sequence[float] = ()) -> int | None:
    """Memory to ask for in 10^6 bytes, in steps of 100; None where nothing was measured."""
    candidates = [max(peaks_mb) * (1.2 if len(peaks_mb) >= FEW else 1.5)] if peaks_mb else []
    candidates += [max(exceeded_mb) * 1.5] if exceeded_mb else []
    return max(LEAST_MB, math.ceil(max(candidates) / 100) * 100) if candidates else None


def suggest_runtime_min(times_s: Sequence[float], exceeded_s: Sequence[float] = ()) -> int | None:
    """Runtime to ask for in minutes; None where nothing was measured."""
    candidates = [max(times_s) * (1.5 if len(times_s) >= FEW else 2.0)] if times_s else []
    candidates += [max(exceeded_s) * 2.0] if exceeded_s else []
    return max(LEAST_MIN, math.ceil(max(candidates) / 60)) if candidates else None


def set_resources(uses: Sequence[RuleUse]) -> str:
    """A block for a Snakemake profile with what should be changed; empty where all is well.

    Left out are groups (a profile names rules) and values that differ between the jobs of a rule, which are computed.
    """
    lines = []
    for use in uses:
        if use.group:
            continue
        changes = []
        asked, wanted = use.asked_memory_mb, use.suggested_memory_mb
        if wanted is not None and _worth(asked, wanted, LEAST_MB, use.memory_mb, exceeded=use.exceeded_memory):
            why = _why(asked, "peak", use.memory_mb, short_memory, exceeded=use.exceeded_memory)
            changes.append(f"    mem_mb: {wanted}  # {why}")
        asked, minutes = use.asked_runtime_s, use.suggested_runtime_min
        if minutes is not None and _worth(
            asked, minutes * 60, LEAST_MIN * 60, use.runtime_s, exceeded=use.exceeded_runtime
        ):
            why = _why(asked, "longest", use.runtime_s, rough, exceeded=use.exceeded_runtime)
            changes.append(f"    runtime: {minutes}  # minutes; {why}")
        if changes:
            lines += [f"  {yaml_key(use.rule)}:", *changes]
    return "\n".join(["set-resources:", *lines, ""]) if lines else ""


def _worth(asked: Spread | None, wanted: float, least: float, used: Spread | None, *, exceeded: bool) -> bool:
    """Whether to say it: not declared, too little, or much more than needed; never where it differs by job."""
    if asked is None:
        return True
    # The least suggestion has no measure: less may have been enough.
    enough = used.most if used is not None and wanted == least and not exceeded else wanted
    return asked.least == asked.most and not enough <= asked.most <= wanted * 1.25


def _why(asked: Spread | None, what: str, used: Spread | None, show: Callable[[float], str], *, exceeded: bool) -> str:
    parts = ["not declared" if asked is None else f"asked {show(asked.most)}"]
    parts += [f"{what} {show(used.most)}"] if used is not None else []
    return ", ".join([*parts, "exceeded"] if exceeded else parts)


def yaml_key(name: str) -> str:
    """A name as a key of YAML 1.1, quoted where it must be."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and name.lower() not in _YAML_WORDS:
        return name
    return yaml.safe_dump(name, default_style='"', width=10**6).strip()


def spread(values: Sequence[float]) -> Spread | None:
    """None of no values."""
    if not values:
        return None
    high = sorted(values)[math.ceil(0.95 * len(values)) - 1]
    return Spread(min(values), median(values), max(values), high)
