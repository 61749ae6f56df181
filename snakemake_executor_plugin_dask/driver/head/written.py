"""The record of a cluster that stays, kept up to date while its head lives. Writes files."""

from collections.abc import Callable
from pathlib import Path

from snakemake_executor_plugin_dask.kept import directory
from snakemake_executor_plugin_dask.model.messages import Level


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
