"""Waiting jobs in a tenth of their size: each is packed by what it has in common with the first one of its rule."""

import pickle
import zlib

from snakemake_executor_plugin_dask.model.jobs import JobSpec
from snakemake_executor_plugin_dask.model.messages import QueuedJob

_WINDOW_BITS = 12  # so far back likeness is seen; with these two a job takes microseconds, with zlib's own hundreds
_MEMORY_LEVEL = 4
_RULES = 1000


class Packing:
    """The jobs of one run."""

    def __init__(self) -> None:
        self._first: dict[str, bytes] = {}  # by rule; what follows the thousandth is packed by itself

    def packed(self, queued: QueuedJob) -> QueuedJob:
        """The job as it waits, for `spec` of this object alone."""
        like = self._first.get(queued.name, b"")
        if not like and len(self._first) < _RULES:
            like = self._first[queued.name] = queued.packed
        packing = zlib.compressobj(1, zlib.DEFLATED, -_WINDOW_BITS, _MEMORY_LEVEL, zlib.Z_DEFAULT_STRATEGY, like)
        data = packing.compress(queued.packed) + packing.flush()
        return QueuedJob(queued.key, queued.name, data, queued.request, queued.priority, queued.last)

    def spec(self, queued: QueuedJob) -> JobSpec:
        """Of one that was packed here; it lacks what placement decides (devices, hosts)."""
        unpacking = zlib.decompressobj(-_WINDOW_BITS, self._first.get(queued.name, b""))
        spec: JobSpec = pickle.loads(unpacking.decompress(queued.packed))
        return spec
