"""GPUs of a node: which there are, and the environment by which a job sees exactly its own. Standard library only.

Looks at the environment, the NVML library, `nvidia-smi` and sysfs; changes nothing, and makes no CUDA context.

NVML is called by ctypes and not by `nvidia-ml-py`: each worker would import its 8,000 lines for a dozen functions; it
takes no other path for the library, so that no test could put one in its place; and the supervisor, which imports this
module, has the standard library alone.
"""

import contextlib
import ctypes
import os
import re
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from snakemake_executor_plugin_dask.model.frozen import dataclass

#: Names the devices outright, comma-separated: for tests, and for nodes whose devices nothing here can find.
OVERRIDE = "SNAKEMAKE_DASK_DEVICES"

#: By vendor: the variable that says which devices a process sees.
VISIBLE = {"nvidia": "CUDA_VISIBLE_DEVICES", "amd": "ROCR_VISIBLE_DEVICES"}

#: Other variables that filter the same devices once more, relative to the first; a job must not inherit them.
_FURTHER_FILTERS = {
    "nvidia": (),
    "amd": ("HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "CUDA_VISIBLE_DEVICES"),
}

NVML = "libnvidia-ml.so.1"

_KFD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")

Probe = Callable[[], "tuple[str, ...] | None"]


@dataclass(frozen=True, slots=True)
class Inventory:
    """The devices of a node, named as ``CUDA_VISIBLE_DEVICES`` (or its counterpart) wants them, and who named them."""

    devices: tuple[str, ...]
    source: str  # for messages: "CUDA_VISIBLE_DEVICES=0,1", "the driver", "no NVIDIA driver was found"
    known: bool = True  # False: nobody could be asked


def take_inventory(
    vendor: str = "nvidia", environ: Mapping[str, str] = os.environ, probe: Probe | None = None
) -> Inventory:
    """What this process may use: the override, else what its environment grants, else what the driver knows.

    A batch system grants devices through the environment, and names them there as jobs must name them. Where the driver
    can be asked too, indices beyond its devices are left out, as CUDA itself does.
    """
    override = environ.get(OVERRIDE)
    if override is not None:
        return Inventory(parse_visible(override), f"{OVERRIDE}={override}")
    if probe is None:
        probe = probe_amd if vendor == "amd" else probe_nvidia
    variable = VISIBLE[vendor]
    granted = environ.get(variable)
    if granted is None:
        known = probe()
        if known is None:
            maker = "AMD" if vendor == "amd" else "NVIDIA"
            return Inventory((), f"no {maker} driver was found", known=False)
        return Inventory(known, "the driver")
    devices = parse_visible(granted)
    if any(device.isdecimal() for device in devices):
        known = probe()
        if known is not None:
            devices = _within(devices, len(known))
    return Inventory(devices, f"{variable}={granted}")


def parse_visible(text: str) -> tuple[str, ...]:
    """The entries of a device list: indices, ``GPU-…`` and ``MIG-…`` names.

    As CUDA reads it: the list ends at the first entry that names no device (``-1``, ``NoDevFiles``, nothing).
    A device that is named twice counts once.
    """
    devices: list[str] = []
    for entry in text.split(","):
        name = entry.strip()
        if not (name.isdecimal() or re.match(r"(GPU|MIG)-", name)):
            break
        if name not in devices:
            devices.append(name)
    return tuple(devices)


def _within(devices: tuple[str, ...], count: int) -> tuple[str, ...]:
    """The list up to the first index that the node does not have."""
    for position, device in enumerate(devices):
        if device.isdecimal() and int(device) >= count:
            return devices[:position]
    return devices


def device_environment(devices: Sequence[str], vendor: str = "nvidia") -> tuple[tuple[str, str | None], ...]:
    """What a job on a pool with GPUs gets in its environment: its own devices, and none where it asked for none.

    ``PCI_BUS_ID``: CUDA's own order (fastest first) is not the one in which drivers and batch systems count.
    """
    variables: list[tuple[str, str | None]] = [(VISIBLE[vendor], ",".join(devices))]
    if vendor == "nvidia":
        variables.append(("CUDA_DEVICE_ORDER", "PCI_BUS_ID"))
    variables.extend((name, None) for name in _FURTHER_FILTERS[vendor])
    return tuple(variables)


def complaint(wanted: int | None, found: Inventory, where: str, workers: int = 1) -> str | None:
    """Why workers with ``wanted`` GPUs cannot be had ``where`` (a host); None: they can, or no number was asked for."""
    have = len(found.devices)
    if wanted is None or wanted * workers <= have:
        return None
    variable, equals, _ = found.source.partition("=")
    named = ", ".join(found.devices) or "none"
    said = f"{found.source} {'grants' if equals else 'knows'} {named}" if found.known else found.source
    return (
        f"{wanted} GPUs for each {'worker' if workers == 1 else f'of {workers} workers'} were asked for, but {where} "
        f"has {have} ({said}); ask for {have // workers}, or for another node"
        f"{f', or unset {variable}' if equals else ''}."
    )


def probe_nvidia(library: str = NVML) -> tuple[str, ...] | None:
    """The devices that NVIDIA's driver knows: indices, or names where a device is divided (MIG). None: no driver."""
    try:
        listed = by_nvml(library)
    except OSError:
        listed = None
    if listed is None:
        listed = _nvidia_smi()
    if listed is None:
        return None
    if any(instances for _, instances in listed):
        # An index cannot name an instance, and CUDA reads no list of both kinds.
        return tuple(name for device, instances in listed for name in (instances or (device,)))
    return tuple(str(index) for index in range(len(listed)))


Listed = list[tuple[str, tuple[str, ...]]]  # each device's name, and the names of its MIG instances


@contextlib.contextmanager
def _started(library: str) -> Iterator[ctypes.CDLL | None]:
    """The driver's own library. None: it does not start (no device, or no kernel module). OSError: not there."""
    nvml = ctypes.CDLL(library)
    if nvml.nvmlInit_v2() != 0:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def by_nvml(library: str = NVML) -> Listed | None:
    """What the driver's own library lists. None: it does not start. OSError: not there."""
    with _started(library) as nvml:
        count = ctypes.c_uint()
        if nvml is None or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return None
        listed: Listed = []
        for index in range(count.value):
            device = ctypes.c_void_p()
            if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
                return None
            listed.append((_uuid(nvml, device), _instances(nvml, device)))
        return listed


def near_cores(devices: Sequence[str], allowed: Collection[int], library: str = NVML) -> tuple[tuple[int, ...], ...]:
    """For each device, those of the allowed cores that are nearest to it, as the driver knows; () where it does not."""
    try:
        with _started(library) as nvml:
            return tuple(() if nvml is None else _near(nvml, device, allowed) for device in devices)
    except (OSError, AttributeError):  # no driver, or one that is too old to know
        return ((),) * len(devices)


def _near(nvml: ctypes.CDLL, name: str, allowed: Collection[int]) -> tuple[int, ...]:
    device = ctypes.c_void_p()
    if name.isdecimal():
        found = nvml.nvmlDeviceGetHandleByIndex_v2(int(name), ctypes.byref(device))
    else:
        found = nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(device))
    if name.startswith("MIG-") and found == 0:  # an instance is as near as its device
        found = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device, ctypes.byref(device))
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    masks = (ctypes.c_ulong * (max(allowed, default=0) // bits + 1))()
    if found != 0 or nvml.nvmlDeviceGetCpuAffinity(device, len(masks), masks) != 0:
        return ()
    return tuple(core for core in sorted(allowed) if masks[core // bits] >> (core % bits) & 1)


def cores_for(devices: Sequence[str], near: Mapping[str, Sequence[int]], cores: int) -> tuple[int, ...]:
    """The cores to which a job with these devices is bound: the nearest ones. (): it may use all.

    Not where they would be too few: a device counts with an even share of cores that are near to others as well, so
    that jobs never crowd on near cores while far ones idle. ``near``: of each of the worker's devices.
    """
    own = [frozenset(near.get(device, ())) for device in devices]
    shares = [len(mine) / sum(not mine.isdisjoint(others) for others in near.values()) for mine in own if mine]
    if len(shares) < len(devices) or sum(shares) < cores:
        return ()
    return tuple(sorted(frozenset().union(*own)))


def _instances(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> tuple[str, ...]:
    now, pending, most = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
    if nvml.nvmlDeviceGetMigMode(device, ctypes.byref(now), ctypes.byref(pending)) != 0 or now.value == 0:
        return ()
    if nvml.nvmlDeviceGetMaxMigDeviceCount(device, ctypes.byref(most)) != 0:
        return ()
    names = []
    for index in range(most.value):
        instance = ctypes.c_void_p()
        if nvml.nvmlDeviceGetMigDeviceHandleByIndex(device, index, ctypes.byref(instance)) == 0:
            names.append(_uuid(nvml, instance))
    return tuple(names)


def _uuid(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> str:
    text = ctypes.create_string_buffer(96)
    nvml.nvmlDeviceGetUUID(device, text, len(text))
    return text.value.decode()


def _nvidia_smi() -> Listed | None:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_nvidia_smi(done.stdout) if done.returncode == 0 else None


def parse_nvidia_smi(text: str) -> Listed:
    """What `nvidia-smi -L` prints: a line for each device, and an indented one for each of its MIG instances."""
    listed: Listed = []
    for kind, name in re.findall(r"^\s*(GPU|MIG) .*\(UUID: (\S+)\)", text, flags=re.MULTILINE):
        if kind == "GPU":
            listed.append((name, ()))
        elif listed:
            device, instances = listed[-1]
            listed[-1] = (device, (*instances, name))
    return listed


def probe_amd(nodes: Path = _KFD_NODES) -> tuple[str, ...] | None:
    """The devices that AMD's kernel driver knows, by index. None: no driver."""
    try:
        entries = sorted(nodes.iterdir())
    except OSError:
        return None
    count = 0
    for entry in entries:
        try:
            properties = (entry / "properties").read_text()
        except OSError:  # a device outside of this cgroup
            continue
        count += re.search(r"^simd_count [1-9]", properties, flags=re.MULTILINE) is not None  # processors have none
    return tuple(str(index) for index in range(count))
