"""How a run, or the command for people, gets to a cluster that stays: connects, starts its head, clears up after one.

Starts processes, cancels allocations. Imports nothing of Dask.
"""

import asyncio
import contextlib
import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from snakemake_executor_plugin_dask.batch.allocations import Ran, ask, cancel_run, run_here
from snakemake_executor_plugin_dask.batch.answers import is_id
from snakemake_executor_plugin_dask.kept import directory
from snakemake_executor_plugin_dask.kept.place import log_of
from snakemake_executor_plugin_dask.model.batch_systems.slurm import SLURM
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.kept import Kept, Start, Told, name_of
from snakemake_executor_plugin_dask.model.units import count, format_duration
from snakemake_executor_plugin_dask.node.allocation import allocation_id, batch_system
from snakemake_executor_plugin_dask.node.former import Fate, this_process
from snakemake_executor_plugin_dask.node.private import append_private, end_of

_CONNECT_S = 20.0
_COME_S = 120.0  # how long a new head gets to listen
_LOOK_EVERY_S = 0.05
_CLEAR_S = 180.0  # more than cancelling takes
_TAIL_BYTES = 2000
_CLUSTER_NAME = re.compile(r"^ClusterName\s*=\s*(\S+)", re.MULTILINE)
_KILLS = re.compile(r"^\s*KillUserProcesses\s*=\s*(yes|true|on|1)\s*$", re.MULTILINE | re.IGNORECASE)

Link = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(where: Path) -> Link | None:
    """A connection to the head of the cluster in this directory; None: there is none yet. OSError."""
    record = directory.read(where)
    if record is None:
        return None
    async with asyncio.timeout(_CONNECT_S):
        return await asyncio.open_connection(*record.address, ssl=directory.tls(where), limit=1 << 26)


def launch(kept: Kept, *, least: bool = False) -> "subprocess.Popen[bytes]":
    """Start a head, which lives on after this process."""
    where = Path(kept.directory)
    command = [sys.executable, "-P", "-m", "snakemake_executor_plugin_dask.driver.head"]
    environment = dict(os.environ)
    if all(pool.kind.queued for pool in kept.options.pools):
        # The batch system would hand them on to nodes, and so to others' jobs.
        for name in ("TMPDIR", *directory.DEVICES):
            environment.pop(name, None)
    with open(append_private(log_of(where)), "ab") as log:
        head = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=where, env=environment, start_new_session=True
        )
    assert head.stdin is not None
    with head.stdin as pipe:
        pipe.write(pickle.dumps(Start(kept, least)))
    return head


def fate(where: Path, run: Callable[[Sequence[str]], Ran] = run_here) -> Fate:
    """What became of a cluster's head. Of one on another host the batch system is asked, where that is the same."""
    found = directory.fate(where)
    record = directory.read(where) if found == "unknown" else None
    return "dead" if record is not None and is_over(record.within, run) else found


def is_over(within: directory.Within | None, run: Callable[[Sequence[str]], Ran] = run_here) -> bool:
    """Whether the batch system says that an allocation is gone. False where it does not, or is another one."""
    if within is None or within.system != SLURM.name or not within.cluster:
        return False
    here = _CLUSTER_NAME.search(run(["scontrol", "show", "config"]).out)
    if here is None or here[1] != within.cluster or not is_id(SLURM, within.id):
        return False  # the same number may be another job of another cluster
    return ask(SLURM, [within.id], None, run)[within.id].kind == "gone"


def beside(kept: Kept) -> Kept:
    """The cluster that runs on this host use while one that was asked for in the same way is on an unknown other."""
    here = this_process()
    asked = {**kept.asked, "host": {"host": json.dumps(here.host), "namespace": json.dumps(here.namespace)}}
    where = Path(kept.directory).with_name(name_of(asked))
    return replace(kept, name=where.name, directory=os.fspath(where), asked=asked)


