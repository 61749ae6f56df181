"""How an adaptive cluster asks its scheduler for its size, and which workers it may close. Runs in others' schedulers.

The two methods are documented; that they can be replaced, so that what a plugin knows counts too, is not.
"""

from collections.abc import Callable
from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private

_SCHEDULER = "distributed.scheduler:Scheduler"
_LOST = "an adaptive cluster does not grow for jobs that wait, and may close a worker on which a job is being placed"
TARGET = Private(_SCHEDULER, "adaptive_target", _LOST)
TO_CLOSE = Private(_SCHEDULER, "workers_to_close", _LOST)
HANDLERS = Private(
    "distributed.core:Server", "handlers", "runs cannot share an attached cluster without overbooking it"
)

NAMES = (TARGET, TO_CLOSE, HANDLERS)

Method = Callable[..., Any]


def stand_before(scheduler: Any, target: Method, to_close: Method) -> tuple[Method, Method]:
    """Put these in the place of the scheduler's own two methods, which are returned."""
    own = TARGET.of(scheduler), TO_CLOSE.of(scheduler)
    for name, method in ((TARGET, target), (TO_CLOSE, to_close)):
        setattr(scheduler, name.name, method)
        answer(scheduler, name.name, method)
    return own


def answer(scheduler: Any, name: str, handler: Method) -> None:
    """Let clients call a function in the scheduler by this name."""
    HANDLERS.of(scheduler)[name] = handler
