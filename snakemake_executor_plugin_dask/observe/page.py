"""The report as one HTML page that stands alone: nothing is loaded, every text escaped. Pure; from a `RunModel`.

The browser is told by a content security policy to load nothing and to run no script but the one that is here.
"""

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from snakemake_executor_plugin_dask.model.units import format_memory
from snakemake_executor_plugin_dask.observe.advice import RuleUse, rule_uses
from snakemake_executor_plugin_dask.observe.attempts import jobs_data, jobs_section
from snakemake_executor_plugin_dask.observe.charts import use_charts
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.tables import STATES, allocations, failures, rules, said, text
from snakemake_executor_plugin_dask.observe.timeline import bands, boxes
from snakemake_executor_plugin_dask.observe.use import Held, allocation_wait_s, integral
from snakemake_executor_plugin_dask.observe.wording import (
    clean,
    core_times,
    count,
    members_text,
    rough,
    share,
    short_id,
    starts,
    wildcard_text,
)

#: For the rules that held most; told apart with the common colour blindnesses, on light and dark ground. Red is for
#: failures.
COLOURS = ("#3b7dd8", "#e08a1e", "#2a9d78", "#b65fb5", "#c4a614", "#56b3d4", "#8a6d4b", "#6b63c9", "#7fae3b")
OTHER = "#9aa0a6"
_SCRIPTS = ("words.js", "jobs.js", "report.js")


def page(model: RunModel) -> str:
    """The whole page."""
    uses = rule_uses(model)
    colours = {use.rule: COLOURS[i] if i < len(COLOURS) else OTHER for i, use in enumerate(uses)}
    held = integral(model)
    templates = files(__package__).joinpath("templates")
    style, script = (
        templates.joinpath("report.css").read_text(),
        "".join(templates.joinpath(name).read_text() for name in _SCRIPTS),
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    sections = [
        _head(model),
        _tiles(model, held),
        failures(model),
        _timeline(model, uses, colours),
        _use(model),
        rules(uses, len(COLOURS)),
        jobs_section(model),
        allocations(model),
        said(model),
    ]
    data = json.dumps(_data(model, uses, colours), separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Run {text(model.run_id)}</title>",
            f"<style>\n{style}</style></head><body><main>",
            *sections,
            "<footer>Made from the run's event log. Cores of jobs are what they held, CPU is what they used.</footer>",
            f'</main><div id="tip" hidden></div><script type="application/json" id="data">{data}</script>',
            f"<script>{script}</script></body></html>\n",
        )
    )


def _head(model: RunModel) -> str:
    start, end = model.started or 0.0, model.end_time
    when = time.strftime("%-d %B %Y, %H:%M", time.localtime(start))
    facts = [f"{when}, for {rough(end - start)}"]
    facts += [f"on {text(model.facts['host'])}"] if model.facts.get("host") else []
    facts += [f"in {text(model.facts['workdir'])}"] if model.facts.get("workdir") else []
    versions = model.facts.get("versions") or {}
    version_line = ", ".join(f"{text(name)} {text(version)}" for name, version in versions.items())
    unfinished = (
        ""
        if model.ended is not None
        else (
            '<p class="bad-text">The event log ends before the run does: it was killed, or still goes on. '
            "The figures are those up to there.</p>"
        )
    )
    return (
        f'<h1>Run {text(model.run_id)}</h1><div class="soft">{"; ".join(facts)}</div>'
        f'<div class="soft">{version_line}</div>'
        f'<div class="soft">{"<br>".join(text(line, 600) for line in starts(model.starts))}</div>{unfinished}'
    )


def _tiles(model: RunModel, held: Held) -> str:
    counts = model.counts()
    fates = [f"{counts['succeeded']:,} succeeded"]
    fates += [f"{counts['stopped']:,} stopped"] if counts["stopped"] else []
    fates += [f"{counts['dropped']:,} not started"] if counts["dropped"] else []
    fates += [f"{counts['unfinished']:,} unfinished"] if counts["unfinished"] else []
    again = counts["attempts"] - counts["jobs"]
    tiles = [
        (f"{counts['jobs']:,}", f"jobs: {', '.join(fates)}", False),
        (f"{counts['failed']:,}", "jobs failed", counts["failed"] > 0),
        (f"{counts['attempts']:,}", f"attempts{f', {again:,} more than jobs' if again > 0 else ''}", False),
        (f"{counts['lost_workers']:,}", f"workers lost, of {len(model.workers):,}", counts["lost_workers"] > 0),
        (share(held.job_cores, held.cores), f"of {core_times(held.cores)} held were used by jobs", False),
        (share(held.job_cpu, held.job_cores), "of the core time of jobs, their CPUs were at work", False),
    ]
    if any(model.pools[allocation.pool].batch for allocation in model.allocations):
        tiles.append((rough(allocation_wait_s(model)), "waited for allocations", False))
    items = (
        f'<div class="tile{" bad" * bad}"><b>{text(big)}</b><span>{text(small)}</span></div>'
        for big, small, bad in tiles
    )
    return f'<div class="tiles">{"".join(items)}</div>'


