"""The settings after checking: plain, frozen data that the driver can be given. Pure."""

from snakemake_executor_plugin_dask.model.byname import by_name
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobs import JobStart
from snakemake_executor_plugin_dask.model.pools import Pool

#: What `--dask-report` and `snakemake-dask report` can write.
REPORT_ENDINGS = (".html", ".htm", ".tsv", ".json")


@by_name
@dataclass(frozen=True, slots=True)
class DashboardAddress:
    """Where Dask's dashboard listens."""

    host: str
    port: int = 0  # 0: any free one


@by_name
@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for. Times in seconds, memory in 10^6 bytes, paths absolute."""

    pools: tuple[Pool, ...]
    #: Jobs without a pool share one made for their Slurm resources (`--dask-cluster slurm` without a pools file);
    #: `pools[0]` is then the template.
    make_slurm_pools: bool = False
    #: Then what such a pool is made from; `pools` are the ones made for the jobs known at the start.
    slurm_template: Pool | None = None
    scheduler: str | None = None  # address or file of a Dask scheduler to attach to
    scheduler_interface: str | None = None
    scheduler_host: str | None = None
    scheduler_port: int = 0
    kept: str | None = None  # the name of the cluster that stays, where `--dask-scheduler` gives one
    keep_s: float = 0.0  # for how long the cluster stays after this run
    job_start: JobStart = "warm"
    enforce_runtime: bool = True
    enforce_memory: bool = True
    enforce_cgroup: bool = False
    lost_worker_retries: int = 3
    logdir: str = ".snakemake/dask_logs"
    keep_successful_logs: bool = False
    dashboard: DashboardAddress | None = None  # None: no HTTP server at all
    report: str | None = None
    plan: bool = False
    plan_scripts: str | None = None  # directory for the plan's batch scripts
    local_by_default: bool = True  # the single local pool, and `--dask-cluster` was not given
