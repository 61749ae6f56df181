"""What each worker has free, and which job holds what. Pure: clocks are passed in.

Every amount is counted when a job is placed and given back when its attempt is over, so placement compares with what is
free and never with what a worker declares in total. Devices are leased by identifier.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from snakemake_executor_plugin_dask.decide.needs import Gang, Need, need_of, planned_runtime_s
from snakemake_executor_plugin_dask.decide.routing import counts_devices
from snakemake_executor_plugin_dask.model.amounts import NOTHING, Amounts
from snakemake_executor_plugin_dask.model.jobs import WorkerFacts
from snakemake_executor_plugin_dask.model.pools import Pool, Shape
from snakemake_executor_plugin_dask.model.requests import Request

#: A job that needs a whole allocation's life is ended so long before the allocation is.
END_BEFORE_S = 30.0
#: An allocation that has carried nothing counts as new for so long after its worker joined.
FRESH_S = 60.0
#: It still does for so long after its first job started, so that jobs which need a new one can share it.
SHARED_S = 10.0


@dataclass(frozen=True, slots=True)
class Holding:
    """What an attempt holds, and where. The job is sent to the first of ``workers``.

    ``devices`` has an entry for each worker whose pool counts GPUs (an empty one means: the job sees none); without an
    entry the job's devices are left alone.
    """

    key: str
    workers: tuple[str, ...]
    cores_by_worker: Mapping[str, int]
    memory_mb: int  # 10^6 bytes, on each node
    devices: Mapping[str, tuple[str, ...]]
    hosts: tuple[str, ...]
    limit_s: float | None  # counted from placing; the job ends then, whatever its runtime says. None: no such limit
    until: float | None  # when it ends at the latest, by its runtime; None: not known
    #: Of a job whose Dask cluster may lie on several workers, or nodes of a wide one: how many of its Dask workers each
    #: was given at the start. The first one has the script, ``workers`` names it alone, and ``memory_mb`` is what is
    #: held there.
    dask_workers: Mapping[str, int] = field(default_factory=dict)
    lent: bool = False  # a Dask worker that its job gives back when others wait for the room (`growth`)


@dataclass(frozen=True, slots=True)
class Others:
    """What other runs hold of a worker of an attached cluster; ``devices`` are GPUs by identifier."""

    amounts: Amounts = NOTHING
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenNode:
    """A node of a wide worker that can have Dask workers of jobs: the first, or one with a companion."""

    name: str  # of the worker itself, or of the companion
    host: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's part of a job's Dask cluster."""

    state: "WorkerState"
    workers: int
    amounts: Amounts
    node: OpenNode | None = None  # which node of a wide worker,
    devices: tuple[str, ...] = ()  # and those of its devices

    @property
    def worker(self) -> str:
        """Whose supervisor is to have it."""
        return self.state.name if self.node is None else self.node.name


@dataclass(slots=True)
class Part:
    """One worker's part of a holding."""

    holding: Holding
    amounts: Amounts
    devices: tuple[str, ...]
    hosts: tuple[str, ...]  # whole nodes of a wide worker
    #: Of these, those with a job's own Dask cluster: their hosts by `OpenNode.name`.
    nodes: dict[str, str] = field(default_factory=dict)

    @property
    def lacks_nodes(self) -> bool:
        """Whether a job's Dask cluster has lost some of the nodes it started with."""
        return bool(self.nodes) and len(self.nodes) < len(self.holding.dask_workers)


