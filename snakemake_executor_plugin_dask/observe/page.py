"""The report as one HTML page that stands alone: no network, nothing loaded, every text escaped. Pure; from a `RunModel`.

The browser is told by a content security policy to load nothing and to run no script but the one that is here.
"""

import base64
import hashlib
import html
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from snakemake_executor_plugin_dask.observe.advice import RuleUse, Spread, rule_uses, set_resources
from snakemake_executor_plugin_dask.observe.charts import use_charts
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.records import Attempt, Worker
from snakemake_executor_plugin_dask.observe.status import clean, clean_block, core_hours, count, rough, share
from snakemake_executor_plugin_dask.observe.timeline import bands, boxes
from snakemake_executor_plugin_dask.observe.use import Held, allocation_wait_s, integral, worker_use
from snakemake_executor_plugin_dask.units import format_memory

NOTHING = "\N{EN DASH}"
#: For the rules that held most; told apart with the common colour blindnesses, on light and dark ground. Red is for
#: failures.
COLOURS = ("#3b7dd8", "#e08a1e", "#2a9d78", "#b65fb5", "#c4a614", "#56b3d4", "#8a6d4b", "#6b63c9", "#7fae3b")
OTHER = "#9aa0a6"
FAILURES_SHOWN = 200
ALLOCATIONS_SHOWN = 500
RULES_SHOWN = 400
SAID_SHOWN = 500

STATES = {
    "failed": "failed",
    "out-of-time": "out of time",
    "out-of-memory": "out of memory",
    "lost": "lost its worker",
    "cancelled": "cancelled",
    "not-started": "not started",
}


def page(model: RunModel) -> str:
    """The whole page."""
    uses = rule_uses(model)
    colours = {use.rule: COLOURS[i] if i < len(COLOURS) else OTHER for i, use in enumerate(uses)}
    held = integral(model)
    style, script = (files(__package__).joinpath("templates", name).read_text() for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    sections = [
        _head(model),
        _tiles(model, held),
        _failures(model),
        _timeline(model, uses, colours),
        _use(model),
        _rules(uses, colours),
        _allocations(model),
        _said(model),
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
            "<footer>Made by snakemake-executor-plugin-dask from the event log of the run. Cores and memory of jobs are what they "
            "held; CPU is what their processes used.</footer>",
            f'</main><div id="tip" hidden></div><script type="application/json" id="data">{data}</script>',
            f"<script>{script}</script></body></html>\n",
        )
    )


def text(value: object, limit: int = 400) -> str:
    """Anything as one line of HTML text."""
    return html.escape(clean(str(value), limit))


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
        f'<div class="soft">{version_line}</div>{unfinished}'
    )


def _tiles(model: RunModel, held: Held) -> str:
    counts = model.counts()
    fates = [f"{counts['succeeded']:,} succeeded"]
    fates += [f"{counts['dropped']:,} not started"] if counts["dropped"] else []
    fates += [f"{counts['unfinished']:,} unfinished"] if counts["unfinished"] else []
    again = counts["attempts"] - counts["jobs"]
    tiles = [
        (f"{counts['jobs']:,}", f"jobs: {', '.join(fates)}", False),
        (f"{counts['failed']:,}", "jobs failed", counts["failed"] > 0),
        (f"{counts['attempts']:,}", f"attempts{f', {again:,} more than jobs' if again > 0 else ''}", False),
        (f"{counts['lost_workers']:,}", f"workers lost, of {len(model.workers):,}", counts["lost_workers"] > 0),
        (share(held.job_cores, held.cores), f"of {core_hours(held.cores)} core-hours held were used by jobs", False),
        (share(held.job_cpu, held.job_cores), "of the core time of jobs, their CPUs were at work", False),
    ]
    if model.allocations:
        tiles.append((rough(allocation_wait_s(model)), "waited for allocations", False))
    items = (
        f'<div class="tile{" bad" * bad}"><b>{text(big)}</b><span>{text(small)}</span></div>'
        for big, small, bad in tiles
    )
    return f'<div class="tiles">{"".join(items)}</div>'


