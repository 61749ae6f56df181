"""What a job's description says of its input files."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from snakemake_executor_plugin_dask.interior.snakemake_jobs import input_mb


class File(str):
    """As Snakemake has files: a path that knows whether it is in a storage."""

    __slots__ = ("is_storage",)


def job(*paths: Path, in_storage: bool = False) -> Any:
    files = [File(path) for path in paths]
    for file in files:
        file.is_storage = in_storage
    return SimpleNamespace(input=files)


def test_the_size_of_the_input(tmp_path: Path) -> None:
    """Files count together; where one is no file here, or there are none, it is not known."""
    one, two, pipe = tmp_path / "one", tmp_path / "two", tmp_path / "pipe"
    for file, size in ((one, 1_500_000), (two, 500_000)):
        with file.open("wb") as stream:
            stream.truncate(size)
    os.mkfifo(pipe)
    assert input_mb(job(one, two)) == 2.0
    for other in (tmp_path / "missing", tmp_path, pipe):
        assert input_mb(job(one, other)) is None
    assert input_mb(job(one, in_storage=True)) is None
    assert input_mb(job()) is None
    assert input_mb(job(*[one] * 1001)) is None, "so many would take long to look at"
