"""The driver process, which the executor starts.

Brings Dask's scheduler and the lease server up, and runs the controller until Snakemake says stop, or is gone.
However it ends, workers and allocations are given back first. Exit codes: 0; 1 after an error of its own, whose
traceback is in its log.
"""

import asyncio
import contextlib
import os
import select
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from snakemake_executor_plugin_dask.backends import spare
from snakemake_executor_plugin_dask.driver.first import Begun
from snakemake_executor_plugin_dask.driver.inbox import Inbox
from snakemake_executor_plugin_dask.interior import quick_imports
from snakemake_executor_plugin_dask.model.either import either
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.messages import (
    Begin,
    Fatal,
    Say,
    ShowStatus,
    Stopped,
)
from snakemake_executor_plugin_dask.model.wire import Channel, sender
from snakemake_executor_plugin_dask.node.descriptors import raise_limit
from snakemake_executor_plugin_dask.node.own_log import bound_log
from snakemake_executor_plugin_dask.node.private import append_private

if TYPE_CHECKING:
    from snakemake_executor_plugin_dask.driver.run import Run

_TICK_S = 1.0
_SCALE_EVERY_S = 0.2


def main(begun: Begun) -> int:
    """Serve one run, until Snakemake's end of the socket pair is closed. Returns the exit code; 0 where no run came."""
    bound_log()
    raise_limit()  # each worker takes several descriptors, and so does whoever knocks
    if begun.ahead is not None:
        _get_ready(begun.sock, begun.ahead)
    try:
        begin = Channel(begun.sock).receive()
    except EOFError:
        spare.drop()
        return 0
    assert isinstance(begin, Begin)
    if begun.ahead is not None:
        _become_the_runs(begin)
    spare.keep_for(begin.setup if begin.kept is None else None)
    try:
        return asyncio.run(_run(begin, begun.sock))
    finally:
        spare.drop()


def _get_ready(sock: socket.socket, kind: str) -> None:
    """Import what a run takes, in the order in which it does, until the run is known."""
    if kind == "own":
        with contextlib.suppress(Exception):  # the run meets it again, and tells
            quick_imports.import_distributed()
            from snakemake_executor_plugin_dask.driver import run
            from snakemake_executor_plugin_dask.driver.own import cluster

            del run, cluster
        return
    from snakemake_executor_plugin_dask.driver import entering

    if not select.select([sock], [], [], 0)[0]:
        from snakemake_executor_plugin_dask.driver import relay

        del relay
    del entering


def _become_the_runs(begin: Begin) -> None:
    """As if it had been started only now."""
    os.environ.clear()
    os.environ.update(begin.setup.environment)
    os.chdir(begin.state_dir)
    log = append_private(Path(begin.state_dir, "driver.log"))
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)


async def _run(begin: Begin, sock: socket.socket) -> int:
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 26)
    inbox = Inbox(reader)
    return await (_drive(begin, inbox, writer) if begin.kept is None else _relay(begin, inbox, writer))


async def _relay(begin: Begin, inbox: Inbox, writer: asyncio.StreamWriter) -> int:
    """For a run on a cluster that stays, and has its own process."""
    from snakemake_executor_plugin_dask.driver.entering import enter

    assert begin.kept is not None
    entered, told = None, ""
    try:
        entered = await inbox.unless_stopped(enter(begin))
    except ConfigurationError as error:
        told = str(error)
    if isinstance(entered, list):  # it is another host's business: this run has a cluster of its own
        return await _drive(replace(begin, kept=None), inbox, writer, entered)
    from snakemake_executor_plugin_dask.driver.relay import Relay  # the head is at work meanwhile

    send = sender(writer)
    relay = Relay(begin if entered is None else replace(begin, kept=entered.kept), send)
    failed = True
    try:
        if told:
            raise ConfigurationError(told)  # noqa: TRY301 - told as the others are
        if entered is not None:
            await relay.run(entered, inbox)
        failed = False
    except ConfigurationError as error:
        send(Fatal(str(error)))
    except Exception as error:  # noqa: BLE001 - whatever it is, Snakemake is told
        traceback.print_exc()
        send(Fatal(_failure(error, begin)))
    left = relay.close(failed=failed)
    await _leave(writer, left)
    return int(failed)


async def _drive(begin: Begin, inbox: Inbox, writer: asyncio.StreamWriter, notes: Sequence[str] = ()) -> int:
    send = sender(writer)
    run: Run | None = None
    failed = False
    try:
        warning = _check(attached=begin.options.scheduler is not None)
        run = _new_run(begin, send)
        bound_log()  # those loggers, too, that came with Dask
        for text in (warning, *notes):
            if text:
                run.say("warning", text)
        await inbox.unless_stopped(run.start())
        await _serve(run, inbox)
    except ConfigurationError as error:
        send(Fatal(str(error)))
    except Exception as error:  # noqa: BLE001 - whatever it is, Snakemake is told, and all is given back
        traceback.print_exc()
        failed = True
        send(Fatal(_failure(error, begin)))
    finally:
        left: tuple[str, ...] = ()
        if run is not None:
            left = await run.close(failed=failed)
        await _leave(writer, left)
    return int(failed)


def _failure(error: Exception, begin: Begin) -> str:
    return f"the driver process failed: {error!r} (its log: {begin.state_dir}/driver.log)"


async def _leave(writer: asyncio.StreamWriter, left: tuple[str, ...]) -> None:
    """The last word."""
    sender(writer)(Stopped(left))
    try:
        await asyncio.wait_for(writer.drain(), 5.0)
    except (TimeoutError, ConnectionError):
        pass  # Snakemake is gone; there is nobody to tell
    writer.close()


def _new_run(begin: Begin, send: Callable[[object], None]) -> "Run":
    from snakemake_executor_plugin_dask.driver.run import Run

    return Run(begin, send)


def _check(*, attached: bool) -> str:
    """Before anything else of Dask's is imported, which might fail. Returns what is lost. ConfigurationError."""
    from snakemake_executor_plugin_dask.interior import checks  # no relay needs it

    interior = checks.of_attached_dask() if attached else checks.of_dask()
    if interior.refusal:
        raise ConfigurationError(interior.refusal)
    return interior.warning


async def _serve(run: "Run", inbox: Inbox) -> None:
    for done in await either(_tick(run), _receive(run, inbox), run.broken):
        done.result()


async def _receive(run: "Run", inbox: Inbox) -> None:
    """Until Snakemake says stop or is gone."""
    while True:
        match await inbox.next():
            case Say(level=level, text=text):
                run.note(level, text)
            case ShowStatus():
                run.show_status()
            case message:
                if not await run.controller.hear(message):
                    return


async def _tick(run: "Run") -> None:
    """Scale and watch for as long as the run goes on."""
    checked = time.monotonic()
    while True:
        await asyncio.sleep(_SCALE_EVERY_S)
        run.cluster.scale()
        if time.monotonic() - checked >= _TICK_S:
            checked = time.monotonic()
            await run.watch()
