"""Companions as their wide worker has them: processes of a launcher, here a stand-in for `srun`."""

import asyncio
import os
from pathlib import Path

import pytest
import settling
from settling import settle

from snakemake_executor_plugin_dask.node.processes import read_stat
from snakemake_executor_plugin_dask.worker import companions


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A launcher that runs until a file is there; the place of the worker's files."""
    program = tmp_path / "bin" / "srun"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nwhile ! test -e {tmp_path}/go; do sleep 0.05; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(companions, "here", companions.Here({}, tmp_path, None))
    return tmp_path


async def until_over(name: str) -> int:
    async with asyncio.timeout(60):
        while (code := companions.ended(name)) is None:  # noqa: ASYNC110 - it is asked by the driver, once a second
            await asyncio.sleep(0.01)
    return code


def test_a_launcher_that_has_ended_is_spared_no_more(srun: Path) -> None:
    """Its number may be that of what a job has left, which is to be ended."""

    async def play() -> None:
        await companions.start("wide-0+1", "n2")
        (launcher,) = companions.pids()
        assert read_stat(launcher) is not None
        (srun / "go").touch()
        assert await until_over("wide-0+1") == 0
        assert not companions.pids()
        assert await companions.end("wide-0+1")

    asyncio.run(play())


@pytest.mark.usefixtures("srun")
def test_one_that_is_ended_is_gone() -> None:
    """To end it once more is no mistake."""

    async def play() -> None:
        await companions.start("wide-0+2", "n2")
        (launcher,) = companions.pids()
        for _ in range(2):
            assert await companions.end("wide-0+2")
            assert read_stat(launcher) is None
            assert companions.ended("wide-0+2") == 0
        assert not companions.pids()

    asyncio.run(play())


@pytest.mark.usefixtures("srun")
def test_none_is_made_while_strangers_are_looked_for() -> None:
    """It would be taken for what a job has left, and ended; and the worker's event loop goes on meanwhile."""

    async def play() -> None:
        with companions.forking:
            starting = asyncio.ensure_future(companions.start("wide-0+3", "n2"))
            await settle()
            assert not companions.pids()
        await starting
        assert len(companions.pids()) == 1
        assert await companions.end("wide-0+3")

    settling.run(play())
