"""GPU leases through a whole run, on four devices that the environment or a stand-in names; no GPU is needed."""

import itertools
import json
import sys
from pathlib import Path

import pytest
from clusters.slurm import VirtualSlurm
from running import snakemake

JOBS = """
rule all:
    input: expand("gpu{n}/{i}.json", n=[0, 1, 2, 4], i=range(4))

# Each holds its devices for a while, so that two on one device would show.
rule job:
    output: "gpu{n}/{i}.json"
    resources: gpu=lambda wildcards: int(wildcards.n)
    threads: 0
    shell:
        '''
        b=$(date +%s.%N); sleep 0.4
        echo "{{\\\\"begin\\\\": $b, \\\\"end\\\\": $(date +%s.%N)," > {output}
        echo "\\\\"seen\\\\": \\\\"$CUDA_VISIBLE_DEVICES\\\\"," >> {output}
        echo "\\\\"order\\\\": \\\\"$CUDA_DEVICE_ORDER\\\\"}}" >> {output}
        '''
"""

DEVICES = ("0", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb", "3")


def test_each_job_sees_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of one, two and all devices beside jobs without: each sees what it holds, and no device is held twice."""
    monkeypatch.setenv("SNAKEMAKE_DASK_DEVICES", ",".join(DEVICES))
    with snakemake(tmp_path, JOBS, "--dask-cluster", "cuda") as run:
        assert run.wait() == 0, run.output
    check_leases(tmp_path, DEVICES)


POOLS = """
pools:
  gpu:
    cluster: slurm
    workers: 1
    cores: 4
    memory: 4 GB
    gpus: {gpus}
    walltime: 10m
    options: {{queue: gpu, job_extra_directives: ["--gres=gpu:a100:{granted}"]}}
"""


@pytest.mark.slurm
def test_each_job_sees_its_own_in_slurm(tmp_path: Path, slurm: VirtualSlurm) -> None:
    """The same on a node whose four devices Slurm grants by `gres`, by the names that it gives them."""
    (tmp_path / "pools.yaml").write_text(POOLS.format(gpus=4, granted=4))
    with snakemake(tmp_path, JOBS, "--dask-pools", "pools.yaml") as run:
        assert run.wait() == 0, run.output
        assert run.facts()["host"] == "g1"
        assert run.facts()["devices"] == ["0", "1", "2", "3"]
    check_leases(tmp_path, ("0", "1", "2", "3"))


@pytest.mark.slurm
def test_slurm_grants_fewer(tmp_path: Path, slurm: VirtualSlurm) -> None:
    """A pool that declares more than its directives ask for: told before the first job, and no job waits for ever."""
    (tmp_path / "pools.yaml").write_text(POOLS.format(gpus=4, granted=2))
    with snakemake(tmp_path, JOBS, "--dask-pools", "pools.yaml", "--keep-going") as run:
        assert run.wait() != 0
        text = "Pool gpu: 4 GPUs for each worker were asked for, but g1 has 2 (CUDA_VISIBLE_DEVICES=0,1 grants 0, 1)"
        assert text in run.output
        assert "4 GPUs is more than the 2 of a worker" in run.output
        assert len(list(tmp_path.glob("gpu2/*.json"))) == 4
        assert not list(tmp_path.glob("gpu4/*.json"))


def check_leases(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Each job saw as many devices as it asked for, and none was seen by two jobs at once."""
    spans = []
    for number in (0, 1, 2, 4):
        for path in (tmp_path / f"gpu{number}").glob("*.json"):
            result = json.loads(path.read_text())
            seen = [name for name in result["seen"].split(",") if name]
            assert len(seen) == number
            assert set(seen) <= set(names)
            assert result["order"] == "PCI_BUS_ID"
            spans += [(device, result["begin"], result["end"]) for device in seen]
    spans.sort()
    for (device, _, end), (following, begin, _) in itertools.pairwise(spans):
        assert device != following or end <= begin


def test_more_than_there_are_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong count is told before the first job."""
    monkeypatch.setenv("SNAKEMAKE_DASK_DEVICES", "0,1")
    with snakemake(tmp_path, JOBS, "--dask-cluster", "cuda", "--dask-worker-gpus", "4") as run:
        assert run.wait() != 0
        assert "4 GPUs for each worker were asked for, but this machine has 2" in run.output
        assert not list(tmp_path.glob("gpu*/*"))


TESTS = Path(__file__).parents[1]
DASK_CUDA = Path(sys.executable).parents[1] / "dask-cuda"

ONE_BY_ONE = """
rule all:
    input: expand("{i}.txt", i=range(8))

rule job:
    output: "{i}.txt"
    resources: gpu=1
    threads: 0
    shell: "echo $CUDA_VISIBLE_DEVICES > {output}"
"""


@pytest.mark.skipif(not DASK_CUDA.is_dir(), reason="dask-cuda is an extra of the test machine")
@pytest.mark.parametrize(
    ("variables", "names"),
    [
        pytest.param({}, {"0", "1", "2", "3"}, marks=pytest.mark.variant),
        pytest.param({"CUDA_VISIBLE_DEVICES": "3,GPU-00000001"}, {"3", "GPU-00000001"}, marks=pytest.mark.variant),
        ({"STANDIN_MIG": "1"}, {"GPU-00000001", "GPU-00000002", "GPU-00000003", "MIG-00000000", "MIG-00000001"}),
    ],
)
def test_as_dask_cuda_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], names: set[str]
) -> None:
    """dask-cuda itself, on a stand-in for NVIDIA's library: what it finds is what the worker leases, by those names."""
    monkeypatch.setenv("PYTHONPATH", f"{DASK_CUDA}:{TESTS / 'clusters' / 'nvml'}")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with snakemake(tmp_path, ONE_BY_ONE, "--dask-cluster", "cuda") as run:
        assert run.wait() == 0, run.output
        assert set(run.facts()["devices"]) == names
        seen = [path.read_text().strip() for path in tmp_path.glob("?.txt")]
        assert len(seen) == 8
        assert set(seen) <= names
