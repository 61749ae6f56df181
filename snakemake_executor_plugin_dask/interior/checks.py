"""The check at the start of a run: which private names are missing, and what becomes of the run without them."""

from dataclasses import dataclass

from snakemake_executor_plugin_dask.interior import (
    snakemake_calls,
    snakemake_dag,
    snakemake_jobs,
    snakemake_scheduler,
    snakemake_settings,
)
from snakemake_executor_plugin_dask.interior.declared import missing, refusal, warning

NAMES = (
    *snakemake_scheduler.NAMES,
    *snakemake_dag.NAMES,
    *snakemake_jobs.NAMES,
    *snakemake_settings.NAMES,
    *snakemake_calls.NAMES,
)


@dataclass(frozen=True, slots=True)
class Interior:
    """What Snakemake's main process can do with this version. An empty sentence: nothing is to be said."""

    refusal: str = ""
    warning: str = ""
    looks_ahead: bool = True  # at the jobs that become ready next
    mends_retries: bool = True
    fails_unstarted: bool = True  # one job alone, which was never started


def of_snakemake() -> Interior:
    """Look for every name that the main process uses."""
    import snakemake.api  # noqa: F401 - first: its modules import each other

    lacking = missing(NAMES)
    fatal = [name for name in lacking if name.needed]
    return Interior(
        refusal=refusal(fatal) if fatal else "",
        warning=warning(lacking) if lacking and not fatal else "",
        looks_ahead=not {snakemake_dag.DEPENDING, snakemake_dag.NEEDRUN} & set(lacking),
        mends_retries=snakemake_dag.RUNNING not in lacking,
        fails_unstarted=not {snakemake_scheduler.LOCK, snakemake_scheduler.HANDLE_ERROR, snakemake_scheduler.OPEN_JOBS}
        & set(lacking),
    )
