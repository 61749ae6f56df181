"""On a machine with a real GPU: `pytest -m gpu tests/gpu`. What is tested without one is in tests/unit."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.node.devices import device_environment, probe_nvidia

pytestmark = pytest.mark.gpu

_PATH = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
_SPEC = importlib.util.spec_from_file_location("gpu_benchmark", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
benchmark = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(benchmark)


def cuda_counts(environment: dict[str, str]) -> int:
    """How many devices CUDA shows a process with this environment."""
    code = f"import runpy; print(runpy.run_path({str(_PATH)!r})['count_devices']())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_the_driver_names_the_devices() -> None:
    """NVML and CUDA agree on how many there are."""
    found = probe_nvidia()
    assert found is not None
    plain = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    assert len(found) == cuda_counts(plain) > 0


def test_a_job_sees_its_devices_alone() -> None:
    """CUDA itself follows the variables: one, and none."""
    found = probe_nvidia() or ()
    for devices in (found[:1], ()):
        variables = {name: value for name, value in device_environment(devices) if value is not None}
        assert cuda_counts(os.environ | variables) == len(devices)


def test_jobs_on_real_devices(tmp_path: Path) -> None:
    """Jobs on one, all and no GPU at once: each reports from inside what it got."""
    gpus = benchmark.count_devices()
    results, _, output = benchmark.run(tmp_path, 4, 1.0, gpus)
    assert benchmark.problems(results, gpus) == [], output
    assert {result["CUDA_DEVICE_ORDER"] for kind in results for result in results[kind]} == {"PCI_BUS_ID"}
