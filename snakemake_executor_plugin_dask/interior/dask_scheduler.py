"""Dask's scheduler with a client in the same process, and tasks that it is given without one."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

from snakemake_executor_plugin_dask.interior.declared import Private

_SLOW = "each job takes twice as much of the driver's time"

LISTENERS = Private("distributed.core:Server", "listeners", "the driver cannot reach its own scheduler")
#: Of a graph of tasks that has been read.
CREATE = Private(
    "distributed.scheduler:Scheduler",
    "_create_taskstate_from_graph",
    _SLOW,
    needed=False,
    arguments=(
        *("start", "dsk", "keys", "ordered", "client", "annotations_by_type", "global_annotations"),
        *("stimulus_id", "submitting_task", "span_metadata"),
    ),
)
RELEASE = Private(
    "distributed.scheduler:Scheduler", "client_releases_keys", _SLOW, needed=False, arguments=("keys", "client")
)
TASKS = Private("distributed.scheduler:SchedulerState", "tasks", _SLOW, needed=False)
TASK = Private("dask._task_spec", "Task", _SLOW, needed=False)

CALLBACKS = Private(
    "distributed.core:Server",
    "periodic_callbacks",
    "drivers and workers take more of a core where nothing happens",
    needed=False,
)

_OWN = (CREATE, RELEASE, TASKS, TASK)
NAMES = (LISTENERS, CALLBACKS, *_OWN)
#: Four times a second they look for what is not wanted here, or may wait.
_HASTY = ("idle-timeout", "no-workers-timeout")
_LOOK_EVERY_MS = 2000.0
#: As often as a supervisor tells what jobs use, and less often with hundreds of workers. One that says nothing for
#: `members.SILENT_S` is given up, which is several of these.
_HEARTBEAT_MS, _HEARTBEAT_MOST_MS, _STRETCHED = 5_000.0, 10_000.0, 2.5

#: As whose the scheduler knows the tasks. It has no connection, so that nobody is told of each of them.
_CLIENT = "snakemake"

Status = Literal["pending", "finished", "error", "lost"]


def inner_address(scheduler: Any) -> str:
    """The scheduler's address for clients in the same process: the second one that it listens on."""
    return str(LISTENERS.of(scheduler)[1].contact_address)


def calm(scheduler: Any) -> None:
    """Let what a scheduler does time after time be done every two seconds, where it is more often."""
    if CALLBACKS.there():
        for name in _HASTY:
            if (callback := CALLBACKS.of(scheduler).get(name)) is not None:
                callback.callback_time = max(callback.callback_time, _LOOK_EVERY_MS)


def calm_heartbeat(worker: Any) -> None:
    """Let a worker's next heartbeat come later than the scheduler has just asked for. It is for the dashboard alone."""
    if CALLBACKS.there() and (beat := CALLBACKS.of(worker).get("heartbeat")) is not None:
        stretched_ms = max(_HEARTBEAT_MS, _STRETCHED * beat.callback_time)
        beat.callback_time = max(beat.callback_time, min(_HEARTBEAT_MOST_MS, stretched_ms))


def takes_tasks() -> bool:
    """Whether `start` and what follows it can be called."""
    return all(name.there() for name in _OWN)


def start(scheduler: Any, key: str, worker: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Have a task run on the worker at this address, or nowhere. For the scheduler's event loop.

    As by `Client.submit`, which takes several times as long: it makes an expression of the call, pickles it, and sends
    it to the scheduler, which unpickles it, hands it to a thread and back, and tells the client of each step.
    """
    from dask._task_spec import Task

    now = time.time()
    CREATE.of(scheduler)(
        start=now,
        dsk={key: Task(key, function, *arguments)},
        keys={key},
        ordered={key: 0},
        client=_CLIENT,
        annotations_by_type={"workers": {key: [worker]}, "allow_other_workers": {key: False}},
        global_annotations=None,
        stimulus_id=f"snakemake-{now}",
        submitting_task=None,
        span_metadata={"collections": [{"type": "Future"}]},
    )


def status(scheduler: Any, key: str) -> Status:
    """Of a task that was started, and not forgotten."""
    task = TASKS.of(scheduler).get(key)
    if task is None:
        return "lost"
    known: dict[str, Status] = {"memory": "finished", "erred": "error", "forgotten": "lost"}
    return known.get(task.state, "pending")


def forget(scheduler: Any, keys: Iterable[str]) -> None:
    """Nothing more is wanted of these tasks."""
    RELEASE.of(scheduler)(keys=list(keys), client=_CLIENT)
