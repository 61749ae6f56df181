"""What a job needs, read from its resources."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.model.errors import RequestError
from snakemake_executor_plugin_dask.model.requests import (
    Origin,
    Request,
    request_from_resources,
    slurm_names,
    starts_cold,
    unknown_slurm_names,
    unknown_slurm_warning,
)


@pytest.mark.parametrize(
    ("resources", "cores"),
    [
        ({}, 3),
        ({"cpus_per_task": 4}, 4),
        ({"tasks": 5}, 15),
        ({"cpus_per_task": 4, "tasks": 5}, 20),
        ({"cpus_per_task": 2, "tasks_per_node": 8, "nodes": 2}, 32),
        ({"tasks": 6, "tasks_per_node": 8, "nodes": 2}, 18),
        ({"nodes": 2}, 3),
        ({"cpus_per_task": 0}, 3),
        ({"cpus_per_task": -1}, 3),
        ({"tasks": 0}, 3),
        ({"tasks": 0, "tasks_per_node": 2}, 6),
        ({"gpu": 2, "cpus_per_gpu": 8}, 16),
        ({"gpu": 2, "cpus_per_gpu": 8, "cpus_per_task": 1}, 1),
        ({"gpu": 2, "cpus_per_gpu": 0}, 3),
        ({"cpus_per_gpu": 8}, 3),
        ({"gpu": 2, "tasks_per_gpu": 2}, 12),
        ({"gpu": 2, "tasks_per_gpu": 0, "tasks": 0}, 3),
        ({"cpus_per_task": "4"}, 4),
    ],
)
def test_cores_follow_the_table(resources: dict[str, object], cores: int) -> None:
    """Cores are (cpus_per_task, else threads) x (tasks, else tasks_per_node x nodes, else 1)."""
    assert request_from_resources(resources, 3).cores == cores


@pytest.mark.parametrize(
    ("resources", "memory_mb"),
    [
        ({}, None),
        ({"mem_mb": 5000}, 5000),
        ({"mem_mb_per_cpu": 1000}, 4000),
        ({"mem_mb_per_cpu": 1000, "nodes": 2, "tasks_per_node": 3}, 12000),
        ({"mem_mb_per_cpu": 1000, "tasks": 3, "nodes": 2}, 8000),  # two whole tasks on one of them
        ({"mem_mb": 500, "mem_mb_per_cpu": 1000}, 500),
        ({"mem_mb": "<TBD>", "mem_mb_per_cpu": 1000}, 4000),
        ({"mem_mb": 0}, None),
        ({"mem": "5 GB"}, None),
    ],
)
def test_memory_is_for_each_node(resources: dict[str, object], memory_mb: int | None) -> None:
    """Memory is mem_mb, or mem_mb_per_cpu times the cores on each node."""
    assert request_from_resources(resources, 4).memory_mb == memory_mb


def test_runtime_becomes_seconds() -> None:
    """Snakemake counts runtime in minutes."""
    assert request_from_resources({"runtime": 90}, 1).runtime_s == 5400.0


def test_what_is_not_known_yet_is_not_declared() -> None:
    """Snakemake's placeholder for values that need inputs counts as no declaration."""
    tbd = "<TBD>"
    resources = {"mem_mb": tbd, "runtime": tbd, "gpu": tbd, "mpi": tbd, "dask_pool": tbd, "gres": tbd, "licences": tbd}
    assert request_from_resources(resources, 2) == Request(2, origin=Origin(pending=("mem_mb", "runtime")))


