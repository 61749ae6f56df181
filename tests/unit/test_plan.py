"""The text of `--dask-plan`."""

import os
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.frontend.plan import KINDS_SHOWN, plan_text
from snakemake_executor_plugin_dask.frontend.preflight import Question
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.kinds import ATTACHED
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request, with_cluster

SMALL = Pool("small", "slurm", 0, 4, cores=2, memory_mb=4000, walltime_s=3600.0, options={"queue": "cpu"})
LARGE = Pool("large", "slurm", 0, 1, cores=48, memory_mb=180000, walltime_s=7200.0, gpus=4, options={"queue": "boost"})


def test_plan_names_pools_jobs_and_scripts() -> None:
    """Each rule's jobs are counted, with their pool and why; each pool's batch script follows."""
    named = [("align", Request(1, memory_mb=1000))] * 3 + [
        ("train", Request(8, gpus=1)),
        ("x", Request(1, pool="large")),
    ]
    text, possible = plan_text(Question(Options((SMALL, LARGE)), tuple(named), unknown=("later",)))
    assert possible
    assert "small: slurm, 0-4 workers, each with 2 cores, 4 GB of memory (3700 MB usable), for 1h." in text
    assert "3 jobs of rule align, each 1 core, mem_mb=1000: pool small (large could hold it too)." in text
    assert "1 job of rule train" in text
    assert "pool large (not small: 8 cores is more than the 2 of a worker" in text
    assert "pool large, which dask_pool names." in text
    assert "1 job of rule later: what it asks for is known only once its input is there." in text
    assert "\n#SBATCH -p boost" in text
    assert "\n#SBATCH --gres=gpu:4" in text


def test_every_problem_is_shown() -> None:
    """What was found before, and for each rule what no pool can hold; jobs that can run are still listed."""
    named = [("big", Request(96)), ("big", Request(95)), ("long", Request(1, runtime_s=10**6)), ("fits", Request(1))]
    text, possible = plan_text(Question(Options((SMALL,)), tuple(named), problems=("Pool x is ill.",)))
    assert not possible
    assert "Problems: 3\n  1. Pool x is ill.\n  2. Rule big asks for 96 cores, which no pool can hold:" in text
    assert "(the same holds for 1 more job of this rule)" in text
    assert "  3. Rule long asks for" in text
    assert "1 job of rule fits, 1 core: pool small." in text


def test_dask_workers_of_a_job_are_shown() -> None:
    """All parts, and the pool that can hold them; where none can, how many would fit."""
    fits, more = (with_cluster(Request(1), JobCluster(workers, 2, memory_mb=1000)) for workers in (3, 4))
    text, possible = plan_text(Question(Options((SMALL,)), (("mean", fits),)))
    assert possible, text
    parts = "7 cores (3 Dask workers with 2 cores and mem_mb=1000 each, and 1 core and mem_mb=0 for the script)"
    assert f"1 job of rule mean, {parts}, mem_mb=3000: pool small." in text
    text, possible = plan_text(Question(Options((SMALL,)), (("mean", more),)))
    assert not possible
    assert "--set-resources mean:dask_workers=3" in text


def test_jobs_that_all_ask_for_something_else() -> None:
    """Thousands of different requests of a rule are not listed one by one."""
    named = tuple(("r", Request(1, memory_mb=number + 1)) for number in range(1000))
    text, possible = plan_text(Question(Options((SMALL,)), named))
    assert possible
    assert text.count(" of rule r, ") == KINDS_SHOWN + 1
    assert f"{1000 - KINDS_SHOWN} further jobs of rule r, which ask for other amounts." in text


def test_scripts_are_written(tmp_path: Path) -> None:
    """One for each pool, executable, with the directives of a run and a command that ends by itself."""
    text, possible = plan_text(Question(Options((SMALL, LARGE), plan_scripts=str(tmp_path / "a" / "b"))))
    assert possible
    for name in ("small", "large"):
        path = tmp_path / "a" / "b" / f"{name}.sh"
        assert f"sbatch {path}" in text
        script = path.read_text()
        assert script.startswith("#!/usr/bin/env bash\n")
        assert f"#SBATCH -J snakemake-plan-{name}\n#SBATCH -e {path.parent}/snakemake-plan-{name}-%J.err" in script
        assert script.rstrip().endswith("-P -m snakemake_executor_plugin_dask.frontend.plan")
        assert os.access(path, os.X_OK)


def test_directory_of_scripts_that_cannot_be_made(tmp_path: Path) -> None:
    """It is a problem like the others, and the plan is printed."""
    (tmp_path / "file").touch()
    text, possible = plan_text(Question(Options((SMALL,), plan_scripts=str(tmp_path / "file"))))
    assert not possible
    assert f"--dask-plan-scripts {tmp_path / 'file'}: the script of pool small could not be written: " in text
    assert "#SBATCH -p cpu" in text


@pytest.mark.parametrize("cluster", ["local", ATTACHED])
def test_plan_without_a_batch_system(cluster: str) -> None:
    """Other ways to bring workers up have a plan too."""
    options = Options((Pool(cluster, cluster, cores=2, memory_mb=1000),), scheduler="tcp://host:8786")
    text, possible = plan_text(Question(options))
    assert possible
    assert "No job is to be run on a worker." in text
    assert "1 workers" not in text
