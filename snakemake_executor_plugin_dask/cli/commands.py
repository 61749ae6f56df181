"""The command `snakemake-dask`: what a run did or does, from its event log, in a second terminal or later.

Prints; writes reports. Imports nothing of Dask.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from snakemake_executor_plugin_dask.cli import clusters, slurm_site
from snakemake_executor_plugin_dask.cli.explain import explain
from snakemake_executor_plugin_dask.cli.finding import fate, find_job, find_log, no_garbage, read_run, up_to_now
from snakemake_executor_plugin_dask.cli.jobtable import (
    STATES,
    Choice,
    Column,
    chosen,
    fitted,
    json_table,
    text_table,
    tsv_table,
)
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.printed import clean_block
from snakemake_executor_plugin_dask.node.state import EVENTS
from snakemake_executor_plugin_dask.node.versions import plugin_version
from snakemake_executor_plugin_dask.observe.events import Tail, logs_in, read_events
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.picture import snapshot
from snakemake_executor_plugin_dask.observe.report import write_report
from snakemake_executor_plugin_dask.observe.status import end_line, table
from snakemake_executor_plugin_dask.observe.use import integral
from snakemake_executor_plugin_dask.observe.wording import clean, clock, core_time, rough, short_id

#: Each with the field of a run's row, and how that is shown.
_RUN_COLUMNS: tuple[tuple[Column, str, Callable[[Any], str]], ...] = (
    (Column("RUN", 100), "run", str),
    (Column("STARTED", 80), "started", clock),
    (Column("FOR", 60, right=True), "seconds", rough),
    (Column("ENDED", 90), "ended", str),
    (Column("JOBS", 70, right=True), "jobs", "{:,}".format),
    (Column("FAILED", 85, right=True), "failed", "{:,}".format),
    (Column("CORE TIME", 50, right=True), "core_s", core_time),
)
_STALE_S = 600.0
_LOOK_EVERY_S = 0.3
_RUN = "a run's name or the first letters of it, an event log, or a working directory; default: the newest run here"
_EXAMPLES = """\
which jobs failed, and why:    snakemake-dask jobs --state failed
what ran longest:              snakemake-dask jobs --slowest
what wasted memory:            snakemake-dask jobs --wasteful
why jobs wait:                 snakemake-dask jobs --state waiting
why one of them waits:         snakemake-dask explain JOB

`snakemake-dask COMMAND --help` shows the options of one command.
"""
_JOB = "a job's number; or its rule, or the value of a wildcard, where only one job has it"


class _Parser(argparse.ArgumentParser):
    """A mistake is told in one sentence, with exit code 1."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{message[:1].upper()}{message[1:]} (`{self.prog} --help` shows how it is used).\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0; 1 with one sentence on standard error."""
    options = _parser().parse_args(arguments)
    try:
        code: int | None = options.do(options)
        sys.stdout.flush()
    except ConfigurationError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # Whoever read this (`head`, a pager) has enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        return _fail(f"{error.filename or 'The event log'}: {error.strerror or error}.")
    except KeyboardInterrupt:
        return 1
    else:
        return code or 0
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="snakemake-dask",
        description="Show what runs of the executor did or do, look after clusters that stay, and write pools files.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"snakemake-executor-plugin-dask {plugin_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, do: Any, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}."
        )
        made.set_defaults(do=do)
        return made

    runs = command("runs", _runs, "list the runs in a directory, the newest last")
    runs.add_argument("directory", nargs="?", default=".", metavar="DIR", help="default: this directory")
    _formats(runs)
    status = command("status", _status, "print pools, workers and what jobs wait for")
    watched = command("watch", _watch, "show a run live: pools, workers, running jobs with what they use, what waits")
    jobs = command("jobs", _jobs, "print jobs as a table: all, what failed or waits, the slowest, what wastes memory")
    explained = command("explain", _explain, "say why a job waits, pool by pool, or what became of it")
    explained.add_argument("job", metavar="JOB", help=_JOB)
    log = command("log", _log, "print a job's log")
    log.add_argument("job", metavar="JOB", help=_JOB)
    log.add_argument("--path", action="store_true", help="print the path of the log alone")
    report = command("report", _report, "write a report of what ran where, and what it asked for and used")
    events = command("events", _events, "print the events, one JSON object a line (docs/observe.md)")
    for each in (status, watched, jobs, explained, log, report, events):
        each.add_argument("run", nargs="?", metavar="RUN", help=_RUN)
    report.add_argument(
        "-o", "--output", metavar="FILE", help="ends with .html, .tsv or .json; default: dask-<run>.html"
    )
    events.add_argument("-f", "--follow", action="store_true", help="go on with what is added, until the run ends")
    _choices(jobs)
    clusters.add_start(command("start", clusters.start, "bring up a cluster that stays, before any run"))
    command("clusters", clusters.clusters, "list the clusters that stay, and which runs use them")
    clusters.add_stop(command("stop", clusters.stop, "end clusters that stay, and give everything back"))
    slurm_site.add_arguments(command("pools", slurm_site.write, "write a pools file from what this site's Slurm has"))
    return parser