class WorkerState:
    """One worker's totals, and what is free of them. Placement reads it; the ledger alone changes it.

    Of a wide worker ``total`` has the cores, memory and GPUs of each node, and the number of nodes.
    """

    def __init__(self, name: str, pool: Pool, facts: WorkerFacts, now: float) -> None:
        self.name = name
        self.pool = pool
        self.facts = facts
        self.joined = self.changed = now  # when what is held here last changed
        # Jobs beside Snakemake run as long as its own allocation lets them: there is nothing to wait for.
        self.end = None if facts.remaining_s is None or pool.kind.beside_snakemake else now + facts.remaining_s
        self.wide = pool.nodes is not None
        # Other workers of an allocation of several nodes know all its hosts too, but hold one node each.
        self.hosts = (facts.hosts if self.wide else ()) or (facts.host,)
        self.devices = facts.devices[: pool.gpus] if counts_devices(pool) else ()
        self.total = Shape(
            facts.cores, facts.memory_mb, len(self.devices), nodes=len(self.hosts), extra=tuple(sorted(pool.resources))
        ).amounts
        self.free = self.total
        self.free_devices, self.free_hosts = list(self.devices), list(self.hosts)
        own = facts.own_host if self.wide else facts.host
        self.nodes = {own: OpenNode(name, own, self.devices)}  # by host
        self.held: dict[str, Part] = {}
        self.others = Others()
        self.used_since: float | None = None
        self.draining = False
        self.idle_since: float | None = now

    @property
    def free_nodes(self) -> list[OpenNode]:
        """Of a wide worker: those on which nothing runs."""
        return [self.nodes[host] for host in self.free_hosts if host in self.nodes]

    @property
    def closed_hosts(self) -> list[str]:
        """Of a wide worker: nodes that have no companion."""
        return [host for host in self.hosts if host not in self.nodes]

    @property
    def of_others(self) -> Amounts:
        """What other runs hold there, in which this one's jobs have room once it is given back."""
        held = {device for part in self.held.values() for device in part.devices}
        gpus = sum(device in self.others.devices and device not in held for device in self.devices)
        return replace(self.others.amounts, gpus=gpus)

    @property
    def used(self) -> bool:
        """Whether anything has run there."""
        return self.used_since is not None

    def memory_mb_for(self, need: Need) -> int:
        """Memory held on each node. Without mem_mb: the cores' share; without cores too: none."""
        if not need.shares_memory:
            return need.node.memory_mb
        return self.total.memory_share_mb(need.node.cores)

    def part(self, need: Need) -> Amounts:
        """What the need takes of this worker."""
        if not need.shares_memory or self.wide:
            return need.takes
        return need.takes.with_memory_mb(self.memory_mb_for(need))

    def gang_parts(self, gang: Gang, *, shares_memory: bool) -> tuple[Amounts, Amounts]:
        """What a Dask worker of a job takes here, and what its script does."""
        if not shares_memory:
            return gang.each, gang.script
        each, script = (
            part.with_memory_mb(self.total.memory_share_mb(part.cores)) for part in (gang.each, gang.script)
        )
        return each, script

    def has_room(self, need: Need) -> bool:
        """Whether the amounts fit now; life and draining are other questions."""
        if not need.takes <= self.free:
            return False
        if self.wide:
            return need.node <= self.total and len(need.dask_workers) <= len(self.free_nodes)
        return not need.shares_memory or self.memory_mb_for(need) <= self.free.memory_mb

    def could_hold(self, need: Need) -> bool:
        """Whether the amounts fit while the worker is empty."""
        return need.node <= self.total and need.takes <= self.total and need.nodes <= len(self.hosts)

    def fresh(self, now: float) -> bool:
        """Whether this is a new allocation, on which nothing has run but what started just now."""
        if self.used_since is not None and now - self.used_since > min(SHARED_S, self.pool.effective_margin_s):
            return False
        if self.end is None or now - self.joined <= FRESH_S:
            return True
        walltime_s = self.pool.walltime_s
        return walltime_s is not None and self.end - now >= walltime_s - self.pool.effective_margin_s

    def lives(self, request: Request, now: float, *, fresh: bool) -> bool:
        """Whether the allocation's remaining life covers the request. ``fresh``: only a new allocation will do.

        Beside the margin, as a rule. On a new allocation the margin is waived, since starting the worker took some of
        its life; so it is where no other allocation will ever come.
        """
        if self.end is None:
            return True
        is_fresh = self.fresh(now)
        if fresh and not is_fresh and self.pool.kind.queued:
            return False
        planned_s = planned_runtime_s(request, self.pool)
        remaining_s = self.end - now
        if planned_s is None or planned_s + self.pool.effective_margin_s <= remaining_s:
            return True
        if not self.pool.kind.queued:
            return request.runtime_s is None or planned_s + END_BEFORE_S <= remaining_s
        if not is_fresh or request.runtime_s is None:
            return is_fresh
        if self.pool.walltime_s is None:
            return planned_s <= remaining_s
        return planned_s <= remaining_s + self.pool.effective_margin_s + FRESH_S

    def limit_s(self, request: Request, now: float) -> float | None:
        """How long the job may run where it was placed without the margin; None: the margin holds."""
        if self.end is None or request.runtime_s is None:
            return None
        remaining_s = self.end - now
        if request.runtime_s + self.pool.effective_margin_s <= remaining_s:
            return None
        return max(0.0, remaining_s - END_BEFORE_S)


