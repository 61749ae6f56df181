"""What Snakemake's process says in a run: shown between Snakemake's own lines, and kept in the event log."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.messages import Level, Say
from snakemake_executor_plugin_dask.model.printed import clean_block


def as_error(text: str) -> WorkflowError:
    """What ends the run, as Snakemake prints it: its text comes from settings, commands and jobs."""
    return WorkflowError(clean_block(text))


@contextlib.contextmanager
def as_errors() -> Iterator[None]:
    """What the user set, and cannot work, ends the run."""
    try:
        yield
    except ConfigurationError as error:
        raise as_error(str(error)) from None


class Voice:
    """Every sentence for the user passes here once. The driver writes the event log, so it is told what was said."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._early: list[Say] | None = []  # said before there was a driver
        self._keep: Callable[[Say], None] = self._early.append

    def kept_by(self, send: Callable[[object], None]) -> None:
        """From now on the driver is told at once; what was said so far it is told now."""
        self._keep, early, self._early = send, self._early, None
        for said in early or ():
            send(said)

    def show(self, level: Level, text: str) -> None:
        """Only show it: what the driver says is in the event log, and so is the reason of a job's failure."""
        getattr(self._logger, level)(clean_block(text))

    def info(self, text: str) -> None:
        """Show and keep."""
        self._say("info", text)

    def warning(self, text: str) -> None:
        """Show and keep."""
        self._say("warning", text)

    def error(self, text: str) -> None:
        """Show and keep."""
        self._say("error", text)

    def _say(self, level: Level, text: str) -> None:
        self.show(level, text)
        self._keep(Say(level, text))
