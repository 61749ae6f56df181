"""Files that jobs update (`update(…)` in a rule), and a copy of each as it was before the job's attempt.

A job's own Snakemake makes a backup as well, in a place that all runs share, and removes it once the job is done: too
early for a group whose other jobs may fail, and for a job whose end nobody hears of. So the worker keeps a copy until
Snakemake's main process knows how the attempt ended.
"""

import contextlib
import glob
import os
import shutil
import threading
from collections.abc import Iterable
from typing import Literal

from snakemake_executor_plugin_dask.model.jobs import Update

#: *Accepted*: what it made stays, if anything. *Failed*: Snakemake's main process takes what was there before from its
#: place of backups. *Stopped*: that process asks for nothing, and the output becomes as it was at once.
Ended = Literal["accepted", "failed", "stopped"]


def before_the_job(output: str, backup: str, attempt: str) -> Update:
    """An output as it is before the attempt that updates it; what earlier runs left beside it goes. OSError."""
    there = os.path.lexists(output)
    if there:  # the job's Snakemake would write over a file, and fail where it is a directory
        for left in (backup, *glob.glob(f"{glob.escape(backup)}.before-*")):
            _remove(left)
    return Update(output, backup, f"{backup}.before-{attempt}" if there else "")


def prepare(updates: Iterable[Update], given_up: threading.Event, *, again: bool) -> None:
    """Before an attempt is started: keep what is there, or ``again`` undo what a killed start of it has made. OSError.

    May take as long as files are large. Nothing more is made or removed once ``given_up`` is set.
    """
    for update in updates:
        if given_up.is_set():
            return
        if again:
            _remove(update.backup)  # Snakemake could not make that of a directory anew
        if not update.before:
            if again:
                _remove(update.output)
        elif os.path.lexists(update.before):
            _copy(update.before, update.output)
        else:
            part = _part(update)
            try:
                _copy(update.output, part)
                if not given_up.is_set():
                    os.rename(part, update.before)
            finally:
                _remove(part)  # it fills a full disk, or nobody waits for it


def ended(update: Update, how: Ended) -> bool:
    """How the attempt ended, and Snakemake's main process is about to hear of it. OSError.

    False: what it updates is as it was, and there is no copy of it, since the attempt never started.
    """
    if not update.before:
        if how == "stopped":
            _remove(update.output)
        return True
    with contextlib.suppress(OSError):  # of a worker that was ended while it made the copy
        _remove(_part(update))
    if not os.path.lexists(update.before):
        return False
    if how == "accepted":
        _remove(update.before)
        return True
    _remove(update.backup)
    if how == "failed":
        os.rename(update.before, update.backup)
        return True
    if os.path.islink(update.output):  # which stays a link
        _copy(update.before, update.output)
        _remove(update.before)
        return True
    if os.path.isdir(update.output):
        _remove(update.output)
    shutil.move(update.before, update.output)  # to another file system, perhaps
    return True


def _part(update: Update) -> str:
    """A copy that is not whole."""
    return f"{update.before}.part"


def _copy(path: str, to: str) -> None:
    """In place of what is there."""
    if os.path.isdir(path):
        _remove(to)
        shutil.copytree(path, to)
    else:
        os.makedirs(os.path.dirname(to) or ".", exist_ok=True)
        shutil.copy2(path, to)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)