@pytest.mark.parametrize(
    ("resources", "gpus", "model"),
    [
        ({"gpu": 2}, 2, None),
        ({"gpus": 3}, 3, None),
        ({"gpu": 1, "gpu_model": "a100"}, 1, "a100"),
        ({"gpu_model": "a100"}, 1, "a100"),
        ({"gpu_model": "a100", "gres": "gpu:2"}, 2, "a100"),
        ({"gpu_model": "a100", "gpu": 0}, 0, "a100"),
        ({"gpu": "a100:2"}, 2, "a100"),
        ({"gpu": "a100"}, 1, "a100"),
        ({"gpu": "2"}, 2, None),
        ({"gpu": "a100:2,h100:1"}, 3, "a100"),
        ({"gres": "gpu:tesla.v2:2"}, 2, "tesla.v2"),
        ({"gres": "gpu:a100"}, 1, "a100"),
        ({"gres": "gpu:2"}, 2, None),
        ({"gres": "gpu:a100:2"}, 2, "a100"),
        ({"gres": "gpu"}, 1, None),
        ({"gres": "gpu:2", "nodes": 2}, 4, None),
        ({"gres": "gpu:2", "gpu": 2}, 2, None),
        ({"gres": "'gpu:2'"}, 2, None),
        ({"slurm_extra": "--gres=gpu:2"}, 2, None),
        ({"slurm_extra": "'--gres=gpu:2'"}, 2, None),
        ({"slurm_extra": "\"--gres='gpu:2'\""}, 2, None),
        ({"slurm_extra": "--gpus=h100:4"}, 4, "h100"),
        ({"slurm_extra": "--gpus 4"}, 4, None),
        ({"slurm_extra": "-G 4"}, 4, None),
        ({"slurm_extra": "-G4"}, 4, None),
        ({"slurm_extra": "--gpus-per-node=2", "nodes": 3}, 6, None),
        ({"slurm_extra": "--gpus-per-task=1", "tasks": 4}, 4, None),
    ],
)
def test_gpus_are_counted_wherever_they_are_declared(
    resources: dict[str, object], gpus: int, model: str | None
) -> None:
    """GPUs in gres and slurm_extra count as gpu, and leave nothing behind in what makes a pool."""
    request = request_from_resources(resources, 1)
    assert (request.gpus, request.gpu_model) == (gpus, model)
    assert "gpu" not in str(request.slurm)


def test_what_makes_a_slurm_pool_keeps_the_rest() -> None:
    """Only the GPUs are taken out of gres and slurm_extra, and nodes=1 equals none."""
    request = request_from_resources(
        {
            "slurm_partition": "boost",
            "slurm_account": "staff",
            "gres": "gpu:2,tmpfs:100",
            "slurm_extra": "'--gres=gpu:2 --comment=\"two words\"'",
            "nodes": 1,
            "qos": "",
            "constraint": "<TBD>",
        },
        1,
    )
    assert request.slurm == (
        ("gres", "tmpfs:100"),
        ("slurm_account", "staff"),
        ("slurm_extra", "'--comment=two words'"),
        ("slurm_partition", "boost"),
    )
    assert request_from_resources({"nodes": 2}, 1).slurm == (("nodes", "2"),)


def test_other_whole_numbers_are_kept_for_pools_that_list_them() -> None:
    """Integer resources of the user's own are kept, Snakemake's derived ones and texts are not."""
    resources = {
        "_cores": 1, "_nodes": 1, "tmpdir": "/tmp", "mem": "1 GB", "mem_mib": 954, "disk_mib": 5, "disk_mb": 7,
        "licences": 2, "zero": 0, "text": "x", "flag": True, "mem_mb": 1000,
    }  # fmt: skip
    assert request_from_resources(resources, 1).extra == (("disk_mb", 7), ("licences", 2))


@pytest.mark.parametrize("value", ["mpirun", "srun --overlap", 1, True])
def test_any_launcher_makes_an_mpi_job(value: object) -> None:
    """Whatever the resource mpi holds, if it is something."""
    assert request_from_resources({"mpi": value}, 1).mpi
    assert not request_from_resources({"mpi": ""}, 1).mpi


@pytest.mark.parametrize(
    "resources",
    [
        {"mem_mb": "much"},
        {"mem_mb": -1},
        {"runtime": "2 h"},
        {"nodes": 0},
        {"tasks": -1},
        {"gpu": -1},
        {"gpu": [1]},
        {"cpus_per_task": True},
        {"gres": "gpu:a100:many"},
        {"slurm_extra": "--gres='gpu:1"},
        {"dask_pool": ["a"]},
        {"tasks_per_node": float("nan")},
    ],
)
def test_nonsense_is_named(resources: dict[str, object]) -> None:
    """A value that makes no sense is an error with the resource's name."""
    with pytest.raises(RequestError, match=next(iter(resources))):
        request_from_resources(resources, 1)


