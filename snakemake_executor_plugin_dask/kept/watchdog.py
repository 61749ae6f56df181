"""Clears up after a head that dies without a run there to see it: cancels its allocations. A process of its own.

``python -P -m snakemake_executor_plugin_dask.kept.watchdog --fd N DIRECTORY``, started by the head. Imports little
until then, and keeps no file in the cluster's directory open.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_MODULE = "snakemake_executor_plugin_dask.kept.watchdog"
_EVERY_S = 0.1
_DEAD_S = 10.0  # a process that is ending may still count as alive for a moment


class Watchdog:
    """The process as the head sees it."""

    def __init__(self, where: Path) -> None:
        """Start it; ``where``: the cluster's directory. Raises OSError where there is no room for a process."""
        reading, self._writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, "--fd", str(reading), os.fspath(where)],
                pass_fds=[reading],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        except OSError:
            os.close(self._writing)
            raise
        finally:
            os.close(reading)

    def dismiss(self) -> None:
        """The head has given everything back, or says itself what is left."""
        try:
            os.write(self._writing, b"\n")
        except BrokenPipeError:
            pass  # somebody has ended it
        os.close(self._writing)
        self._process.wait()


def main() -> int:
    """Wait until the head is gone. Returns the exit code: 1 where something may be left."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the head answers them, and then this process ends, too
    if os.read(options.fd, 1):
        return 0
    from snakemake_executor_plugin_dask.kept import joining

    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # what is started now is to have them as usual
    until = time.monotonic() + _DEAD_S
    while joining.fate(options.directory) == "alive" and time.monotonic() < until:
        time.sleep(_EVERY_S)
    return int(bool(joining.clear_up(options.directory)))


if __name__ == "__main__":
    sys.exit(main())
