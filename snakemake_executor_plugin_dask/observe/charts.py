"""Use of cores, memory and GPUs over time, as SVG: it prints, and needs no script. Pure; from a `RunModel`."""

import math
from collections.abc import Callable
from itertools import pairwise

from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.use import Held, steps

WIDTH, HEIGHT = 1200, 140
LEFT, RIGHT, TOP, BOTTOM = 120, 12, 24, 22
COLUMNS = 600  # of the picture, each the mean over its time

_TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800)


def use_charts(model: RunModel) -> str:
    """One chart for each kind of resource that workers held; empty where there was no worker."""
    start, end = model.started or 0.0, model.end_time
    if end <= start or not model.workers:
        return ""
    means = _means(steps(model), start, end)
    gigabytes = 1e-3
    charts = [
        _chart("Cores", [(h.cores, h.job_cores, h.job_cpu) for h in means], end - start),
        _chart(
            "Memory, GB",
            [(h.memory_mb * gigabytes, h.job_memory_mb * gigabytes, h.job_peak_memory_mb * gigabytes) for h in means],
            end - start,
        ),
    ]
    if any(h.gpus for h in means):
        charts.append(_chart("GPUs", [(h.gpus, h.job_gpus, None) for h in means], end - start))
    return "".join(charts)


def _means(changes: list[tuple[float, Held]], start: float, end: float) -> list[Held]:
    """The mean over each of the columns."""
    width = (end - start) / COLUMNS
    sums = [[0.0] * len(Held.__slots__) for _ in range(COLUMNS)]
    for (since, held), (until, _) in pairwise(changes):
        amounts = [getattr(held, name) for name in Held.__slots__]
        low, high = max(since, start), min(until, end)
        column = min(COLUMNS - 1, max(0, int((low - start) / width)))
        while low < high and column < COLUMNS:
            edge = high if column == COLUMNS - 1 else min(high, start + (column + 1) * width)
            for i, amount in enumerate(amounts):
                sums[column][i] += amount * max(0.0, edge - low)
            low, column = max(low, edge), column + 1
    return [Held(*(value / width for value in column)) for column in sums]


def _chart(title: str, columns: list[tuple[float, float, float | None]], length_s: float) -> str:
    top, step = nice(max(value for column in columns for value in column if value is not None))
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(column: float) -> float:
        return LEFT + column / COLUMNS * inner_width

    def y(value: float) -> float:
        return TOP + inner_height * (1 - value / top)

    parts = [f'<text class="title" x="{LEFT}" y="14">{title}</text>']
    value = 0.0
    while value <= top * 1.001:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,.10g}</text>')
        value += step
    for i, name in enumerate(("held", "used")):
        parts.append(f'<path class="{name}" d="{_area([column[i] or 0.0 for column in columns], x, y)}"/>')
    line = [column[2] for column in columns]
    if None not in line:
        points = " ".join(f"{x(i + 0.5):.1f},{y(value or 0.0):.1f}" for i, value in enumerate(line))
        parts.append(f'<polyline class="cpu" points="{points}"/>')
    tick = next((t for t in _TICKS if length_s / t <= 9), math.ceil(length_s / 9 / 86400) * 86400)
    for number in range(int(length_s // tick) + 1):
        at = x(number * tick / length_s * COLUMNS)
        anchor = "end" if at > WIDTH - 50 else "middle" if number else "start"
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{_axis(number * tick)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title} over time">{"".join(parts)}</svg>'


def _area(values: list[float], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """A path of steps; equal neighbours are drawn as one."""
    points = [f"M{LEFT},{y(0):.1f}"]
    before = 0.0
    for i, value in enumerate(values):
        if value != before:
            points.append(f"H{x(i):.1f}V{y(value):.1f}")
            before = value
    return "".join([*points, f"H{x(len(values)):.1f}V{y(0):.1f}Z"])


def nice(most: float) -> tuple[float, float]:
    """The top of an axis and the step of its labels, in round numbers."""
    if most <= 0:
        return 1.0, 1.0
    raw = most / 4
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    return math.ceil(most / step * 0.999) * step, step


def _axis(seconds: float) -> str:
    """A time since the start of the run, as the timeline writes it."""
    days, hours, minutes = int(seconds // 86400), int(seconds // 3600 % 24), int(seconds // 60 % 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (int(seconds % 60), "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0"
