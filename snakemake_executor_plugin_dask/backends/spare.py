"""A worker on this machine that is started before its run is known, so that it imports Dask while the driver does.

Its supervisor and its warm process get ready, too. Imports little; starts a process, which ends with this one.
Until the run begins nothing of it is written anywhere: its output goes into a file without a name.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from snakemake_executor_plugin_dask.model.jobs import Beginning, RunSetup, SpareWorker
from snakemake_executor_plugin_dask.model.wire import frame
from snakemake_executor_plugin_dask.node.private import opened

if TYPE_CHECKING:
    import asyncio

#: Older ones are not taken: their supervisors, which hear of no lease before, may be about to leave.
_FRESH_S = 30.0


class Taken:
    """Its process, as `asyncio.subprocess.Process`."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.poll()

    async def wait(self) -> int:
        """Until it has ended."""
        while (code := self._process.poll()) is None:
            await _readable(os.pidfd_open(self.pid))
        return code

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()


async def _readable(pidfd: int) -> None:
    import asyncio  # not before the worker was started

    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    loop.add_reader(pidfd, _settle, ended)
    try:
        await ended
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _settle(ended: "asyncio.Future[None]") -> None:
    if not ended.done():
        ended.set_result(None)


class Spare:
    """One of them, until it is taken or dropped."""

    def __init__(self, spare: SpareWorker, command: Sequence[str]) -> None:
        """Start it; ``command`` is that of a worker with its configuration. Raises OSError where it cannot be."""
        self._command, self._beginning = list(command), spare.beginning
        self._taken = False
        # No name: it is there only for the processes that have it open. Some file systems, such as NFS, have no such
        # files, and workers there start with their run.
        self._log = os.open(Path(spare.config).parents[3], os.O_TMPFILE | os.O_WRONLY | os.O_APPEND, 0o600)
        try:
            self._socket, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [*command, "--ahead", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    cwd="/",
                    start_new_session=True,
                )
            self._socket.sendall(frame(spare.beginning))
        except OSError:
            os.close(self._log)
            raise
        self._fresh_until = time.monotonic() + _FRESH_S

    def fits(self, setup: RunSetup) -> bool:
        """Whether it began as the run does."""
        return setup.job_start == "warm" and Beginning.of(setup) == self._beginning

    def take(self, command: Sequence[str], log: Path) -> Taken | None:
        """Have it be the worker with this command, whose files are there now. None: it is none such, and is gone.

        ``log``: where its output is to be.
        """
        try:
            old = time.monotonic() > self._fresh_until
            if old or list(command) != self._command or self._process.poll() is not None:
                return None
            with opened(log.parent) as directory:  # with a descriptor, since only then Python has the link followed
                os.link(f"/proc/self/fd/{self._log}", log.name, dst_dir_fd=directory, follow_symlinks=True)
            self._socket.sendall(b"\n")
        except OSError:
            return None
        else:
            self._taken = True
            return Taken(self._process)
        finally:
            self.drop()

    def drop(self) -> None:
        """Have it end, unless it was taken. May be repeated."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1
            self._socket.close()
            if not self._taken:
                self._process.kill()
                self._process.wait()


#: This process's, if it has one.
here: Spare | None = None


def get_ready(spare: SpareWorker, command: Sequence[str]) -> None:
    """Start one, where it can be. ``command``: of a worker with its configuration."""
    global here  # noqa: PLW0603 - a process has one driver
    with contextlib.suppress(OSError):  # the worker starts with its run, and what is wrong is told then
        here = Spare(spare, command)


def keep_for(setup: RunSetup | None) -> None:
    """The run is known; None: another process brings its workers up. Drop what does not fit."""
    if here is not None and (setup is None or not here.fits(setup)):
        drop()


def take(command: Sequence[str], log: Path) -> Taken | None:
    """As `Spare.take`."""
    global here
    if here is None:
        return None
    spare, here = here, None
    return spare.take(command, log)


def drop() -> None:
    """The run goes without it, or is over."""
    global here  # noqa: PLW0603
    if here is not None:
        here.drop()
        here = None