class Ledger:
    """The workers of all pools and what is free on them.

    Every `hold` is followed by exactly one `release`, also where a worker was removed meanwhile.
    """

    def __init__(self) -> None:
        self._workers: dict[str, WorkerState] = {}
        self._by_pool: dict[str, dict[str, WorkerState]] = {}
        self._parts: dict[str, tuple[Holding, list[tuple[WorkerState, Part]]]] = {}
        self._gained: dict[str, set[str]] = {}
        self._opened: dict[str, str] = {}  # by the names of companions: their wide workers

    def add_worker(self, name: str, pool: Pool, facts: WorkerFacts, now: float) -> None:
        """A worker joined. Raises ValueError where the name is taken."""
        if name in self._workers:
            msg = f"worker {name} is in the ledger already"
            raise ValueError(msg)
        state = WorkerState(name, pool, facts, now)
        self._workers[name] = state
        self._by_pool.setdefault(pool.name, {})[name] = state
        self._gain(state)

    def remove_worker(self, name: str) -> list[str]:
        """A worker is gone; returns the keys of the attempts that ran (also) there, each still to be released.

        A job on several workers holds the others until its attempt is known to be dead. Raises KeyError.
        """
        state = self._workers.pop(name)
        del self._by_pool[state.pool.name][name]
        for node in state.nodes.values():
            self._opened.pop(node.name, None)
        self._gained.get(state.pool.name, set()).discard(name)
        return list(state.held)

    def open_node(self, name: str, worker: str, host: str, devices: tuple[str, ...], now: float) -> None:
        """A further node of a wide worker has a companion, called ``name``. Nothing where the worker is gone."""
        state = self._workers.get(worker)
        if state is not None and host in state.hosts:
            self._opened[name] = worker
            state.nodes[host] = OpenNode(name, host, devices[: state.pool.gpus] if counts_devices(state.pool) else ())
            state.changed = now
            self._gain(state)

    def close_node(self, name: str) -> None:
        """It has none any more. What is held of the node is held until it is released. May be repeated."""
        if (state := self._workers.get(self._opened.pop(name, ""))) is not None:
            state.nodes = {host: node for host, node in state.nodes.items() if node.name != name}

    def idle_from(self, now: float) -> None:
        """What is idle counts as idle from now on: a run has come that may need it."""
        for state in self._workers.values():
            state.idle_since = None if state.idle_since is None else now

    def drain(self, name: str) -> None:
        """Place nothing more on this worker. Raises KeyError."""
        self._workers[name].draining = True

    def workers(self, pool_name: str | None = None) -> list[str]:
        """The workers' names, draining ones included, in the order in which they joined."""
        return list(self._workers if pool_name is None else self._by_pool.get(pool_name, {}))

    def state(self, name: str) -> WorkerState:
        """What a worker has, and what is free of it. Raises KeyError."""
        return self._workers[name]

    def states(self, pool_name: str) -> Mapping[str, WorkerState]:
        """A pool's workers, for placement and demand."""
        return self._by_pool.get(pool_name, {})

    def need(self, request: Request, pool: Pool) -> Need:
        """What the request takes of this pool's workers, as large as the largest of them is."""
        states = self.states(pool.name).values()
        cores = max((state.total.cores for state in states), default=pool.cores)
        gpus = max((state.total.gpus for state in states), default=pool.gpus)
        memory_mb = max((state.total.memory_mb for state in states), default=None)
        return need_of(request, pool, Shape(cores, memory_mb, gpus))

    def hold(
        self,
        key: str,
        states: Sequence[WorkerState],
        request: Request,
        need: Need,
        now: float,
        *,
        lent: bool = False,
    ) -> Holding:
        """Take what the request needs on these workers; the caller has looked whether it fits.

        ``lent``: until others wait for it. Raises ValueError where the key holds something already.
        """
        if key in self._parts:
            msg = f"{key} holds something already"
            raise ValueError(msg)
        if need.dask_workers:
            return self._hold_nodes(key, states[0], request, need, now)
        picked = [_pick(state, need) for state in states]
        hosts = tuple(host for _, part in picked for host in part)
        limits = [limit for state in states if (limit := state.limit_s(request, now)) is not None]
        limit_s = min(limits, default=None)
        holding = Holding(
            key=key,
            workers=tuple(state.name for state in states),
            cores_by_worker=_cores_by_worker(states, request),
            memory_mb=min(state.memory_mb_for(need) for state in states),
            devices={
                state.name: devices
                for state, (devices, _) in zip(states, picked, strict=True)
                if counts_devices(state.pool)
            },
            hosts=hosts,
            limit_s=limit_s,
            until=now if lent else _until(request, limit_s, now),
            lent=lent,
        )
        self._parts[key] = holding, []
        for state, (devices, on) in zip(states, picked, strict=True):
            self._take(state, Part(holding, state.part(need), devices, on if state.wide else ()), now)
        return holding

    def hold_gang(self, key: str, gang: Sequence[Place], request: Request, now: float) -> Holding:
        """As `hold`, for all places of a job's Dask cluster at once; the script goes to the first."""
        if key in self._parts:
            msg = f"{key} holds something already"
            raise ValueError(msg)
        home = gang[0]
        picked = {
            place.state.name: _pick_devices(place.state.devices, place.state.free_devices, place.amounts.gpus)
            for place in gang
        }
        limit_s = home.state.limit_s(request, now)
        holding = Holding(
            key=key,
            workers=(home.state.name,),
            cores_by_worker={place.state.name: place.amounts.cores for place in gang},
            memory_mb=home.amounts.memory_mb,
            devices={place.state.name: picked[place.state.name] for place in gang if counts_devices(place.state.pool)},
            hosts=home.state.hosts,
            limit_s=limit_s,
            until=_until(request, limit_s, now),
            dask_workers={place.state.name: place.workers for place in gang},
        )
        self._parts[key] = holding, []
        for place in gang:
            self._take(place.state, Part(holding, place.amounts, picked[place.state.name], ()), now)
        return holding

    def _hold_nodes(self, key: str, state: WorkerState, request: Request, need: Need, now: float) -> Holding:
        """As `hold`, for a job whose Dask cluster has whole nodes of a wide worker; the script goes to the first."""
        cluster, nodes = request.cluster, state.free_nodes[: need.nodes]
        assert cluster is not None
        numbers = {node.name: number for node, number in zip(nodes, need.dask_workers, strict=True)}
        cores = {name: number * cluster.cores for name, number in numbers.items()}
        home = nodes[0]
        cores[home.name] += cluster.script_cores
        memory_mb = (cluster.each * numbers[home.name] + cluster.script).memory_mb
        limit_s = state.limit_s(request, now)
        holding = Holding(
            key=key,
            workers=(home.name,),
            cores_by_worker=cores,
            memory_mb=state.total.memory_share_mb(cores[home.name]) if need.shares_memory else memory_mb,
            devices={node.name: node.devices[: numbers[node.name] * cluster.gpus] for node in nodes}
            if counts_devices(state.pool)
            else {},
            hosts=(home.host,),
            limit_s=limit_s,
            until=_until(request, limit_s, now),
            dask_workers=numbers,
        )
        self._parts[key] = holding, []
        hosts = {node.name: node.host for node in nodes}
        self._take(state, Part(holding, state.part(need), (), tuple(hosts.values()), hosts), now)
        return holding

    def add_place(self, key: str, place: Place, now: float) -> tuple[str, ...]:
        """Take room for more Dask workers of a job, on a worker or node where it has none; returns their devices.

        Raises KeyError where the key holds nothing.
        """
        holding, parts = self._parts[key]
        if (node := place.node) is not None:
            held = next(part for state, part in parts if state is place.state)
            held.hosts, held.amounts = (*held.hosts, node.host), held.amounts + place.amounts
            held.nodes[node.name] = node.host
            place.state.free -= place.amounts
            place.state.free_hosts.remove(node.host)
            place.state.changed = now
            return place.devices
        devices = _pick_devices(place.state.devices, place.state.free_devices, place.amounts.gpus)
        self._take(place.state, Part(holding, place.amounts, devices, ()), now)
        return devices

    def _take(self, state: WorkerState, held: Part, now: float) -> None:
        state.free -= held.amounts
        state.changed = now
        if state.wide:
            state.free_hosts = [host for host in state.free_hosts if host not in held.hosts]
        else:
            state.free_devices = [device for device in state.free_devices if device not in held.devices]
        state.held[held.holding.key] = held
        state.used_since = now if state.used_since is None else state.used_since
        state.idle_since = None
        self._parts[held.holding.key][1].append((state, held))

    def release(self, key: str, now: float) -> None:
        """Every process of the attempt is gone. Raises KeyError where the key holds nothing."""
        _, parts = self._parts.pop(key)
        for state, held in parts:
            self._give(state, held, now)

    def release_place(self, key: str, worker: str, now: float) -> None:
        """The job's Dask workers there are gone, and it goes on without. KeyError where it has none there.

        ``worker``: also a node of a wide one, by `OpenNode.name`.
        """
        _, parts = self._parts[key]
        for state, held in parts:
            if (host := held.nodes.pop(worker, None)) is not None:
                held.hosts = tuple(other for other in held.hosts if other != host)
                one = Amounts(nodes=1)
                held.amounts -= one
                state.free += one
                state.free_hosts = _in_order(state.hosts, (*state.free_hosts, host))
                state.changed = now
                self._gain(state)
                return
        position = next((index for index, (state, _) in enumerate(parts) if state.name == worker), None)
        if position is None:
            raise KeyError(worker)
        self._give(*parts.pop(position), now)

    def _give(self, state: WorkerState, held: Part, now: float) -> None:
        del state.held[held.holding.key]
        state.free += held.amounts
        state.changed = now
        if state.wide:
            state.free_hosts = _in_order(state.hosts, (*state.free_hosts, *held.hosts))
        else:
            freed = [device for device in held.devices if device not in state.others.devices]
            state.free_devices = _in_order(state.devices, (*state.free_devices, *freed))
            state.free = replace(state.free, gpus=len(state.free_devices))
        if not state.held:
            state.idle_since = now
        self._gain(state)

    def set_others(self, name: str, others: Others) -> None:
        """What other runs hold on a worker that is shared with them; replaces what was said before. Raises KeyError."""
        state = self._workers[name]
        before, state.others = state.others, others
        held = {device for part in state.held.values() for device in part.devices}
        state.free_devices = [d for d in state.devices if d not in held and d not in others.devices]
        free = state.free + before.amounts - others.amounts
        state.free = replace(free, gpus=len(state.free_devices))
        self._gain(state)

    def count_also(self, pool: Pool) -> None:
        """The pool lists further resources: workers that are there have none of them."""
        for state in self.states(pool.name).values():
            none = Amounts(extra=tuple((name, 0) for name, _ in pool.resources))
            state.total += none
            state.free += none
            state.pool = replace(state.pool, resources=state.total.extra)

    def parts(self, key: str) -> list[tuple[WorkerState, Part]]:
        """What a key holds, by worker. Raises KeyError where it holds nothing."""
        return list(self._parts[key][1])

    def holding(self, key: str) -> Holding | None:
        """What an attempt holds; None: nothing."""
        found = self._parts.get(key)
        return None if found is None else found[0]

    def take_gained(self, pool_name: str) -> set[str]:
        """The workers that have had more room since this was last asked; for placement alone."""
        return self._gained.pop(pool_name, set())

    def _gain(self, state: WorkerState) -> None:
        if self._workers.get(state.name) is state:
            self._gained.setdefault(state.pool.name, set()).add(state.name)


