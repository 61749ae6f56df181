"""Profiles of the kind that sites publish for the Slurm executor: two lines changed, and they run."""

import re
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
    wait_for(lambda: not slurm.queue(), "an empty queue")


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
    wait_for(lambda: not slurm.queue(), "an empty queue")


@pytest.mark.variant
def test_terse(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Neither memory nor runtime is declared: it runs, and the rules are named."""
    done = snakemake(changed("terse", tmp_path), slurm)
    assert done.returncode == 0, done.stderr
    found = partitions(tmp_path)
    assert found["align"] == [["cpu"]] * 3
    assert found["assemble"] == [["big"]]
    assert "No mem_mb is declared by rules" in done.stderr
    assert "No runtime is declared by rules" in done.stderr
    wait_for(lambda: not slurm.queue(), "an empty queue")


@pytest.mark.parametrize(
    "name", ["gpu-centre", *(pytest.param(name, marks=pytest.mark.variant) for name in ("campus", "terse"))]
)
def test_plan_and_its_scripts(name: str, slurm: VirtualSlurm, tmp_path: Path) -> None:
    """The plan shows the scripts and submits nothing; each script that it writes is taken by sbatch, and runs."""
    done = snakemake(changed(name, tmp_path), slurm, "--dask-plan-scripts", "my scripts")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n#!/usr/bin/env bash\n\n#SBATCH " in done.stdout, "what is copied from the plan is a script"
    assert "<" not in done.stdout
    assert "jobs of rule align" in done.stdout
    assert not slurm.queue()
    assert not (tmp_path / "align").exists()
    scripts = sorted((tmp_path / "my scripts").iterdir())
    assert len(scripts) >= 2
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for script in scripts:
        slurm.run("sbatch", f"--chdir={elsewhere}", str(script))
    wait_for(lambda: not slurm.queue(), "an empty queue")
    found = [path.read_text() for path in (*elsewhere.iterdir(), *script.parent.iterdir()) if path.suffix == ".out"]
    assert len(found) == len(scripts)
    assert all("This allocation has started, on " in text for text in found), found


def test_plan_names_every_problem(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """Three rules that cannot run, each for another reason: the plan has them all, with what can run, and exits 1."""
    impossible = ["--set-threads", "assemble=64", "--cores", "64"]
    impossible += ["--set-resources", "train:slurm_partition=cpuu", "evaluate:dask_job_start=hot"]
    done = snakemake(changed("campus", tmp_path), slurm, "--dask-plan", *impossible)
    assert done.returncode == 1
    assert "3 jobs of rule align, each 1 core" in done.stdout, done.stdout + done.stderr
    assert "2 jobs of rule train" in done.stdout
    assert "\nProblems: 3\n" in done.stdout
    for said in ("there is no partition cpuu", "64 cores", "Job of evaluate: "):
        assert said in done.stdout
    assert "#SBATCH -p cpu" in done.stdout


def test_what_slurm_does_not_have(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """It is told with what there is, and nothing is submitted."""
    wrong = ("assemble:slurm_partition=cpuu", "train:constraint=fast")
    done = snakemake(changed("campus", tmp_path), slurm, "--set-resources", *wrong)
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert "there is no partition cpuu (did you mean cpu?) among big, cpu, gpu; change slurm_part" in output, output
    assert "no node of partition cpu has fast (they have no features); change constraint" in output, output
    assert not slurm.queue()


def test_pools_file_from_the_site(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """What is written from this Slurm works with `--dask-plan`, and a job of each kind goes where it belongs."""
    written = subprocess.run(
        [sys.executable, "-m", "snakemake_executor_plugin_dask", "pools", "--from-slurm", "--output", "pools.yaml"],
        cwd=tmp_path, env=slurm.environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert written.returncode == 0, written.stderr
    (tmp_path / "Snakefile").write_text("""
rule all:
    input: "small.txt", "large.txt", "gpu.txt"
rule small:
    output: "small.txt"
    shell: "touch {output}"
rule large:
    output: "large.txt"
    threads: 4
    shell: "touch {output}"
rule gpu:
    output: "gpu.txt"
    resources: gpu=2, gpu_model="a100"
    shell: "touch {output}"
""")
    command = [sys.executable, "-m", "snakemake", "--executor", "dask", "--jobs", "100", "--dask-pools", "pools.yaml"]
    plan = subprocess.run(
        [*command, "--dask-plan"],
        cwd=tmp_path, env=slurm.environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert plan.returncode == 0, plan.stderr
    for rule, pool in (("small", "cpu"), ("large", "big"), ("gpu", "gpu")):
        assert re.search(rf"of rule {rule}, .*: pool {pool}\b", plan.stdout), plan.stdout
    assert "#SBATCH --mem=4000M" in plan.stdout
