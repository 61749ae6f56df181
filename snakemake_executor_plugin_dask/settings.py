"""What users can set, for Snakemake's plugin registry. Imported by every Snakemake process: imports next to nothing.

The types must be plain `Optional[...]` and annotations must not be delayed: Snakemake makes its command line from them.
All values but the flags are texts as given; `configure.py` reads and checks them, so that a complaint is one sentence
instead of a usage text. None means "not given" where that matters. Defaults must be JSON's: the plugin catalog prints
them.
"""

import os
import re
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Optional

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

OLDEST_SNAKEMAKE = (9, 19)


def too_old(snakemake: str) -> Optional[str]:
    """The complaint about an older Snakemake that was installed all the same, else None."""
    # The first two numbers are enough, and what a checkout without a version calls itself is none to compare.
    numbers = re.match(r"(\d+)\.(\d+)", snakemake)
    if numbers is None or tuple(map(int, numbers.groups())) >= OLDEST_SNAKEMAKE:
        return None
    oldest = ".".join(map(str, OLDEST_SNAKEMAKE))
    return (
        f"The dask executor needs Snakemake {oldest} or newer, and this is Snakemake {snakemake}; install a newer one: "
        f"pip install --upgrade 'snakemake>={oldest},<10'."
    )


def _setting(default: Any, metavar: Optional[str], text: str) -> Any:
    # `snakemake --help` shows no defaults of its own.
    metadata = {"help": f"{text} Default: {default}." if default else text}
    if metavar is not None:
        metadata["metavar"] = metavar
    return field(default=default, metadata=metadata)


@dataclass
class ExecutorSettings(ExecutorSettingsBase):  # type: ignore[misc]
    """Settings of `--executor dask`; on the command line and in profiles with `dask-` in front."""

    cluster: Optional[str] = _setting(
        None,
        "NAME",
        "How the workers of the single pool are brought up: on this machine (local, or cuda for its GPUs), on the "
        "nodes of the allocation that Snakemake runs in (mpi), or through a batch system (slurm, pbs, lsf, sge, oar, "
        "moab or htcondor). Default: local.",
    )
    pools: Optional[str] = _setting(
        None,
        "FILE|none",
        "A YAML file that describes several pools of workers; each job runs in the first pool that can hold it. It "
        "wins over the cluster and the worker sizes set elsewhere. none undoes a profile's file.",
    )
    scheduler: Optional[str] = _setting(
        None,
        "ADDRESS|FILE|NAME",
        "Attach to a Dask scheduler that already runs, by its address (tcp:// or tls://) or its scheduler file, and "
        "run jobs on its workers instead of bringing up any; or the name of a cluster that stays (see --dask-keep).",
    )
    keep: str = _setting(
        "0",
        "DURATION",
        "For how long the cluster stays after the last run that uses it ends, such as 2h or 30m; a later run that asks "
        "for the same cluster uses it. 0: nothing stays.",
    )
    workers: Optional[str] = _setting(
        None,
        "N|MIN-MAX",
        "How many workers there are; with a range such as 0-10 they come and go with the work. Default: 1 for local "
        "and cuda, 0-10 for batch systems, and one for each node of the allocation for mpi.",
    )
    worker_cores: Optional[str] = _setting(
        None,
        "N",
        "Cores of one worker. Default: for local this machine's cores divided by the workers (more may be asked for, "
        "with a warning), for slurm Dask's configuration, else a share of the partition's nodes; for other batch "
        "systems what Dask's configuration says.",
    )
    worker_memory: Optional[str] = _setting(
        None,
        "SIZE",
        "Memory of one worker with a unit, such as 180 GB or 16GiB. Default: for local this machine's memory divided "
        "by the workers, for slurm Dask's configuration, else a share of the partition's nodes; for other batch "
        "systems what Dask's configuration says.",
    )
    worker_gpus: Optional[str] = _setting(
        None,
        "N",
        "GPUs of one worker. Default: all that the worker finds for cuda, none otherwise.",
    )
    walltime: Optional[str] = _setting(
        None,
        "DURATION",
        "Lifetime of one worker's allocation in a batch system, such as 2h, 90m or 04:00:00 (in a profile in quotes). "
        "Default: what Dask's configuration says; for slurm without it the longest runtime that is declared, and the "
        "margin, at most the partition's limit.",
    )
    options: Optional[str] = _setting(
        None,
        "YAML|FILE",
        "Further arguments of the batch system's class in dask-jobqueue, or the launcher for mpi, as YAML text such "
        "as '{queue: long, account: physics}' or as a file that holds it. In a profile write it as a block scalar or a "
        "file name.",
    )
    idle_timeout: str = _setting(
        "60",
        "SECONDS",
        "A worker beyond the minimum number is given back once it has been idle for this many seconds.",
    )
    job_start: str = _setting(
        "warm",
        "warm|cold",
        "How a job's Snakemake starts on a worker: from a process that has already read the workflow (warm), or anew "
        "for each job (cold).",
    )
    enforce: str = _setting(
        "runtime,memory",
        "LIMITS",
        "Which declared limits end a job that exceeds them: runtime,memory, or one of the two, or none. With cgroup "
        "instead of memory the kernel enforces it, too, where the user may make cgroups of version 2.",
    )
    lost_worker_retries: str = _setting(
        "3",
        "N",
        "How often a job is run again because its worker was lost, apart from the retries of Snakemake itself.",
    )
    logdir: str = _setting(
        ".snakemake/dask_logs",
        "DIR",
        "Directory of the jobs' log files, one for each job and attempt.",
    )
    keep_successful_logs: bool = _setting(
        default=False,
        metavar=None,
        text="Keep the log files of jobs that succeeded; otherwise only those of failed jobs stay.",
    )
    dashboard: str = _setting(
        "none",
        "ADDRESS|auto|none",
        "Where Dask's dashboard listens: an address such as 127.0.0.1:8787; auto for a free port on loopback under a "
        "secret path; or none.",
    )
    report: Optional[str] = _setting(
        None,
        "FILE",
        "Write what ran where and when, and how much it used of what it asked for, to this file (.html, .tsv, .json).",
    )
    plan: bool = _setting(
        default=False,
        metavar=None,
        text="Print the pools, where the jobs of each rule would run and why, every problem, and the batch scripts, "
        "and end without starting any worker or job.",
    )
    plan_scripts: Optional[str] = _setting(
        None,
        "DIR",
        "Do what --dask-plan does, and write each pool's batch script to this directory, ready for the submit command.",
    )

    def __post_init__(self) -> None:
        # A job's own Snakemake imports this module for the names of the settings, and makes none of them.
        from snakemake_executor_plugin_dask.node.allocation import started_as_rank

        if (complaint := too_old(version("snakemake"))) is not None:
            raise WorkflowError(complaint)
        if self.pools == "none":
            self.pools = None
        # An attached cluster may have been brought up by the very launcher, and one of its ranks be Snakemake's.
        complaint = started_as_rank(os.environ) if self.scheduler is None else None
        if complaint is not None:
            raise WorkflowError(complaint)


common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    # Sources are deployed only where the user says that they are not shared (`--shared-fs-usage none`).
    job_deploy_sources=True,
    pass_default_storage_provider_args=True,
    # A job's own Snakemake needs the same defaults to arrive at the same resources.
    pass_default_resources_args=True,
    # They would be readable by every user of the node; the worker gets the environment over TLS.
    pass_envvar_declarations_to_cmd=False,
    # Workers run in the environment that Snakemake runs in.
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=0,
    # A job's own Snakemake executes locally and so ignores groups; a group job's members are its targets.
    pass_group_args=False,
)
