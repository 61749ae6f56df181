"""Leases in the scheduler of an attached cluster, so that runs of this plugin that share it do not overbook workers.

`SharedLeases` decides, and is pure; `SharedLeasesPlugin` runs in that scheduler's process and answers the drivers.
Other clients' tasks hold no leases there, and cannot be counted.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

#: Beyond the lease by which a job lives: what a dead run held is free only once its jobs are dead. More than may pass
#: between a renewal here and the last one of a worker, on its way and to the end of all processes.
OUTLIVES_S = 60.0

#: Raised when what runs say to the plugin changes: all runs on a cluster must speak the same.
PROTOCOL = 2

PLUGIN_NAME = "snakemake-executor-plugin-dask"
TOPIC = "snakemake-leases"  # tells that something was given back

Amounts = Mapping[str, float]
#: By place. A place is a worker's address, or whatever else several workers have in common, such as the GPUs of a host.
Places = Mapping[str, Amounts]


@dataclass(slots=True)
class _Run:
    until: float
    held: dict[str, Places] = field(default_factory=dict)  # by the attempt's key


class SharedLeases:
    """What each run holds in each place. Times are seconds on the clock that is passed in."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: dict[str, _Run] = {}

    def renew(self, run: str, length_s: float, keys: Collection[str]) -> None:
        """The run lives: what it holds for these attempts is held for ``length_s`` more, and for others no longer."""
        self.expire()
        known = self._runs.setdefault(run, _Run(0.0))
        known.until = self._clock() + length_s
        known.held = {key: places for key, places in known.held.items() if key in keys}

    def reserve(self, run: str, key: str, amounts: Places, capacity: Places) -> bool:
        """Hold the amounts, or answer False: together with what is held they exceed a capacity.

        An amount whose name the capacity lacks is refused. Repeating a reservation changes nothing. A run that does not
        renew (`renew` comes first) holds nothing.
        """
        self.expire()
        known = self._runs.get(run)
        if known is None:
            return False
        if key in known.held:
            return known.held[key] == amounts
        for place, wanted in amounts.items():
            used, most = self.used(place), capacity.get(place, {})
            if any(used.get(name, 0.0) + amount > most.get(name, 0.0) for name, amount in wanted.items() if amount):
                return False
        known.held[key] = amounts
        return True

    def release(self, run: str, key: str) -> bool:
        """Give back; True where something was held."""
        known = self._runs.get(run)
        return known is not None and known.held.pop(key, None) is not None

    def end(self, run: str) -> bool:
        """A run is over, and all its jobs are dead. True where it held something."""
        known = self._runs.pop(run, None)
        return known is not None and bool(known.held)

    def expire(self) -> bool:
        """Forget the runs that renewed too long ago; True where one of them held something."""
        now = self._clock()
        over = [run for run, known in self._runs.items() if known.until < now]
        held = [self.end(run) for run in over]
        return any(held)

    def used(self, place: str, but: str | None = None) -> dict[str, float]:
        """What all runs, or all ``but`` one, hold in a place."""
        total: dict[str, float] = {}
        for run, known in self._runs.items():
            if run != but:
                for places in known.held.values():
                    for name, amount in places.get(place, {}).items():
                        total[name] = total.get(name, 0.0) + amount
        return total

    def used_by_others(self, run: str) -> dict[str, dict[str, float]]:
        """By place, what the other runs hold; places of which they hold nothing are left out."""
        others = (known for other, known in self._runs.items() if other != run)
        places = {place for known in others for held in known.held.values() for place in held}
        return {place: self.used(place, but=run) for place in places}


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

    async def answer(self, what: str, run: str, **more: Any) -> Any:
        """One question; ``what`` is hello, renew, reserve, release or end."""
        match what:
            case "hello":
                return PROTOCOL
            case "renew":
                if self.leases.expire():
                    self._tell()
                self.leases.renew(run, more["length_s"], set(more["keys"]))
                return self.leases.used_by_others(run)
            case "reserve":
                return self.leases.reserve(run, more["key"], more["amounts"], more["capacity"])
            case "release":
                if self.leases.release(run, more["key"]):
                    self._tell()
            case "end":
                if self.leases.end(run):
                    self._tell()
        return None

    def _tell(self) -> None:
        self._scheduler.log_event(TOPIC, {"released": True})
