"""Leases in the scheduler of an attached cluster, so that runs of this plugin that share it do not overbook workers.

`SharedLeases` decides, and is pure; `SharedLeasesPlugin` runs in that scheduler's process and answers the drivers.
Other clients' tasks hold no leases there, and cannot be counted. A job for which a run keeps workers is left room by
the other runs, too, so that the many small jobs of one do not starve it.

Where that cluster is adaptive it grows for the jobs that wait in the drivers, of which Dask sees nothing, and closes no
worker that holds jobs.
"""

import asyncio
import math
import pickle
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin

from snakemake_executor_plugin_dask.interior import dask_attached
from snakemake_executor_plugin_dask.model.amounts import NOTHING, Amounts

#: Beyond the lease by which a job lives: what a dead run held is free only once its jobs are dead. More than may pass
#: between a renewal here and the last one of a worker, on its way and to the end of all processes.
OUTLIVES_S = 60.0

#: Raised when what runs say to the plugin changes: all runs on a cluster must speak the same.
PROTOCOL = 6

PLUGIN_NAME = "snakemake-executor-plugin-dask"
TOPIC = "snakemake-leases"  # tells that something was given back

#: By place. A place is a worker's address, or whatever else several workers have in common, such as the GPUs of a host.
Places = Mapping[str, Amounts]


def packed(places: Places) -> dict[str, dict[str, Any]]:
    """As Dask's messages can hold it."""
    return {place: asdict(amounts) for place, amounts in places.items()}


def unpacked(places: Mapping[str, Mapping[str, Any]]) -> Places:
    """The inverse of `packed`, whatever a message made of tuples."""
    return {
        place: Amounts(**{**amounts, "extra": tuple((name, amount) for name, amount in amounts["extra"])})
        for place, amounts in places.items()
    }


_WANTED_S = 20.0  # what a run wanted counts for so long: it says so every five seconds
_ADAPTIVE_S = 60.0  # a cluster that asked so recently how large it should be is adaptive
#: Closing follows at once on asking which workers may be closed. A job that is placed on one meanwhile would be lost.
_CLOSING_S = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many workers a run saw, and how many more it could use for jobs that wait."""

    seen: int = 0
    more: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """A run's first job that waits for room which it keeps from its other jobs, and what that job will take where."""

    key: str
    amounts: Places
    capacity: Places


@dataclass(slots=True)
class _Run:
    until: float
    held: dict[str, Places] = field(default_factory=dict)  # by the attempt's key
    wanted: Wanted = Wanted()
    wanted_until: float = 0.0
    claim: Claim | None = None
    claims_since: float = 0.0  # for this job


class SharedLeases:
    """What each run holds in each place. Times are seconds on the clock that is passed in."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: dict[str, _Run] = {}

    def renew(self, run: str, length_s: float, keys: Collection[str], wanted: Wanted = Wanted()) -> None:
        """The run lives: what it holds for these attempts is held for ``length_s`` more, and for others no longer."""
        self.expire()
        known = self._runs.setdefault(run, _Run(0.0))
        known.until = self._clock() + length_s
        known.wanted, known.wanted_until = wanted, self._clock() + _WANTED_S
        known.held = {key: places for key, places in known.held.items() if key in keys}

    def claim(self, run: str, claim: Claim | None) -> bool:
        """After `renew`: what others are to leave for a job of the run; None: nothing. True where others gain by it."""
        known, before = self._runs[run], self._runs[run].claim
        if claim is None or before is None or claim.key != before.key:
            known.claims_since = self._clock()
        known.claim = claim
        return before is not None and claim != before

    def claimed(self, place: str, but: str) -> Amounts:
        """What is to be left in a place for jobs of all runs ``but`` one.

        The job that has claimed for longest comes first; a claim beside which there is no room is not heard yet. So
        each one that is heard waits for jobs that run, and for no other claim.
        """
        now = self._clock()
        claims = [
            (known.claims_since, run, known.claim)
            for run, known in self._runs.items()
            if known.claim is not None and known.wanted_until >= now
        ]
        heard: list[tuple[str, Places]] = []
        for _, run, claim in sorted(claims, key=lambda one: one[:2]):
            if all(
                amounts <= claim.capacity.get(place, NOTHING) - _at(place, [places for _, places in heard])
                for place, amounts in claim.amounts.items()
            ):
                heard.append((run, claim.amounts))
        return _at(place, [places for run, places in heard if run != but])

    def reserve(self, run: str, key: str, amounts: Places, capacity: Places) -> bool:
        """Hold the amounts, or answer False: together with what is held, or left for others, they exceed a capacity.

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
            if not wanted <= capacity.get(place, NOTHING) - self.used(place) - self.claimed(place, run):
                return False
        known.held[key] = amounts
        return True

    def release(self, run: str, key: str, amounts: Places | None = None) -> bool:
        """Give back, all of it or these ``amounts``; True where something was held."""
        known = self._runs.get(run)
        if known is None or key not in known.held:
            return False
        if amounts is None:
            del known.held[key]
        else:
            known.held[key] = {place: held - amounts.get(place, NOTHING) for place, held in known.held[key].items()}
        return True

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

    def target(self) -> int:
        """How many workers there should be for all runs' jobs that wait; 0: none waits for a further worker.

        Counted from the workers that a run had seen when it said so: one that has come since is among those it wants.
        """
        now = self._clock()
        wanted = [known.wanted for known in self._runs.values() if known.wanted_until >= now]
        more = sum(one.more for one in wanted)
        return more and more + max(one.seen for one in wanted)

    def holding(self) -> set[str]:
        """The places where anything is held."""
        return {place for known in self._runs.values() for held in known.held.values() for place in held}

    def used(self, place: str, but: str | None = None) -> Amounts:
        """What all runs, or all ``but`` one, hold in a place."""
        runs = (known for run, known in self._runs.items() if run != but)
        return sum((held[place] for known in runs for held in known.held.values() if place in held), NOTHING)

    def used_by_others(self, run: str) -> Places:
        """By place, what the other runs hold or are left; places where that is nothing are left out."""
        others = [known for other, known in self._runs.items() if other != run]
        places = {place for known in others for held in known.held.values() for place in held}
        places |= {place for known in others if known.claim is not None for place in known.claim.amounts}
        found = {place: self.used(place, but=run) + self.claimed(place, run) for place in places}
        return {place: amounts for place, amounts in found.items() if amounts != NOTHING}