def _choices(jobs: argparse.ArgumentParser) -> None:
    jobs.add_argument("-r", "--rule", action="append", default=[], help="of this rule (may hold * and ?); repeatable")
    jobs.add_argument(
        "-w", "--wildcard", action="append", default=[], metavar="NAME=VALUE",
        help="with this value of a wildcard, or with VALUE in any; repeatable, then all must fit",
    )  # fmt: skip
    jobs.add_argument(
        "-s", "--state", action="append", default=[], choices=STATES, metavar="STATE",
        help=f"{', '.join(STATES)}; repeatable",
    )  # fmt: skip
    order = jobs.add_mutually_exclusive_group()
    for name, text in (
        ("slowest", "those that ran longest"),
        ("largest", "those with the largest memory peak"),
        ("wasteful", "those that held the most memory without using it"),
    ):
        order.add_argument(f"--{name}", nargs="?", type=_number, const=10, metavar="N", help=f"{text} (10)")
    jobs.add_argument("-a", "--attempts", action="store_true", help="each attempt, and not only the last of each job")
    _formats(jobs)


def _formats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("text", "tsv", "json"), default="text", help="default: text")


def _number(text: str) -> int:
    if not text.isdecimal():
        msg = f"{text} is not a number"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


# Commands


def _runs(options: argparse.Namespace) -> None:
    find_log(options.directory)  # complains where there is none
    rows = [_run_row(path) for path in logs_in(Path(options.directory))]
    if options.format == "json":
        _print(json.dumps(rows, indent=1))
    elif options.format == "tsv":
        _print_data("\n".join("\t".join(map(str, row)) for row in (list(rows[0]), *(each.values() for each in rows))))
    else:
        cells = [[show(row[name]) for _, name, show in _RUN_COLUMNS] for row in rows]
        _print("\n".join(fitted([column for column, *_ in _RUN_COLUMNS], cells, _width())))


def _run_row(log: Path) -> dict[str, Any]:
    with no_garbage():
        model = up_to_now(RunModel(read_events(log)), log)
    counts = model.counts()
    return {
        "run": clean(model.run_id or log.name.removesuffix(EVENTS), 60),
        "started": model.started or 0.0,
        "seconds": round(model.end_time - (model.started or model.end_time), 3),
        "ended": _how_it_ended(model, log),
        "jobs": counts["jobs"],
        "failed": counts["failed"],
        "core_s": round(integral(model).job_cores, 3),
    }


def _how_it_ended(model: RunModel, log: Path) -> str:
    counts = model.counts()
    if model.ended is None:
        return {"alive": "still runs", "dead": "was killed", "unknown": "not known"}[fate(log)]
    if counts["failed"]:
        return "with failed jobs"
    return "was stopped" if counts["stopped"] or counts["dropped"] or counts["unfinished"] else "well"


def _status(options: argparse.Namespace) -> None:
    log = find_log(options.run)
    model = read_run(log)
    if model.ended is not None:
        _print(f"{table(snapshot(model))}\n\n{end_line(model)}")
        return
    now = time.time()
    _print(table(snapshot(model, max(now, model.now))))
    what, silent = fate(log), rough(now - model.now)
    if what == "dead":
        _print(f"\nThe run was killed; its last event was logged {silent} ago.")
    elif now - model.now > _STALE_S:
        _print(f"\nNothing was logged for {silent}: the run may have been stopped{' or killed' * (what == 'unknown')}.")


