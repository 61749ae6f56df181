"""What each rule asked for and used, and what to ask for next time. Pure; from a `RunModel`.

Head-room: memory 20 % above the largest peak, runtime 50 % above the longest; of fewer than five measured jobs 50 % and
100 %. After a memory limit at least 1.5 times that limit, after a time limit at least twice it. Never less than 250 MB
and 5 minutes: nothing is gained by less. Where what jobs used grows with the size of their input, the suggestion is a
line that none of them exceeded, with the same head-room. What is asked for already is left as it is where it lies
between the suggestion and 25 % above it; and where it is less than that least, and sufficed.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import correlation, linear_regression, median

import yaml

from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.records import Attempt
from snakemake_executor_plugin_dask.observe.wording import rough, short_memory

FEW = 5
GROWTH_FROM = 10  # jobs: with fewer no growth is seen
GROWTH_FIT = 0.8  # of the variance that the input's size must explain
GROWTH_SAVES = 0.75  # the smallest job needs at most this part of what the largest does
LEAST_MB = 250
LEAST_MIN = 5
_MIB = 1.048576  # 10^6 bytes
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
class Growth:
    """A line above all that was measured: ``base`` + ``slope`` for each MiB of input (Snakemake's `input.size_mb`)."""

    base: float
    slope: float
    least_mb: float  # input of those measured, 10^6 bytes
    middle_mb: float
    most_mb: float

    def at(self, input_mb: float) -> float:
        """``input_mb`` in 10^6 bytes."""
        return self.base + self.slope * input_mb / _MIB


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
    suggested_memory_mb: int | None
    suggested_runtime_min: int | None
    exceeded_memory: bool  # an attempt was ended for it
    exceeded_runtime: bool
    memory_growth: Growth | None = None  # MB to ask for, by input; None: it does not grow, or not enough
    runtime_growth: Growth | None = None  # minutes


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
    asked_memory = _spread([a.asked_memory_mb for a in attempts if a.asked_memory_mb is not None])
    asked_runtime = _spread([a.runtime_s for a in attempts if a.runtime_s is not None])
    too_big = [a.asked_memory_mb for a in attempts if a.status == "out-of-memory" and a.asked_memory_mb]
    too_long = [a.runtime_s for a in attempts if a.status == "out-of-time" and a.runtime_s]
    return RuleUse(
        rule,
        jobs=len({attempt.jobid for attempt in attempts}),
        attempts=sum(1 for attempt in attempts if attempt.placed is not None),
        failed=sum(1 for a in attempts if a.state == "ended" and a.status not in ("succeeded", "cancelled")),
        group=any(attempt.group for attempt in attempts),
        cores=_spread([attempt.cores for attempt in attempts]) or Spread(1, 1, 1, 1),
        gpus=max(attempt.gpus for attempt in attempts),
        asked_memory_mb=asked_memory,
        memory_mb=_spread(peaks),
        asked_runtime_s=asked_runtime,
        runtime_s=_spread(times),
        cpu_efficiency=sum(a.cpu_s or 0.0 for a in ran) / held if held else None,
        core_s=sum(((a.ended or end) - a.placed) * a.cores for a in attempts if a.placed is not None),
        suggested_memory_mb=suggest_memory_mb(peaks, too_big),
        suggested_runtime_min=suggest_runtime_min(times, too_long),
        exceeded_memory=bool(too_big),
        exceeded_runtime=bool(too_long),
        memory_growth=None if too_big else growth([(a.input_mb, a.peak_memory_mb) for a in good], 1.2, LEAST_MB),
        runtime_growth=None
        if too_long
        else growth([(a.input_mb, a.ran_s / 60 if a.ran_s else None) for a in good], 1.5, LEAST_MIN),
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


def growth(used: Sequence[tuple[float | None, float | None]], room: float, least: float) -> Growth | None:
    """How much to ask for by size of input, from pairs of input (10^6 bytes) and what was used.

    ``room`` is the factor of head-room. None where the input explains too little of it, or where one value for all
    jobs, or ``least``, does about as well.
    """
    pairs = [(size, value) for size, value in used if size is not None and value is not None]
    if len(pairs) < GROWTH_FROM or len({size for size, _ in pairs}) < 3:
        return None
    sizes, values = [size for size, _ in pairs], [value for _, value in pairs]
    if len(set(values)) < 2 or correlation(sizes, values) < math.sqrt(GROWTH_FIT):
        return None
    slope = linear_regression(sizes, values).slope
    base = max(0.0, *(value - slope * size for size, value in pairs))
    line = Growth(_upwards(room * base), _upwards(room * slope * _MIB), min(sizes), median(sizes), max(sizes))
    return line if max(least, line.at(line.least_mb)) <= GROWTH_SAVES * line.at(line.most_mb) else None


def _upwards(value: float) -> float:
    """With two digits, and not below."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / step - 1e-9) * step, 10)


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
        if (line := use.memory_growth) is not None:
            if _grows_worth(asked, line):
                why = _why(asked, "peak", use.memory_mb, short_memory, exceeded=False)
                changes.append(f"    mem_mb: {_formula(line, LEAST_MB)}  # {why}, {_by_input(line)}")
        elif wanted is not None and _worth(asked, wanted, LEAST_MB, use.memory_mb, exceeded=use.exceeded_memory):
            why = _why(asked, "peak", use.memory_mb, short_memory, exceeded=use.exceeded_memory)
            changes.append(f"    mem_mb: {wanted}  # {why}")
        asked, minutes = use.asked_runtime_s, use.suggested_runtime_min
        if (line := use.runtime_growth) is not None:
            if _grows_worth(asked, line, 60):
                why = _why(asked, "longest", use.runtime_s, rough, exceeded=False)
                changes.append(f"    runtime: {_formula(line, LEAST_MIN)}  # minutes; {why}, {_by_input(line)}")
        elif minutes is not None and _worth(
            asked, minutes * 60, LEAST_MIN * 60, use.runtime_s, exceeded=use.exceeded_runtime
        ):
            why = _why(asked, "longest", use.runtime_s, rough, exceeded=use.exceeded_runtime)
            changes.append(f"    runtime: {minutes}  # minutes; {why}")
        if changes:
            lines += [f"  {_yaml_key(use.rule)}:", *changes]
    return "\n".join(["set-resources:", *lines, ""]) if lines else ""


def _formula(line: Growth, least: int) -> str:
    """What Snakemake evaluates for each job."""
    base = f"{line.base:g} + " if line.base else ""
    return f"int(max({least}, {base}{line.slope:g} * input.size_mb))"


def _by_input(line: Growth) -> str:
    return f"grows with the input ({short_memory(line.least_mb)} to {short_memory(line.most_mb)})"


def _grows_worth(asked: Spread | None, line: Growth, unit: float = 1) -> bool:
    """Whether to say it: not declared, too little for the largest, or more than the middle one needs; as `_worth`."""
    if asked is None:
        return True
    largest, middle = line.at(line.most_mb) * unit, line.at(line.middle_mb) * unit
    return asked.least == asked.most and not largest <= asked.most <= middle * 1.25


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


def _yaml_key(name: str) -> str:
    """A name as a key of YAML 1.1, quoted where it must be."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and name.lower() not in _YAML_WORDS:
        return name
    return yaml.safe_dump(name, default_style='"', width=10**6).strip()


def _spread(values: Sequence[float]) -> Spread | None:
    """None of no values."""
    if not values:
        return None
    high = sorted(values)[math.ceil(0.95 * len(values)) - 1]
    return Spread(min(values), median(values), max(values), high)
