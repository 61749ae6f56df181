"""What the records of batch systems say of allocations."""

import pytest

from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS
from snakemake_executor_plugin_dask.node.allocation import allocation_hosts, allocation_id, batch_system


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ("n1",)),
        ("n[1-3,7],gpu01", ("n1", "n2", "n3", "n7", "gpu01")),
        ("r[1-2]n[08-10].x", ("r1n08.x", "r1n09.x", "r1n10.x", "r2n08.x", "r2n09.x", "r2n10.x")),
    ],
)
def test_nodes_of_slurm(text: str, names: tuple[str, ...]) -> None:
    """Lists in brackets are expanded, numbers keep their zeros."""
    assert allocation_hosts({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": text}) == names


@pytest.mark.parametrize("name", SYSTEMS)
def test_an_allocation_is_known_by_its_variables(name: str) -> None:
    """Each batch system's own variables tell that a process runs in its allocation, and which one that is."""
    variables = SYSTEMS[name].variables
    environment = dict.fromkeys((*variables.ids, *variables.marks, variables.id), "12")
    assert batch_system(environment) is SYSTEMS[name]
    assert allocation_id(environment) == "12"
    assert batch_system({"HOME": "/h", "JOB_ID": "12"}) is None
