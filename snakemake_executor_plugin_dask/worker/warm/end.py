"""What the warm process and its children do at their end. A child's interpreter is not taken apart, for that costs.

What the workflow registered while it was read (exit functions, directories for temporary files) belongs to the warm
process, and is done at its end; what a job registers or leaves open is the job's.
"""

import atexit
import contextlib
import ctypes
import gc
import io
import itertools
import logging
import os
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from snakemake_executor_plugin_dask.interior.leaving import run_exit_functions

_libc = ctypes.CDLL(None)
#: The bases of `io.TextIOBase` and `io.BufferedIOBase`: these themselves are abstract, and slow to ask.
_FILES: tuple[Any, ...] = tuple(kind.__base__ for kind in (io.TextIOBase, io.BufferedIOBase))


class Belongings:
    """What there was when the warm process was ready to fork."""

    def __init__(self, namespaces: Iterable[dict[str, Any]] = ()) -> None:
        """``namespaces``: where the workflow's author may keep something. Writes out what is still buffered."""
        self._namespaces = [(space, dict(space)) for space in {id(space): space for space in namespaces}.values()]
        self._files = [weakref.ref(item) for item in _files(gc.get_objects())]
        self.flush()

    def flush(self) -> None:
        """Write out what those files still buffer, and C's."""
        files = [file for reference in self._files if (file := reference()) is not None]
        for file in sorted(files, key=_is_inner):
            with contextlib.suppress(Exception):
                file.flush()
        _libc.fflush(None)

    def disown(self) -> None:
        """In a child: its end must not do what is the warm process's to do."""
        atexit._clear()
        finalize: Any = weakref.finalize
        finalize._registry.clear()
        finalize._registered_with_atexit = False
        # The standard library's own, in the order in which they were registered.
        atexit.register(logging.shutdown)
        if (processes := sys.modules.get("multiprocessing.util")) is not None:
            atexit.register(processes._exit_function)

    def end(self, code: int) -> NoReturn:
        """End a child as the interpreter ends.

        Threads that are not daemons, exit functions, then what the job kept and left open, then what is still buffered.
        """
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            run_exit_functions()
        except BaseException:  # noqa: BLE001 - printed, as the interpreter does; the exit code stays
            traceback.print_exc()
        code = _flush_streams(code)
        self._let_go()
        code = _flush_streams(code)
        self.flush()
        os._exit(code)

    def _let_go(self) -> None:
        """What the job kept in global names ends with them; what it kept elsewhere is looked for."""
        for space, before in self._namespaces:
            for name in [name for name, value in space.items() if value is not before.get(name)]:
                with contextlib.suppress(BaseException):
                    space[name] = None
        # The collector does not show what there was before the fork: that is frozen.
        kept = [item for item in gc.get_objects() if hasattr(type(item), "__del__") and not _is_suspended(item)]
        for item in kept:
            if isinstance(item, io.TextIOWrapper):
                with contextlib.suppress(Exception):
                    item.flush()
        for item in sorted(kept, key=_is_inner):
            with contextlib.suppress(BaseException):
                item.__del__()


def _files(items: list[Any]) -> Iterator[Any]:
    """Those of a hundred thousand objects that are files; each type is looked at once. Proxies are left alone."""
    kinds = list(map(type, items))
    numbers = list(map(id, kinds))  # of kinds, since not every one has a hash
    of_files = {number for number, kind in dict(zip(numbers, kinds, strict=True)).items() if issubclass(kind, _FILES)}
    return itertools.compress(items, map(of_files.__contains__, numbers))


def _is_suspended(item: Any) -> bool:
    """Generators are ended by their own way only, which may lead through the job's code."""
    return issubclass(type(item), types.GeneratorType | types.CoroutineType | types.AsyncGeneratorType)


def _is_inner(item: Any) -> int:
    """What others write through comes after them."""
    if issubclass(type(item), io.BufferedWriter | io.BufferedRandom):
        return 2
    return 3 if issubclass(type(item), io.RawIOBase) else 1 if issubclass(type(item), io.TextIOWrapper) else 0


def _flush_streams(code: int) -> int:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed or replaced by the job
            code = code or (120 if stream is sys.stdout else 0)
    return code
