"""Pools: workers of one shape, brought up by one backend. Data; `poolsfile.py` and `configure.py` make them."""

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import field
from typing import Any

from snakemake_executor_plugin_dask.model.amounts import UNKNOWN, Amounts
from snakemake_executor_plugin_dask.model.byname import by_name
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.kinds import KINDS, Kind

#: Jobs with `threads: 0` at once, for each core of the worker: they hold no core, but processes and descriptors.
CORELESS_FOR_EACH_CORE = 10
GPU_VENDORS = ("nvidia", "amd")


@by_name
@dataclass(frozen=True, slots=True)
class Pool:
    """One pool. ``cores``, ``memory_mb`` and ``gpus`` are for each node; None: the backend knows or finds out."""

    name: str
    cluster: str  # a key of `kinds.KINDS`
    workers_min: int = 1
    workers_max: int = 1
    cores: int | None = None
    memory_mb: int | None = None  # 10^6 bytes
    gpus: int | None = None
    gpu_model: str | None = None
    gpu_vendor: str = "nvidia"
    devices: tuple[str, ...] | None = None  # the GPUs by name, where the backend knows them; None: workers look
    nodes: int | None = None  # given: each worker holds an allocation of so many nodes ("wide")
    walltime_s: float | None = None
    margin_s: float | None = None  # None: 300 s, or a tenth of a shorter walltime
    default_runtime_s: float | None = None  # None: half the walltime
    idle_timeout_s: float = 60.0
    resources: tuple[tuple[str, int], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backend's class
    left_out: tuple[str, ...] = ()  # nodes that its next allocations are not to get, where the batch system can
    #: For a pool made for Slurm resources: the key that its jobs agree in (Request.slurm).
    slurm: tuple[tuple[str, str], ...] | None = None

    @property
    def elastic(self) -> bool:
        """Whether workers come and go with the work."""
        return self.workers_min < self.workers_max

    @property
    def kind(self) -> Kind:
        """What holds for the workers of every such pool."""
        return KINDS[self.cluster]

    @property
    def complete(self) -> bool:
        """Whether nobody need be asked what its workers hold."""
        return self.kind.asks_nobody and not self.gpus

    @property
    def effective_margin_s(self) -> float:
        """Seconds of an allocation's life that no job is planned into."""
        if self.margin_s is not None:
            return self.margin_s
        return 300.0 if self.walltime_s is None else min(300.0, self.walltime_s / 10)


@dataclass(frozen=True, slots=True)
class Shape:
    """One worker of a pool. Cores, memory (usable, 10^6 bytes) and GPUs are those of each node; None: not known yet."""

    cores: int | None = None
    memory_mb: int | None = None
    gpus: int | None = None
    gpu_model: str | None = None
    nodes: int = 1
    extra: tuple[tuple[str, int], ...] = ()  # for each worker
    lifetime_s: float | None = None  # of a new worker; None: no end

    @property
    def amounts(self) -> Amounts:
        """What an empty worker has, of each node; what is not known counts as enough."""
        cores, memory_mb, gpus = (UNKNOWN if it is None else it for it in (self.cores, self.memory_mb, self.gpus))
        coreless = UNKNOWN if self.cores is None else CORELESS_FOR_EACH_CORE * max(1, cores)
        return Amounts(cores, memory_mb, gpus, self.nodes, coreless, self.extra)


def unique_name(parts: Iterable[str], taken: Container[str], default: str) -> str:
    """A pool's name made of these parts, of allowed characters and length, that is not taken."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(parts)).lstrip("-._")[:36] or default
    return free_name(name, taken)


def free_name(name: str, taken: Container[str]) -> str:
    """The name, with a number where it is taken."""
    free, number = name, 2
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def usable_memory_mb(memory_mb: int) -> int:
    """What a worker of this size leaves to jobs: its own processes keep 300 MB, or a tenth of a small worker."""
    return memory_mb - min(300, memory_mb // 10)