def _timeline(model: RunModel, uses: Sequence[RuleUse], colours: dict[str, str]) -> str:
    if not model.workers:
        return (
            '<section><h2>What ran where</h2><p class="soft">No worker came up.</p>'
            '<canvas id="timeline" hidden></canvas><button id="reset" hidden></button></section>'
        )
    chips = [
        f'<button type="button" data-rule="{i}" aria-pressed="false">'
        f'<i class="swatch" data-colour="{i}"></i>{text(use.rule, 60)}</button>'
        for i, use in enumerate(uses)
        if colours[use.rule] != OTHER
    ]
    if len(uses) > len(chips):
        chips.append(
            f'<button type="button"><i class="swatch other"></i>{count(len(uses) - len(chips), "other rule")}</button>'
        )
    failed = any(a.state == "ended" and a.status != "succeeded" for a in model.attempts.values())
    chips += ['<button type="button"><i class="swatch fail"></i>did not succeed</button>'] if failed else []
    swatches = "".join(f'.swatch[data-colour="{i}"]{{background:{colour}}}' for i, colour in enumerate(COLOURS))
    return (
        f"<style>{swatches}.swatch.other{{background:{OTHER}}}</style>"
        '<section><div class="row"><h2>What ran where</h2>'
        '<button type="button" class="plain" id="reset" hidden>Show the whole run</button></div>'
        '<p class="soft">A band is a worker, as high as it has cores; time runs from the start of the run. '
        "Drag to look closer, "
        f'click on a rule to see it alone.</p><div class="legend">{"".join(chips)}</div>'
        f'<canvas id="timeline" role="img" aria-label="{count(len(model.workers), "worker")} and their jobs over time">'
        "</canvas>"
        '<noscript><p class="soft">This picture needs JavaScript; the tables below do not.</p></noscript></section>'
    )


def _use(model: RunModel) -> str:
    charts = use_charts(model)
    if not charts:
        return ""
    return (
        '<section class="long"><h2>Use over time</h2><div class="legend soft">'
        '<span><i class="swatch" style="background:var(--held)"></i>held by workers&ensp;</span>'
        '<span><i class="swatch" style="background:var(--used)"></i>held by jobs&ensp;</span>'
        '<span><i class="swatch line"></i>used by their processes (CPU: mean of each attempt, memory: its peak)</span>'
        "</div>"
        f"{charts}</section>"
    )


def _data(model: RunModel, uses: Sequence[RuleUse], colours: dict[str, str]) -> dict[str, Any]:
    """What the timeline is drawn from."""
    start = model.started or 0.0
    rules = {use.rule: i for i, use in enumerate(uses)}
    states = ["", *STATES.values()]
    numbers = {status: i for i, status in enumerate(STATES, 1)}
    ids: list[str] = []
    seen: dict[str, int] = {}
    flat: list[int] = []
    for box in boxes(model):
        attempt = box.attempt
        if attempt.key not in seen:
            seen[attempt.key] = len(ids)
            again = f", run {attempt.run}" if attempt.run > 1 else ""
            named = members_text(attempt) if attempt.members else wildcard_text(attempt.wildcards)
            which = f" ({named})" if named else ""
            ids.append(clean(f"{short_id(attempt.jobid)}{again}{which}", 120))
        # Both ends are rounded, not the length: neighbours must not overlap.
        since = round(((attempt.placed or start) - start) * 1000)
        until = round(((attempt.ended if attempt.ended is not None else model.end_time) - start) * 1000)
        flat += [box.worker, box.low, box.height, since, until - since]
        flat += [rules[attempt.rule], numbers.get(attempt.status, 0), seen[attempt.key]]
    return {
        "length": max(1.0, model.end_time - start),
        "workers": [
            {
                "name": clean(worker.name, 60),
                "from": round(worker.joined - start, 1),
                "to": round((worker.gone if worker.gone is not None else model.end_time) - start, 1),
                "cores": max(1, worker.cores),
                "lost": worker.state == "lost" and not worker.planned,
                "about": clean(f"{worker.host}, {count(worker.cores, 'core')}, {format_memory(worker.memory_mb)}"),
            }
            for worker in bands(model)
        ],
        "rules": [clean(use.rule, 200) for use in uses],
        "colours": [colours[use.rule] for use in uses],
        "states": states,
        "ids": ids,
        "boxes": flat,
        "jobs": jobs_data(model),
    }