def _failures(model: RunModel) -> str:
    failed = [a for a in model.attempts.values() if a.state == "ended" and a.status not in ("succeeded", "cancelled")]
    gone = [(pool.name, pool.given_up) for pool in model.pools.values() if pool.given_up]
    if not failed and not gone:
        return ""
    groups: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    for attempt in failed:
        groups[attempt.status, attempt.rule].append(attempt)
    parts = [
        f'<details open><summary><span class="tag">pool given up</span><b>{text(name)}</b></summary><pre>{block(why)}</pre></details>'
        for name, why in gone
    ]
    left = FAILURES_SHOWN
    # Lost workers last: their jobs ran again.
    for (status, rule), attempts in sorted(groups.items(), key=lambda item: (item[0][0] == "lost", -len(item[1]))):
        shown = attempts[: max(1, min(left, 20))]
        left -= len(shown)
        items = "".join(_failure(attempt) for attempt in shown)
        more = f"<p class='soft'>and {len(attempts) - len(shown):,} more</p>" if len(attempts) > len(shown) else ""
        reason = attempts[0].message or (f"exit code {attempts[0].exit_code}" if attempts[0].exit_code else "")
        why = f"; {'first: ' * (len(attempts) > 1)}{text(reason, 160)}" if reason else ""
        parts.append(
            f'<details{" open" * (len(failed) <= 3 and status != "lost")}><summary><span class="tag">'
            f"{text(STATES.get(status, status))}</span><b>{text(rule)}</b> "
            f'<span class="soft">{count(len(attempts), "attempt")}{why}</span></summary>{items}{more}</details>'
        )
    return f'<section class="long"><h2>Failures</h2>{"".join(parts)}</section>'


def _failure(attempt: Attempt) -> str:
    facts = [
        f"job {text(attempt.jobid)}, attempt {attempt.attempt}" + (f", run {attempt.run}" if attempt.run > 1 else "")
    ]
    if attempt.worker:
        facts.append(f"on {text(attempt.host or '?')} (worker {text(attempt.worker)})")
    if attempt.ran_s is not None:
        facts.append(f"after {rough(attempt.ran_s)}")
    if attempt.exit_code:
        facts.append(f"exit code {attempt.exit_code}")
    if attempt.signal:
        facts.append(f"signal {attempt.signal}")
    if attempt.peak_memory_mb:
        facts.append(f"peak memory {format_memory(round(attempt.peak_memory_mb))}")
    message = f"<br>{text(attempt.message, 2000)}" if attempt.message else ""
    log = f'<br><span class="soft">{text(attempt.log_path)}</span>' if attempt.log_path else ""
    tail = f"<pre>{block(attempt.log_tail)}</pre>" if attempt.log_tail.strip() else ""
    return f"<p>{', '.join(facts)}{message}{log}</p>{tail}"


def block(value: str) -> str:
    """Text of several lines as HTML; as much as a log's tail may hold."""
    return html.escape(clean_block(value).rstrip()[-4096:])


def _timeline(model: RunModel, uses: Sequence[RuleUse], colours: dict[str, str]) -> str:
    if not model.workers:
        return '<section><h2>What ran where</h2><p class="soft">No worker came up.</p><canvas id="timeline" hidden></canvas><button id="reset" hidden></button></section>'
    chips = [
        f'<button type="button" data-rule="{i}" aria-pressed="false"><i class="swatch" data-colour="{i}"></i>{text(use.rule, 60)}</button>'
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
        '<section><div class="row"><h2>What ran where</h2><button type="button" class="plain" id="reset" hidden>Show the whole run</button></div>'
        '<p class="soft">A band is a worker, as high as it has cores; time runs from the start of the run. Drag to look closer, '
        f'click on a rule to see it alone.</p><div class="legend">{"".join(chips)}</div>'
        f'<canvas id="timeline" role="img" aria-label="Timeline of {count(len(model.workers), "worker")} and their jobs"></canvas>'
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
        '<span><i class="swatch line"></i>used by their processes (CPU: mean of each attempt, memory: its peak)</span></div>'
        f"{charts}</section>"
    )


