# ruff: noqa: N802 - the names are NVIDIA's
"""A stand-in for NVIDIA's management library in Python, by which dask-cuda runs on a machine without a GPU.

Four devices, two of them near to the first half of this process's cores and two near to the other half. With
`STANDIN_MIG` in the environment device 0 is divided into two instances.
"""

import os
from types import SimpleNamespace

NVML_DEVICE_MIG_ENABLE = 1
COUNT = 4


class NVMLError(Exception):
    """Whatever the driver refuses."""


class NVMLError_NotSupported(NVMLError): ...  # noqa: N801 - NVIDIA's name


class NVMLError_LibraryNotFound(NVMLError): ...  # noqa: N801 - NVIDIA's name


def nvmlInit() -> None: ...


def nvmlShutdown() -> None: ...


def nvmlDeviceGetCount() -> int:
    return COUNT


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    if not 0 <= index < COUNT:
        raise NVMLError("Invalid Argument")
    return index


def nvmlDeviceGetHandleByUUID(uuid: str) -> int:
    return int(uuid[-1])


def nvmlDeviceGetUUID(handle: int | str) -> str:
    return handle if isinstance(handle, str) else f"GPU-0000000{handle}"


def nvmlDeviceGetName(handle: int) -> str:
    return f"stand-in {handle}"


def nvmlDeviceGetMigMode(handle: int) -> tuple[int, int]:
    divided = int(handle == 0 and "STANDIN_MIG" in os.environ)
    return divided, divided


def nvmlDeviceGetMaxMigDeviceCount(handle: int) -> int:
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(device: int, index: int) -> str:
    if index > 1:
        raise NVMLError("Not Found")
    return f"MIG-0000000{index}"


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
    return SimpleNamespace(total=8 << 30, used=0, free=8 << 30)


def nvmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:
    return SimpleNamespace(gpu=0, memory=0)


def nvmlDeviceGetComputeRunningProcesses_v2(handle: int) -> list[object]:
    return []


def nvmlDeviceGetCpuAffinity(handle: int, words: int) -> list[int]:
    cores = sorted(os.sched_getaffinity(0))
    half = cores[: len(cores) // 2] if handle < COUNT // 2 else cores[len(cores) // 2 :]
    masks = [0] * words
    for core in half:
        masks[core // 64] |= 1 << (core % 64)
    return masks
