"""What Snakemake is told of a job that has ended, and when a run that starts no more jobs is over. Pure."""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from snakemake_executor_plugin_dask.model.messages import Finished

#: *Dropped*: nothing yet, since it counts as not started. *Refused*: it failed before it was started, and its old
#: outputs stay. *Expected*: nothing more, since Snakemake asked for this end.
Verdict = Literal["dropped", "refused", "succeeded", "expected", "failed"]


def verdict(message: Finished, *, started: bool, failed: bool, leaving: bool) -> Verdict:
    """What a job's end means.

    ``started``: Snakemake was told that the job has a process. ``failed``: a job has failed for good, after which no
    more are started. ``leaving``: Snakemake is at its end.
    """
    status = message.outcome.status
    # A lost run may have changed the outputs before anything was heard of it.
    if not started and message.runs == 1 and status == "not-started":
        # After a failure its pool was given up, most likely with that of the first one, and one message is enough.
        return "dropped" if failed else "refused"
    if status == "succeeded":
        return "succeeded"
    return "expected" if leaving and status in ("cancelled", "lost") else "failed"


def starts_no_more(*, failed: bool, keeps_going: bool, told_to_stop: bool) -> bool:
    """Whether Snakemake starts no more jobs, of which it tells no executor."""
    return told_to_stop or (failed and not keeps_going)


def over(dropped: Collection[object], handed_over: int, running: Callable[[], Collection[object]]) -> bool:
    """Whether nothing is left but jobs that are never started, for which Snakemake would wait for ever.

    ``handed_over``: how many have not ended. ``running``: those that Snakemake counts as running; asked where needed.
    """
    return bool(dropped) and not handed_over and set(running()) <= set(dropped)


def unfit_directory(path: Path) -> str | None:
    """Why keys and configurations cannot be handed on by paths in this directory; None where they can."""
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        what = "bytes that are not UTF-8"
    else:
        if "\n" not in text:
            return None
        what = "a line break"
    return (
        f"The path of the working directory, {text!a}, holds {what}, with which Dask's workers cannot be started; "
        "run the workflow in another directory (--directory)."
    )
