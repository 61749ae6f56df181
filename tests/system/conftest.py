"""Batch systems for the tests of whole runs."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters.slurm import NODES, VirtualSlurm
from running import wait_for


@pytest.fixture(scope="module")
def cluster() -> Iterator[VirtualSlurm]:
    """A Slurm of its own, which the commands of this process and its children find."""
    directory = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    slurm = VirtualSlurm(directory)
    before = os.environ.get("SLURM_CONF")
    try:
        slurm.up()
        os.environ["SLURM_CONF"] = str(slurm.conf)
        yield slurm
    finally:
        slurm.down()
        if before is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def slurm(cluster: VirtualSlurm) -> Iterator[VirtualSlurm]:
    """The cluster with all nodes idle and nothing queued; the test leaves the queue empty."""
    ready(cluster)
    yield cluster
    left = cluster.queue()
    cluster.run("scancel", "--user", str(os.getuid()), check=False)
    assert not left, "allocations were left behind"


def ready(cluster: VirtualSlurm) -> None:
    for partition in ("cpu", "big", "gpu"):
        cluster.run("scontrol", "update", f"PartitionName={partition}", "State=UP")
    for node in NODES:
        if cluster.pid_of_node(node) is None:
            cluster.start_node(node)
    wait_for(cluster.all_idle, "all nodes idle", 120)
