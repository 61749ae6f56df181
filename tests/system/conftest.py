"""Batch systems for the tests of whole runs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters.daemons import brought_up
from clusters.gridengine import GridEngine
from clusters.htcondor import HTCondor
from clusters.oar import Oar
from clusters.slurm import NODES, VirtualSlurm
from running import wait_for

from .kept_clusters import Clusters

# Each process of a Dask cluster that is not the plugin's own looks at itself fifty times a second, and samples what its
# threads do: two percent of a core, in tests that have up to twenty of them.
os.environ.update(
    DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL="5s",
    DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL="1s",
    DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED="False",
)


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[VirtualSlurm]:
    """A real Slurm; nothing finds it before `slurm` sets the environment."""
    yield from brought_up(VirtualSlurm)


@pytest.fixture(scope="session")
def grid_engine() -> Iterator[GridEngine]:
    """A real Grid Engine, to be found by its variables."""
    yield from brought_up(GridEngine)


@pytest.fixture(scope="session")
def oar() -> Iterator[Oar]:
    """A real OAR, to be found by PATH."""
    yield from brought_up(Oar)


@pytest.fixture(scope="session")
def htcondor() -> Iterator[HTCondor]:
    """A real HTCondor, to be found by its variables."""
    yield from brought_up(HTCondor)


@pytest.fixture
def slurm(slurm_cluster: VirtualSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualSlurm]:
    """The Slurm that this process and its children find, all nodes idle and nothing queued; so the test leaves it."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster.conf))
    ready(slurm_cluster)
    yield slurm_cluster
    left = slurm_cluster.queue()
    slurm_cluster.run("scancel", "--user", str(os.getuid()), check=False)
    assert not left, "allocations were left behind"


def ready(cluster: VirtualSlurm) -> None:
    for partition in ("cpu", "big", "gpu"):
        cluster.run("scontrol", "update", f"PartitionName={partition}", "State=UP")
    for node in NODES:
        if not cluster.node_lives(node):
            cluster.start_node(node)
    wait_for(cluster.all_idle, "all nodes idle", 120)


@pytest.fixture
def clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clusters]:
    """The user's state directory; after the test nothing is left of any cluster in it."""
    state = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setenv("WHO", "somebody")
    found = Clusters(state)
    yield found
    found.end()
