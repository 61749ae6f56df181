"""How a process that has imported Dask ends."""

import subprocess
import sys


def test_exit_functions_are_called_and_what_was_written_is_flushed() -> None:
    """A thread that goes on does not keep the process."""
    code = """
import atexit, threading
from snakemake_executor_plugin_dask.interior.leaving import leave
threading.Thread(target=threading.Event().wait).start()
atexit.register(print, "at its end")
print("before")
leave(3)
"""
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "before\nat its end\n", "")
