"""This machine's GPUs: one ordinary worker that holds all of them, leased to jobs one by one. Looks at devices.

dask-cuda's workers as they come have one process for each GPU, which shows every device to its jobs, holds a context on
each and carries no job on two. So dask-cuda is asked what it knows of the devices, and the worker is the one of all
backends. See "GPUs" in docs/design-details.md.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from snakemake_executor_plugin_dask.backends.local import LocalBackend
from snakemake_executor_plugin_dask.interior import cuda
from snakemake_executor_plugin_dask.interior.declared import refusal
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.node.devices import OVERRIDE, VISIBLE, Inventory, take_inventory


class CudaBackend(LocalBackend):
    """The GPUs of this machine."""

    def __init__(self, environ: Mapping[str, str] = os.environ, load: Callable[[], Any] = cuda.load) -> None:
        super().__init__()
        self._environ = environ
        self._load = load
        self._found: Inventory | None = None

    def complete(self, pool: Pool) -> Pool:
        """Which GPUs there are, and all of them where no number is asked for. Obstacles are told by `check`."""
        try:
            devices = self.inventory(pool).devices
        except ConfigurationError:
            return pool
        return dataclasses.replace(pool, gpus=len(devices) if pool.gpus is None else pool.gpus, devices=devices)

    def check(self, pool: Pool) -> None:
        if pool.workers_max > 1:
            msg = (
                f"pool {pool.name}: {pool.workers_max} workers were asked for, but one worker holds all GPUs of this "
                "machine and runs many jobs at once; remove `workers`, or ask for 1."
            )
            raise ConfigurationError(msg)
        if pool.gpu_vendor != "nvidia":
            msg = (
                f"pool {pool.name}: the cuda backend knows NVIDIA's devices alone, but gpu_vendor is "
                f"{pool.gpu_vendor}; use `cluster: local` with `gpus`."
            )
            raise ConfigurationError(msg)
        found = self.inventory(pool)
        if not found.devices:
            msg = f"pool {pool.name}: this machine has no GPU to use ({found.source}); use another backend."
            raise ConfigurationError(msg)
        super().check(pool)

    def inventory(self, pool: Pool) -> Inventory:
        """The devices, as dask-cuda knows them. Raises ConfigurationError: no extra, no driver, or a wrong list."""
        if self._found is None:
            if OVERRIDE in self._environ:
                self._found = take_inventory("nvidia", self._environ)
            else:
                self._found = self._look(pool.name)
        return self._found

    def _look(self, name: str) -> Inventory:
        try:
            utils = self._load()
        except ImportError as error:
            msg = (
                f"pool {name}: the cuda backend needs dask-cuda with the CUDA packages of its extra ({error}); install "
                "them with `pip install 'snakemake-executor-plugin-dask[cuda12]'` (or `[cuda13]`)."
            )
            raise ConfigurationError(msg) from error
        if lacking := cuda.lacking(utils):
            raise ConfigurationError(refusal(lacking))
        import pynvml

        try:
            count = cuda.count(utils)
            instances = cuda.instances(utils) if count else []
        except pynvml.NVMLError as error:
            msg = (
                f"pool {name}: NVIDIA's driver cannot be asked for this machine's GPUs ({error}); install or load it "
                "(`nvidia-smi` must work), or use another backend."
            )
            raise ConfigurationError(msg) from error
        granted = self._environ.get(VISIBLE["nvidia"])
        if granted is not None:
            try:
                for entry in filter(None, granted.split(",")):
                    cuda.check_visible(utils, entry.strip())
            except ValueError as error:
                msg = f"pool {name}: CUDA_VISIBLE_DEVICES is {granted!r}, which names no devices ({error}); correct it."
                raise ConfigurationError(msg) from error
        return take_inventory("nvidia", self._environ, lambda: _names(utils, count, instances))


def _names(utils: Any, count: int, instances: list[Any]) -> tuple[str, ...]:
    """Indices; names of instances where a device is divided, which no index can name."""
    if not instances:
        return tuple(str(index) for index in range(count))
    names = [text.decode() if isinstance(text, bytes) else str(text) for text in instances]
    whole = [cuda.uuid(utils, index) for index in range(count) if not _divided(index)]
    return (*whole, *names)


def _divided(index: int) -> bool:
    import pynvml

    try:
        return bool(pynvml.nvmlDeviceGetMigMode(pynvml.nvmlDeviceGetHandleByIndex(index))[0])
    except pynvml.NVMLError:  # a device that cannot be divided
        return False
