"""The Dask cluster of a job's own, from `dask_workers` in its rule. Pure."""

from dataclasses import dataclass

from snakemake_executor_plugin_dask.model.amounts import Amounts


@dataclass(frozen=True, slots=True)
class JobCluster:
    """So many Dask workers of one size, beside the job's script, which shares its part with the cluster's scheduler."""

    workers: int
    cores: int  # of each worker, and its threads
    memory_mb: int | None = None  # of each worker, 10^6 bytes. None: not declared
    gpus: int = 0  # of each worker
    script_cores: int = 1
    script_memory_mb: int | None = None  # None: not declared
    options: str = ""  # further arguments of Dask's worker class, as JSON; empty: none

    @property
    def total(self) -> Amounts:
        """What script, scheduler and workers hold together; memory that is not declared counts as none."""
        return self._each * self.workers + self._script

    def fitting(self, room: Amounts) -> int:
        """How many such workers, and not more than are wanted, fit beside the script into so much."""
        return min(self.workers, self._each.times_in(room - self._script))

    @property
    def _each(self) -> Amounts:
        return Amounts(self.cores, self.memory_mb or 0, self.gpus)

    @property
    def _script(self) -> Amounts:
        return Amounts(self.script_cores, self.script_memory_mb or 0)
