"""A cluster that stays for further runs: how it is recognised, and what its head and those who ask it say. Pure."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from snakemake_executor_plugin_dask.model.byname import by_name
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobs import Beginning
from snakemake_executor_plugin_dask.model.messages import Begin, Blocker
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.units import format_duration

#: A run or a head that says nothing for so long is lost, although the connection stands: its host, or the network.
SILENT_S = 120.0

#: What was asked for: by part (a pool, a variable, the installation) its fields, as texts.
Asked = Mapping[str, Mapping[str, str]]


def name_of(asked: Asked) -> str:
    """The cluster's name, by which two runs that ask for the same find each other: eight letters and digits."""
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return f"{digest[:7]}{int(digest[7], 16) % 10}"


def asked_of_pools(options: Options) -> dict[str, dict[str, str]]:
    """The part of `Asked` that settings say: each pool's fields, and where the scheduler listens."""
    found = {f"pool {pool.name}": _texts(asdict(pool)) for pool in options.pools}
    place = {"interface": options.scheduler_interface, "host": options.scheduler_host, "port": options.scheduler_port}
    return found | {"scheduler": _texts(place)}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value, sort_keys=True, default=str) for name, value in values.items()}


def differences(one: Asked, other: Asked) -> list[str]:
    """In which fields two clusters differ, as `pool cpu: walltime 2h, 4h`: a few words each."""
    found = []
    for part in sorted({*one, *other}):
        if part not in one or part not in other:
            found.append(part)
            continue
        for name in sorted({*one[part], *other[part]}):
            values = [_shown(name, fields[part].get(name, "null")) for fields in (one, other)]
            if values[0] != values[1]:
                found.append(f"{part}: {name.removesuffix('_s')} {', '.join(values)}")
    return found


def _shown(name: str, text: str) -> str:
    value = json.loads(text)
    if name.endswith("_s") and isinstance(value, int | float):
        return format_duration(value)
    return "none" if value is None else str(value) if len(str(value)) <= 40 else f"{str(value)[:37]}…"


@dataclass(frozen=True, slots=True)
class Kept:
    """A cluster that a run is to use: one that is up, or the first run's."""

    name: str
    directory: str  # below the user's state directory, mode 0700
    asked: Asked
    options: Options  # the settings of clusters in it hold for the cluster
    keep_s: float  # for how long it stays after this run; 0: as it was told before
    named: bool = False  # by `--dask-scheduler`: this cluster, or none


@dataclass(frozen=True, slots=True)
class Start:
    """To a new head, on its standard input."""

    kept: Kept
    least: bool = False  # the least number of workers is asked for before any run comes


# To the head, as the first word of a connection


@dataclass(frozen=True, slots=True)
class Join:
    """A run comes. `messages` of Snakemake's process follow, until `Left` or the end of the connection."""

    begin: Begin
    keep_s: float


@dataclass(frozen=True, slots=True)
class Coming:
    """A run is about to come, by another connection. Supervisors and warm processes get ready where jobs may start.

    It has not come if this connection ends before. The head ends it once the run has.
    """

    run_id: str
    beginning: Beginning
    jobs: int  # that there are to run, at least


@dataclass(frozen=True, slots=True)
class Ask:
    """What the cluster is like now; `Told` follows."""


@by_name
@dataclass(frozen=True, slots=True)
class End:
    """Give everything back. Without ``force`` a cluster with runs goes on. `Told` follows, then the connection ends."""

    force: bool = False


@dataclass(frozen=True, slots=True)
class Alive:
    """The run lives. Every few seconds."""


# From the head


@dataclass(frozen=True, slots=True)
class Welcome:
    """To a run: it was taken."""

    up: int  # workers that are there
    roomy: int  # those of them with a core that no job holds
    age_s: float


@dataclass(frozen=True, slots=True)
class Event:
    """For the run's event log."""

    kind: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Look:
    """What the run's jobs wait for and use, for `Observer.look`."""

    blockers: Sequence[Blocker]
    now: float
    uses: Mapping[str, Sequence[float]]


@by_name
@dataclass(frozen=True, slots=True)
class RunThere:
    """A run that uses the cluster."""

    run_id: str
    workdir: str
    jobs: int  # that are not finished


@by_name
@dataclass(frozen=True, slots=True)
class PoolThere:
    """A pool, with how many of its workers are up, and how many there may be."""

    name: str
    cluster: str
    up: int
    most: int


@by_name
@dataclass(frozen=True, slots=True)
class Told:
    """The cluster now."""

    workers: Mapping[str, int]  # by state
    pools: Sequence[PoolThere] = ()
    cores: int = 0  # of those that are up
    runs: Sequence[RunThere] = ()
    held_core_s: float = 0.0  # core-seconds that workers were there
    idle_core_s: float = 0.0  # of these, while no job held the cores
    until_s: float | None = None  # seconds from now; None: runs use it
    ending: bool = False
