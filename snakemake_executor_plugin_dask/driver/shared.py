"""Leases in the scheduler of an attached cluster, so that runs of this plugin that share it do not overbook workers.

`SharedLeases` decides, and is pure; `SharedLeasesPlugin` runs in that scheduler's process and answers the drivers.
Other clients' tasks hold no leases there, and cannot be counted.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

#: Longer than the lease by which a job lives, so that what a dead run held is free only once its jobs are dead.
OUTLIVES_S = 30.0

#: Raised when what runs say to the plugin changes: all runs on a cluster must speak the same.
PROTOCOL = 1

PLUGIN_NAME = "snakemake-executor-plugin-dask"
TOPIC = "snakemake-leases"  # tells that something was given back

Amounts = Mapping[str, float]


@dataclass(slots=True)
class _Run:
    length_s: float
    until: float
    held: dict[str, tuple[str, dict[str, float]]] = field(default_factory=dict)  # key: worker, amounts


class SharedLeases:
    """What each run holds of each worker. Times are seconds on the clock that is passed in."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: dict[str, _Run] = {}

    def renew(self, run: str, length_s: float) -> None:
        """The run lives: everything it holds is held for ``length_s`` more."""
        self.expire()
        known = self._runs.setdefault(run, _Run(length_s, 0.0))
        known.length_s, known.until = length_s, self._clock() + length_s

    def reserve(self, run: str, key: str, worker: str, amounts: Amounts, capacity: Amounts) -> bool:
        """Hold the amounts on the worker, or answer False: together with what is held they exceed its capacity.

        An amount whose name the capacity lacks is refused. Repeating a reservation changes nothing. A run that does not
        renew (`renew` comes first) holds nothing.
        """
        self.expire()
        known = self._runs.get(run)
        if known is None:
            return False
        if key in known.held:
            return known.held[key][0] == worker
        used = self.used(worker)
        if any(used.get(name, 0.0) + amount > capacity.get(name, 0.0) for name, amount in amounts.items() if amount):
            return False
        known.held[key] = (worker, {name: amount for name, amount in amounts.items() if amount})
        return True

    def release(self, run: str, key: str) -> bool:
        """Give back; True where something was held."""
        known = self._runs.get(run)
        return known is not None and known.held.pop(key, None) is not None

    def end(self, run: str) -> bool:
        """A run is over, and all its jobs are dead. True where it held something."""
        known = self._runs.pop(run, None)
        return known is not None and bool(known.held)

    def worker_gone(self, worker: str) -> None:
        """Nobody holds anything of a worker that is not there."""
        for known in self._runs.values():
            for key in [key for key, (where, _) in known.held.items() if where == worker]:
                del known.held[key]

    def expire(self) -> bool:
        """Forget the runs that renewed too long ago; True where one of them held something."""
        now = self._clock()
        over = [run for run, known in self._runs.items() if known.until < now]
        held = [self.end(run) for run in over]
        return any(held)

    def used(self, worker: str, but: str | None = None) -> dict[str, float]:
        """What all runs, or all ``but`` one, hold on a worker."""
        total: dict[str, float] = {}
        for run, known in self._runs.items():
            if run != but:
                for where, amounts in known.held.values():
                    if where == worker:
                        for name, amount in amounts.items():
                            total[name] = total.get(name, 0.0) + amount
        return total

    def used_by_others(self, run: str) -> dict[str, dict[str, float]]:
        """By worker, what the other runs hold; workers of which they hold nothing are left out."""
        workers = {where for other, known in self._runs.items() if other != run for where, _ in known.held.values()}
        return {worker: self.used(worker, but=run) for worker in workers}


class SharedLeasesPlugin(SchedulerPlugin):
    """Answers drivers over the scheduler's own connection; what they ask is `SharedLeases`' methods."""

    name = PLUGIN_NAME
    idempotent = True  # the second run finds what the first put there

    def __init__(self) -> None:
        self.leases = SharedLeases()
        self._scheduler: Any = None

    async def start(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        scheduler.handlers["snakemake_leases"] = self.answer

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        self.leases.worker_gone(worker)

    async def answer(self, what: str, run: str, **more: Any) -> Any:
        """One question; ``what`` is hello, renew, reserve, release or end."""
        match what:
            case "hello":
                return PROTOCOL
            case "renew":
                if self.leases.expire():
                    self._tell()
                self.leases.renew(run, more["length_s"])
                return self.leases.used_by_others(run)
            case "reserve":
                return self.leases.reserve(run, more["key"], more["worker"], more["amounts"], more["capacity"])
            case "release":
                if self.leases.release(run, more["key"]):
                    self._tell()
            case "end":
                if self.leases.end(run):
                    self._tell()
        return None

    def _tell(self) -> None:
        self._scheduler.log_event(TOPIC, {"released": True})
