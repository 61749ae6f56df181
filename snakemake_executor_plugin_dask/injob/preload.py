"""Loaded by Dask in a job's process when that makes its first `Client()`: starts the job's own Dask cluster.

Dask's setting `distributed.client.preload` names a copy of this file, beside which the cluster's settings lie. So the
cluster is started by the script's own Python, in its environment and container, and only if it is wanted. Imports the
standard library only. Dask loads a file twice in a row, so what it does can be done again.
"""

import fcntl
import json
import os
import subprocess
import sys


def start(directory: str) -> None:
    """Start the cluster, if no other process of the job has, and wait for its workers. Raises RuntimeError."""
    with open(os.path.join(directory, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ready = os.path.join(directory, "ready")
        if os.path.exists(ready):
            return
        with open(os.path.join(directory, "settings.json")) as file:
            log = json.load(file)["log"]
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, os.path.join(directory, "cluster.py"), directory],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        assert process.stdout is not None
        with process.stdout:
            answer = process.stdout.readline().decode(errors="replace").strip()
        if answer != "ready":
            process.kill()
            reason = answer or f"it ended with exit code {process.wait()}"
            msg = f"The Dask cluster of this job (dask_workers) could not be started: {reason}; its output is in {log}"
            raise RuntimeError(msg)
        with open(ready, "w"):
            pass
        _started.append(process)


_started: "list[subprocess.Popen[bytes]]" = []  # kept, since a process that nobody holds is complained about

start(os.path.dirname(os.path.abspath(__file__)))
