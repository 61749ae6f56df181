"""Which GPUs a worker has, and what a job sees of them."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.node.devices import (
    NVML,
    Inventory,
    by_nvml,
    complaint,
    cores_for,
    device_environment,
    near_cores,
    parse_nvidia_smi,
    parse_visible,
    probe_amd,
    probe_nvidia,
    take_inventory,
)

ABSENT = "libnvidia-ml-that-is-not-there.so"

SMI = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1g.5gb      Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-8932f937-d72c-4106-c12f-20bd9faed9f6)
"""


def four() -> tuple[str, ...]:
    """A driver that knows four devices."""
    return ("0", "1", "2", "3")


def nothing() -> None:
    """No driver at all."""


def test_the_driver_is_asked_where_the_environment_grants_nothing() -> None:
    """Without CUDA_VISIBLE_DEVICES all of the node's devices are there."""
    assert take_inventory("nvidia", {}, four).devices == ("0", "1", "2", "3")


def test_the_environment_wins() -> None:
    """Devices are named as the batch system names them."""
    assert take_inventory("nvidia", {"CUDA_VISIBLE_DEVICES": "3,1"}, four).devices == ("3", "1")
    names = "GPU-8932f937,MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"
    assert take_inventory("nvidia", {"CUDA_VISIBLE_DEVICES": names}, nothing).devices == tuple(names.split(","))
    assert take_inventory("amd", {"ROCR_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"}, four).devices == ("1",)


def test_an_empty_grant_is_no_device() -> None:
    """CUDA reads an empty list, and what Slurm writes without GPUs, as none."""
    for text in ("", "-1", "NoDevFiles"):
        assert take_inventory("nvidia", {"CUDA_VISIBLE_DEVICES": text}, four).devices == ()


def test_indices_beyond_the_node_end_the_list() -> None:
    """As for CUDA, an index that does not exist hides what follows."""
    assert take_inventory("nvidia", {"CUDA_VISIBLE_DEVICES": "1,7,2"}, four).devices == ("1",)
    assert take_inventory("nvidia", {"CUDA_VISIBLE_DEVICES": "1,7,2"}, nothing).devices == ("1", "7", "2")


def test_the_override_wins_over_all() -> None:
    """Tests, and nodes that cannot be looked into, name their devices."""
    environ = {"SNAKEMAKE_DASK_DEVICES": "GPU-a, GPU-b", "CUDA_VISIBLE_DEVICES": "0"}
    assert take_inventory("nvidia", environ, four).devices == ("GPU-a", "GPU-b")


def test_no_driver_is_said() -> None:
    """An empty inventory says why it is empty."""
    assert take_inventory("nvidia", {}, nothing).source == "no NVIDIA driver was found"
    assert take_inventory("amd", {}, nothing).source == "no AMD driver was found"


def test_mig_instances_replace_indices() -> None:
    """Where a device is divided, every device goes by its name."""
    listed = parse_nvidia_smi(SMI)
    assert [len(instances) for _, instances in listed] == [2, 0]
    assert listed[0][1][1] == "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"


def test_the_probe_uses_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is asked where the library is missing."""
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\ncat <<'END'\n{SMI}END\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert probe_nvidia(ABSENT) == (
        "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
        "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb",
        "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
    )
    command.write_text("#!/bin/sh\nexit 9\n")
    assert probe_nvidia(ABSENT) is None


def test_amd_devices_are_counted_in_sysfs(tmp_path: Path) -> None:
    """Nodes of AMD's topology that have SIMD units are GPUs; processors have none."""
    for number, simds in enumerate((0, 304, 304)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "properties").write_text(f"cpu_cores_count 4\nsimd_count {simds}\n")
    (tmp_path / "3").mkdir()
    assert probe_amd(tmp_path) == ("0", "1")
    assert probe_amd(tmp_path / "missing") is None


