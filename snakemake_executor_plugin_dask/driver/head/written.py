"""The record of a cluster that stays, kept up to date while its head lives. Writes files."""

from collections.abc import Callable
from pathlib import Path

from snakemake_executor_plugin_dask.kept import directory
from snakemake_executor_plugin_dask.model.messages import Level
from snakemake_executor_plugin_dask.node.versions import REINSTALLED, installed_code


def is_gone(in_place: Callable[[], bool]) -> bool:
    """Whether the cluster's directory is no longer its own. May block; what cannot be looked at counts as there."""
    try:
        return not in_place()
    except OSError:
        return False


def refusal(in_place: Callable[[], bool], code: str) -> str:
    """Why no worker can be started any more; empty: it can be tried. May block.

    ``code``: the `installed_code` from which the cluster was started.
    """
    if is_gone(in_place):
        return "the cluster's own files are gone"
    try:
        return "" if installed_code() == code else REINSTALLED
    except OSError:  # a worker that is started will meet it, and there are other tries
        return ""


class Written:
    """What is written down of one cluster; written anew where it is another."""

    def __init__(
        self,
        where: Path,
        record: Callable[[], directory.Record],
        say: Callable[[Level, str], None],
        in_place: Callable[[], bool],
    ) -> None:
        """``record`` gives what is true now. ``in_place``: whether the directory is still this cluster's."""
        self._in_place = in_place
        self._where, self._record, self._say = where, record, say
        self._last: directory.Record | None = None
        self._told = False  # that it cannot be written

    def write(self) -> None:
        """Write it where it has changed. Raises OSError."""
        record = self._record()
        if record != self._last and self._in_place():
            directory.write(self._where, record)
            self._last = record

    def keep(self) -> None:
        """The same, once a second: a full or stale file system does not end the cluster; it is tried again."""
        try:
            self.write()
        except OSError as error:
            if not self._told:
                self._say("warning", f"The record of cluster {self._where.name} cannot be written, for now: {error}.")
            self._told = True
        else:
            self._told = False
