"""The pools file: what it says, and each complaint about it."""

import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.config.poolsfile import (
    POOL_KEYS,
    SchedulerPlace,
    read_options,
    read_pools_file,
)
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.pools import Pool

EXAMPLE = """
scheduler: {interface: ib0}
pools:
  cpu:
    cluster: slurm
    workers: 0-20
    cores: 48
    memory: 180 GB
    walltime: 4h
    default_runtime: 30m
    options: {queue: dcgp_usr_prod, account: cin_staff}
  gpu:
    cluster: slurm
    workers: 0-4
    cores: 32
    memory: 480 GB
    gpus: 4
    gpu_model: a100
    walltime: 08:00:00
    margin: 2m
    idle_timeout: 90
    resources: {licences: 2, disk_mb: 500000}
    options: {queue: boost_usr_prod, job_extra_directives: ["--gres=gpu:4"]}
  wide:
    cluster: slurm
    workers: 2
    nodes: 4
    cores: 48
    memory: 180 GB
    walltime: 2h
"""


def read(tmp_path: Path, text: str) -> tuple[tuple[Pool, ...], SchedulerPlace]:
    path = tmp_path / "pools.yaml"
    path.write_text(text)
    return read_pools_file(path)


def complaint(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path, text)
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert "pools.yaml" in message
    return message.removeprefix(f"{tmp_path}/")


def one_pool(keys: str, cluster: str = "slurm") -> str:
    return f"pools:\n  cpu:\n    cluster: {cluster}\n    {keys}\n"


def test_documented_example(tmp_path: Path) -> None:
    """Every key of the documented example arrives, in the file's order."""
    pools, scheduler = read(tmp_path, EXAMPLE)
    assert scheduler == SchedulerPlace(interface="ib0")
    assert pools == (
        Pool(
            "cpu", "slurm", 0, 20, 48, 180_000, walltime_s=14_400, default_runtime_s=1800,
            options={"queue": "dcgp_usr_prod", "account": "cin_staff"},
        ),
        Pool(
            "gpu", "slurm", 0, 4, 32, 480_000, 4, "a100", walltime_s=28_800, margin_s=120, idle_timeout_s=90,
            resources=(("disk_mb", 500_000), ("licences", 2)),
            options={"queue": "boost_usr_prod", "job_extra_directives": ["--gres=gpu:4"]},
        ),
        Pool("wide", "slurm", 2, 2, 48, 180_000, nodes=4, walltime_s=7200),
    )  # fmt: skip


