"""Snakemake's command, with the stub in place of the warm process; writes the main thread's time and memory to a file.

``python stubbed.py WRAPPER FIGURES ARGUMENTS``. WRAPPER is run wherever the plugin would run this Python.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any


def resident_mb(pid: int) -> float:
    """Memory of a process, in 10^6 bytes; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    except (OSError, IndexError):
        return 0.0


def watch_driver(spent: dict[str, float]) -> None:
    """Note the most that the driver, a child of this process, ever held."""
    while True:
        time.sleep(0.5)
        for task in Path("/proc/self/task").iterdir():
            for child in (task / "children").read_text().split():
                spent["driver_mb"] = max(spent["driver_mb"], resident_mb(int(child)))


def main() -> None:
    wrapper, figures, *arguments = sys.argv[1:]
    sys.executable = wrapper
    sys.argv = ["snakemake", *arguments]
    from snakemake.cli import main as snakemake

    from snakemake_executor_plugin_dask.frontend.session import Session

    spent = {"jobs": 0, "in_executor_s": 0.0, "from_s": 0.0, "handover_mb": 0.0, "driver_mb": 0.0}
    threading.Thread(target=watch_driver, args=(spent,), daemon=True).start()
    run_jobs = Session.run_jobs

    def timed(session: Session, jobs: Any) -> None:
        known = list(jobs)
        before, held_mb = time.thread_time(), resident_mb(os.getpid())
        spent["from_s"] = spent["from_s"] or before
        run_jobs(session, known)
        spent["in_executor_s"] += time.thread_time() - before
        spent["jobs"] += len(known)
        spent["handed_over"] = time.time()
        spent["handover_mb"] += max(0.0, resident_mb(os.getpid()) - held_mb)

    Session.run_jobs = timed  # type: ignore[method-assign]
    try:
        snakemake()
    finally:
        Path(figures).write_text(json.dumps({**spent, "to_s": time.thread_time()}))


if __name__ == "__main__":
    main()
