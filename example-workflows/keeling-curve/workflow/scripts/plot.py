"""Two panels as SVG: the weekly measurements with each year's level, and the seasonal swing with its uncertainty."""

import csv
from datetime import date

WIDTH, LEFT, RIGHT = 900, 70, 20
YEARS = (1958, 2002)
INK, FAINT, BLUE, ORANGE = "#24292f", "#d8dee4", "#2a6f97", "#d1751f"


class Panel:
    """A plot area between two heights of the page, with a scale for its values."""

    def __init__(self, top, bottom, low, high):
        self.top, self.bottom, self.low, self.high = top, bottom, low, high

    def x(self, year):
        return LEFT + (year - YEARS[0]) / (YEARS[1] - YEARS[0]) * (WIDTH - LEFT - RIGHT)

    def y(self, value):
        return self.bottom - (value - self.low) / (self.high - self.low) * (self.bottom - self.top)

    def frame(self, title, step, digits=0):
        yield f'<text x="{LEFT}" y="{self.top - 14}" class="title">{title}</text>'
        for i in range(round((self.high - self.low) / step) + 1):
            value = self.low + i * step
            y = self.y(value)
            yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{FAINT}"/>'
            yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.{digits}f}</text>'
        for year in range(1960, 2001, 5):
            yield f'<text x="{self.x(year):.1f}" y="{self.bottom + 20}" text-anchor="middle">{year}</text>'


def read(path, **options):
    with open(path, encoding="ascii") as file:
        return list(csv.DictReader(file, **options))


weeks = []
for row in read(snakemake.input.weeks):
    day = date(int(row["date"][:4]), int(row["date"][4:6]), int(row["date"][6:]))
    weeks.append((day.year + day.timetuple().tm_yday / 365.25, float(row["co2"])))
seasons = read(snakemake.input.seasons, delimiter="\t")

levels = Panel(60, 330, 310, 380)
swings = Panel(410, 580, 3, 8)
svg = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 620" width="{WIDTH}" height="620">',
    f"<style>text {{ font: 13px sans-serif; fill: {INK} }} .title {{ font-size: 15px; font-weight: bold }}</style>",
    '<rect width="100%" height="100%" fill="white"/>',
    *levels.frame("CO₂ at Mauna Loa, weekly, and the level of each year (ppm)", 10),
    *swings.frame("Seasonal swing of each year (ppm), with its standard error", 1),
]
svg += [
    f'<circle cx="{levels.x(year):.1f}" cy="{levels.y(value):.1f}" r="1.2" fill="{BLUE}" fill-opacity="0.6"/>'
    for year, value in weeks
]
line = " ".join(f"{levels.x(int(s['year']) + 0.5):.1f},{levels.y(float(s['CO2 [ppm]'])):.1f}" for s in seasons)
svg.append(f'<polyline points="{line}" fill="none" stroke="{ORANGE}" stroke-width="2"/>')
for s in seasons:
    x = swings.x(int(s["year"]) + 0.5)
    swing, error = float(s["swing [ppm]"]), float(s["error [ppm]"])
    svg.append(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{swings.y(swing - error):.1f}" y2="{swings.y(swing + error):.1f}" '
        f'stroke="{ORANGE}" stroke-width="1.5"/>'
        f'<circle cx="{x:.1f}" cy="{swings.y(swing):.1f}" r="3.5" fill="{ORANGE}"/>'
    )
svg.append("</svg>")
with open(snakemake.output[0], "w", encoding="utf-8") as file:
    print(*svg, sep="\n", file=file)
