"""The check at the start of a run: which private names are missing, and what becomes of the run without them."""

from dataclasses import replace

from snakemake_executor_plugin_dask.interior import (
    dask_attached,
    dask_network,
    dask_overridden,
    dask_scheduler,
    dask_streams,
    quick_imports,
    snakemake_calls,
    snakemake_commands,
    snakemake_dag,
    snakemake_jobs,
    snakemake_scheduler,
    snakemake_settings,
)
from snakemake_executor_plugin_dask.interior.declared import Private, missing, refusal, untried, warning
from snakemake_executor_plugin_dask.model.frozen import dataclass

#: Of Snakemake, in its main process.
NAMES = (
    *snakemake_scheduler.NAMES,
    *snakemake_dag.NAMES,
    *snakemake_jobs.NAMES,
    *snakemake_settings.NAMES,
    *snakemake_calls.NAMES,
    *snakemake_commands.NAMES,
)


@dataclass(frozen=True, slots=True)
class Interior:
    """What a process can do with the installed versions. An empty sentence: nothing is to be said."""

    refusal: str = ""
    warning: str = ""
    untried: str = ""  # that this version of Snakemake is a new one
    looks_ahead: bool = True  # at the jobs that become ready next
    mends_retries: bool = True
    fails_unstarted: bool = True  # one job alone, which was never started
    keeps_updated: bool = True  # what a failed job has updated
    looks_up_pipes: bool = True
    wakes_once: bool = True  # Snakemake's scheduler, for many jobs that ended


def of_snakemake() -> Interior:
    """Look for every name that the main process uses."""
    import snakemake.api  # noqa: F401 - first: its modules import each other

    return replace(_told(missing(NAMES)), untried=untried("snakemake"))


def of_dask() -> Interior:
    """Look for every name of `distributed` that the run's own driver and workers use. Imports Dask."""
    quick_imports.import_distributed()
    return _told(missing(dask_names()))


def dask_names() -> tuple[Private, ...]:
    """Those of a run with a cluster of its own. Imports Dask."""
    from snakemake_executor_plugin_dask.interior import dask_files

    return (*dask_scheduler.NAMES, *dask_streams.NAMES, *dask_network.NAMES, *dask_files.NAMES, *dask_overridden.NAMES)


def of_attached_dask() -> Interior:
    """Look for every name of `distributed` that a run on an attached cluster uses. Imports Dask."""
    quick_imports.import_distributed()
    return _told(missing(attached_names()))


def attached_names() -> tuple[Private, ...]:
    """Those of a run on an attached cluster."""
    return (*dask_attached.NAMES, *dask_network.NAMES)


def _told(lacking: list[Private]) -> Interior:
    fatal = [name for name in lacking if name.needed]
    return Interior(
        refusal=refusal(fatal) if fatal else "",
        warning=warning(lacking) if lacking and not fatal else "",
        looks_ahead=not {snakemake_dag.DEPENDING, snakemake_dag.NEEDRUN} & set(lacking),
        mends_retries=snakemake_dag.RUNNING not in lacking,
        fails_unstarted=not {snakemake_scheduler.LOCK, snakemake_scheduler.HANDLE_ERROR, snakemake_scheduler.OPEN_JOBS}
        & set(lacking),
        looks_up_pipes=not {snakemake_dag.IS_PIPE, snakemake_calls.PIPES} & set(lacking),
        wakes_once=snakemake_scheduler.OPEN_JOBS not in lacking,
        keeps_updated=not {snakemake_jobs.BACKUP_PATH, snakemake_jobs.BACK_UP} & set(lacking),
    )
