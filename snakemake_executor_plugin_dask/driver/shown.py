"""What is shown of a run's jobs while they wait and run: looked for time after time, in a bounded share of the time."""

import time
from collections.abc import Callable, Mapping, Sequence

from snakemake_executor_plugin_dask.decide.blockers import blockers
from snakemake_executor_plugin_dask.driver.controller import Controller
from snakemake_executor_plugin_dask.model.messages import Blocker

_BLOCKERS_SHARE = _USES_SHARE = 0.01  # of the time, at most


class Pace:
    """Lets something be done as often as it is asked for, but for no more than a share of the time."""

    def __init__(
        self,
        share: float,
        clock: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        """``spent``: CPU time, so that a busy machine makes nothing rarer."""
        self._share, self._clock, self._spent = share, clock, spent
        self._not_before = float("-inf")
        self._began = 0.0

    @property
    def due(self) -> bool:
        """Whether it may be done now, within ``with`` this object."""
        return self._clock() >= self._not_before

    def __enter__(self) -> None:
        self._began = self._spent()

    def __exit__(self, *_: object) -> None:
        self._not_before = self._clock() + (self._spent() - self._began) / self._share


class Shown:
    """Of one run. Asked about once a second."""

    def __init__(self, controller: Controller, uses: Callable[[], Mapping[str, Sequence[float]]]) -> None:
        """``uses``: what all running jobs use now."""
        self._controller = controller
        self._uses = uses
        self._pace_of_blockers, self._pace_of_uses = Pace(_BLOCKERS_SHARE), Pace(_USES_SHARE)
        self._blockers: list[Blocker] = []

    def blockers(self, now: float) -> list[Blocker]:
        """What the run's jobs wait for; with thousands of workers as it was some seconds ago."""
        if not self._controller.waiting:
            self._blockers = []
        elif self._pace_of_blockers.due:
            with self._pace_of_blockers:
                self._blockers = self.blockers_now(now)
        return self._blockers

    def blockers_now(self, now: float) -> list[Blocker]:
        """As it is."""
        controller = self._controller
        among = None if len(controller.dispatch.runs) == 1 else controller.jobs
        return blockers(controller.waiting, controller.ledger, now, among=among)

    def uses(self) -> Mapping[str, Sequence[float]]:
        """What its running jobs use, as `Cluster.uses` has it. Empty where that was told just now."""
        if not self._pace_of_uses.due:
            return {}
        with self._pace_of_uses:
            return self._uses()
