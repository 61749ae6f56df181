"""How long recovery took in the fault tests' runs, from their event logs: ``./run bench recovery DIRECTORY``.

DIRECTORY is what pytest was given as ``--basetemp``. Seconds from the loss of a worker, as the run noticed it, until
its jobs were known to be dead, and until the first of them started again.
"""

import sys
from pathlib import Path

from snakemake_executor_plugin_dask.observe.events import Event, read_events


def recovery(events: list[Event]) -> tuple[str, float | None, float | None] | None:
    """Reason, seconds until dead, seconds until started again; None where no worker was lost."""
    lost = next((event for event in events if event["kind"] == "worker-lost"), None)
    if lost is None:
        return None
    since = [event for event in events if event["t"] >= lost["t"] - 1.0]  # a worker's own word comes first
    dead = next((e["t"] for e in since if e["kind"] == "job-ended" and e["outcome"]["status"] == "lost"), None)
    again = next((e["t"] for e in since if e["kind"] == "job-started" and e["t"] > lost["t"]), None)
    return lost["reason"], *(None if t is None else max(0.0, t - lost["t"]) for t in (dead, again))


def main(base: Path) -> None:
    for log in sorted(base.rglob("*.events.jsonl")):
        found = recovery(list(read_events(log)))
        if found is not None and not any(part.endswith("current") for part in log.parts):
            reason, *times = found
            dead, again = ("never" if t is None else f"{t:.1f} s" for t in times)
            name = next(part for part in log.parts if part.startswith("test_"))
            print(f"{name:40} dead after {dead}, started again after {again} ({reason})")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
