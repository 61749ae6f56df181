"""Files of attempts: their logs, what they update, what is removed after them.

All of it is done on threads, and given up after a while: a file server that hangs holds up nothing else.
"""

import asyncio
import contextlib
import functools
import os
import secrets
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple

from snakemake_executor_plugin_dask.model.either import either
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Update, run_of
from snakemake_executor_plugin_dask.model.shellcommand import ShellCommand
from snakemake_executor_plugin_dask.node import logs, updates
from snakemake_executor_plugin_dask.worker.supervisor.attempt import Attempt, NotStarted
from snakemake_executor_plugin_dask.worker.supervisor.commands import Commands, Prepared

_LOG_S = 30.0
_READ_S = 10.0
_LISTING_S = 10.0  # and the removal of what is an attempt's own


class Files:
    """Of all attempts of a supervisor."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._logs = ThreadPoolExecutor(4)
        # Apart: what hangs with inputs must not keep other jobs from their logs.
        self._preparing = ThreadPoolExecutor(4)
        self._listings = ThreadPoolExecutor(8)
        self._updating = ThreadPoolExecutor(4)

    async def choose_log(self, current: Attempt, places: list[str], *, at_home: bool) -> None:
        """Where it can be written; else in one of ``places``. ``at_home``: paths of Snakemake's host are those here."""
        path = current.spec.log_path
        looking = self._loop.run_in_executor(self._logs, logs.usable_log, path, places, at_home)
        try:
            current.log, note = await asyncio.wait_for(looking, _LOG_S)
        except TimeoutError:
            current.log, note = os.devnull, f"the log {path} did not open within {_LOG_S:.0f} s, so the output is lost"
        current.notes.append(note)

    async def read_log(self, current: Attempt, files_dir: str) -> None:
        """What an attempt wrote last. ``files_dir``: from where relative paths of its rule's logs count."""
        reading = self._loop.run_in_executor(self._logs, current.read_log, files_dir)
        try:
            current.words = await asyncio.wait_for(reading, _READ_S)
        except FileNotFoundError:
            current.notes.append("its log was removed while it ran")
        except TimeoutError:
            current.notes.append(f"the log {current.log} could not be read within {_READ_S:.0f} s")

    async def remove_log(self, path: str) -> None:
        """It was made on this node alone."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._loop.run_in_executor(self._logs, logs.remove_elsewhere, path), _READ_S)

    async def clear_place(self, directory: str) -> None:
        """What an earlier run of the attempt left there, whose worker was lost, goes.

        First out of the way: a removal that lasts must not meet what this run puts there.
        """
        moving = self._loop.run_in_executor(self._listings, _move_aside, directory)
        try:
            aside = await asyncio.wait_for(moving, _LISTING_S)
        except TimeoutError:
            msg = f"the directory of its local copies, {directory}, did not answer within {_LISTING_S:.0f} s"
            raise NotStarted(msg) from None
        except OSError as error:
            msg = f"what an earlier run left in {directory} could not be moved away: {error.strerror}"
            raise NotStarted(msg) from error
        if aside is not None:
            await self.remove(aside)

    async def keep_updated(self, current: Attempt, directory: str) -> None:
        """Keep what the attempt updates, or undo what an earlier run of it, whose worker was lost, has made of it."""
        found = [
            Update(*(path and os.path.join(directory, path) for path in astuple(it))) for it in current.spec.updates
        ]
        given_up = threading.Event()
        prepare = functools.partial(updates.prepare, found, given_up, again=run_of(current.key) > 1)
        keeping = self._loop.run_in_executor(self._updating, prepare)
        await either(keeping, current.stopping.wait())  # files may be large
        given_up.set()
        current.check_verdict()
        try:
            await keeping
        except OSError as error:
            names = ", ".join(each.output for each in found)
            msg = f"what it updates could not be kept as it was before ({names}): {error.strerror or error}"
            raise NotStarted(msg) from error

    async def prepare(self, commands: Commands, spec: JobSpec, command: ShellCommand) -> Prepared | None:
        """What `Commands.prepare` does; None where the job takes a Snakemake."""
        given_up = threading.Event()
        preparing = self._loop.run_in_executor(self._preparing, commands.prepare, spec, command, given_up)
        try:
            return await asyncio.wait_for(asyncio.shield(preparing), _LOG_S)
        except TimeoutError:
            given_up.set()
            preparing.add_done_callback(_close_log)
            return None

    async def finish(self, commands: Commands, command: ShellCommand) -> bool:
        """What `Commands.finish` says; taken for done where that takes too long."""
        given_up = threading.Event()
        looking = self._loop.run_in_executor(self._listings, commands.finish, command, given_up)
        try:
            return await asyncio.wait_for(looking, _LISTING_S)
        except TimeoutError:
            given_up.set()
            return True

    async def look_at(self, directories: tuple[str, ...]) -> None:
        """Have what is in them seen, where a network file system may show it late."""

        def look() -> None:
            for directory in directories:
                # To be opened and read is what a file system asks its server for. Hundreds of thousands of entries may
                # follow, with each job's success.
                with contextlib.suppress(OSError), os.scandir(directory) as entries:
                    next(entries, None)

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._loop.run_in_executor(self._listings, look), _LISTING_S)

    async def remove(self, directory: str) -> None:
        """With all that is in it."""
        with contextlib.suppress(TimeoutError):
            remove = functools.partial(shutil.rmtree, directory, ignore_errors=True)
            await asyncio.wait_for(self._loop.run_in_executor(self._listings, remove), _LISTING_S)


def _move_aside(directory: str) -> str | None:
    """The new name of what lies there; None where nothing does. Raises OSError."""
    aside = f"{directory}.{secrets.token_hex(8)}"
    try:
        os.rename(directory, aside)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return aside


def _close_log(preparing: "asyncio.Future[Prepared | None]") -> None:
    if not preparing.cancelled() and preparing.exception() is None and (prepared := preparing.result()) is not None:
        os.close(prepared.log)
