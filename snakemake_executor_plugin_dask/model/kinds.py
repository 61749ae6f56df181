"""The kinds of cluster, and what each means for all that deals with its workers. Data.

Nothing else compares their names, but `backends.backend_for`, which imports the adapter of each.
"""

from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS, BatchSystem
from snakemake_executor_plugin_dask.model.frozen import dataclass

#: What `--dask-cluster` and a pools file may name.
BACKENDS = ("local", "cuda", "mpi", *SYSTEMS)
ATTACHED = "attached"  # the single pool of --dask-scheduler


@dataclass(frozen=True, slots=True)
class Kind:
    """What holds for all workers of a cluster of this kind."""

    here: bool = False  # they run on Snakemake's machine, whose size is known
    beside_snakemake: bool = False  # they run where Snakemake does, which may be an allocation: no other is waited for
    system: BatchSystem | None = None  # it starts each in an allocation of its own, and another when that ends
    launched: bool = False  # a launcher starts all of them at once, and a job may spread over several
    found: bool = False  # others have brought them up, each of its own size; they are taken as they are
    finds_devices: bool = False  # they count the GPUs they find; elsewhere a pool holds GPUs only if it says so
    asks_nobody: bool = False  # without GPUs a pool is known from its settings: no batch system or Dask completes it
    adapts: bool = False  # where it is the only pool, requests are cut to it, as Snakemake's local executor does

    @property
    def queued(self) -> bool:
        """Whether each allocation is asked for, and lives as long as its walltime says."""
        return self.system is not None


KINDS = {
    "local": Kind(here=True, beside_snakemake=True, asks_nobody=True, adapts=True),
    "cuda": Kind(here=True, beside_snakemake=True, finds_devices=True),
    "mpi": Kind(beside_snakemake=True, launched=True),
    **{name: Kind(system=system) for name, system in SYSTEMS.items()},
    ATTACHED: Kind(found=True, finds_devices=True, asks_nobody=True),
}
