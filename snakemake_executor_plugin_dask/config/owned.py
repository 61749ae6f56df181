"""What the plugin must own in Dask's configuration, for the driver and for workers. Data only, and one check."""

import logging
from collections.abc import Callable
from typing import Any

_BOTH: dict[str, Any] = {
    "distributed.worker.daemon": False,
    "distributed.worker.lifetime.duration": None,
    "distributed.worker.profile.enabled": False,
    # How often Dask looks at its own process: by default fifty times a second, which takes two percent of a core.
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.tick.limit": "20s",
    "distributed.admin.low-level-log-length": 100,  # of messages, kept whole for Dask's developers
    "distributed.comm.timeouts.connect": "30s",
    "distributed.comm.timeouts.tcp": "60s",  # as long as a lease: a shorter cut of the network ends no job
    "distributed.comm.require-encryption": True,
}

#: Set before any of Dask's objects is made; several are read in constructors.
DRIVER_CONFIGURATION: dict[str, Any] = {
    **_BOTH,
    "distributed.scheduler.work-stealing": False,  # jobs are pinned; a second start elsewhere would be a second attempt
    "distributed.scheduler.allowed-failures": 0,  # Dask would run a lost job up to three times more without a word
    "distributed.scheduler.no-workers-timeout": "10s",  # a pinned task whose worker went must not wait for ever
    "distributed.scheduler.worker-ttl": None,  # the driver watches its workers itself, and knows when it slept itself
    "distributed.scheduler.worker-saturation": "inf",
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.scheduler.idle-timeout": None,
    "distributed.nanny.pre-spawn-environ": {},
    "distributed.comm.retry.count": 0,
}

#: Set in a worker before `distributed` is imported, which reads it only then. Dask would work out the size of each
#: message, and hand large ones to a thread; all of a worker's are small.
BEFORE_IMPORT: dict[str, Any] = {"distributed.comm.offload": False}

WORKER_CONFIGURATION: dict[str, Any] = {
    **_BOTH,
    # Dask would measure its own process, and never the jobs.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.preload": [],
    "distributed.worker.use-file-locking": False,  # nothing is written there, and the locks would be left behind
}

#: Arguments of Dask's worker class that a job's own cluster is given by the plugin, and not by `dask_worker_options`.
WORKER_CLASS_OPTIONS = frozenset({
    "contact_address", "dashboard", "dashboard_address", "host", "http_prefix", "interface", "loop", "memory_limit",
    "name", "nanny", "nthreads", "port", "protocol", "scheduler_file", "scheduler_ip", "scheduler_port", "security",
})  # fmt: skip

#: Settings of the user's own Dask configuration that are overruled, with a line that says so.
_TOLD = (
    "distributed.scheduler.work-stealing",
    "distributed.scheduler.allowed-failures",
    "distributed.worker.lifetime.duration",
)


def quieten() -> None:
    """Keep Dask's logging to what is wrong. Importing `distributed` sets its loggers up; call this after it."""
    for name in ("distributed", "distributed.client", "bokeh", "tornado", "tornado.application"):
        logging.getLogger(name).setLevel(logging.ERROR)


def overruled(get: Callable[[str], Any], defaults: Callable[[str], Any]) -> tuple[str, ...]:
    """One sentence for each setting of the user's that cannot be followed.

    ``get`` reads the configuration in force, ``defaults`` Dask's own defaults.
    """
    return tuple(
        f"Dask's configuration sets {key} to {get(key)!r}; "
        f"the plugin needs {DRIVER_CONFIGURATION[key]!r} and uses that."
        for key in _TOLD
        if get(key) not in (defaults(key), DRIVER_CONFIGURATION[key])
    )
