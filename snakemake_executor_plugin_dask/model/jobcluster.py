"""The Dask cluster of a job's own, from `dask_workers` in its rule. Pure."""

from dataclasses import dataclass


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

    def total_cores(self) -> int:
        return self.workers * self.cores + self.script_cores

    def total_memory_mb(self) -> int | None:
        """None where the rule declares no memory."""
        if self.memory_mb is None:
            return None
        return self.workers * self.memory_mb + (self.script_memory_mb or 0)

    def fitting(self, cores: int | None, memory_mb: int | None, gpus: int | None) -> int:
        """How many such workers, and not more than are wanted, fit beside the script into so much. None: any amount."""
        most = self.workers
        if cores is not None:
            most = min(most, (cores - self.script_cores) // self.cores)
        if memory_mb is not None and self.memory_mb:
            most = min(most, (memory_mb - (self.script_memory_mb or 0)) // self.memory_mb)
        if gpus is not None and self.gpus:
            most = min(most, gpus // self.gpus)
        return max(0, most)
