"""`snakemake-dask start`, `clusters` and `stop`: clusters that stay. Starts and ends them, and prints."""

import argparse
import asyncio
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.cli.jobtable import Column, fitted
from snakemake_executor_plugin_dask.config.configure import configure_here
from snakemake_executor_plugin_dask.config.plainyaml import YamlError, load
from snakemake_executor_plugin_dask.frontend.preflight import Question, ask
from snakemake_executor_plugin_dask.kept import directory, joining, recognise
from snakemake_executor_plugin_dask.kept.place import log_of, root
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.kept import Ask, End, Kept, Told, name_of
from snakemake_executor_plugin_dask.model.units import count, format_duration
from snakemake_executor_plugin_dask.model.wire import frame, receive
from snakemake_executor_plugin_dask.settings import ExecutorSettings

#: The settings that say what the cluster is.
_SETTINGS = (
    "cluster", "pools", "workers", "worker_cores", "worker_memory", "worker_gpus", "walltime", "options",
    "idle_timeout", "dashboard", "keep",
)  # fmt: skip
_COLUMNS = (
    Column("CLUSTER", 100),
    Column("HOST", 60),
    Column("UP FOR", 70, right=True),
    Column("UNTIL", 90),
    Column("POOLS", 75),
    Column("WORKERS", 80, right=True),
    Column("RUNS", 85),
    Column("CORE-HOURS", 50, right=True),
    Column("IDLE", 40, right=True),
)
_SILENT = "does not answer"
_OTHER_VERSION = "is of another version"
_ANSWER_S = 30.0
_END_S = 180.0
_LOOK_EVERY_S = 0.2


def add_start(parser: argparse.ArgumentParser) -> None:
    """The settings of clusters, under their own names."""
    for field in dataclasses.fields(ExecutorSettings):
        if field.name in _SETTINGS:
            metavar = field.metadata.get("metavar")
            flag = "--dask-" + field.name.replace("_", "-")
            parser.add_argument(flag, dest=field.name, metavar=metavar, help=field.metadata["help"].replace("%", "%%"))
    parser.add_argument("--profile", metavar="DIR", help="a Snakemake profile with settings for this executor")
    parser.add_argument("--wait", action="store_true", help="return once the minimum number of workers is up")


