"""What is told to make a request fit makes it fit: each kind of advice is followed here."""

import itertools
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest
from deciding import a_pool
from snakemake.cli import parse_set_resources

from snakemake_executor_plugin_dask.backends.slurm_pools import make_pools
from snakemake_executor_plugin_dask.batch.allocations import Ran
from snakemake_executor_plugin_dask.decide import routing
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request, request_from_resources

GPU = a_pool("gpu", cores=8, memory_mb=10_000, gpus=2, gpu_model="a100", walltime_s=3600.0)
CPU = a_pool("cpu", cores=8, memory_mb=10_000, walltime_s=3600.0, resources=(("licences", 2),))
WIDE = a_pool("wide", cores=4, memory_mb=4000, nodes=3)
MPI = a_pool("mpi", "mpi", cores=2, memory_mb=4000, workers_min=3, workers_max=3)
SINFO = "main*|01:00:00|n/a|2|4000|gpu:a100:2|x|3\n"


def followed(message: str, resources: dict[str, Any], threads: int) -> list[tuple[dict[str, Any], int]]:
    """The rule's resources and threads after each of the calls that the message tells."""
    (calls,) = re.findall(r"To make it fit: (.*?)(?:; or name another slurm_partition\.)?$", message, re.MULTILINE)
    return [_after(shlex.split(call), resources, threads) for call in calls.split(", or ")]


def _after(words: list[str], resources: dict[str, Any], threads: int) -> tuple[dict[str, Any], int]:
    changed = dict(resources)
    while words:
        option = words.pop(0)
        values = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
        del words[: len(values)]
        if option == "--set-threads":
            assert [value.partition("=")[0] for value in values] == ["r"]
            threads = int(values[0].removeprefix("r="))
        else:
            assert option == "--set-resources"
            for name, read in parse_set_resources(values)["r"].items():
                changed[name] = int(read.raw) if str(read.raw).isdecimal() else read.raw
    return changed, threads


KINDS: list[tuple[dict[str, Any], int, Pool]] = [
    ({}, 99, CPU),
    ({"cpus_per_task": 99}, 1, CPU),
    ({"tasks": 99}, 1, CPU),
    ({"tasks": 3}, 99, CPU),
    ({"tasks": 99}, 99, CPU),
    ({"tasks": 3, "cpus_per_task": 4}, 1, CPU),
    ({"mem_mb": 99_000}, 1, CPU),
    ({"mem_mb_per_cpu": 99_000}, 4, CPU),
    ({"mem_mb_per_cpu": 2000, "tasks": 3}, 99, CPU),
    ({"runtime": 999}, 1, CPU),
    ({"licences": 3}, 1, CPU),
    ({"gpu": 3}, 1, GPU),
    ({"gpus": 3}, 1, GPU),
    ({"gpu": "a100:3"}, 1, GPU),
    ({"gres": "gpu:a100:3,nvme:1"}, 1, GPU),
    ({"slurm_extra": "'--gres=gpu:3,nvme:1 --comment=x'"}, 1, GPU),
    ({"slurm_extra": "--exclusive -G 3"}, 1, GPU),
    ({"gpu": 2, "cpus_per_gpu": 8}, 1, GPU),
    ({"gpu": 3, "cpus_per_gpu": 8}, 1, GPU),
    ({"gpu": 2, "tasks_per_gpu": 8}, 1, GPU),
    ({"nodes": 2, "tasks": 99}, 1, WIDE),
    ({"nodes": 2, "tasks_per_node": 99}, 1, WIDE),
    ({"nodes": 2, "tasks": 4, "mem_mb_per_cpu": 2000}, 1, WIDE),
    ({"nodes": 4}, 1, WIDE),
    ({"mpi": "srun", "tasks": 99}, 1, WIDE),
    ({"mpi": "srun", "tasks": 99, "cpus_per_task": 3}, 1, WIDE),
    ({"mpi": "srun", "tasks": 2, "cpus_per_task": 99}, 1, WIDE),
    ({"mpi": "srun", "tasks_per_node": 99}, 1, WIDE),
    ({"mpi": "mpirun", "tasks": 99}, 1, MPI),
    ({"mpi": "mpirun"}, 99, MPI),
    ({"mem_mb": 99_000, "runtime": 999}, 99, CPU),
]


@pytest.mark.parametrize(("resources", "threads", "pool"), KINDS)
def test_advice_of_routing(resources: dict[str, Any], threads: int, pool: Pool) -> None:
    """The call names the resources that the numbers came from, and with it the pool holds the job."""
    request = request_from_resources(resources, threads)
    with pytest.raises(routing.NoPool) as told:
        routing.route(request, [pool], {}, name="r")
    ((changed, threads),) = followed(str(told.value), resources, threads)
    assert routing.route(request_from_resources(changed, threads), [pool], {}, name="r") == pool.name
    assert set(changed) <= {*resources, "nodes"}, "another resource is named than the one that was declared"


def made(resources: dict[str, Any], threads: int) -> list[Pool]:
    template = Pool("slurm", "slurm", 0, 10)
    named = [("r", request_from_resources(resources, threads))]
    return make_pools(template, named, setting=lambda _: None, run=lambda _: Ran(0, SINFO, ""))


@pytest.mark.parametrize(
    ("resources", "threads"),
    [
        ({}, 3),
        ({"cpus_per_task": 3}, 1),
        ({"tasks": 3}, 1),
        ({"mpi": "srun", "tasks": 3, "cpus_per_task": 3}, 1),
        ({"mpi": "srun", "tasks": 7}, 1),
        ({"mpi": "srun", "tasks": 4, "nodes": 1, "mem_mb_per_cpu": 9000}, 1),
        ({"mpi": "srun", "tasks_per_node": 3}, 1),
        ({"nodes": 4}, 1),
        ({"mpi": "srun", "nodes": 2, "tasks": 5}, 1),
        ({"nodes": 2, "tasks_per_node": 3}, 1),
        ({"mem_mb": 9000}, 1),
        ({"gpu": 3}, 1),
        ({"gres": "gpu:3"}, 1),
    ],
)
def test_advice_of_pools_made_for_slurm_resources(resources: dict[str, Any], threads: int) -> None:
    """The same, where a partition's nodes are too small or too few."""
    with pytest.raises(ConfigurationError) as told:
        made(resources, threads)
    for changed in followed(str(told.value), resources, threads):
        made(*changed)


def test_advice_to_a_group_names_its_rules() -> None:
    """A group has no resources that could be set: what its jobs may have together, and by which rules."""
    request = request_from_resources({"mem_mb": 99_000}, 99)
    request = replace(request, origin=replace(request.origin, members=("a", "b")))
    with pytest.raises(routing.NoPool) as told:
        routing.route(request, [CPU], {}, name="g")
    text = str(told.value)
    assert text.startswith("Group g (rules a, b) asks for 99 cores, mem_mb=99000")
    assert "may ask for threads=8 and mem_mb=9700 together: set less for rules a, b (--set-resources" in text
    assert "g:mem_mb" not in text
    assert routing.route(Request(8, 9700), [CPU], {}) == "cpu"