def _rules(uses: Sequence[RuleUse], colours: dict[str, str]) -> str:
    if not uses:
        return ""
    rows = []
    for i, use in enumerate(uses[:RULES_SHOWN]):
        swatch = f'data-colour="{i}"' if colours[use.rule] != OTHER else ""
        rows.append(
            f'<tr><td class="name"><i class="swatch{"" if swatch else " other"}" {swatch}></i>{text(use.rule)}</td>'
            + cell(f"{use.jobs:,}")
            + cell(f'<span class="{"bad-text" if use.failed else ""}">{use.failed:,}</span>')
            + cell(f"{_range(use.cores, str)}{f', {use.gpus} GPU' if use.gpus else ''}")
            + cell(
                share(use.cpu_efficiency or 0.0, 1.0) if use.cpu_efficiency is not None else NOTHING, use.cpu_efficiency
            )
            + cell(_range(use.asked_memory_mb, lambda mb: format_memory(round(mb))))
            + cell(_used(use.memory_mb, lambda mb: format_memory(round(mb))), _part(use.memory_mb, use.asked_memory_mb))
            + cell(_range(use.asked_runtime_s, rough))
            + cell(_used(use.runtime_s, rough), _part(use.runtime_s, use.asked_runtime_s))
            + cell(core_hours(use.core_s))
            + "</tr>"
        )
    more = f'<p class="soft">and {len(uses) - RULES_SHOWN} more rules</p>' if len(uses) > RULES_SHOWN else ""
    heads = (
        *("jobs", "failed<br>attempts", "cores", "CPU<br>at work", "memory<br>asked", "peak: median,<br>largest"),
        *("runtime<br>asked", "ran: median,<br>longest", "core-<br>hours"),
    )
    head = "".join(f'<th class="num">{name}</th>' for name in heads)
    advice = set_resources(uses)
    suggested = (
        '<div class="row"><h3>To ask for next time</h3><button type="button" class="plain" id="copy">Copy</button></div>'
        '<p class="soft">For a Snakemake profile. Memory is the largest peak and 20 %, runtime the longest and 50 % '
        "(of fewer than five jobs 50 % and 100 %). Values that differ between the jobs of a rule are left out.</p>"
        f'<pre id="resources">{html.escape(clean_block(advice))}</pre>'
        if advice
        else '<p class="soft">What the rules ask for fits what they used: nothing to change.</p>'
    )
    return (
        '<section class="long"><h2>Asked for and used, by rule</h2><p class="soft">Bars: the largest value used of what was asked.</p>'
        f'<div class="scroll"><table><thead><tr><th>rule</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f"{more}{suggested}</section>"
    )


def cell(content: str, part: float | None = None) -> str:
    """A number's cell, with a meter of a part of one where it is given."""
    meter = ""
    if part is not None:
        over = " over" if part > 1.0 else ""
        meter = f'<span class="meter{over}"><i style="width:{min(part, 1.0):.0%}"></i></span>'
    return f'<td class="num">{content}{meter}</td>'


def _range(values: Spread | None, show: Any) -> str:
    if values is None:
        return NOTHING
    least, most = show(values.least), show(values.most)
    return str(least) if least == most else f"{least} to {most}"


def _used(values: Spread | None, show: Any) -> str:
    return NOTHING if values is None else f"{show(values.middle)}, {show(values.most)}"


def _part(used: Spread | None, asked: Spread | None) -> float | None:
    return None if used is None or asked is None or not asked.most else used.most / asked.most


