"""Loaded by Dask in a job's process when that makes its first `Client()`: starts the job's own Dask cluster.

Dask's setting `distributed.client.preload` names a copy of this file, beside which the cluster's settings lie. So the
cluster is started by the script's own Python, in its environment and container, and only if it is wanted. Imports the
standard library and Dask's configuration. Dask loads a file twice in a row, so what it does can be done again.
"""

import fcntl
import json
import os
import subprocess
import sys

#: What of Dask the script's tasks will need, if it has imported it.
_MODULES = ("dask.array", "dask.dataframe")


def start(directory: str) -> None:
    """Start the cluster, if no other process of the job has, and wait for its workers. Raises RuntimeError."""
    with open(os.path.join(directory, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ready = os.path.join(directory, "ready")
        if os.path.exists(ready):
            return
        with open(os.path.join(directory, "settings.json")) as file:
            log = json.load(file)["log"]
        with open(os.path.join(directory, "modules.json"), "w") as file:
            json.dump([name for name in _MODULES if name in sys.modules], file)
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, os.path.join(directory, "cluster.py"), directory],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                env=_environment(),
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


def _environment() -> "dict[str, str]":
    """As Dask's own nanny has it for workers, before numerical libraries are loaded."""
    import dask.config

    given = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    return {**{str(key): str(value) for key, value in given.items()}, **os.environ}


_started: "list[subprocess.Popen[bytes]]" = []  # kept, since a process that nobody holds is complained about

start(os.path.dirname(os.path.abspath(__file__)))
