"""Whether a directory is on a file system of this machine's own, and who is told."""

import pytest
from deciding import a_pool

from snakemake_executor_plugin_dask.driver import sentences
from snakemake_executor_plugin_dask.node.mounts import own_file_system

MOUNTS = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:30 / /home rw - nfs4 server:/home rw
24 22 0:31 / /mnt/two\040words rw - xfs /dev/vdb rw
25 22 0:32 / /scratch rw - tmpfs tmpfs rw
26 22 0:33 / /scratch rw - lustre fs@tcp:/scratch rw
27 23 0:34 / /home/local rw - btrfs /dev/vdc rw
"""


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/tmp/work", "ext4"),
        ("/", "ext4"),
        ("/home/me/work", ""),
        ("/homes", "ext4"),
        ("/mnt/two words/work", "xfs"),
        ("/scratch/work", ""),
        ("/home/local", "btrfs"),
    ],
)
def test_where_a_directory_is(directory: str, kind: str) -> None:
    """The deepest mount that holds it counts, of several at one place the last; a network's file system has no name."""
    assert own_file_system(directory, MOUNTS) == kind


@pytest.mark.parametrize(("cluster", "kind", "told"), [("slurm", "ext4", 1), ("slurm", "", 0), ("local", "ext4", 0)])
def test_told_once_where_workers_elsewhere_do_not_come_up(
    monkeypatch: pytest.MonkeyPatch, cluster: str, kind: str, told: int
) -> None:
    """Only where they are in allocations, and the working directory may be out of their sight."""
    monkeypatch.setattr(sentences, "own_file_system", lambda _: kind)
    said: list[str] = []
    teller = sentences.Teller(lambda _, text: said.append(text))
    for why in ("exit code 1", "exit code 2"):
        teller.pool_failed(a_pool("p", cluster), why)
    assert sum("is on a file system that is local to this host (ext4)" in text for text in said) == told