async def join(kept: Kept, *, least: bool = False) -> tuple[Link | None, Kept, list[str]]:
    """A connection to the cluster's head, which is started where there is none and it is to stay; what to say.

    Which cluster it is: another one where the head of this one is on a host that cannot be asked. No connection: the
    run has a cluster of its own. ConfigurationError where a head did not come up, or the cluster was named and cannot
    be had; OSError where its directory is not the user's alone.
    """
    directory.check(Path(kept.directory))
    where, said, elsewhere = Path(kept.directory), list[str](), False
    starts = not kept.named and (least or kept.keep_s > 0)
    head: subprocess.Popen[bytes] | None = None
    deadline = time.monotonic() + _COME_S
    while True:
        with contextlib.suppress(OSError):
            if (link := await connect(where)) is not None:
                return link, kept, said
        if head is not None and head.poll() is not None:
            words = end_of(log_of(where), _TAIL_BYTES) or f"exit code {head.returncode}"
            msg = f"The cluster that is to stay did not come up: {words}"
            if not directory.locked(where):  # it has never said that it lives
                directory.forget(where)
            clear_up(where)
            raise ConfigurationError(msg)
        found = fate(where)
        if found == "dead" and head is None:
            left = clear_up(where)
            said += left
            if left or not starts:
                break
            if directory.make(where):
                head = launch(kept, least=least)
                if (ends := ends_with(os.environ)) is not None:
                    said.append(f"Cluster {kept.name} ends with {ends}, whatever its keep time.")
        elif found == "unknown":
            record = directory.read(where)
            host = "another host" if record is None else record.head.host
            said.append(
                f"Cluster {kept.name} is on {host}, and cannot be reached from here. Only there it is known whether it "
                f"still lives: `snakemake-dask stop {kept.name}` on {host} ends it, or clears up after it."
            )
            if kept.named or elsewhere:
                break
            kept, elsewhere = beside(kept), True
            where = Path(kept.directory)
            continue
        if time.monotonic() > deadline:
            said.append(f"The head of cluster {kept.name} does not answer (see {log_of(where)}).")
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    if kept.named:
        msg = " ".join(said) or f"Cluster {kept.name} has just ended."
        raise ConfigurationError(msg)
    return None, kept, said


def ends_with(environment: Mapping[str, str], root: Path = Path("/")) -> str | None:
    """What ends the processes of this session, a new head's too, whatever they do; None: nothing known."""
    # A session that was begun in an allocation may have outlived it.
    if (system := batch_system(environment)) is not None and not is_over(directory.within(environment)):
        return f"this allocation of {system.name} ({allocation_id(environment)})"
    for directory_ in ("usr/lib/systemd", "run/systemd", "etc/systemd"):
        for path in sorted([root / directory_ / "logind.conf", *(root / directory_ / "logind.conf.d").glob("*.conf")]):
            with contextlib.suppress(OSError):
                if _KILLS.search(path.read_text(encoding="utf-8", errors="replace")):
                    return "your login on this host, which ends all its processes (KillUserProcesses in systemd)"
    return None


def clear_up(where: Path) -> list[str]:
    """What a head that is dead left: allocations are cancelled, and what is written down goes. Returns sentences.

    One of several that find it dead does so; the others return at once, as do all where it is not dead after all.
    """
    claim = where / "clearing"
    try:
        if time.time() - claim.stat().st_mtime > _CLEAR_S:
            claim.rmdir()  # of one that died meanwhile
    except OSError:
        pass
    try:
        claim.mkdir()
    except OSError:
        return []
    # Another one may have cleared it up before, and made it anew.
    if fate(where) != "dead":
        claim.rmdir()
        return []
    said = cancel_run(where)
    if not said:
        directory.forget(where)
    else:
        claim.rmdir()
    return said


def stays(name: str, told: Told) -> str:
    """What stays after a run, for how long, what it can cost, and how it is ended."""
    if told.ending:
        return f"Cluster {name} ends now."
    workers = count(told.workers.get("up", 0), "worker")
    if told.until_s is None:
        return f"Cluster {name} stays for {count(len(told.runs), 'other run')}, with {workers}."
    return (
        f"Cluster {name} stays for {format_duration(int(told.until_s))} at most, with {workers}: up to "
        f"{told.cores * told.until_s / 3600:.1f} core-hours. `snakemake-dask stop {name}` ends it."
    )
