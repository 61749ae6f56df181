"""What the driver holds of all this: event log, model, lines and report of its run, behind one object.

Writes the event log and the report; shows lines through a callback.
"""

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from snakemake_executor_plugin_dask.model.jobs import RunSetup
from snakemake_executor_plugin_dask.model.messages import Blocker, Level
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.observe import live
from snakemake_executor_plugin_dask.observe.behind import Behind
from snakemake_executor_plugin_dask.observe.events import EventLog
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.picture import WaitingState, snapshot, waiting_states
from snakemake_executor_plugin_dask.observe.status import Narrator, end_line, table

NOTE_EVERY_S = 30.0
LIVE_EVERY_S = 5.0  # as often as each worker tells

Show = Callable[[Level, str], None]


class Observer:
    """Give it every event; call `look` about once a second, `show` on request, and `finish` at the end."""

    def __init__(
        self,
        event_log: str | os.PathLike[str],
        report: str | os.PathLike[str] | None,
        show: Show,
    ) -> None:
        self.model = RunModel()
        self._event_log = event_log
        self._report = report
        self._show = show
        # A file server that hangs must hold up nothing that keeps jobs alive, or starts them.
        self._behind = Behind()
        self._log = EventLog(
            event_log,
            on_error=lambda text: show("warning", text),
            also=self.model.apply,
            soon=self._behind.do,
        )
        self._narrator = Narrator()
        self._waiting: set[tuple[str, str]] = set()
        self._noted = 0.0
        self._lived = 0.0  # when what jobs use was last written

    def event(self, kind: str, **fields: Any) -> None:
        """Into the event log and the model. Never raises for the file."""
        self._log.write(kind, **fields)

    def started(self, setup: RunSetup, options: Options, jobs: int, **more: Any) -> None:
        """The first event. ``jobs``: that are known by now."""
        self.event(
            "run-started",
            run_id=setup.run_id,
            host=platform.node(),
            workdir=setup.workdir,
            options=options,
            jobs=jobs,
            versions={"snakemake": setup.snakemake_version, "plugin": setup.plugin_version},
            **more,
        )

    def say(self, level: Level, text: str) -> None:
        """Show a sentence to the user, and keep it. All that is said while the event log is open passes here."""
        self.note(level, text)
        self._show(level, text)

    def note(self, level: Level, text: str) -> None:
        """Keep a sentence that was shown elsewhere."""
        self.event("said", level=level, text=text)

    def look(self, blockers: Iterable[Blocker], now: float, uses: Mapping[str, Sequence[float]]) -> None:
        """Say what is worth a line. ``blockers`` and ``now`` are on the clock of the ledger.

        ``uses`` is what jobs use now, as in `RunModel.note_uses`.
        """
        if self.model.note_uses(uses) and (wall := time.time()) - self._lived >= LIVE_EVERY_S:
            self._lived = wall
            data = live.encoded(self.model.running.values())
            self._behind.do(lambda: live.write(self._event_log, data))
        waiting = self._note(blockers, now)
        for line in self._narrator.look(snapshot(self.model, time.time(), waiting, workers=False)):
            self.say("info", line)

    def show(self, blockers: Iterable[Blocker], now: float) -> str:
        """The whole picture as text of several lines."""
        return table(snapshot(self.model, time.time(), self._note(blockers, now)))

    def finish(self, **fields: Any) -> str:
        """Write `run-ended` and the report. Returns the line for the end of the run."""
        self.event("run-ended", **fields)
        written = self._behind.close()
        if not written:
            self._show("warning", f"The end of the event log {self._event_log} could not be written so far.")
        line = end_line(self.model)
        if self.model.counts()["failed"]:
            line += " See `snakemake-dask jobs --state failed` and `snakemake-dask report`."
        if self._report is not None:
            from snakemake_executor_plugin_dask.observe.report import write_report  # a relay has no time for it before

            try:
                write_report(self.model, self._report)
            except OSError as error:
                self._show("warning", f"The report {self._report} could not be written: {error.strerror or error}.")
        if written:  # else it is still being written to, and its number must not become another file's
            self._log.close()
        return line

    def _note(self, blockers: Iterable[Blocker], now: float) -> tuple[WaitingState, ...]:
        """Log what is waited for when that changes (numbers of jobs: now and then), for those who read the log."""
        waiting = waiting_states(blockers, now)
        kinds = {(state.pool, state.what) for state in waiting}
        wall = time.time()
        if kinds != self._waiting or (kinds and wall - self._noted > NOTE_EVERY_S):
            self._waiting, self._noted = kinds, wall
            self.event("waiting", blockers=waiting)
        return waiting
