"""A cluster that stays, while it is up: its door, its runs, and when it is over. Listens, ends workers."""

import asyncio
import dataclasses
import math
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from snakemake_executor_plugin_dask.decide.turns import Turns
from snakemake_executor_plugin_dask.driver.cluster import Surroundings
from snakemake_executor_plugin_dask.driver.controller import Controller
from snakemake_executor_plugin_dask.driver.dispatch import Dispatch
from snakemake_executor_plugin_dask.driver.head.others import HeldByOthers
from snakemake_executor_plugin_dask.driver.head.runs import AllRuns, Expected, Share
from snakemake_executor_plugin_dask.driver.head.written import Written, is_gone, refusal
from snakemake_executor_plugin_dask.driver.outbox import Outbox
from snakemake_executor_plugin_dask.driver.own.certificate import server_context
from snakemake_executor_plugin_dask.driver.own.core import Core
from snakemake_executor_plugin_dask.driver.pools import Pools, made_by_slurm
from snakemake_executor_plugin_dask.driver.shown import Shown
from snakemake_executor_plugin_dask.driver.tasks import Tasks
from snakemake_executor_plugin_dask.kept import directory
from snakemake_executor_plugin_dask.kept.joining import is_over
from snakemake_executor_plugin_dask.kept.place import log_of
from snakemake_executor_plugin_dask.model.kept import (
    SILENT_S,
    Alive,
    Ask,
    Coming,
    End,
    Event,
    Join,
    Look,
    PoolThere,
    RunThere,
    Start,
    Told,
    Welcome,
)
from snakemake_executor_plugin_dask.model.messages import Fatal, Level, Say, Stop, Stopped
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.wire import receive, sender
from snakemake_executor_plugin_dask.node import versions
from snakemake_executor_plugin_dask.node.allocation import IDS, allocation_id
from snakemake_executor_plugin_dask.node.door import Door, by_tls
from snakemake_executor_plugin_dask.node.former import ancestor_with, start_time, this_process

_TICK_S = 1.0
_SCALE_EVERY_S = 0.2
_LEASE_S = 60.0  # of workers; each run's supervisors have their own
_IN_PLACE_EVERY_S = 2.0
_ALLOCATION_EVERY_S = 30.0  # so often the batch system is asked for the allocation around
_FORGET_AFTER_S = 1.0  # what was cancelled has ended by then
_BACKLOG = 128
_READ_AHEAD_BYTES = 1 << 26

Send = Callable[[object], None]


