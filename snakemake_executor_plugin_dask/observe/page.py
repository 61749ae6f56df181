"""The report as one HTML page that stands alone: nothing is loaded, every text escaped. From a `RunModel`.

What is shown is made here and in `tables`, how it is laid out stands in `templates/report.html`; Jinja escapes it all.

The browser is told by a content security policy to load nothing and to run no script but the one that is here.
"""

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from snakemake_executor_plugin_dask.model.units import count, format_memory
from snakemake_executor_plugin_dask.observe import tables
from snakemake_executor_plugin_dask.observe.advice import RuleUse, rule_uses
from snakemake_executor_plugin_dask.observe.charts import use_charts
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.timeline import bands, boxes
from snakemake_executor_plugin_dask.observe.use import Held, allocation_wait_s, integral, others_spans
from snakemake_executor_plugin_dask.observe.wording import (
    clean,
    core_times,
    named,
    rough,
    share,
    short_id,
    starts,
)

#: For the rules that held most; told apart with the common colour blindnesses, on light and dark ground. Red is for
#: failures.
COLOURS = ("#3b7dd8", "#e08a1e", "#2a9d78", "#b65fb5", "#c4a614", "#56b3d4", "#8a6d4b", "#6b63c9", "#7fae3b")
OTHER = "#9aa0a6"
_SCRIPTS = ("words.js", "jobs.js", "report.js")


def page(model: RunModel) -> str:
    """The whole page."""
    # Not at the start of each command for people.
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    uses = rule_uses(model)
    colours = {use.rule: COLOURS[i] if i < len(COLOURS) else OTHER for i, use in enumerate(uses)}
    templates = files(__package__).joinpath("templates")
    script = "".join(templates.joinpath(name).read_text() for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = json.dumps(_data(model, uses, colours), separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    own = {  # nothing of it is from the run, but for the data, in which no tag can begin
        "policy": f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'",
        "style": templates.joinpath("report.css").read_text(),
        "script": script,
        "data": data,
        "charts": use_charts(model),
    }
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"text": _text, "block": tables.block, "count": count}
    return environment.from_string(templates.joinpath("report.html").read_text()).render(
        {name: Markup(text) for name, text in own.items()},  # noqa: S704
        run=_run(model),
        tiles=_tiles(model, integral(model)),
        **tables.failures(model),
        colours=COLOURS,
        other_colour=OTHER,
        workers_came=len(model.workers),
        legend=[use.rule for use in uses if colours[use.rule] != OTHER],
        other_rules=max(0, len(uses) - len(COLOURS)),
        some_failed=any(a.state == "ended" and a.status != "succeeded" for a in model.attempts.values()),
        **tables.rules(uses),
        **tables.jobs_table(model),
        **tables.workers(model),
        **tables.said(model),
    )


def _text(value: object, limit: int = 400) -> str:
    """Anything as one line."""
    return clean(str(value), limit)


def _run(model: RunModel) -> dict[str, Any]:
    start, end = model.started or 0.0, model.end_time
    when = time.strftime("%-d %B %Y, %H:%M", time.localtime(start))
    facts = [f"{when}, for {rough(end - start)}"]
    facts += [f"on {_text(model.facts['host'])}"] if model.facts.get("host") else []
    facts += [f"in {_text(model.facts['workdir'])}"] if model.facts.get("workdir") else []
    versions = model.facts.get("versions") or {}
    return {
        "id": model.run_id,
        "facts": facts,
        "versions": [f"{_text(name)} {_text(version)}" for name, version in versions.items()],
        "starts": starts(model.starts),
        "ended": model.ended is not None,
    }


def _tiles(model: RunModel, held: Held) -> list[tuple[str, str, bool]]:
    """Large figures, each with what it means and whether it is bad."""
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
    if others_s := sum((end - start) * others.cores for start, end, others in others_spans(model)):
        tiles.append((core_times(others_s), "of the same workers were used by other runs", False))
    if any(model.pools[allocation.pool].batch for allocation in model.allocations):
        tiles.append((rough(allocation_wait_s(model)), "waited for allocations", False))
    return tiles


def _data(model: RunModel, uses: Sequence[RuleUse], colours: dict[str, str]) -> dict[str, Any]:
    """What the timeline is drawn from."""
    start = model.started or 0.0
    rules = {use.rule: i for i, use in enumerate(uses)}
    states = ["", *tables.STATES.values()]
    numbers = {status: i for i, status in enumerate(tables.STATES, 1)}
    ids: list[str] = []
    seen: dict[str, int] = {}
    flat: list[int] = []
    for box in boxes(model):
        attempt = box.attempt
        if attempt.key not in seen:
            seen[attempt.key] = len(ids)
            again = f", run {attempt.run}" if attempt.run > 1 else ""
            which = f" ({text})" if (text := named(attempt)) else ""
            number = sum(attempt.dask_workers.values())
            own = f", {count(number, 'Dask worker')}" if number else ""
            where = f", allocation {attempt.allocation}" if attempt.allocation else ""
            ids.append(f"{clean(f'{short_id(attempt.jobid)}{again}{which}', 120)}{own}{clean(where, 60)}")
        # Both ends are rounded, not the length: neighbours must not overlap.
        since = round((box.since - start) * 1000)
        until = round((box.until - start) * 1000)
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
        "jobs": tables.jobs_data(model),
    }
