"""Fit one year's weeks: a level, a slope, and two harmonics of the year; the swing's uncertainty by resampling."""

import csv
import json
import math
import random
from datetime import date


def basis(t):
    """What the concentration is made of at the time t of the year, from 0 to 1."""
    turn = 2 * math.pi * t
    return [1.0, t - 0.5, math.cos(turn), math.sin(turn), math.cos(2 * turn), math.sin(2 * turn)]


def solve(matrix, right):
    """Gauss's elimination with pivoting."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    n = len(rows)
    for i in range(n):
        pivot = max(range(i, n), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(i + 1, n):
            factor = rows[k][i] / rows[i][i]
            rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    solution = [0.0] * n
    for i in reversed(range(n)):
        known = sum(rows[i][k] * solution[k] for k in range(i + 1, n))
        solution[i] = (rows[i][n] - known) / rows[i][i]
    return solution


def fit(points):
    """Least squares: the six coefficients."""
    rows = [basis(t) for t, _ in points]
    matrix = [[sum(row[i] * row[k] for row in rows) for k in range(6)] for i in range(6)]
    right = [sum(row[i] * value for row, (_, value) in zip(rows, points, strict=True)) for i in range(6)]
    return solve(matrix, right)


def season(coefficients):
    """The seasonal part alone, for each day of the year."""
    return [sum(c * b for c, b in zip(coefficients[2:], basis(day / 365)[2:], strict=True)) for day in range(365)]


year = int(snakemake.wildcards.year)
points = []
with open(snakemake.input[0], encoding="ascii") as file:
    for row in csv.DictReader(file):
        day = date(int(row["date"][:4]), int(row["date"][4:6]), int(row["date"][6:]))
        if day.year == year:
            points.append(((day.timetuple().tm_yday - 0.5) / 365.25, float(row["co2"])))

coefficients = fit(points)
cycle = season(coefficients)
chance = random.Random(year)
swings = []
for _ in range(snakemake.params.resamplings):
    sample = season(fit(chance.choices(points, k=len(points))))
    swings.append(max(sample) - min(sample))
mean_swing = sum(swings) / len(swings)

result = {
    "year": year,
    "weeks": len(points),
    "level_ppm": coefficients[0],
    "swing_ppm": max(cycle) - min(cycle),
    "swing_error_ppm": math.sqrt(sum((swing - mean_swing) ** 2 for swing in swings) / (len(swings) - 1)),
    "peak_day": cycle.index(max(cycle)) + 1,
}
with open(snakemake.output[0], "w", encoding="ascii") as file:
    json.dump(result, file, indent=1)
