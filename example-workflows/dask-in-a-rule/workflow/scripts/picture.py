"""The density as SVG, a square for each cell, with the centres that were found."""

import json

import numpy as np

SIZE, TOP, EDGE = 600, 40, 4.0

density = np.load(snakemake.input.density)
with open(snakemake.input.centres, encoding="utf-8") as file:
    fit = json.load(file)
cell = SIZE / len(density)
title = f"{fit['points']} points, and the centres of four clouds, found by {fit['workers']} Dask workers"
svg = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE + TOP}" width="{SIZE}" height="{SIZE + TOP}">',
    '<rect width="100%" height="100%" fill="white"/>',
    f'<text x="10" y="26" font-family="sans-serif" font-size="15">{title}</text>',
]
for i, column in enumerate(density / density.max()):
    for j, part in enumerate(column):
        if part > 0.005:
            svg.append(
                f'<rect x="{i * cell:.1f}" y="{TOP + SIZE - (j + 1) * cell:.1f}" width="{cell:.1f}" '
                f'height="{cell:.1f}" fill="#2a6f97" fill-opacity="{part**0.7:.2f}"/>'
            )
for x, y in fit["centres"]:
    place = f'cx="{(x + EDGE) / (2 * EDGE) * SIZE:.1f}" cy="{TOP + SIZE - (y + EDGE) / (2 * EDGE) * SIZE:.1f}"'
    svg.append(f'<circle {place} r="7" fill="none" stroke="#d1751f" stroke-width="3"/>')
svg.append("</svg>")
with open(snakemake.output[0], "w", encoding="utf-8") as file:
    print(*svg, sep="\n", file=file)