class Head:
    """One cluster, from its start until it is over."""

    def __init__(self, start: Start, log: Callable[[str], None], in_place: Callable[[], bool]) -> None:
        """``log`` keeps a line for whoever looks after the cluster. ``in_place``: see `state.Held`."""
        kept = start.kept
        self._in_place = in_place
        self._kept, self._log = kept, log
        self._least = start.least  # the least number of workers is held although no run is there
        self._keep_s = kept.keep_s
        self._began = time.monotonic()
        self._since, self._process = time.time(), this_process()
        self._written = Written(Path(kept.directory), self._record, self._say, in_place)
        self._why = ""  # it ends
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        options = kept.options
        self.dispatch = Dispatch(
            Pools(options, made_by_slurm(options.slurm_template)), time.monotonic, self._failed, Turns()
        )
        self.core = Core(kept.name, options, kept.directory, self._say, self._failed)
        self.runs = AllRuns(self.core, self.dispatch, self._failed)
        self._served: dict[str, _Served] = {}
        self._expected: dict[str, Expected] = {}  # runs that are about to come
        self._heard: dict[str, float] = {}  # by run; read on the thread of the leases
        #: When the cluster ends if no run comes; None: a run is there, or the least number of workers is waited for.
        self._until: float | None = None if start.least else self._began + max(self._keep_s, SILENT_S)
        self._ticked = self._began
        self._held_core_s = self._idle_core_s = 0.0
        self._counted = self._began
        self._socket: socket.socket | None = None
        self._within: directory.Within | None = None  # the allocation that it stands in
        self._tasks = Tasks(self._failed)
        self._forget_at = math.inf  # when to look for what a run has left in memory
        self._conversations: set[asyncio.Task[None]] = set()

    def _say(self, level: Level, text: str) -> None:
        self._log(f"{level}: {text}")
        for served in self._served.values():
            served.send(Say(level, text))

    def _failed(self, error: BaseException) -> None:
        """An error of the head's own: it ends, and all runs with it."""
        if not self.broken.done():
            self.broken.set_exception(error)

    async def start(self) -> None:
        """Listen, and write down where. ConfigurationError; `close` follows all the same."""
        self._code = await asyncio.to_thread(versions.installed_code)
        await self.core.start(
            self.dispatch,
            self.runs,
            self._lives,
            _LEASE_S,
            bounds=self._bounds,
            refusal=lambda: refusal(self._in_place, self._code),
            code=self._code,
        )
        family = socket.AF_INET6 if ":" in self.core.host else socket.AF_INET
        self._socket = socket.create_server((self.core.host, 0), family=family, backlog=_BACKLOG)
        self._door = Door(self._socket, by_tls(server_context(self.core.files), _READ_AHEAD_BYTES, self._came))
        # Where the batch system does not end what outlives a batch script, the head does so itself.
        number = allocation_id(os.environ)
        variable = next((name for name, value in os.environ.items() if value == number and name in IDS), "")
        self._within = directory.within(os.environ)
        if await asyncio.to_thread(is_over, self._within):
            number, self._within = None, None  # of a session that was begun in it, and has outlived it
        self._holder = ancestor_with(variable, number) if variable and number else None
        if self._within is not None:
            self._tasks.spawn(self._watch_allocation(self._within))
        self._written.write()

    async def _watch_allocation(self, within: directory.Within) -> None:
        """End with it, since other hosts take its end for the head's: a session may outlive the batch script.

        One of them may know of that end sooner, and then clear up after the head and bring up the next.
        """
        asked = -math.inf
        while True:
            if time.monotonic() - asked >= _ALLOCATION_EVERY_S:
                if await asyncio.to_thread(is_over, within):
                    why = "the batch system says that the allocation it ran in has ended"
                    break
                asked = time.monotonic()
            if await asyncio.to_thread(is_gone, self._in_place):
                why = "another host has cleared up after it, since its allocation has ended"
                break
            await asyncio.sleep(_IN_PLACE_EVERY_S)
        self.end(why)

    def _record(self) -> directory.Record:
        """Where the cluster is, and what its pools are."""
        assert self._socket is not None
        return directory.Record(
            self._kept.name,
            self._kept.asked,
            dataclasses.replace(self._kept.options, pools=tuple(self.dispatch.pools.values())),
            self._process,
            (self.core.host, self._socket.getsockname()[1]),
            self._since,
            self._within,
        )

    def _lives(self, run_id: str) -> bool:
        heard = self._heard.get(run_id)
        # Measured by the loop that hears: where a file system holds it up, no job ends for it.
        return heard is not None and self._ticked - heard < SILENT_S

    def _bounds(self, pool: Pool) -> Pool:
        """The pool as it is scaled now: without a run nothing is asked for, and nothing that is idle given back."""
        if self._served:
            return pool
        if self._least:
            return dataclasses.replace(pool, idle_timeout_s=math.inf)
        return dataclasses.replace(pool, workers_min=0, workers_max=0, idle_timeout_s=math.inf)

    # Time goes on

    async def tick(self) -> None:
        """Scale and watch until the keep time is over."""
        checked = 0.0
        while True:
            await asyncio.sleep(_SCALE_EVERY_S if self._served else _TICK_S)
            self.core.scale()
            now = time.monotonic()
            if now - checked < _TICK_S:
                continue
            checked = self._ticked = now
            await self.core.watch()
            self._count(now)
            self.dispatch.settle()
            self._written.keep()
            self._look(now)
            if not self._served and now > self._forget_at:
                # A run's parts refer to each other, so that its environment would stay until much else has come.
                self.core.forget_all()
                self._forget_at = math.inf
            if not self._served and not self._least:
                for pool in self.dispatch.pools.values():
                    self.core.fleet.call_back(pool, len(self.core.fleet.starting(pool.name)))
            if self._least and self._until is None and not self._served:
                starting = [m for pool in self.dispatch.pools for m in self.core.fleet.starting(pool)]
                self._until = None if starting else now + self._keep_s
            if self._holder is not None and start_time(self._holder.pid) != self._holder.start:
                self.end("the allocation it ran in has ended")
            if self._until is not None and now > self._until:
                self.end("its keep time is over")

    def _look(self, now: float) -> None:
        """At the runs, from which one may not have been heard for too long.

        Not in `tick` itself, where a name would hold on to the last run, with its environment, until the next comes.
        """
        for served in list(self._served.values()):
            if now - self._heard[served.run_id] > SILENT_S and not served.ending:
                served.cut()
            else:
                served.look(now)

    def end(self, why: str) -> None:
        """Give everything back from now on. ``why`` is what runs are told, and completes "Cluster x ends, since …"."""
        if not self._why:
            self._why = why
            self._log(f"It ends, since {why}.")
        if not self.over.done():
            self.over.set_result(None)

    def heard(self, run_id: str) -> None:
        """The run has just said something: it lives."""
        self._heard[run_id] = time.monotonic()

    def _count(self, now: float) -> None:
        passed_s, self._counted = now - self._counted, now
        for pool in self.dispatch.pools:
            for state in self.dispatch.ledger.states(pool).values():
                nodes, free = (state.total.nodes, state.free.nodes) if state.wide else (1, 0)
                self._held_core_s += passed_s * state.total.cores * nodes
                self._idle_core_s += passed_s * (free * state.total.cores if state.wide else state.free.cores)

    # Whoever comes

    def _came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.ensure_future(self._converse(reader, writer))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._conversations.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        send = sender(writer)
        try:
            match await receive(reader):
                case Join() as join:
                    await self._serve(join, reader, writer, send)
                case Coming() as coming:
                    await self._expect(coming, reader, writer)
                case Ask():
                    send(self.told())
                case End(force=force):
                    await self._end(send, force=force)
            await writer.drain()
        except (EOFError, OSError):
            pass
        except Exception as error:  # noqa: BLE001 - one run's message must not end the others
            send(Fatal(f"the head of the cluster failed: {error!r} (its log: {log_of(self._kept.directory)})"))
            self._log(f"error: {error!r}")
        finally:
            writer.close()
            self._forget_at = time.monotonic() + _FORGET_AFTER_S

    async def _expect(self, coming: Coming, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.over.done():
            return
        expected = self._expected[coming.run_id] = Expected(self.runs, coming, writer.transport.abort)
        try:
            await expected.wait(reader)
        finally:
            if self._expected.get(coming.run_id) is expected:
                del self._expected[coming.run_id]

    async def _serve(self, join: Join, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, send: Send) -> None:
        if self.over.done():
            return  # it joins the next one
        run_id = join.begin.setup.run_id
        self.dispatch.pools.share(join.begin.options.pools)
        if (expected := self._expected.pop(run_id, None)) is not None:
            expected.leave()
        served = _Served(self, join, writer, send, expected)
        self._served[run_id] = served
        self.heard(run_id)
        try:
            self._keep_s = max(self._keep_s, join.keep_s)
            self._least, self._until = False, None
            self.dispatch.pools.try_again()  # with each run
            self.core.fleet.try_again()
            self.dispatch.ledger.idle_from(time.monotonic())
            up = sum(member.up for member in self.core.fleet.workers())
            states = [state for pool in self.dispatch.pools for state in self.dispatch.ledger.states(pool).values()]
            free = [state.free.nodes if state.wide else state.free.cores for state in states if not state.draining]
            roomy = sum(amount > 0 for amount in free)
            send(Welcome(up, roomy, time.monotonic() - self._began))
            await served.serve(reader)
        finally:
            served.ending = True
            try:
                left = await served.close()
            finally:
                del self._served[run_id], self._heard[run_id]
                if not self._served:
                    self._until = time.monotonic() + self._keep_s
        send(self.told())
        send(Stopped(left))

    def told(self) -> Told:
        """The cluster now."""
        states: dict[str, int] = {}
        for member in self.core.fleet.workers():
            state = "starting" if member.starting else member.state.value
            states[state] = states.get(state, 0) + 1
        return Told(
            workers=states,
            pools=[
                PoolThere(name, pool.cluster, len(self.core.fleet.up(name)), pool.workers_max)
                for name, pool in self.dispatch.pools.items()
            ],
            cores=sum(
                state.total.cores * (state.total.nodes if state.wide else 1)
                for pool in self.dispatch.pools
                for state in self.dispatch.ledger.states(pool).values()
            ),
            runs=[
                RunThere(served.run_id, served.workdir, len(served.controller.jobs)) for served in self._served.values()
            ],
            held_core_s=self._held_core_s,
            idle_core_s=self._idle_core_s,
            until_s=None if self._until is None else self._until - time.monotonic(),
            ending=self.over.done(),
        )

    async def _end(self, send: Send, *, force: bool) -> None:
        if not self._served or force:
            self.end("it was told to stop")
        send(self.told())

    async def close(self) -> tuple[str, ...]:
        """End all runs, and give everything back. Returns workers that were not seen to be gone."""
        self.end("it was told to stop")  # whoever comes now joins the next one
        self._tasks.cancel()
        for expected in list(self._expected.values()):
            expected.leave()
        for served in list(self._served.values()):
            served.end(f"Cluster {self._kept.name} ends, since {self._why}.")
        others = self._conversations - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=2 * SILENT_S)
        if self._socket is not None:
            self._door.close()
            self._socket.close()
        return await self.core.close()


