"""The text of `--dask-plan`."""

import pytest

from snakemake_executor_plugin_dask.options import Options
from snakemake_executor_plugin_dask.plan import plan_text
from snakemake_executor_plugin_dask.pools import ATTACHED, Pool
from snakemake_executor_plugin_dask.requests import Request

SMALL = Pool("small", "slurm", 0, 4, cores=2, memory_mb=4000, walltime_s=3600.0, options={"queue": "cpu"})
LARGE = Pool("large", "slurm", 0, 1, cores=48, memory_mb=180000, walltime_s=7200.0, gpus=4, options={"queue": "boost"})


def test_plan_names_pools_jobs_and_scripts() -> None:
    """Each rule's jobs are counted, with their pool and why; each pool's batch script follows."""
    named = [("align", Request(1, memory_mb=1000))] * 3 + [
        ("train", Request(8, gpus=1)),
        ("x", Request(1, pool="large")),
    ]
    text, possible = plan_text(Options((SMALL, LARGE)), named)
    assert possible
    assert "small: slurm, 0-4 workers, each with 2 cores, 4 GB of memory (3700 MB usable), for 1h." in text
    assert "3 jobs of rule align, each 1 core, mem_mb=1000: pool small (large could hold it too)." in text
    assert "1 job of rule train" in text
    assert "pool large (not small: 8 cores is more than the 2 of a worker" in text
    assert "pool large, which dask_pool names." in text
    assert "  #SBATCH -p boost" in text
    assert "  #SBATCH --gres=gpu:4" in text


def test_impossible_request_is_shown() -> None:
    """What no pool can hold is listed with what is short, and the plan says that the run would stop."""
    text, possible = plan_text(Options((SMALL,)), [("big", Request(96))])
    assert not possible
    assert "Rule big asks for 96 cores, which no pool can hold:" in text


@pytest.mark.parametrize("cluster", ["local", ATTACHED])
def test_plan_without_a_batch_system(cluster: str) -> None:
    """Other ways to bring workers up have a plan too."""
    options = Options((Pool(cluster, cluster, cores=2, memory_mb=1000),), scheduler="tcp://host:8786")
    text, possible = plan_text(options, [])
    assert possible
    assert "No job is to be run on a worker." in text
    assert "1 workers" not in text