def add_stop(parser: argparse.ArgumentParser) -> None:
    """The arguments of `stop`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="clusters, as `snakemake-dask clusters` lists them")
    parser.add_argument("--all", action="store_true", help="all clusters that are up")
    parser.add_argument("--force", action="store_true", help="end them even if runs use them, and do not ask")


def start(options: argparse.Namespace) -> int | None:
    """Bring a cluster up before any run."""
    given = {name: value for name in _SETTINGS if (value := getattr(options, name)) is not None}
    given = _of_profile(options.profile) | given
    if given.get("keep", "0") == "0":
        msg = "For how long is the cluster to stay? Set --dask-keep, for example to 8h."
        raise ConfigurationError(msg)
    asking, warnings = configure_here(ExecutorSettings(**given))
    for warning in warnings:
        _say(warning)
    if not asking.keep_s:
        return 1
    asked = recognise.asked_for(asking, os.environ)
    where = root(os.environ) / name_of(asked)
    # The pools completed and checked as a run's are.
    completed = asking if all(pool.complete for pool in asking.pools) else ask(Question(asking, ())).options
    kept = Kept(where.name, os.fspath(where), asked, completed, asking.keep_s)
    were_up = {path.name for path, _, fate in directory.all_clusters(os.environ) if fate != "dead"}
    link, kept, said = asyncio.run(_joined(kept))
    was_up = kept.name in were_up
    for text in said:
        _say(text)
    if not link:
        return 1
    _print(f"Cluster {kept.name} is up{' already' if was_up else ''}. {_least(kept, was_up=was_up)}")
    if options.wait and not was_up:
        return _wait(kept)
    return None


async def _joined(kept: Kept) -> tuple[bool, Kept, list[str]]:
    link, kept, said = await joining.join(kept, least=True)
    if link is not None:
        link[1].close()
    return link is not None, kept, said


def _of_profile(profile: str | None) -> dict[str, str]:
    """The settings of this executor that a profile holds. ConfigurationError."""
    if profile is None:
        return {}
    names = ("config.v9+.yaml", "config.v8+.yaml", "config.yaml")
    places = [Path(place).expanduser() / profile for place in _profile_places()]
    found = next((path for place in places for name in names if (path := place / name).exists()), None)
    if found is None:
        msg = f"--profile {profile} has no config.yaml, in {' or '.join(map(str, places))}."
        raise ConfigurationError(msg)
    try:
        values = load(found.read_text(encoding="utf-8")) or {}
    except (YamlError, OSError, UnicodeDecodeError) as error:
        msg = f"{found} cannot be read: {error}."
        raise ConfigurationError(msg) from error
    own = {str(key).replace("_", "-"): value for key, value in values.items()}
    return {name: str(own[key]) for name in _SETTINGS if (key := "dask-" + name.replace("_", "-")) in own}


def _profile_places() -> list[str]:
    """Where Snakemake looks for a profile by its name."""
    homes = [os.environ.get("XDG_CONFIG_HOME") or "~/.config"]
    homes += (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    return [".", *(os.path.join(home, "snakemake") for home in homes)]


def _least(kept: Kept, *, was_up: bool) -> str:
    if was_up:
        return ""
    least = sum(pool.workers_min for pool in kept.options.pools)
    if not least:
        return "Its workers come with the first run."
    return f"{count(least, 'worker')} {'is' if least == 1 else 'are'} asked for."


def _wait(kept: Kept) -> int | None:
    least = sum(pool.workers_min for pool in kept.options.pools)
    while True:
        told = asyncio.run(_asked(Path(kept.directory), Ask()))
        if isinstance(told, str):
            _say(f"Cluster {kept.name} is not up any more (see {log_of(kept.directory)}).")
            return 1
        if told.workers.get("up", 0) >= least:
            return None
        if told.until_s is not None:  # nothing is on its way any more
            _say(f"Cluster {kept.name} has fewer workers than asked for (see {log_of(kept.directory)}).")
            return 1
        time.sleep(_LOOK_EVERY_S)


def clusters(_: argparse.Namespace) -> int | None:
    """List what is up."""
    rows = []
    for where, record, fate in directory.all_clusters(os.environ):
        told = "its head is dead" if fate == "dead" else asyncio.run(_asked(where, Ask()))
        rows.append(_row(where, record, told))
    if not rows:
        _print("No cluster is up.")
        return None
    for line in fitted(_COLUMNS, rows, None):
        _print(line)
    return None


def _row(where: Path, record: directory.Record | None, told: Told | str) -> list[str]:
    host = "?" if record is None else record.head.host
    age = "?" if record is None else format_duration(int(time.time() - record.since))
    if isinstance(told, str):
        return [where.name, host, age, told, *"?????"]
    until = "ends now" if told.ending else "runs use it"
    if told.until_s is not None and not told.ending:
        until = f"{format_duration(max(0, int(told.until_s)))} more"
    runs = ", ".join(f"{run.run_id} ({run.jobs} jobs, {run.workdir})" for run in told.runs) or "none"
    workers = ", ".join(f"{number} {state}" for state, number in told.workers.items()) or "none"
    held, idle = (f"{seconds / 3600:.2f}" for seconds in (told.held_core_s, told.idle_core_s))
    pools = ", ".join(f"{pool.name} ({pool.cluster}, {pool.up} of {pool.most})" for pool in told.pools) or "none"
    return [where.name, host, age, until, pools, workers, runs, held, idle]


def stop(options: argparse.Namespace) -> int | None:
    """Give everything back."""
    there = {where.name: (where, joining.fate(where)) for where, _, _ in directory.all_clusters(os.environ)}
    names = sorted(there) if options.all else options.names
    if not names and not options.all:
        msg = "Which cluster? Name it, or say --all (`snakemake-dask clusters` lists them)."
        raise ConfigurationError(msg)
    if unknown := [name for name in names if name not in there]:
        up = f"those that are up: {', '.join(there)}" if there else "none is up"
        msg = f"No cluster is called {', '.join(unknown)}; {up}."
        raise ConfigurationError(msg)
    ended = [_stop(*there[name], force=options.force) for name in names]
    return 0 if all(ended) else 1


def _stop(where: Path, fate: str, *, force: bool) -> bool:
    if fate == "dead":
        left = joining.clear_up(where)
        for sentence in left:
            _say(sentence)
        if not left:
            _print(f"Cluster {where.name} was dead; what it left behind is removed.")
        return not left
    told = asyncio.run(_asked(where, Ask()))
    if isinstance(told, str):
        record = directory.read(where)
        host, process = ("its host", "") if record is None else (record.head.host, f" {record.head.pid}")
        if told == _OTHER_VERSION:
            _say(f"Cluster {where.name} {told}, whose command stops it; so does ending its process{process} on {host}.")
        else:
            _say(f"Cluster {where.name} {told} from here; stop it on {host}.")
        return False
    if told.runs and not force:
        runs = ", ".join(f"{run.run_id} with {run.jobs} jobs in {run.workdir}" for run in told.runs)
        if not sys.stdin.isatty():
            _say(f"Cluster {where.name} is used by {runs}; --force ends these, too.")
            return False
        if input(f"Cluster {where.name} is used by {runs}. End them? [y/N] ").strip().lower() not in ("y", "yes"):
            return False
    answer = asyncio.run(_asked(where, End(force=force or bool(told.runs))))
    if isinstance(answer, Told) and not answer.ending:
        _say(f"Cluster {where.name} has just been taken by a run; --force ends it, too.")
        return False
    deadline = time.monotonic() + _END_S
    while where.exists() and joining.fate(where) != "dead":
        if time.monotonic() > deadline:
            _say(f"Cluster {where.name} has not ended within {_END_S:.0f} s (see {log_of(where)}).")
            return False
        time.sleep(_LOOK_EVERY_S)
    if where.exists():  # something is left to look at
        return _stop(where, "dead", force=True)
    _print(f"Cluster {where.name} has ended.")
    return True


async def _asked(where: Path, what: Any) -> Told | str:
    """What the head tells; else, in words, why it tells nothing."""
    try:
        link = await joining.connect(where)
        if link is None:
            return _OTHER_VERSION if directory.of_another_version(where) else _SILENT
        reader, writer = link
        try:
            writer.write(frame(what))
            async with asyncio.timeout(_ANSWER_S):
                told = await receive(reader)
        finally:
            writer.close()
    except (OSError, EOFError):
        return _SILENT
    except Exception:  # noqa: BLE001 - unpickling what another version says raises whatever it happens to meet
        return _OTHER_VERSION
    return told if isinstance(told, Told) else _OTHER_VERSION


def _print(text: str) -> None:
    print(text)  # noqa: T201 - it is what was asked for


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201