def _at(place: str, several: Iterable[Places]) -> Amounts:
    return sum((places[place] for places in several if place in places), NOTHING)


class SharedLeasesPlugin(SchedulerPlugin):
    """Answers drivers over the scheduler's own connection; what they ask is `SharedLeases`' methods."""

    name = PLUGIN_NAME
    idempotent = True  # the second run finds what the first put there

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.leases = SharedLeases(clock)
        self._clock = clock
        self._scheduler: Any = None
        self._asked = -math.inf  # when the cluster last wanted to know its size
        self._closing: dict[str, float] = {}  # by address: when the cluster was told that it may close this worker
        self._key: Callable[[Any], Any] = _address

    async def start(self, scheduler: Any) -> None:
        """Dask calls it once, in the scheduler's process: from now on drivers and adaptive clusters are answered."""
        self._scheduler = scheduler
        dask_attached.answer(scheduler, "snakemake_leases", self.answer)
        self._target, self._to_close = dask_attached.stand_before(
            scheduler, self.adaptive_target, self.workers_to_close
        )

    def adaptive_target(self, target_duration: Any = None) -> int:
        """In the place of the scheduler's own, which adaptive clusters ask: at least what the runs' jobs need."""
        self._asked = self._clock()
        self.leases.expire()
        own: int = self._target(target_duration)
        return max(own, self.leases.target())

    def workers_to_close(self, **how: Any) -> list[Any]:
        """In the place of the scheduler's own, with a note of what it answers."""
        key = how.get("key")
        self._key = pickle.loads(key) if isinstance(key, bytes) else key or _address
        try:
            found: list[Any] = self._to_close(**how)
        finally:
            self._key = _address
        attribute, now = how.get("attribute", "address"), self._clock()
        named = set(found)
        if key is not None or "target" in how or "n" in how:  # else they are only counted
            for state in self._scheduler.workers.values():
                if getattr(state, attribute) in named:
                    self._closing[state.address] = now
        return found

    def valid_workers_downscaling(self, scheduler: Any, workers: list[Any]) -> list[Any]:
        """Those without a run's jobs, and without one in the same group, since groups are closed together."""
        holding = self.leases.holding()
        groups = {self._key(state) for state in scheduler.workers.values() if state.address in holding}
        return [state for state in workers if self._key(state) not in groups]

    def _closes(self, address: str) -> bool:
        """Whether the worker is about to go."""
        state = self._scheduler.workers.get(address)
        named = self._clock() - self._closing.get(address, -math.inf) < _CLOSING_S
        return state is not None and (named or state.status is not Status.running)

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Dask calls it for each worker that left; ``worker`` is its address."""
        self._closing.pop(worker, None)

    async def answer(self, what: str, run: str, **more: Any) -> Any:
        """One question; ``what`` is hello, renew, reserve, release or end."""
        match what:
            case "hello":
                return PROTOCOL
            case "renew":
                if self.leases.expire():
                    self._tell()
                wanted = Wanted(more.get("seen", 0), more.get("more", 0))
                self.leases.renew(run, more["length_s"], set(more["keys"]), wanted)
                if self.leases.claim(run, _claim_of(more.get("claim"))):
                    self._tell()
                return {
                    "others": packed(self.leases.used_by_others(run)),
                    "closing": [address for address in self._scheduler.workers if self._closes(address)],
                    "adaptive": self._clock() - self._asked < _ADAPTIVE_S,
                }
            case "reserve":
                if any(self._closes(place) for place in more["amounts"]):
                    asyncio.get_running_loop().call_later(_CLOSING_S, self._tell)  # if it stays after all
                    return False
                return self.leases.reserve(run, more["key"], unpacked(more["amounts"]), unpacked(more["capacity"]))
            case "release":
                amounts = more.get("amounts")
                if self.leases.release(run, more["key"], None if amounts is None else unpacked(amounts)):
                    self._tell()
            case "end":
                if self.leases.end(run):
                    self._tell()
        return None

    def _tell(self) -> None:
        self._scheduler.log_event(TOPIC, {"released": True})


def _claim_of(told: Mapping[str, Any] | None) -> Claim | None:
    if told is None:
        return None
    return Claim(told["key"], unpacked(told["amounts"]), unpacked(told["capacity"]))


def _address(state: Any) -> str:
    return str(state.address)
