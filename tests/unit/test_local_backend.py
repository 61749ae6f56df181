"""Workers on this machine: who holds which GPU, and what a pool there cannot have."""

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snakemake_executor_plugin_dask.backends.base import Link
from snakemake_executor_plugin_dask.backends.local import LocalBackend, LocalWorker
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.node.devices import OVERRIDE

LINK = Link("run", "tls://127.0.0.1:1", ("127.0.0.1", 2), None, "/state", None)


def test_workers_beside_each_other_hold_different_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers of two GPUs each share four; one that replaces a closed one takes what that one held."""
    monkeypatch.setenv(OVERRIDE, "0,1,2,3")
    pool = Pool("local", "local", 2, 2, cores=2, memory_mb=2000, gpus=2)

    async def bring_up() -> list[LocalWorker]:
        backend = LocalBackend()
        workers = [backend.worker(pool, f"local-{number}", LINK) for number in range(2)]
        workers[0].closed = True
        return [*workers, backend.worker(pool, "local-2", LINK)]  # type: ignore[list-item]

    first, second, replacement = asyncio.run(bring_up())
    assert (first.devices, second.devices) == (("0", "1"), ("2", "3"))
    assert replacement.devices == ("0", "1")


def test_a_worker_that_does_not_die_is_not_waited_for(tmp_path: Path) -> None:
    """One that the kernel holds, as in a frozen cgroup, is told as not gone after a bounded time."""
    killed: list[bool] = []

    async def execute(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(pid=1, returncode=None, kill=lambda: killed.append(True), wait=asyncio.Event().wait)

    async def kill() -> bool:
        worker = LocalWorker(
            Pool("local", "local", cores=1),
            "local-0",
            replace(LINK, state_dir=str(tmp_path)),
            execute=execute,
            kill_rest=lambda *_: bool(killed.append(True)),
            kill_s=0.05,
        )
        await worker.start()
        assert worker.failure is None
        return await asyncio.wait_for(worker.kill(), 30)

    assert asyncio.run(kill()) is False
    assert killed == [True, True], "its supervisor and jobs are signalled all the same"


def test_options_and_nodes_are_refused() -> None:
    """Each complaint names the pool and what to remove."""
    with pytest.raises(ConfigurationError, match="pool here: the local backend takes no options, but queue"):
        LocalBackend().check(Pool("here", "local", options={"queue": "x"}))
    with pytest.raises(ConfigurationError, match="remove `nodes`"):
        LocalBackend().check(Pool("here", "local", nodes=2))


@pytest.mark.parametrize(
    ("gpus", "workers", "words"),
    [
        (3, 1, "3 GPUs for each worker were asked for, but this machine has 2 .*; ask for 2"),
        (2, 2, "2 GPUs for each of 2 workers were asked for, but this machine has 2 .*; ask for 1"),
        (1, 2, None),
    ],
)
def test_more_gpus_than_there_are_are_refused(
    gpus: int, workers: int, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their jobs would wait for ever."""
    monkeypatch.setenv(OVERRIDE, "0,1")
    pool = Pool("local", "local", workers, workers, cores=1, memory_mb=1000, gpus=gpus)
    with contextlib.nullcontext() if words is None else pytest.raises(ConfigurationError, match=words):
        LocalBackend().check(pool)