def _watch(options: argparse.Namespace) -> None:
    try:
        from snakemake_executor_plugin_dask.cli import watch
    except ImportError as error:
        msg = f"This Python has no curses ({error}); `snakemake-dask status` prints the same once."
        raise ConfigurationError(msg) from None
    if text := watch.run(options):
        _print(text)


def _jobs(options: argparse.Namespace) -> None:
    try:
        log = find_log(options.run)
    except ConfigurationError:
        if options.run not in STATES:
            raise
        msg = f"There is no run {options.run}; `snakemake-dask jobs --state {options.run}` lists jobs in that state."
        raise ConfigurationError(msg) from None
    model = up_to_now(read_run(log), log)
    choice = Choice(
        tuple(options.rule), tuple(options.wildcard), tuple(options.state), options.attempts,
        options.slowest, options.largest, options.wasteful,
    )  # fmt: skip
    found = chosen(model, choice)
    if options.format == "tsv":
        _print_data(tsv_table(found))
    elif options.format == "json":
        _print(json_table(found))
    elif found:
        _print(text_table(model, found, width=_width(), attempts=options.attempts))
    else:
        _print(f"None of the {len(model.jobs):,} jobs of run {clean(model.run_id)} matches.")


def _explain(options: argparse.Namespace) -> None:
    log = find_log(options.run)
    model = read_run(log)
    attempts = find_job(model, options.job)
    now = model.end_time if model.ended is not None else max(time.time(), model.now)
    _print(explain(model, attempts, read_events(log), now))


def _log(options: argparse.Namespace) -> None:
    model = read_run(find_log(options.run))
    attempts = find_job(model, options.job)
    # The last one that has a log: a job that waits again has one of its attempt before.
    last = next((each for each in reversed(attempts) if each.placed is not None), attempts[-1])
    job, path = short_id(last.jobid), Path(last.log_path or last.planned_log)
    if last.placed is None:
        msg = f"Job {job} has not been started, so it has no log; `snakemake-dask explain {job}` says why."
        raise ConfigurationError(msg)
    if options.path:
        _print(os.fspath(path))
    elif path.is_file():
        sys.stdout.flush()
        with path.open("rb") as stream:
            shutil.copyfileobj(stream, sys.stdout.buffer)
    elif last.log_tail.strip():
        _print(clean_block(last.log_tail).rstrip())
    elif last.status == "succeeded":
        msg = f"The log of job {job} was removed because it succeeded; --dask-keep-successful-logs keeps such logs."
        raise ConfigurationError(msg)
    else:
        msg = f"The log of job {job}, {path}, is not there."
        raise ConfigurationError(msg)


def _report(options: argparse.Namespace) -> None:
    log = find_log(options.run)
    model = up_to_now(read_run(log), log)
    output = options.output or f"dask-{clean(model.run_id, 60).replace(os.sep, '_')}.html"
    write_report(model, output)
    _print(output)


def _events(options: argparse.Namespace) -> None:
    for line in _lines(find_log(options.run), follow=options.follow):
        sys.stdout.buffer.write(line)
        if options.follow:
            sys.stdout.buffer.flush()
    sys.stdout.buffer.flush()


def _lines(log: Path, *, follow: bool) -> Iterator[bytes]:
    """Whole lines of the log; with ``follow`` until the event that ends the run, or its process is gone."""
    tail = Tail(log)
    while True:
        alive = follow and fate(log) != "dead"  # asked before reading: what a run writes last is read
        for line in tail.lines():
            yield line + b"\n"
            if b'"kind":"run-ended"' in line[:80]:
                return
        if not alive:
            return
        time.sleep(_LOOK_EVERY_S)


def _width() -> int | None:
    """Of the terminal; None where this does not go to one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _print(text: str) -> None:
    """Text for people; data have been cleaned cell by cell."""
    _print_data(clean_block(text))


def _print_data(text: str) -> None:
    print(text)  # noqa: T201 - it is what was asked for


def _fail(message: str) -> int:
    print(clean_block(message), file=sys.stderr)  # noqa: T201
    return 1