class _Served:
    """One run, as long as it is there."""

    def __init__(
        self, head: Head, join: Join, writer: asyncio.StreamWriter, send: Send, expected: Expected | None = None
    ) -> None:
        self.run_id = join.begin.setup.run_id
        self.ending = False  # it has said stop, or is gone: its part is being given back
        self.send = send
        self.workdir = join.begin.setup.workdir
        self._head, self._writer = head, writer
        self._outbox = Outbox(send, lambda: len(head.dispatch.waiting) > 0)
        around = Surroundings(
            send=self._outbox.send,
            say=lambda level, text: send(Say(level, text)),
            event=lambda kind, **fields: send(Event(kind, fields)),
            failed=self._failed,
            state_dir=join.begin.state_dir,
        )
        self.share = Share(head.runs, join.begin.setup, join.begin.jobs, expected)
        self.controller = Controller(join.begin.setup, join.begin.options, self.share, head.dispatch, around)
        self._shown = Shown(self.controller, self.share.uses)
        self._others = HeldByOthers(head.dispatch.ledger, head.dispatch.pools, self.controller.owns)

    def _failed(self, error: BaseException) -> None:
        """This run ends with it, and no other."""
        self.end(f"the head of the cluster failed: {error!r}")

    def end(self, why: str) -> None:
        """The run has to end; it is told so."""
        self.send(Fatal(why))
        self._writer.close()

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Until the run says stop, or is gone."""
        await self.share.start(self.controller)
        while True:
            try:
                message = await receive(reader)
            except EOFError:
                message = Stop(kill=True)
            self._head.heard(self.run_id)
            if not await self.controller.hear(message):
                return

    def look(self, now: float) -> None:
        """Tell the run what its jobs wait for and use, and what others hold; once a second."""
        if news := self._others.news(now):
            self.send(Event("others-held", {"held": news}))
        if not self.controller.stopping:
            self.send(Look(self._shown.blockers(now), now, self._shown.uses()))
        else:
            self.send(Alive())

    def cut(self) -> None:
        """As if it were gone."""
        self._writer.transport.abort()

    async def close(self) -> tuple[str, ...]:
        self.controller.drop_waiting()
        left = await self.share.close()
        self._outbox.flush()
        return left
