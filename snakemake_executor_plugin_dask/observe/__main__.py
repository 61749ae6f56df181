"""`python -m snakemake_executor_plugin_dask.observe`: the picture of a run in a second terminal, and reports later."""

import argparse
import sys
import time
from collections.abc import Sequence

from snakemake_executor_plugin_dask.errors import ConfigurationError
from snakemake_executor_plugin_dask.observe.events import newest_log, read_events
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.picture import snapshot
from snakemake_executor_plugin_dask.observe.report import write_report
from snakemake_executor_plugin_dask.observe.status import end_line, table
from snakemake_executor_plugin_dask.printed import clean_block

_STALE_S = 600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0; 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m snakemake_executor_plugin_dask.observe", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="print workers, pools and waiting jobs of the newest run")
    status.add_argument("where", nargs="?", default=".", metavar="DIR|EVENTS.jsonl", help="default: this directory")
    report = commands.add_parser("report", help="make a report from an event log")
    report.add_argument("where", metavar="DIR|EVENTS.jsonl", help="a log, or the working directory of the run")
    report.add_argument("output", metavar="FILE", help="its ending says what is written: .html, .tsv or .json")
    chosen = parser.parse_args(arguments)
    try:
        log = chosen.where if chosen.where.endswith(".jsonl") else newest_log(chosen.where)
        if log is None:
            msg = f"There is no event log of a run in {chosen.where}: expected .snakemake/dask/*.events.jsonl there."
            return _fail(msg)
        model = RunModel(read_events(log))
        if not model.now:
            return _fail(f"{log} holds no events.")
        if chosen.command == "status":
            print(clean_block(_status(model, time.time())))  # noqa: T201 - it is what was asked for
        else:
            write_report(model, chosen.output)
    except ConfigurationError as error:
        return _fail(str(error).replace("--dask-report ", ""))
    except OSError as error:
        return _fail(f"{error.filename or chosen.where}: {error.strerror or error}.")
    return 0


def _status(model: RunModel, now: float) -> str:
    if model.ended is not None:
        return f"{table(snapshot(model))}\n\n{end_line(model)}"
    text = table(snapshot(model, max(now, model.now)))
    if now - model.now > _STALE_S:
        text += f"\n\nNothing was logged for {(now - model.now) / 60:.0f} min: the run may be gone."
    return text


def _fail(message: str) -> int:
    print(clean_block(message), file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
