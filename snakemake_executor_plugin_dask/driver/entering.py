"""How a run comes to a cluster that stays: joins it, or brings its head up first. Imports nothing of Dask."""

import asyncio
from dataclasses import dataclass

from snakemake_executor_plugin_dask.kept.joining import join
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.kept import Join, Kept, Welcome
from snakemake_executor_plugin_dask.model.messages import Begin
from snakemake_executor_plugin_dask.model.wire import frame, receive

_AGAIN_S = 0.1


@dataclass
class Entered:
    """A run has been let in."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    welcome: Welcome
    said: list[str]  # warnings
    kept: Kept  # the cluster that it is


async def enter(begin: Begin) -> Entered | list[str]:
    """Join the cluster; or the reasons why that is not for this host to do. ConfigurationError."""
    kept = begin.kept
    assert kept is not None
    while True:
        try:
            link, there, said = await join(kept)
        except OSError as error:
            msg = f"The record of cluster {kept.name} in {kept.directory} cannot be used: {error}."
            raise ConfigurationError(msg) from error
        if link is None:
            return said
        reader, writer = link
        try:
            writer.write(frame(Join(begin, kept.keep_s)))
            welcome = await receive(reader)
        except (EOFError, OSError):  # it was about to end
            writer.close()
            await asyncio.sleep(_AGAIN_S)
        else:
            if not isinstance(welcome, Welcome):  # Fatal, in words
                raise ConfigurationError(getattr(welcome, "text", f"Cluster {kept.name} does not take this run."))
            return Entered(reader, writer, welcome, said, there)