def _until(request: Request, limit_s: float | None, now: float) -> float | None:
    """When the job ends at the latest; None: not known."""
    known_s = [seconds for seconds in (request.runtime_s, limit_s) if seconds is not None]
    return now + min(known_s) if known_s else None


def _cores_by_worker(states: Sequence[WorkerState], request: Request) -> dict[str, int]:
    """The job's cores as it uses them: as evenly as its tasks divide, the first workers one more."""
    tasks = request.tasks if request.tasks and request.cores % request.tasks == 0 else request.cores
    share, more = divmod(tasks, len(states))
    per_task = request.cores // tasks if tasks else 0
    return {state.name: (share + (position < more)) * per_task for position, state in enumerate(states)}


def _in_order(names: tuple[str, ...], some: Sequence[str]) -> list[str]:
    chosen = set(some)
    return [name for name in names if name in chosen]


def _pick(state: WorkerState, need: Need) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The devices and hosts for a job."""
    if state.wide:
        return state.devices[: need.node.gpus], tuple(state.free_hosts[: need.nodes])
    return _pick_devices(state.devices, state.free_devices, need.node.gpus), state.hosts


def _pick_devices(all_devices: tuple[str, ...], free: Sequence[str], count: int) -> tuple[str, ...]:
    """Devices that lie together, from the smallest group that is large enough, so that large groups stay whole."""
    if not count:
        return ()
    position = {device: index for index, device in enumerate(all_devices)}
    groups: list[list[str]] = []
    for device in free:
        if groups and position[groups[-1][-1]] + 1 == position[device]:
            groups[-1].append(device)
        else:
            groups.append([device])
    groups.sort(key=len)
    for group in groups:
        if len(group) >= count:
            return tuple(group[:count])
    picked = [device for group in groups for device in group][:count]
    return tuple(_in_order(all_devices, picked))
