"""Draw which job ran where and when, from what the jobs wrote down: a row for each node, a colour for each rule."""

import json
import sys
from html import escape
from pathlib import Path

COLOURS = {"prepare": "#4e79a7", "train": "#59a14f", "simulate": "#f28e2b"}
WIDTH, LEFT, HEIGHT = 900, 130, 22


def lanes(jobs: list[dict]) -> list[list[dict]]:
    """Jobs of one node in as few rows as show each of them."""
    rows: list[list[dict]] = []
    for job in sorted(jobs, key=lambda job: job["began"]):
        row = next((row for row in rows if row[-1]["ended"] <= job["began"]), None)
        if row is None:
            rows.append([job])
        else:
            row.append(job)
    return rows


def draw(jobs: list[dict]) -> str:
    """The picture as SVG."""
    begin, end = min(job["began"] for job in jobs), max(job["ended"] for job in jobs)
    scale = (WIDTH - LEFT - 10) / max(end - begin, 0.1)
    parts, top = [], 30
    for kind, x in zip(COLOURS, (LEFT, LEFT + 110, LEFT + 220), strict=True):
        parts.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{COLOURS[kind]}"/>')
        parts.append(f'<text x="{x + 18}" y="18">{kind}</text>')
    for node in sorted({job["node"] for job in jobs}):
        parts.append(f'<text x="8" y="{top + 15}">{escape(node)}</text>')
        for row in lanes([job for job in jobs if job["node"] == node]):
            for job in row:
                x, width = LEFT + (job["began"] - begin) * scale, max(2, (job["ended"] - job["began"]) * scale)
                parts.append(
                    f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{HEIGHT - 4}" '
                    f'fill="{COLOURS[job["kind"]]}">'
                    f"<title>{job['kind']} {job['number']} on {escape(node)}, {escape(job['on'])}</title></rect>"
                )
            top += HEIGHT
        top += 8
    parts.append(f'<text x="{LEFT}" y="{top + 14}">{end - begin:.0f} seconds from the first job to the last</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + 24}" font-family="sans-serif" '
    return head + 'font-size="13">\n' + "\n".join(parts) + "\n</svg>\n"


def main() -> None:
    """Read the results' directory, write the picture."""
    directory, output = map(Path, sys.argv[1:])
    jobs = [json.loads(path.read_text()) for path in sorted(directory.rglob("*.json"))]
    output.write_text(draw(jobs))
    print("the ranks' sum is", round(sum(job["share"] for job in jobs if job["kind"] == "simulate"), 4))
    for node in sorted({job["node"] for job in jobs}):
        here = [f"{job['kind']} {job['number']} ({job['on']})" for job in jobs if job["node"] == node]
        print(f"{node}: {', '.join(here)}")


if __name__ == "__main__":
    main()
