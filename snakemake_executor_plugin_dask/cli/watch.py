"""`snakemake-dask watch`: a live view of a run in the terminal, from its event log. Reads keys; draws by curses.

curses leaves the terminal as it was, also at an error and at Ctrl-Z, and follows changes of its size.
"""

import argparse
import curses
import locale
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from snakemake_executor_plugin_dask.cli.finding import fate, find_log, no_garbage
from snakemake_executor_plugin_dask.cli.screen import Line, Pace, screen
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.observe import live
from snakemake_executor_plugin_dask.observe.events import Tail, event_of
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.picture import snapshot
from snakemake_executor_plugin_dask.observe.status import end_line, table

_LOOK_EVERY_MS = 1000
_FATE_EVERY_S = 10.0
_PAGE = 10


class Followed:
    """A run whose event log is read on as it grows."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.model = RunModel()
        self.gone = False  # its process was killed
        self._tail = Tail(log)
        self._asked = 0.0

    def look(self) -> None:
        """Take in what is new. Raises OSError."""
        if self.model.ended is None and time.monotonic() - self._asked > _FATE_EVERY_S:
            self._asked = time.monotonic()
            self.gone = fate(self.log) == "dead"
        for line in self._tail.lines():
            if (event := event_of(line)) is not None:
                self.model.apply(event)
        live.look(self.log, self.model)

    @property
    def over(self) -> bool:
        """Whether nothing more will come: the run has ended, or its driver is dead."""
        return self.model.ended is not None or self.gone


def run(options: argparse.Namespace) -> str:
    """Show the run until it ends, or somebody presses q. Returns what is to stay in the terminal.

    Raises ConfigurationError where there is no terminal.
    """
    log = find_log(options.run)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        msg = "`watch` needs a terminal; `snakemake-dask status` prints the same once."
        raise ConfigurationError(msg)
    followed = Followed(log)
    with no_garbage():
        followed.look()
    if not followed.over:
        locale.setlocale(locale.LC_ALL, "")
        for name in ("LINES", "COLUMNS"):  # curses would believe them, and follow no change
            os.environ.pop(name, None)
        before = signal.signal(signal.SIGTERM, _leave)
        try:
            curses.wrapper(_show, followed)
        except curses.error as error:
            msg = f"The terminal cannot show this ({error}); `snakemake-dask status` prints the same once."
            raise ConfigurationError(msg) from error
        finally:
            signal.signal(signal.SIGTERM, before)
    model = followed.model
    if model.ended is not None:
        return f"{table(snapshot(model))}\n\n{end_line(model)}"
    if followed.gone:
        return f"{table(snapshot(model))}\n\nThe run was killed."
    return ""


def _leave(_: int, __: FrameType | None) -> None:
    raise SystemExit(1)


def _show(window: Any, followed: Followed) -> None:
    curses.curs_set(0)
    styles = _styles()
    window.timeout(_LOOK_EVERY_MS)
    pace, first = Pace(), 0
    while not followed.over:
        height, width = window.getmaxyx()
        lines = screen(followed.model, time.time(), pace, width - 1, height, first)
        _draw(window, lines, styles)
        key = window.getch()
        if key in (ord("q"), ord("Q")):
            return
        steps = {curses.KEY_DOWN: 1, curses.KEY_UP: -1, curses.KEY_NPAGE: _PAGE, curses.KEY_PPAGE: -_PAGE}
        first = max(0, min(first + steps.get(key, 0), len(followed.model.running) - 1))
        followed.look()


def _styles() -> dict[str, int]:
    """Attributes of curses. The terminal's own colours, so that light and dark ones are both readable."""
    found = {"plain": curses.A_NORMAL, "bold": curses.A_BOLD, "dim": curses.A_DIM, "bad": curses.A_BOLD}
    if curses.has_colors():
        curses.use_default_colors()
        curses.init_pair(1, curses.COLOR_RED, -1)
        found["bad"] = curses.color_pair(1)
    return found


def _draw(window: Any, lines: list[Line], styles: dict[str, int]) -> None:
    window.erase()
    for row, line in enumerate(lines):
        try:
            window.addstr(row, 0, line.text, styles[line.style])
        except curses.error:  # it became smaller meanwhile
            break
    window.refresh()
