"""The example workflow with CPU, GPU and MPI rules: unchanged on a laptop and on a Slurm with three pools."""

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from clusters.slurm import VirtualSlurm
from running import RUN_S

pytestmark = pytest.mark.mpi

EXAMPLE = Path(__file__).parents[2] / "example-workflows" / "cpu-gpu-mpi"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the example, and an Open MPI that may run as root, as tests in containers do."""
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    directory = tmp_path / "work"
    shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("results", ".snakemake"))
    return directory


def run(work: Path, *arguments: str) -> str:
    """Snakemake's output; the run must succeed."""
    command = [sys.executable, "-m", "snakemake", "--executor", "dask", "--jobs", "500", "--scheduler", "firstfit"]
    done = subprocess.run([*command, *arguments], cwd=work, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def results(work: Path) -> dict[str, list[dict[str, Any]]]:
    """What the jobs, and each rank of the MPI job, wrote down, by rule."""
    found: dict[str, list[dict[str, Any]]] = {"prepare": [], "train": [], "simulate": []}
    for path in sorted((work / "results").rglob("*.json")):
        result = json.loads(path.read_text())
        found[result["kind"]].append(result)
    assert {kind: len(jobs) for kind, jobs in found.items()} == {"prepare": 4, "train": 4, "simulate": 4}
    assert sorted(job["number"] for job in found["simulate"]) == [0, 1, 2, 3]
    assert abs(sum(job["share"] for job in found["simulate"]) - 3.14159) < 1e-4
    return found


def titles(work: Path) -> list[str]:
    """One for each job in the picture: what ran where."""
    picture = ET.parse(work / "results" / "where.svg").getroot()
    return [element.text or "" for element in picture.iter() if element.tag.endswith("title")]


def test_on_a_laptop(work: Path) -> None:
    """The MPI rule by `mpirun` here; the GPU rule on the CPU, and the run says so, unless there is a GPU."""
    output = run(work)
    found = results(work)
    here = {os.uname().nodename}
    assert {job["node"] for jobs in found.values() for job in jobs} == here
    assert "Rule train asks for 1 GPU; GPUs are not counted on the local pool" in output
    for job in found["train"]:
        assert job["on"].startswith(("CPU, since", "GPU"))
    assert len(titles(work)) == 12
    assert any("simulate 3 on" in title for title in titles(work))


@pytest.mark.slurm
@pytest.mark.variant
def test_on_slurm(work: Path, slurm: VirtualSlurm) -> None:
    """Each rule lands in its own pool: CPU nodes, the node with four GPUs, two nodes at once."""
    run(work, "--dask-pools", "config/pools.yaml")
    found = results(work)
    assert {job["node"] for job in found["prepare"]} <= {"c1", "c2", "c3"}
    assert {job["node"] for job in found["train"]} == {"g1"}
    assert {job["node"] for job in found["simulate"]} == {"m1", "m2"}
    granted = [job["on"].split()[3] for job in found["train"]]  # CPU, since GPU 2 is granted, but …
    assert set(granted) <= {"0", "1", "2", "3"}
    for one in found["train"]:
        for other in found["train"]:
            if one is not other and one["began"] < other["ended"] and other["began"] < one["ended"]:
                assert one["on"] != other["on"]
    assert len(titles(work)) == 12
    assert {title.split(" on ")[1].split(",")[0] for title in titles(work)} == {
        job["node"] for jobs in found.values() for job in jobs
    }
