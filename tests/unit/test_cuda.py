"""The cuda backend's checks, on machines with and without GPUs."""

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from snakemake_executor_plugin_dask.backends.cuda import CudaBackend
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.pools import Pool


class NVMLError(Exception):
    """As pynvml has it."""


@pytest.fixture(autouse=True)
def pynvml(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for NVIDIA's library: device 0 is divided where instances are."""
    module = types.ModuleType("pynvml")
    module.NVMLError = NVMLError  # type: ignore[attr-defined]
    module.nvmlDeviceGetHandleByIndex = lambda index: index  # type: ignore[attr-defined]
    module.nvmlDeviceGetMigMode = lambda handle: (int(handle == 0), 0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def knows(count: int, instances: tuple[str, ...] = ()) -> Callable[[], Any]:
    """dask-cuda on a machine with so many GPUs."""

    def parse(text: str) -> str:
        if not (text.isdecimal() or text.startswith(("GPU-", "MIG-"))):
            raise ValueError("Devices must be integers or start with GPU-")
        return text

    utils = types.SimpleNamespace(
        get_gpu_count=lambda: count,
        get_gpu_count_mig=lambda **_: (len(instances), list(instances)),
        get_gpu_uuid=lambda index: f"GPU-{index}",
        parse_cuda_visible_device=parse,
    )
    return lambda: utils


def fails(error: Exception) -> Callable[[], Any]:
    """dask-cuda that cannot be imported, or without a driver."""

    def count() -> int:
        raise error

    if isinstance(error, ImportError):
        return count
    others = dict.fromkeys(("get_gpu_count_mig", "parse_cuda_visible_device", "get_gpu_uuid"))
    return lambda: types.SimpleNamespace(get_gpu_count=count, **others)


POOL = Pool("gpu", "cuda")


def test_all_gpus_where_none_are_asked_for() -> None:
    """The pool holds what the machine has."""
    backend = CudaBackend({}, knows(4))
    assert backend.complete(POOL).gpus == 4
    backend.check(backend.complete(POOL))


def test_granted_devices_count() -> None:
    """What CUDA_VISIBLE_DEVICES grants is what there is."""
    backend = CudaBackend({"CUDA_VISIBLE_DEVICES": "2,3"}, knows(4))
    assert backend.complete(POOL).gpus == 2
    with pytest.raises(ConfigurationError, match=r"4 GPUs .* this machine has 2 \(CUDA_VISIBLE_DEVICES=2,3 grants"):
        backend.check(Pool("gpu", "cuda", gpus=4))


def test_instances_replace_their_device() -> None:
    """A divided GPU is leased by its instances, the others by their names."""
    backend = CudaBackend({}, knows(2, ("MIG-a", "MIG-b")))
    assert backend.inventory(POOL).devices == ("GPU-1", "MIG-a", "MIG-b")


@pytest.mark.parametrize(
    ("load", "environ", "words"),
    [
        (fails(ImportError("No module named 'dask_cuda'")), {}, r"needs dask-cuda .*\[cuda12\]"),
        (fails(NVMLError("NVML Shared Library Not Found")), {}, "driver cannot be asked .*Library Not Found"),
        (knows(0), {}, "this machine has no GPU to use"),
        (knows(2), {"CUDA_VISIBLE_DEVICES": ""}, "no GPU to use .CUDA_VISIBLE_DEVICES="),
        (knows(2), {"CUDA_VISIBLE_DEVICES": "first"}, "CUDA_VISIBLE_DEVICES is 'first'"),
    ],
)
def test_what_is_missing_is_named(load: Callable[[], Any], environ: dict[str, str], words: str) -> None:
    """The extra, the driver and the device are told apart."""
    backend = CudaBackend(environ, load)
    with pytest.raises(ConfigurationError, match=words):
        backend.check(backend.complete(POOL))


def test_one_worker_holds_all() -> None:
    """Two workers would both lease the same devices."""
    with pytest.raises(ConfigurationError, match="2 workers were asked for"):
        CudaBackend({}, knows(4)).check(Pool("gpu", "cuda", 2, 2))


def test_amd_is_another_backend() -> None:
    """dask-cuda knows nothing of other makers."""
    with pytest.raises(ConfigurationError, match="gpu_vendor is amd"):
        CudaBackend({}, knows(4)).check(Pool("gpu", "cuda", gpu_vendor="amd"))


def test_named_devices_need_no_driver() -> None:
    """Where the devices are named outright, dask-cuda is not asked."""
    backend = CudaBackend({"SNAKEMAKE_DASK_DEVICES": "0,1,2,3"}, fails(ImportError("not there")))
    backend.check(backend.complete(POOL))
    assert backend.complete(POOL).gpus == 4
