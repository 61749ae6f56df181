"""The report of a run: a page for people (`.html`), or data (`.tsv`, one line an attempt; `.json`). Writes one file."""

import csv
import io
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.jobs import wildcard_text
from snakemake_executor_plugin_dask.model.options import REPORT_ENDINGS
from snakemake_executor_plugin_dask.observe.advice import rule_uses, set_resources
from snakemake_executor_plugin_dask.observe.events import SCHEMA_VERSION, plain
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.page import page
from snakemake_executor_plugin_dask.observe.records import Attempt
from snakemake_executor_plugin_dask.observe.use import Held, allocation_wait_s, integral, others_spans, steps
from snakemake_executor_plugin_dask.observe.wording import clean

#: Columns of the table, with how each is made. Times are seconds since the epoch, durations seconds, memory 10^6 bytes.
COLUMNS: dict[str, Callable[[Attempt], Any]] = {
    "rule": lambda a: a.rule,
    "wildcards": lambda a: wildcard_text(a.wildcards),
    "jobid": lambda a: a.jobid,
    "attempt": lambda a: a.attempt,
    "run": lambda a: a.run,
    "status": lambda a: a.status or a.state,
    "pool": lambda a: a.pool,
    "worker": lambda a: ",".join(a.workers),
    "host": lambda a: a.host,
    "allocation": lambda a: a.allocation,
    "start": lambda a: a.start,
    "start_depth": lambda a: a.start_depth,
    "start_reason": lambda a: a.start_reason,
    "queued": lambda a: a.queued,
    "placed": lambda a: a.placed,
    "started": lambda a: a.started,
    "ended": lambda a: a.ended,
    "waited_s": lambda a: None if a.placed is None else round(a.placed - a.queued, 3),
    "ran_s": lambda a: None if a.ran_s is None else round(a.ran_s, 3),
    "runtime_s": lambda a: a.runtime_s,
    "cores": lambda a: a.cores,
    "dask_workers": lambda a: sum(a.dask_workers.values()),
    "cpu_s": lambda a: a.cpu_s,
    "cpu_efficiency": lambda a: None if a.cpu_efficiency is None else round(a.cpu_efficiency, 4),
    "mem_mb": lambda a: a.asked_memory_mb,
    "held_memory_mb": lambda a: a.memory_total_mb if a.placed is not None else None,
    "input_mb": lambda a: a.input_mb,
    "peak_memory_mb": lambda a: a.peak_memory_mb,
    "gpus": lambda a: a.gpus,
    "devices": lambda a: ",".join(a.devices),
    "exit_code": lambda a: a.exit_code,
    "signal": lambda a: a.signal,
    "message": lambda a: a.message,
    "log": lambda a: a.log_path,
    "key": lambda a: a.key,
}


def write_report(model: RunModel, path: str | os.PathLike[str]) -> None:
    """Write the report that the ending of ``path`` asks for; the file is complete or not there.

    Raises OSError, and ConfigurationError where no report has such an ending.
    """
    target = Path(path)
    if target.suffix.lower() not in REPORT_ENDINGS:
        msg = f"No report can be written to {path}: the file's ending says what is written; use .html, .tsv or .json."
        raise ConfigurationError(msg)
    makers = {".tsv": tsv, ".json": json_text}
    text = makers.get(target.suffix.lower(), page)(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Others may be able to write there, and could have put a link under a name that they can guess.
    new = target.with_name(f".report.{secrets.token_hex(8)}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def tsv(model: RunModel) -> str:
    """A table with one line for each attempt, in the order in which they were queued."""
    out = io.StringIO()
    writer = csv.writer(out, dialect="excel-tab", lineterminator="\n")
    writer.writerow(COLUMNS)
    for attempt in model.attempts.values():
        values = (make(attempt) for make in COLUMNS.values())
        writer.writerow([clean(value, 10_000) if isinstance(value, str) else value for value in values])
    return out.getvalue()


def json_text(model: RunModel) -> str:
    """Everything that the page shows, as data."""
    uses = rule_uses(model)
    held = integral(model)
    changes = steps(model)
    data = {
        "schema": SCHEMA_VERSION,
        "run": {
            "id": model.run_id,
            "started": model.started,
            "ended": model.end_time,
            "complete": model.ended is not None,
            **{name: model.facts.get(name) for name in ("host", "workdir", "versions", "options")},
        },
        "figures": {
            **model.counts(),
            "core_s_held": held.cores,
            "core_s_used": held.job_cores,
            "core_s_of_others": sum((end - start) * others.cores for start, end, others in others_spans(model)),
            "cpu_s": held.job_cpu,
            "memory_mb_s_held": held.memory_mb,
            "memory_mb_s_used": held.job_memory_mb,
            "gpu_s_held": held.gpus,
            "gpu_s_used": held.job_gpus,
            "allocation_wait_s": allocation_wait_s(model),
            "starts": [
                {"depth": depth, "reason": why, "attempts": attempts} for (depth, why), attempts in model.starts.items()
            ],
        },
        "pools": list(model.pools.values()),
        "rules": uses,
        "set_resources": set_resources(uses),
        "allocations": model.allocations,
        "workers": model.workers,
        "attempts": [{name: make(a) for name, make in COLUMNS.items()} for a in model.attempts.values()],
        # By column: what holds from each time to the next.
        "use": {
            "t": [when for when, _ in changes],
            **{name: [getattr(held, name) for _, held in changes] for name in Held.__slots__},
        },
        "said": [{"t": when, "level": level, "text": text} for when, level, text in model.said],
    }
    return json.dumps(plain(data), ensure_ascii=True) + "\n"