def test_example_in_the_documentation(tmp_path: Path) -> None:
    """The example in the documentation is a pools file, and the complaints shown there are the real ones."""
    page = Path(__file__).parents[2].joinpath("docs", "pools.md").read_text(encoding="utf-8")
    pools, _ = read(tmp_path, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    assert [(pool.name, pool.cores, pool.nodes) for pool in pools] == [
        ("cpu", 48, None),
        ("gpu", 32, None),
        ("wide", 48, 4),
    ]
    assert all(f"| `{key}` |" in page for key in POOL_KEYS)
    assert complaint(tmp_path, one_pool("memory: 180")) in page
    unknown = complaint(tmp_path, one_pool("wall_time: 3").replace("cpu", "gpu"))
    assert unknown.partition("allowed:")[0] in page


def test_defaults(tmp_path: Path) -> None:
    """A pool that says only its cluster gets that backend's defaults."""
    path = tmp_path / "pools.yaml"
    path.write_text("pools:\n  a: {cluster: local}\n  b: {cluster: mpi}\n  c: {cluster: pbs, gpus: 0}\n")
    (a, b, c), _ = read_pools_file(path, mpi_workers=3, idle_timeout_s=5)
    assert (a.workers_min, a.workers_max, a.cores, a.memory_mb) == (1, 1, None, None)
    assert (b.workers_min, b.workers_max, b.idle_timeout_s) == (3, 3, 5)
    assert (c.workers_min, c.workers_max, c.gpus) == (0, 10, 0)


def test_shared_keys_by_anchor(tmp_path: Path) -> None:
    """A pool may take over another one's keys and replace some."""
    text = "pools:\n  a: &a {cluster: slurm, cores: 4, walltime: 1h}\n  b:\n    <<: *a\n    cores: 8\n"
    (a, b), _ = read(tmp_path, text)
    assert (a.cores, b.cores, b.walltime_s) == (4, 8, 3600)


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ("memroy: 1 GB", ("pools.cpu.memroy", "did you mean `memory`", "allowed: cluster, workers")),
        ("idle-timeout: 3", ("pools.cpu.idle-timeout", "did you mean `idle_timeout`")),
        ("memory: 180", ("pools.cpu.memory is 180, which has no unit", "180 GB")),
        ("memory: [1, 2]", ("pools.cpu.memory is a list",)),
        ("cores: 0", ("pools.cpu.cores is 0", "1 or more")),
        ("cores: 4.5", ("pools.cpu.cores is 4.5", "whole number")),
        ("cores: many", ("pools.cpu.cores is 'many'", "whole number")),
        ("cores: true", ("pools.cpu.cores is True",)),
        ("gpus: -1", ("pools.cpu.gpus is -1", "0 or more")),
        ("gpu_vendor: nvida", ("pools.cpu.gpu_vendor", "nvidia, amd", "did you mean `nvidia`")),
        ("gpu_model: 4090", ("pools.cpu.gpu_model is 4090", "quotes")),
        ("workers: 5-2", ("pools.cpu.workers is '5-2'", "2-5")),
        ("workers: 0", ("pools.cpu.workers is 0", "1 or more")),
        ("nodes: 0", ("pools.cpu.nodes is 0",)),
        ("walltime: 43200", ("pools.cpu.walltime is 43200", "12:00:00")),
        ("walltime: 1:20", ("pools.cpu.walltime is '1:20'", "hours and minutes or minutes and seconds")),
        ("walltime: -1h", ("pools.cpu.walltime is '-1h'",)),
        ("idle_timeout: -1", ("pools.cpu.idle_timeout is -1", "0 or more")),
        ("resources: {mem_mb: 5}", ("pools.cpu.resources.mem_mb", "`memory`")),
        ("resources: {licences: 1.5}", ("pools.cpu.resources.licences is 1.5",)),
        ("resources: [a]", ("pools.cpu.resources is a list", "mapping")),
        ("options: queue", ("pools.cpu.options is 'queue'", "mapping")),
        ("options: {processes: 4}", ("pools.cpu.options.processes is set to 4", "one process")),
        ("options: {security: true}", ("pools.cpu.options.security", "certificates")),
        ("options: {worker_extra_args: [--lifetime, 55m]}", ("pools.cpu.options.worker_extra_args is set to a list",)),
        ("options: {cores: 4}", ("pools.cpu.options.cores", "the key `cores`")),
        ("options: {job-extra-directives: []}", ("job_extra_directives", "underscores")),
        ("options: {scheduler_options: {host: a}}", ("pools.cpu.options.scheduler_options", "`scheduler`")),
        ("options: {1: a}", ("pools.cpu.options.1", "quotes")),
        ("{walltime: 10m, margin: 10m}", ("pools.cpu.margin is 10m", "walltime of 10m")),
        ("{walltime: 1h, default_runtime: 59m}", ("pools.cpu.default_runtime is 59m", "leaves 55m")),
    ],
)  # fmt: skip
def test_complaints_about_a_pool(tmp_path: Path, keys: str, parts: tuple[str, ...]) -> None:
    """Each complaint names the key's path, what was found, and what is allowed."""
    text = one_pool(keys) if not keys.startswith("{") else f"pools:\n  cpu: {{cluster: slurm, {keys[1:]}\n"
    message = complaint(tmp_path, text)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty"),
        ("[]", "mapping"),
        ("pool: {}", "did you mean `pools`"),
        ("scheduler: {interface: ib0}", "no key `pools`"),
        ("pools:", "no key `pools`"),
        ("pools: {}", "pools is empty"),
        ("pools: {cpu: }", "pools.cpu has no `cluster`"),
        ("pools: {cpu: {cores: 4}}", "pools.cpu has no `cluster`; it must be one of local"),
        ("pools: {cpu: {cluster: slrum}}", "did you mean `slurm`"),
        ("pools: {'a b': {cluster: local}}", "is not a valid name for a pool"),
        ("pools: {../a: {cluster: local}}", "is not a valid name for a pool"),
        ("pools: {1: {cluster: local}}", "quotes"),
        ("pools: {cpu: local}", "pools.cpu is 'local'"),
        ("scheduler: {iface: ib0}\npools: {cpu: {cluster: local}}", "did you mean `interface`"),
        ("scheduler: {port: 65535}\npools: {cpu: {cluster: local}}", "65534"),
        ("scheduler: {interface: a, host: b}\npools: {cpu: {cluster: local}}", "keep one"),
        ("pools:\n  cpu: {cluster: local}\n  cpu: {cluster: local}", "twice, in lines 2 and 3"),
        ("pools:\n\tcpu: 3", "line 2"),
        ("pools: !!python/object:os.system x", "not valid YAML"),
        ("pools: &a {cpu: *a}", "refers to a node that contains it"),
        ("pools: " + "[" * 5000, "nested too deeply"),
    ],
)
def test_complaints_about_the_file(tmp_path: Path, text: str, part: str) -> None:
    """What is wrong above a pool is said, with the line where it is about YAML."""
    assert part in complaint(tmp_path, text)


