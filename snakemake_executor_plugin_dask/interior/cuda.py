"""What dask-cuda knows of this machine's GPUs. Documented are its clusters alone."""

from typing import Any

from snakemake_executor_plugin_dask.interior.declared import Private, privates

_LOST = "a pool of kind `cuda` cannot be brought up; `cluster: local` with `gpus` can"
_OF_UTILS = ("get_gpu_count", "get_gpu_count_mig", "parse_cuda_visible_device", "get_gpu_uuid")
NAMES = COUNT, INSTANCES, PARSE, UUID = privates("dask_cuda.utils", _LOST, *_OF_UTILS)


def load() -> Any:
    """`dask_cuda.utils`, which takes seconds. ImportError where the extra is missing."""
    import dask_cuda.utils

    return dask_cuda.utils


def lacking(utils: Any) -> list[Private]:
    """The functions that this version of dask-cuda does not have."""
    return [name for name in NAMES if not hasattr(utils, name.name)]


def count(utils: Any) -> int:
    """How many devices there are. Raises pynvml's errors."""
    return int(COUNT.of(utils)())


def instances(utils: Any) -> list[Any]:
    """The names of the instances of devices that are divided."""
    return list(INSTANCES.of(utils)(return_uuids=True)[1])


def check_visible(utils: Any, entry: str) -> None:
    """Raises ValueError where an entry of CUDA_VISIBLE_DEVICES names no device."""
    PARSE.of(utils)(entry)


def uuid(utils: Any, index: int) -> str:
    """A whole device's name."""
    return str(UUID.of(utils)(index))
