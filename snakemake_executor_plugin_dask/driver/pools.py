"""The pools of a run: what their workers hold, which one takes a request, and new ones for Slurm resources."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from snakemake_executor_plugin_dask.backends import backend_for
from snakemake_executor_plugin_dask.batch.allocations import Ran, run_here
from snakemake_executor_plugin_dask.decide import routing
from snakemake_executor_plugin_dask.driver.members import Member
from snakemake_executor_plugin_dask.model.errors import ConfigurationError, RequestError
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.pools import Pool, Shape, free_name
from snakemake_executor_plugin_dask.model.requests import Request

#: Pools for these requests and their names in the making, and why some of the requests can have none. The second
#: argument: whether they are larger ones beside those of the same Slurm resources. May take as long as Slurm does.
MakePools = Callable[[Sequence[Request], bool], Awaitable[tuple[Sequence[Pool], Mapping[Request, str]]]]

Resources = tuple[tuple[str, str], ...]  # of Slurm: those by which a pool is made


class Pools(Mapping[str, Pool]):
    """All pools by name, those that were given up among them."""

    def __init__(self, options: Options, make: MakePools) -> None:
        self._by_name = {pool.name: pool for pool in options.pools}
        self.shapes: dict[str, Shape] = {pool.name: routing.shape_of(pool, None) for pool in options.pools}
        self.given_up: dict[str, str] = {}  # and why
        self.closed: dict[str, str] = {}  # those whose wide workers' nodes have no companions, and why
        self._makes = options.slurm_template is not None
        self._make = make

    def __getitem__(self, name: str) -> Pool:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def put(self, pool: Pool) -> None:
        """Add a pool; one of this name is replaced, and keeps the shape that was seen."""
        self._by_name[pool.name] = pool
        self.shapes.setdefault(pool.name, routing.shape_of(pool, None))

    def seen(self, pool: Pool, members: Sequence[Member]) -> None:
        """Take a pool's shape from the workers that are up."""
        self.shapes[pool.name] = routing.largest(
            [routing.shape_of(m.pool, routing.shape_of_worker(m.pool, m.facts)) for m in members if m.facts is not None]
        )

    def try_again(self) -> None:
        """What was given up may work for a further run."""
        self.given_up.clear()
        self.closed.clear()

    def route(self, request: Request, name: str = "") -> str:
        """The name of the pool that takes it. RequestError where none can; ``name`` is the rule's, for the text."""
        return routing.route(request, list(self.values()), self.shapes, self.given_up, name, self.closed)

    def fit_without(self, pool: Pool, requests: Collection[Request]) -> bool:
        """Whether each of these could go to another pool."""
        without = {*self.given_up, pool.name}
        try:
            for request in requests:
                routing.route(request, list(self.values()), self.shapes, without, closed=self.closed)
        except RequestError:
            return False
        return True

    # Pools that are made during the run

    def unmade(self, request: Request) -> Resources | None:
        """Slurm resources for which a pool is to be made: no job had them so far, or asked for so much with them.

        A checkpoint, a retry or a function of inputs brings such jobs. What pools are meant to have counts: where
        workers turn out to have less, those of a further pool would, too.
        """
        if not self._makes or request.pool is not None:
            return None
        holds = any(not routing.shortages(request, pool, routing.shape_of(pool)) for pool in self.values())
        return None if holds else request.slurm or ()

    async def make(self, requests: Sequence[Request]) -> tuple[list[Pool], Mapping[Request, str], Sequence[Pool]]:
        """Add pools for these. Returns those added; why some requests can have none; all that could be made."""
        further = any(routing.made_for(pool, request) for pool in self.values() for request in requests)
        pools, refused = await self._make(requests, further)
        made: list[Pool] = []
        added: list[Pool] = []
        for pool in pools:
            made.append(replace(pool, name=free_name(pool.name, {*self, *(other.name for other in made)})))
            shape = routing.shape_of(pool)
            # One that settings make as small as those that are there is of no use.
            if not further or any(not routing.shortages(request, pool, shape) for request in requests):
                added.append(made[-1])
                self.put(made[-1])
        return added, refused, made

    def share(self, pools: Iterable[Pool]) -> None:
        """Add those of a further run; one that is there already, whatever its name, is shared.

        A relative directory for output was meant from where the run is, which makes no other pool.
        """
        for pool in pools:
            if not any(_alike(pool) == _alike(there) for there in self.values()):
                self.put(replace(pool, name=free_name(pool.name, self)))

    def why_not(self, request: Request, made: Sequence[Pool], name: str) -> str:
        """What the largest pools that can be made lack for the request."""
        try:
            routing.route(request, made or list(self.values()), {}, name=name)
        except RequestError as error:
            return str(error)
        raise AssertionError


def _alike(pool: Pool) -> Pool:
    return replace(
        pool, name="", options={name: each for name, each in pool.options.items() if name != "log_directory"}
    )


def made_by_slurm(template: Pool | None) -> MakePools:
    """As `Pools` asks for them. Slurm's commands may hang for longer than leases last without the loop."""

    async def make(requests: Sequence[Request], further: bool) -> tuple[list[Pool], dict[Request, str]]:
        assert template is not None
        return await asyncio.to_thread(pools_for, template, requests, further=further)

    return make


def pools_for(
    template: Pool,
    requests: Sequence[Request],
    run: Callable[[Sequence[str]], Ran] = run_here,
    *,
    further: bool = False,
) -> tuple[list[Pool], dict[Request, str]]:
    """Pools for these requests, and why some can have none. Asks Slurm each question once."""
    from snakemake_executor_plugin_dask.backends.slurm_pools import make_pools

    backend = backend_for(template.cluster)
    ask = functools.cache(lambda *command: run(command))
    refused: dict[Request, str] = {}

    def make(part: Sequence[Request]) -> list[Pool]:
        # Without names of rules: the job that fails by it has one.
        named = [("", request) for request in part]
        return make_pools(template, named, run=lambda command: ask(*command), further=further)

    for request in requests:  # one that no node holds must not keep the others from a pool
        try:
            make([request])
        except ConfigurationError as error:
            refused[request] = str(error)
    fitting = [request for request in requests if request not in refused]
    if not fitting:
        return [], refused
    try:
        pools = make(fitting)
        for pool in pools:
            backend.check(pool)
        return [backend.complete(pool) for pool in pools], refused
    except ConfigurationError as error:
        return [], refused | dict.fromkeys(fitting, str(error))
