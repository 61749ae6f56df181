"""How many workers there are: what the waiting jobs need is asked for, and what is idle is given back.

Also which wide workers are to have companions.
"""

from collections.abc import Callable

from snakemake_executor_plugin_dask.decide import demand, gangs
from snakemake_executor_plugin_dask.driver.dispatch import Dispatch
from snakemake_executor_plugin_dask.driver.own.fleet import Fleet
from snakemake_executor_plugin_dask.model.pools import Pool


class Scaling:
    """Asks a fleet for what the jobs of all runs need."""

    def __init__(self, dispatch: Dispatch, fleet: Fleet, bounds: Callable[[Pool], Pool] = lambda pool: pool) -> None:
        """``bounds``: the pool with the bounds that hold for it now."""
        self._dispatch = dispatch
        self._fleet = fleet
        self._bounds = bounds
        self._not_before = float("-inf")
        self._surplus_since: dict[str, float] = {}  # by pool: since when more workers start than are needed

    def scale(self) -> None:
        """Once for all pools. May be called at any time; does nothing where it was done just before."""
        dispatch, now = self._dispatch, self._dispatch.clock()
        if dispatch.over or now < self._not_before:
            return
        for pool in dispatch.pools.values():
            if pool.name not in dispatch.pools.given_up:
                self._scale(self._bounds(pool), now)
        # Thousands of different requests take a while to pack: at most a twentieth of the time goes there.
        self._not_before = now + 20 * (dispatch.clock() - now)

    def _scale(self, pool: Pool, now: float) -> None:
        dispatch, fleet = self._dispatch, self._fleet
        starting, up = len(fleet.starting(pool.name)), len(fleet.up(pool.name))
        wanted = dispatch.wanted(pool.name)
        advice = demand.recommend(
            pool,
            wanted,
            dispatch.ledger,
            starting,
            dispatch.ahead.of(pool.name),
            now,
            dispatch.pools.shapes[pool.name],
            fleet.startup_s(pool),
        )
        for name in advice.give_back:
            fleet.give_back(name, "idle")
            dispatch.ledger.remove_worker(name)
        more = advice.workers - (up - len(advice.give_back)) - starting
        if more >= 0:
            self._surplus_since.pop(pool.name, None)
        elif dispatch.stopping or now - self._surplus_since.setdefault(pool.name, now) >= pool.idle_timeout_s:
            fleet.call_back(pool, -more)
        if more > 0 and not dispatch.stopping:
            fleet.add(pool, more)
        for name in gangs.to_open(wanted, pool, dispatch.ledger):
            fleet.open_nodes(name)
