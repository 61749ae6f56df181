"""All years in one table, with the growth since the year before."""

import json
from datetime import date, timedelta

columns = ("year", "weeks", "CO2 [ppm]", "growth [ppm]", "swing [ppm]", "error [ppm]", "highest on")
before = None
with open(snakemake.output[0], "w", encoding="ascii") as table:
    print(*columns, sep="\t", file=table)
    for path in snakemake.input:
        with open(path, encoding="ascii") as file:
            year = json.load(file)
        level = year["level_ppm"]
        peak = date(2001, 1, 1) + timedelta(days=year["peak_day"] - 1)
        print(
            year["year"],
            year["weeks"],
            f"{level:.2f}",
            "" if before is None else f"{level - before:.2f}",
            f"{year['swing_ppm']:.2f}",
            f"{year['swing_error_ppm']:.2f}",
            f"{peak:%d %b}",
            sep="\t",
            file=table,
        )
        before = level
