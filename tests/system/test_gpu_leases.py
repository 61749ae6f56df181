"""GPU leases through a whole run, on four devices that the environment names; no GPU is needed."""

import itertools
import json
from pathlib import Path

import pytest
from running import snakemake

JOBS = """
rule all:
    input: expand("gpu{n}/{i}.json", n=[0, 1, 2, 4], i=range(4))

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
        assert run.wait(180) == 0, run.output
    spans = []
    for number in (0, 1, 2, 4):
        for path in (tmp_path / f"gpu{number}").glob("*.json"):
            result = json.loads(path.read_text())
            seen = [name for name in result["seen"].split(",") if name]
            assert len(seen) == number
            assert set(seen) <= set(DEVICES)
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
