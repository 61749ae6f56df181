"""A run on a cluster that stays: stands between its head and Snakemake.

Imports nothing of Dask. Writes the run's event log and report, in the run's own directory, which the head may not see.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_dask.driver.entering import Entered
from snakemake_executor_plugin_dask.driver.inbox import Inbox
from snakemake_executor_plugin_dask.kept.joining import clear_up, fate, stays
from snakemake_executor_plugin_dask.model.either import either
from snakemake_executor_plugin_dask.model.kept import SILENT_S, Alive, Event, Look, Told
from snakemake_executor_plugin_dask.model.messages import (
    Begin,
    Dropped,
    DropWaiting,
    Enqueue,
    Fatal,
    Finished,
    Say,
    ShowStatus,
    Started,
    Stop,
    Stopped,
    Together,
)
from snakemake_executor_plugin_dask.model.units import count, format_duration
from snakemake_executor_plugin_dask.model.wire import receive, sender
from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.observe.observer import Observer

_ALIVE_EVERY_S = 5.0
#: Events of which the end of the log has the number.
_COUNTED = {"job-queued": "jobs", "job-placed": "attempts", "worker-lost": "lost_workers"}


class Relay:
    """One run, as long as it is on the cluster."""

    def __init__(self, begin: Begin, send: Callable[[object], None]) -> None:
        assert begin.kept is not None
        self._begin, self._kept, self._send = begin, begin.kept, send
        self._observer = Observer(begin.event_log, begin.options.report, lambda level, text: send(Say(level, text)))
        self._held = state.Held(Path(begin.state_dir))
        self._writer: asyncio.StreamWriter | None = None
        self._last: Look | None = None
        self._told: Told | None = None
        self._heard = time.monotonic()
        self._counts = {"jobs": 0, "attempts": 0, "lost_workers": 0}
        self._fatal = False
        self._left: tuple[str, ...] = ()
        self._observer.started(begin.setup, begin.options, begin.jobs, cluster=self._kept.name)

    async def run(self, entered: Entered, snakemake: Inbox) -> None:
        """Until the head has given this run's part back, or is lost. Raises what else keeps it from being heard."""
        self._writer, self._to_head = entered.writer, sender(entered.writer)
        for text in entered.said:
            self._observer.say("warning", text)
        welcome = entered.welcome
        there = count(welcome.up, "worker") if welcome.up else "no worker yet"
        age = format_duration(int(welcome.age_s))
        room = f", {welcome.roomy} of them with free cores" if welcome.roomy < welcome.up else ""
        self._observer.say("info", f"Cluster {self._kept.name}, up for {age}, has {there}{room}.")
        if self._begin.options.dashboard is not None:
            self._tell_dashboard()
        hearing = asyncio.create_task(self._hear(entered.reader))
        telling = asyncio.create_task(self._tell(snakemake))
        pulse = asyncio.create_task(self._pulse())
        ended = await either(hearing, telling, pulse)
        if telling.done() and telling.exception() is None and not hearing.done():
            ended = await either(hearing, pulse)
        for task in (hearing, telling, pulse):
            task.cancel()
        for done in ended:
            with contextlib.suppress(EOFError):  # of the head
                done.result()
        if hearing not in ended or hearing.exception() is not None:
            self._lost()

    def _tell_dashboard(self) -> None:
        path = Path(self._kept.directory, "dashboard")
        if path.exists():
            self._observer.say("info", f"Dask's dashboard: the link is in {path}.")
        else:
            text = f"Cluster {self._kept.name} was brought up without a dashboard, so --dask-dashboard is ignored."
            self._observer.say("warning", text)

    def _lost(self) -> None:
        """Jobs of a head that is gone end with their workers. What it has in a queue is cancelled, where it is dead."""
        if not self._fatal:
            self._send(Fatal(f"The head of cluster {self._kept.name} was lost, and with it all running jobs."))
        where = Path(self._kept.directory)
        if fate(where) == "dead":
            for text in clear_up(where):
                self._observer.say("warning", text)

    async def _pulse(self) -> None:
        """Say that the run lives; returns where the head does not."""
        while time.monotonic() - self._heard < SILENT_S:
            self._to_head(Alive())
            await asyncio.sleep(_ALIVE_EVERY_S)

    async def _tell(self, snakemake: Inbox) -> None:
        """What Snakemake's process says, until it says stop or is gone."""
        while True:
            message = await snakemake.next()
            match message:
                case Say(level=level, text=text):
                    self._observer.note(level, text)
                case ShowStatus():
                    look = self._last or Look((), time.monotonic(), {})
                    self._send(Say("info", self._observer.show(look.blockers, look.now)))
                case Enqueue() | DropWaiting():
                    self._to_head(message)
                case Stop():
                    self._to_head(message)
                    return

    async def _hear(self, head: asyncio.StreamReader) -> None:
        """What the head says, until this run's part was given back. Raises EOFError where it is lost."""
        while True:
            message: Any = await receive(head)
            self._heard = time.monotonic()
            match message:
                case Event(kind=kind, fields=fields):
                    if kind in _COUNTED:
                        self._counts[_COUNTED[kind]] += not fields.get("planned", False)
                    elif kind == "worker-preempted":  # told as lost before
                        self._counts["lost_workers"] -= 1
                    self._observer.event(kind, **fields)
                case Look():
                    self._last = message
                    self._observer.look(message.blockers, message.now, message.uses)
                case Say(level=level, text=text):
                    self._observer.say(level, text)
                case Started() | Finished() | Together() | Dropped() | Fatal():
                    self._fatal |= isinstance(message, Fatal)
                    self._send(message)
                case Told():
                    self._told = message
                case Stopped(left=left):
                    self._left = left
                    return

    def close(self, *, failed: bool) -> tuple[str, ...]:
        """Write the end of the log, and the report. Returns the workers on which the run's end was not seen."""
        if self._writer is not None:
            self._writer.close()
        line = self._observer.finish(summary=self._counts, left=self._left)
        if self._counts["attempts"]:
            self._send(Say("info", line))
        if self._told is not None:
            self._send(Say("info", stays(self._kept.name, self._told)))
        self._held.clear(keep_logs=failed or bool(self._left))
        self._held.release()
        return self._left