def test_a_job_sees_its_own_devices() -> None:
    """CUDA counts in the order in which the devices are named here."""
    assert dict(device_environment(("1", "3"))) == {"CUDA_VISIBLE_DEVICES": "1,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert dict(device_environment(()))["CUDA_VISIBLE_DEVICES"] == ""


def test_amd_filters_do_not_add_up() -> None:
    """HIP's own variables count within ROCR's, so that an inherited one would pick the wrong device."""
    variables = dict(device_environment(("2",), "amd"))
    assert variables.pop("ROCR_VISIBLE_DEVICES") == "2"
    assert set(variables) == {"HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "CUDA_VISIBLE_DEVICES"}
    assert set(variables.values()) == {None}


def test_wrong_counts_are_told() -> None:
    """What was asked, what was found, who limits it, what to change."""
    granted = Inventory(("0", "1"), "CUDA_VISIBLE_DEVICES=0,1")
    assert complaint(2, granted, "n1") is None
    assert complaint(None, granted, "n1") is None
    text = complaint(4, granted, "n1")
    assert text == (
        "4 GPUs for each worker were asked for, but n1 has 2 (CUDA_VISIBLE_DEVICES=0,1 grants 0, 1); "
        "ask for 2, or for another node, or unset CUDA_VISIBLE_DEVICES."
    )
    assert "no NVIDIA driver was found" in str(complaint(1, take_inventory("nvidia", {}, nothing), "n1"))


@given(st.lists(st.sampled_from(("0", "1", "2", "GPU-a", "MIG-b", "-1", "", "x")), max_size=8))
def test_a_device_is_never_listed_twice(entries: list[str]) -> None:
    """Whatever the list holds, each device counts once and nothing after its end counts."""
    devices = parse_visible(",".join(entries))
    assert len(set(devices)) == len(devices)
    bad = next((position for position, entry in enumerate(entries) if entry in ("-1", "", "x")), len(entries))
    assert devices == tuple(dict.fromkeys(entries[:bad]))


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> str:
    """NVIDIA's library, as a stand-in that is compiled here: four devices, of which the first is divided."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, which `./run tests` installs unless asked for unit tests alone")
    library = tmp_path_factory.mktemp("nvml") / NVML
    source = Path(__file__).parents[1] / "clusters" / "nvml" / "nvml.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return str(library)


def test_the_library_is_asked_as_it_wants_to_be(nvml: str) -> None:
    """Devices by name, and the instances of the divided one."""
    assert by_nvml(nvml) == [("GPU-0", ("MIG-0", "MIG-1")), ("GPU-1", ()), ("GPU-2", ()), ("GPU-3", ())]


def test_near_cores_by_any_name(nvml: str) -> None:
    """By index, name or instance, also beyond the first 64 cores; only those that this process may use."""
    allowed = {0, 1, 2, 66, 67}
    assert near_cores(("1", "GPU-2", "MIG-1"), allowed, nvml) == ((0, 1, 2), (66, 67), (0, 1, 2))
    assert near_cores(("7", "GPU-9", "3"), allowed, nvml) == ((), (), (66, 67))
    assert near_cores(("0", "1"), allowed, ABSENT) == ((), ())


NEAR = {"0": range(16), "1": range(16), "2": range(16, 32), "3": range(16, 32)}


def test_jobs_run_near_to_their_devices() -> None:
    """Within the device's share of the cores that are near to it; else, or where nothing is known, on all."""
    assert cores_for(("1",), NEAR, 8) == tuple(range(16))
    assert cores_for(("1",), NEAR, 9) == ()
    assert cores_for(("0", "1"), NEAR, 16) == tuple(range(16))
    assert cores_for(("0", "2"), NEAR, 16) == tuple(range(32))
    assert cores_for(("0", "2"), NEAR, 17) == ()
    assert cores_for(("0",), {"0": ()}, 1) == ()
    assert cores_for(("0",), {}, 1) == ()


@given(
    near=st.dictionaries(st.sampled_from("abcd"), st.frozensets(st.integers(0, 7)), min_size=1),
    wanted=st.lists(st.integers(1, 8), min_size=4, max_size=4),
)
def test_bound_jobs_never_crowd(near: dict[str, frozenset[int]], wanted: list[int]) -> None:
    """One job on each device: those bound to the same cores hold no more cores together than these are."""
    sets = {device: tuple(sorted(cores)) for device, cores in near.items()}
    bound = [
        (frozenset(found), cores)
        for device, cores in zip(sorted(sets), wanted, strict=False)
        if (found := cores_for((device,), sets, cores))
    ]
    for cores, _ in bound:
        inside = sum(amount for others, amount in bound if others <= cores)
        assert inside <= len(cores)
