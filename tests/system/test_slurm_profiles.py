"""Profiles of the kind that sites publish for the Slurm executor: two lines changed, and they run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clusters.slurm import VirtualSlurm
from running import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

PROFILES = Path(__file__).resolve().parent.parent / "profiles"


def snakemake(directory: Path, slurm: VirtualSlurm, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "snakemake", "--profile", "profile", *arguments]
    return subprocess.run(
        command, cwd=directory, env=slurm.environment, capture_output=True, text=True, timeout=500, check=False
    )


def changed(name: str, directory: Path) -> Path:
    """The profile in a new working directory, with the two lines."""
    shutil.copy(PROFILES / "Snakefile", directory)
    text = (PROFILES / name / "config.yaml").read_text()
    assert text.count("executor: slurm\n") == 1
    (directory / "profile").mkdir()
    (directory / "profile/config.yaml").write_text(
        text.replace("executor: slurm\n", "executor: dask\ndask-cluster: slurm\n")
    )
    return directory


def partitions(directory: Path) -> dict[str, list[list[str]]]:
    """By rule, what its jobs noted: partition and GPUs."""
    rules = ("align", "assemble", "train", "evaluate")
    return {rule: [path.read_text().split() for path in sorted((directory / rule).iterdir())] for rule in rules}


def test_campus(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Defaults, more for one rule, an account, a constraint."""
    done = snakemake(changed("campus", tmp_path), slurm)
    assert done.returncode == 0, done.stderr
    found = partitions(tmp_path)
    assert found["align"] == [["cpu"]] * 3
    assert found["assemble"] == [["big"]]
    assert found["train"] == [["cpu", "none"]] * 2
    wait_for(lambda: not slurm.queue(), "an empty queue", 30)


def test_gpu_centre(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Memory for each CPU; GPUs by gres and in slurm_extra; each job sees its own number of them."""
    done = snakemake(changed("gpu-centre", tmp_path), slurm)
    assert done.returncode == 0, done.stderr
    found = partitions(tmp_path)
    assert found["align"] == [["cpu"]] * 3
    assert [(partition, len(gpus.split(","))) for partition, gpus in found["train"]] == [("gpu", 2)] * 2
    ((partition, gpus),) = found["evaluate"]
    assert (partition, len(gpus.split(","))) == ("gpu", 1)
    assert gpus != "none"
    wait_for(lambda: not slurm.queue(), "an empty queue", 30)


def test_terse(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Neither memory nor runtime is declared: it runs, and the rules are named."""
    done = snakemake(changed("terse", tmp_path), slurm)
    assert done.returncode == 0, done.stderr
    found = partitions(tmp_path)
    assert found["align"] == [["cpu"]] * 3
    assert found["assemble"] == [["big"]]
    assert "No mem_mb is declared by rules" in done.stderr
    assert "No runtime is declared by rules" in done.stderr
    wait_for(lambda: not slurm.queue(), "an empty queue", 30)


@pytest.mark.parametrize("name", ["campus", "gpu-centre", "terse"])
def test_plan_shows_what_would_be_submitted(name: str, slurm: VirtualSlurm, tmp_path: Path) -> None:
    """`--dask-plan` prints the scripts, submits nothing, and leaves no output."""
    done = snakemake(changed(name, tmp_path), slurm, "--dask-plan")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH -p big" in done.stdout or "#SBATCH -p gpu" in done.stdout
    assert "jobs of rule align" in done.stdout
    assert not slurm.queue()
    assert not (tmp_path / "align").exists()


def test_plan_of_an_impossible_request(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """A job that no node of its partition holds: the plan ends with 1, or the run with the reason."""
    done = snakemake(changed("campus", tmp_path), slurm, "--dask-plan", "--set-threads", "assemble=64", "--cores", "64")
    assert done.returncode == 1
    assert "64 cores" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("resource", "said"),
    [
        (
            "slurm_partition=cpuu",
            "there is no partition cpuu (did you mean cpu?) among big, cpu, gpu; change slurm_part",
        ),
        ("constraint=fast", "no node of partition cpu has fast (they have no features); change constraint"),
    ],
)
def test_what_slurm_does_not_have(resource: str, said: str, slurm: VirtualSlurm, tmp_path: Path) -> None:
    """It is told with what there is, and nothing is submitted."""
    done = snakemake(changed("campus", tmp_path), slurm, "--set-resources", f"assemble:{resource}")
    assert done.returncode != 0
    assert said in done.stdout + done.stderr, done.stderr
    assert not slurm.queue()