def _allocations(model: RunModel) -> str:
    if not model.workers and not model.allocations:
        return ""
    rows = list(_allocation_rows(model))
    more = f'<p class="soft">and {len(rows) - ALLOCATIONS_SHOWN:,} more</p>' if len(rows) > ALLOCATIONS_SHOWN else ""
    heads = ("asked for at", "queued for", "start-up", "held for", "core-hours<br>held", "used by<br>jobs", "attempts")
    head = "".join(f'<th class="num">{name}</th>' for name in heads)
    return (
        '<section class="long"><h2>Workers and their allocations</h2><div class="scroll"><table><thead><tr><th>worker</th>'
        f"<th>pool</th><th>allocation</th>{head}<th>end</th></tr></thead><tbody>"
        f"{''.join(rows[:ALLOCATIONS_SHOWN])}</tbody></table></div>{more}</section>"
    )


def _allocation_rows(model: RunModel) -> Iterable[str]:
    start, end = model.started or 0.0, model.end_time
    workers: dict[str, Worker] = {worker.name: worker for worker in model.workers}
    used = worker_use(model)
    for allocation in model.allocations:
        worker = workers.pop(allocation.worker, None)
        until = allocation.gone if allocation.gone is not None else end
        ran = None if allocation.running is None else until - allocation.running
        came = worker is not None and allocation.running is not None
        row = [
            rough(allocation.submitted - start),
            rough(allocation.queue_s(end)),
            rough(worker.joined - allocation.running)
            if came and worker and allocation.running is not None
            else NOTHING,
            NOTHING if ran is None else rough(ran),
        ]
        reason = allocation.reason
        if worker is not None and worker.state in ("lost", "left"):
            reason = (
                f"lost: {worker.why}; {reason}"
                if worker.state == "lost" and not worker.planned
                else worker.why or reason
            )
        yield _worker_row(allocation.worker, allocation.pool, allocation.id, row, worker, ran, used, reason)
    for worker in workers.values():
        held_s = (worker.gone or end) - worker.joined
        row = [rough(worker.joined - start), NOTHING, NOTHING, rough(held_s)]
        yield _worker_row(worker.name, worker.pool, "", row, worker, held_s, used, worker.why)


def _worker_row(
    name: str,
    pool: str,
    allocation: str,
    times: Sequence[str],
    worker: Worker | None,
    held_s: float | None,
    used: dict[str, float],
    reason: str,
) -> str:
    cores = worker.cores if worker else 0
    held = cores * (held_s or 0.0)
    part = used.get(name, 0.0) / held if held else None
    cells = "".join(cell(text(value)) for value in times)
    cells += cell(core_hours(held) if held else NOTHING) + cell(share(part, 1.0) if part is not None else NOTHING, part)
    cells += cell(f"{worker.attempts:,}" if worker else "0")
    bad = ' class="bad-text"' if worker is None or (worker.state == "lost" and not worker.planned) else ""
    return (
        f'<tr><td class="name">{text(name, 60)}</td><td>{text(pool, 60)}</td><td>{text(allocation, 40)}</td>{cells}'
        f"<td{bad}>{text(reason, 160)}</td></tr>"
    )


def _said(model: RunModel) -> str:
    if not model.said:
        return ""
    start = model.started or 0.0
    lines = [f"{rough(when - start):>8}  {clean(line, 2000)}" for when, _, line in model.said[-SAID_SHOWN:]]
    return (
        f'<section class="long"><details><summary><b>What was said</b> <span class="soft">{count(len(model.said), "line")}'
        f"</span></summary><pre>{html.escape(chr(10).join(lines))}</pre></details></section>"
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
            ids.append(clean(f"{attempt.jobid}{f', run {attempt.run}' if attempt.run > 1 else ''}", 80))
        placed = attempt.placed or start
        length = (attempt.ended if attempt.ended is not None else model.end_time) - placed
        flat += [box.worker, box.low, box.height, round((placed - start) * 10), round(length * 10)]
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
    }
