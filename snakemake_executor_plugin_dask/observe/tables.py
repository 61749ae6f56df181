"""The tables of the report page: failures, rules, allocations, what was said. Pure; every text is escaped."""

import html
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from snakemake_executor_plugin_dask.model.printed import clean_block
from snakemake_executor_plugin_dask.observe.advice import RuleUse, Spread, set_resources
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.records import Allocation, Attempt, Worker
from snakemake_executor_plugin_dask.observe.use import worker_use
from snakemake_executor_plugin_dask.observe.wording import (
    clean,
    core_time,
    count,
    members_text,
    rough,
    share,
    short_id,
    short_memory,
    wildcard_text,
)

NOTHING = "\N{EN DASH}"
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


def text(value: object, limit: int = 400) -> str:
    """Anything as one line of HTML text."""
    return html.escape(clean(str(value), limit))


def failures(model: RunModel) -> str:
    failed = [a for a in model.attempts.values() if a.state == "ended" and a.status not in ("succeeded", "cancelled")]
    gone = [(pool.name, pool.given_up) for pool in model.pools.values() if pool.given_up]
    if not failed and not gone:
        return ""
    groups: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    for attempt in failed:
        groups[attempt.status, attempt.rule].append(attempt)
    parts = [
        f'<details open><summary><span class="tag">pool given up</span><b>{text(name)}</b></summary>'
        f"<pre>{block(why)}</pre></details>"
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
    named = f"<b>{text(wildcard_text(attempt.wildcards))}</b>, " if attempt.wildcards else ""
    facts = [
        f"{named}job {text(short_id(attempt.jobid))}, attempt {attempt.attempt}"
        + (f", run {attempt.run}" if attempt.run > 1 else "")
    ]
    if attempt.members:
        facts.append(f"of {text(members_text(attempt, 10), 1000)}")
    if attempt.worker:
        where = f", allocation {text(attempt.allocation)}" if attempt.allocation else ""
        facts.append(f"on {text(attempt.host or '?')} (worker {text(attempt.worker)}{where})")
    if attempt.ran_s is not None:
        facts.append(f"after {rough(attempt.ran_s)}")
    if attempt.exit_code and not attempt.message:  # which names that of the command, and not of its Snakemake
        facts.append(f"exit code {attempt.exit_code}")
    if attempt.signal:
        facts.append(f"signal {attempt.signal}")
    if attempt.peak_memory_mb:
        facts.append(f"peak memory {short_memory(attempt.peak_memory_mb)}")
    message = f"<br>{text(attempt.message, 2000)}" if attempt.message else ""
    log = f'<br><span class="soft">{text(attempt.log_path)}</span>' if attempt.log_path else ""
    tails = "".join(
        f'<p class="soft">{text(path)}</p><pre>{block(tail)}</pre>' for path, tail in attempt.rule_logs if tail.strip()
    )
    tails += f"<pre>{block(attempt.log_tail)}</pre>" if attempt.log_tail.strip() else ""
    return f"<p>{', '.join(facts)}{message}{log}</p>{tails}"


def block(value: str) -> str:
    """Text of several lines as HTML; as much as a log's tail may hold."""
    return html.escape(clean_block(value).rstrip()[-4096:])


def rules(uses: Sequence[RuleUse], coloured: int) -> str:
    """The first ``coloured`` of them have a colour of their own."""
    if not uses:
        return ""
    rows = []
    for i, use in enumerate(uses[:RULES_SHOWN]):
        swatch = f'data-colour="{i}"' if i < coloured else ""
        rows.append(
            f'<tr><td class="name"><i class="swatch{"" if swatch else " other"}" {swatch}></i>{text(use.rule)}</td>'
            + cell(f"{use.jobs:,}")
            + cell(f'<span class="{"bad-text" if use.failed else ""}">{use.failed:,}</span>')
            + cell(f"{_range(use.cores, str)}{f', {use.gpus} GPU' if use.gpus else ''}")
            + cell(
                share(use.cpu_efficiency or 0.0, 1.0) if use.cpu_efficiency is not None else NOTHING, use.cpu_efficiency
            )
            + cell(_range(use.asked_memory_mb, short_memory))
            + cell(_used(use.memory_mb, short_memory), _part(use.memory_mb, use.asked_memory_mb))
            + cell(_range(use.asked_runtime_s, rough))
            + cell(_used(use.runtime_s, rough), _part(use.runtime_s, use.asked_runtime_s))
            + cell(core_time(use.core_s))
            + "</tr>"
        )
    more = f'<p class="soft">and {len(uses) - RULES_SHOWN} more rules</p>' if len(uses) > RULES_SHOWN else ""
    heads = (
        *("jobs", "failed<br>attempts", "cores", "CPU<br>at work", "memory<br>asked", "peak: median,<br>95 %, largest"),
        *("runtime<br>asked", "ran: median,<br>95 %, longest", "core<br>time"),
    )
    head = "".join(f'<th class="num">{name}</th>' for name in heads)
    advice = set_resources(uses)
    suggested = (
        '<div class="row"><h3>To ask for next time</h3>'
        '<button type="button" class="plain" id="copy">Copy</button></div>'
        '<p class="soft">For a Snakemake profile. Memory is the largest peak and 20 %, runtime the longest and 50 % '
        "(of fewer than five jobs 50 % and 100 %), never below 250 MB and 5 minutes. "
        "Values that differ between the jobs of a rule are left out.</p>"
        f'<pre id="resources">{html.escape(clean_block(advice))}</pre>'
        if advice
        else '<p class="soft">What the rules ask for fits what they used: nothing to change.</p>'
    )
    return (
        '<section class="long"><h2>Asked for and used, by rule</h2>'
        '<p class="soft">Bars: the largest value used of what was asked.</p><div class="scroll"><table>'
        f"<thead><tr><th>rule</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
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
    least, most = html.escape(show(values.least)), html.escape(show(values.most))
    return str(least) if least == most else f"{least} to {most}"


def _used(values: Spread | None, show: Any) -> str:
    return NOTHING if values is None else html.escape(", ".join(map(show, (values.middle, values.high, values.most))))


def _part(used: Spread | None, asked: Spread | None) -> float | None:
    return None if used is None or asked is None or not asked.most else used.most / asked.most


def allocations(model: RunModel) -> str:
    if not model.workers and not model.allocations:
        return ""
    # What is started on this machine, or by a launcher, has waited in no queue.
    batch = any(model.pools[allocation.pool].batch for allocation in model.allocations)
    rows = list(_allocation_rows(model, batch=batch))
    more = f'<p class="soft">and {len(rows) - ALLOCATIONS_SHOWN:,} more</p>' if len(rows) > ALLOCATIONS_SHOWN else ""
    heads = ["asked for at", *["queued for"] * batch]
    heads += ["start-up", "held for", "core time<br>held", "used by<br>jobs", "attempts"]
    head = "".join(f'<th class="num">{name}</th>' for name in heads)
    names = "<th>worker</th><th>pool</th>" + "<th>allocation</th>" * batch
    return (
        f'<section class="long"><h2>Workers{" and their allocations" * batch}</h2><div class="scroll"><table><thead>'
        f"<tr>{names}{head}<th>end</th></tr></thead><tbody>"
        f"{''.join(rows[:ALLOCATIONS_SHOWN])}</tbody></table></div>{more}</section>"
    )


def _allocation_rows(model: RunModel, *, batch: bool) -> Iterable[str]:
    start, now = model.started or 0.0, model.end_time
    workers: dict[str, Worker] = {worker.name: worker for worker in model.workers}
    used = worker_use(model)
    for allocation in model.allocations:
        worker = workers.pop(allocation.worker, None)
        queues = model.pools[allocation.pool].batch
        until = allocation.gone if allocation.gone is not None else now
        ran = None if allocation.running is None else until - allocation.running
        begun = allocation.running if queues else allocation.submitted
        row = [rough(allocation.submitted - start)]
        if batch:
            row.append(rough(allocation.queue_s(now)) if queues else NOTHING)
        row.append(rough(max(0.0, worker.joined - begun)) if worker is not None and begun is not None else NOTHING)
        row.append(NOTHING if ran is None else rough(ran))
        names = [allocation.worker, allocation.pool, *[allocation.id if queues else NOTHING] * batch]
        end, bad = _end_of(allocation, worker, over=model.ended is not None)
        yield _worker_row(names, row, worker, ran, used.get(allocation.worker, 0.0), end=end, bad=bad)
    for worker in workers.values():
        held_s = (worker.gone or now) - worker.joined
        row = [rough(worker.joined - start), *[NOTHING] * batch, NOTHING, rough(held_s)]
        names = [worker.name, worker.pool, *[NOTHING] * batch]
        lost = worker.state == "lost" and not worker.planned
        yield _worker_row(names, row, worker, held_s, used.get(worker.name, 0.0), end=worker.why, bad=lost)


def _end_of(allocation: Allocation, worker: Worker | None, *, over: bool) -> tuple[str, bool]:
    """How it ended, and whether that was a failure. ``over``: the run has ended."""
    if worker is not None:
        if worker.state == "lost" and not worker.planned:
            reasons = dict.fromkeys(part for part in (worker.why, allocation.reason) if part and part != "lost")
            return "lost: " + "; ".join(reasons), True
        return worker.why or (allocation.reason if allocation.gone is not None else ""), False
    if allocation.called_back:
        return f"called back: {allocation.called_back}", False
    if allocation.gone is not None:
        return allocation.reason or "ended before its worker had joined", True
    if over:
        return "called back at the end of the run", False
    return allocation.reason, False


def _worker_row(
    names: Sequence[str],
    times: Sequence[str],
    worker: Worker | None,
    held_s: float | None,
    used_s: float,
    *,
    end: str,
    bad: bool,
) -> str:
    """``names`` of worker, pool, allocation; ``used_s`` core-seconds that jobs held; ``end`` says how it ended."""
    cores = worker.cores if worker else 0
    held = cores * (held_s or 0.0)
    part = used_s / held if held else None
    cells = "".join(cell(text(value)) for value in times)
    cells += cell(core_time(held) if held else NOTHING) + cell(share(part, 1.0) if part is not None else NOTHING, part)
    cells += cell(f"{worker.attempts:,}" if worker else "0")
    first, *others = names
    colour = ' class="bad-text"' if bad else ""
    return (
        f'<tr><td class="name">{text(first, 60)}</td>{"".join(f"<td>{text(name, 60)}</td>" for name in others)}'
        f"{cells}<td{colour}>{text(end, 160)}</td></tr>"
    )


def said(model: RunModel) -> str:
    if not model.said:
        return ""
    start = model.started or 0.0
    lines = [f"{rough(when - start):>8}  {clean(line, 2000)}" for when, _, line in model.said[-SAID_SHOWN:]]
    return (
        f'<section class="long"><details><summary><b>What was said</b> '
        f'<span class="soft">{count(len(model.said), "line")}</span></summary>'
        f"<pre>{html.escape(chr(10).join(lines))}</pre></details></section>"
    )