def test_slurm_resources_are_named() -> None:
    """A bare nodes says nothing of Slurm; the others do, also where only GPUs are in them."""
    assert slurm_names({"nodes": 2, "mem_mb": 5, "qos": ""}) == ()
    assert slurm_names({"slurm_extra": "--gres=gpu:1", "gres": "gpu:1"}) == ("gres", "slurm_extra")
    assert slurm_names({"slurm_partition": "p"}) == ("slurm_partition",)


@pytest.mark.parametrize("name", ["cluster", "clusters", "slurm_cluster"])
def test_a_cluster_has_three_names(name: str) -> None:
    """The Slurm executor takes each of them; the first that is declared counts."""
    assert request_from_resources({name: "far"}, 1).slurm == (("clusters", "far"),)
    assert slurm_names({name: "far"}) == (name,)
    assert request_from_resources({"slurm_cluster": "b", "cluster": "a"}, 1).slurm == (("clusters", "a"),)


def test_unknown_slurm_resources_are_found() -> None:
    """A misspelt name is told with the nearest one; what the Slurm executor knows is not."""
    known = {"slurm_account": "a", "slurm_partition": "p", "slurm_extra": "", "slurm_cluster": "c", "qos": "q"}
    assert unknown_slurm_names(known) == ()
    assert unknown_slurm_names({**known, "slurm_partion": "x"}) == ("slurm_partion",)
    assert "slurm_partion, which is ignored; did you mean slurm_partition?" in unknown_slurm_warning(
        "slurm_partion", "a"
    )


@given(
    st.dictionaries(
        st.sampled_from(["mem_mb", "gpu", "gres", "slurm_extra", "nodes", "tasks", "mpi", "x"]),
        st.one_of(st.none(), st.integers(-2, 10**6), st.text(max_size=12), st.booleans(), st.floats()),
    )
)
def test_anything_is_a_request_or_a_request_error(resources: dict[str, object]) -> None:
    """No value of a resource leads to another kind of error, and amounts are never negative."""
    try:
        request = request_from_resources(resources, 1)
    except RequestError:
        return
    assert request.cores >= 0
    assert request.gpus >= 0
    assert request.nodes >= 1
    assert hash(request) == hash(request_from_resources(resources, 1))


def test_word_for_how_a_job_starts() -> None:
    """A misspelt word is an error instead of a warm start."""
    assert starts_cold({"dask_job_start": "cold"})
    assert not starts_cold({"dask_job_start": "warm"})
    assert not starts_cold({})
    with pytest.raises(RequestError, match="dask_job_start='clod' must be warm or cold"):
        starts_cold({"dask_job_start": "clod"})


def test_negative_threads_are_refused():
    """They would give a worker cores that it does not have."""
    with pytest.raises(RequestError, match="threads=-3 must be a whole number of at least 0"):
        request_from_resources({}, -3)


@pytest.mark.parametrize("name", ["clusters", "constraint", "gres", "qos", "slurm_account", "slurm_partition"])
@pytest.mark.parametrize("value", ["a\ntouch HACKED", "a b", "-x", 'a"b', "a\\b", "a\x1b[1m", "a\tb"])
def test_a_name_is_one_word_of_a_batch_script(name: str, value: str) -> None:
    """What a function of the workflow gives may come from a file's name: no more than a name gets through."""
    with pytest.raises(RequestError, match=f"^The resource {name}="):
        request_from_resources({name: value}, 1)


def test_options_for_slurm_are_one_line() -> None:
    """Blanks and quotes have a meaning there; line breaks have none."""
    assert request_from_resources({"slurm_extra": "--mail-user='a b' --nice"}, 1).slurm
    assert request_from_resources({"slurm_account": "'acc-1'", "constraint": "(a&b)|c", "qos": "a@b"}, 1).slurm
    with pytest.raises(RequestError, match="slurm_extra"):
        request_from_resources({"slurm_extra": "--nice\ntouch HACKED"}, 1)
