"""Files that jobs update (`update(…)` in a rule), and the backup that a job's Snakemake makes of each before it begins.

A backup has one place for each file, whichever run it is of. So what lies there is used only where it is the file as it
was when its job was handed over: one of a run that was killed, or that was cut short, is not.
"""

import contextlib
import os
import shutil

from snakemake_executor_plugin_dask.model.jobs import Update


def before_the_job(output: str, backup: str) -> Update:
    """An output as it is before the job that updates it; a backup that an earlier run left goes. OSError."""
    size = _size(output)
    if size is not None:  # the job's Snakemake would write over a file, and fail where it is a directory
        _remove(backup)
    return Update(output, backup, size)


def put_back(update: Update) -> None:
    """Make an output what it was before its job, an earlier attempt of which was killed. OSError."""
    if update.size is None:
        _remove(update.output)
    elif _size(update.backup) == update.size:
        if os.path.isdir(update.output):
            shutil.rmtree(update.output)
        shutil.move(update.backup, update.output)
    else:  # it has not begun: the backup was not made, or not to its end
        _remove(update.backup)


def _size(path: str) -> tuple[int, int] | None:
    """How many files there are, and their bytes together; None: it does not exist."""
    if not os.path.isdir(path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return 1, os.stat(path).st_size
        return None
    sizes = [_size(os.path.join(path, name)) or (0, 0) for name in os.listdir(path)]
    return sum(files for files, _ in sizes), sum(size for _, size in sizes)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)