@pytest.mark.parametrize("key", ["walltime: 1h", "nodes: 2", "margin: 5m"])
@pytest.mark.parametrize("cluster", ["local", "cuda", "mpi"])
def test_keys_of_batch_systems(tmp_path: Path, key: str, cluster: str) -> None:
    """What only a batch system can give is refused elsewhere."""
    assert f"has no meaning for cluster {cluster}" in complaint(tmp_path, one_pool(key, cluster))


def test_launcher_is_not_elastic(tmp_path: Path) -> None:
    """A launcher starts all its workers at once."""
    assert "give one number" in complaint(tmp_path, one_pool("workers: 0-3", "mpi"))


def test_numbers_with_colons(tmp_path: Path) -> None:
    """Numbers with colons, leading zeros and underscores, dates and YAML 1.1's words are what they look like."""
    options = "{a: 12:00:00, b: 1:20.5, c: 010, d: no, e: 2026-01-01, f: 1_000, g: 1e3, h: true, i: 0x10, j: ~}"
    (pool,), _ = read(tmp_path, one_pool(f"options: {options}"))
    assert pool.options == {
        "a": "12:00:00", "b": "1:20.5", "c": 10, "d": "no", "e": "2026-01-01", "f": "1_000", "g": 1000.0, "h": True,
        "i": 16, "j": None,
    }  # fmt: skip


def test_harmless_options(tmp_path: Path) -> None:
    """What the plugin does anyway may stand among the options."""
    (pool,), _ = read(tmp_path, one_pool("options: {processes: 1, nanny: false, queue: a}"))
    assert pool.options == {"queue": "a"}


def test_unreadable_file(tmp_path: Path) -> None:
    """A file that is missing, a directory, or not text is named with the reason."""
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00a")
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory"), (binary, "not text in UTF-8")):
        with pytest.raises(ConfigurationError, match=why):
            read_pools_file(path)


def test_options_as_text_and_as_file(tmp_path: Path) -> None:
    """`--dask-options` is YAML text, or a file with it."""
    text = '{queue: boost, account: cin_staff, interface: ib0, job_extra_directives: ["--tasks-per-node=1"]}'
    expected = {
        "queue": "boost",
        "account": "cin_staff",
        "interface": "ib0",
        "job_extra_directives": ["--tasks-per-node=1"],
    }
    path = tmp_path / "options.yaml"
    path.write_text(text)
    assert read_options(text, "slurm") == (expected, SchedulerPlace())
    assert read_options(str(path), "slurm") == (expected, SchedulerPlace())
    assert read_options("", "slurm") == ({}, SchedulerPlace())


def test_scheduler_options() -> None:
    """Where dask-jobqueue says how the scheduler listens, interface, host and port are taken over, the rest refused."""
    options, place = read_options("{scheduler_options: {host: 10.0.0.1, port: 8786}}", "slurm")
    assert (options, place) == ({}, SchedulerPlace(host="10.0.0.1", port=8786))
    with pytest.raises(ConfigurationError, match="allowed: interface, host, port"):
        read_options("{scheduler_options: {dashboard_address: ':0'}}", "slurm")


@pytest.mark.parametrize(
    "text", ["queue", "options.yaml", "- a", "3", "{a: 1", "{a: 1, a: 2}", "x" * 5000, "\0", "\ud800"]
)
def test_options_refused(text: str) -> None:
    """What is neither a mapping nor a file that holds one is refused in one sentence."""
    with pytest.raises(ConfigurationError) as raised:
        read_options(text, "slurm")
    assert "--dask-options" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("option", ["cores", "memory", "walltime", "n_workers"])
def test_options_that_are_settings(option: str) -> None:
    """The sizes have settings of their own, which are named."""
    with pytest.raises(ConfigurationError, match="use --dask-w"):
        read_options(f"{{{option}: 3}}", "slurm")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([*POOL_KEYS, "other"])
SOME_FILES = st.one_of(
    st.text(),
    VALUES.map(yaml.safe_dump),
    st.dictionaries(KEYS, VALUES).map(lambda pool: yaml.safe_dump({"pools": {"a": {"cluster": "slurm"} | pool}})),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=SOME_FILES)
def test_garbage(tmp_path: Path, text: str) -> None:
    """Whatever stands in a file, it is read, or refused in one line with the file's name."""
    path = tmp_path / f"garbage-{os.getpid()}.yaml"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    message = ""
    try:
        pools, _ = read_pools_file(path)
    except ConfigurationError as error:
        message = str(error)
    if message:
        assert str(path) in message
        assert "\n" not in message
    else:
        assert all(pool.workers_max >= 1 for pool in pools)


def test_option_that_is_a_list() -> None:
    """A text where the class takes a list is an error, since each of its letters would become a line of the script."""
    with pytest.raises(ConfigurationError, match=r"job_script_prologue is a string; .* such as \['module load x'\]"):
        read_options("{job_script_prologue: module load x}", "slurm")
