"""Batch systems: what the plugin knows of each stands in one record, in a module of its own. Pure.

Commands, words and variables come from the manual pages of Slurm 22-26, PBS Pro and Torque, LSF 10, Grid Engine 8,
OAR 2.5-2.6, Moab 9 and HTCondor 10-25. Standard library only: supervisors, and Snakemake's own process, read it.
"""

from collections.abc import Mapping

from snakemake_executor_plugin_dask.model.batch_systems.grid_engine import GRID_ENGINE
from snakemake_executor_plugin_dask.model.batch_systems.htcondor import HTCONDOR
from snakemake_executor_plugin_dask.model.batch_systems.lsf import LSF
from snakemake_executor_plugin_dask.model.batch_systems.moab import MOAB
from snakemake_executor_plugin_dask.model.batch_systems.oar import OAR
from snakemake_executor_plugin_dask.model.batch_systems.pbs import PBS
from snakemake_executor_plugin_dask.model.batch_systems.record import BatchSystem
from snakemake_executor_plugin_dask.model.batch_systems.slurm import SLURM

SYSTEMS: Mapping[str, BatchSystem] = {
    system.name: system for system in (SLURM, PBS, LSF, GRID_ENGINE, OAR, MOAB, HTCONDOR)
}


def named(field: str) -> tuple[str, ...]:
    """What any of them names in a field of its `Variables` that holds several."""
    return tuple(name for system in SYSTEMS.values() for name in getattr(system.variables, field))


__all__ = ["SYSTEMS", "BatchSystem", "named"]
