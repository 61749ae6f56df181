"""The driver process as Snakemake sees it: spoken to, heard by a thread, ended. Imports nothing of Dask."""

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from snakemake_executor_plugin_dask.batch.allocations import cancel_run
from snakemake_executor_plugin_dask.frontend.launching import Launched, log_of
from snakemake_executor_plugin_dask.model.messages import Begin, Stop, Stopped
from snakemake_executor_plugin_dask.model.wire import Channel
from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.node.private import end_of
from snakemake_executor_plugin_dask.node.processes import how_ended

_LOG_TAIL_BYTES = 2000


class DriverLink:
    """One driver process. The callbacks are called on the reader thread.

    ``on_error`` gets what was raised while a message was read or acted upon; the following ones are read all the same.
    """

    def __init__(
        self,
        begin: Begin,
        on_message: Callable[[object], None],
        on_loss: Callable[[str], None],
        on_error: Callable[[BaseException], None],
        launched: Launched,
    ) -> None:
        self._on_message = on_message
        self._on_loss = on_loss
        self._on_error = on_error
        self._stopped = threading.Event()
        self.last: Stopped | None = None
        self._log = log_of(begin.state_dir)
        self._process, self._channel = launched.process, Channel(launched.sock)
        self._channel.send(begin)
        self._reader = threading.Thread(target=self._read, name="dask-driver-reader", daemon=True)
        self._reader.start()

    def send(self, message: object) -> None:
        """Send; a driver that is gone is told by ``on_loss``, not here."""
        try:
            self._channel.send(message)
        except OSError:
            pass

    def stop(self, *, kill: bool, timeout_s: float) -> bool:
        """Ask it to give everything back and wait for that. False: it did not end in time. May be repeated."""
        deadline = time.monotonic() + timeout_s
        if not self._stopped.is_set():
            self.send(Stop(kill))
        if not self._stopped.wait(timeout_s):
            return False
        if threading.current_thread() is not self._reader:
            self._reader.join(5.0)
        try:
            # After its last word only the process has to leave, which takes a loaded machine its time.
            self._process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        self._channel.close()
        return True

    def _read(self) -> None:
        while True:
            try:
                message = self._channel.receive()
            except (EOFError, OSError):
                try:
                    self._lost()
                finally:
                    self._stopped.set()
                return
            except BaseException as error:  # noqa: BLE001 - this one could not be read; without the thread all would hang
                self._on_error(error)
                continue
            if isinstance(message, Stopped):
                self.last = message
                self._stopped.set()
                return
            try:
                self._on_message(message)
            except BaseException as error:  # noqa: BLE001 - Snakemake's own code is called there
                self._on_error(error)

    def _lost(self) -> None:
        if self.last is None:
            self._on_loss(how_ended(self._process.wait()))

    def log_tail(self) -> str:
        """The end of the driver's own output."""
        return end_of(self._log, _LOG_TAIL_BYTES)


def clean_up_after(how: str, state_dir: Path, log_tail: str, *, leaving: bool, kept: str) -> str:
    """Give back what a lost driver did not, and remove its keys. Returns what is to be said.

    ``leaving``: it was lost while it gave everything back itself. ``kept``: the name of a cluster that stays.
    """
    try:
        left = cancel_run(state_dir)
        state.clear(state_dir, keep_logs=True)
    except OSError as error:
        left = [f"Its records in {state_dir} were left alone: {error.strerror or error}."]
    if kept:
        what = f"; the jobs of this run end, and cluster {kept} stays (`snakemake-dask stop {kept}` ends it)."
    elif leaving:
        what = " while it gave everything back; its workers end by themselves."
    else:
        what = "; its workers end, and the run cannot go on."
    lost = f"The driver process of the Dask cluster was lost ({how}){what}"
    return "\n".join([lost, *left, *([log_tail] if log_tail else [])])
