"""The cluster's end, where a worker cannot be given back."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from snakemake_executor_plugin_dask.driver.own.daskcluster import DaskCluster


def test_one_that_fails_keeps_no_other_from_being_given_back(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is in the log, and scheduler and client are closed all the same."""
    done: list[str] = []

    def step(name: str, error: Exception | None = None) -> Any:
        async def close() -> bool:
            await asyncio.sleep(0)
            if error is not None:
                raise error
            done.append(name)
            return True

        return close

    async def end() -> None:
        cluster = DaskCluster(None, None, None, 0)  # type: ignore[arg-type]
        cluster.scheduler = SimpleNamespace(close=step("scheduler"))
        cluster.client = SimpleNamespace(close=step("client"))
        for name, error in (("cpu-0", KeyError("7")), ("cpu-1", None)):
            cluster.workers[name] = SimpleNamespace(lock=asyncio.Lock(), close=step("asked"), kill=step(name, error))  # type: ignore[assignment]
        await cluster.close()

    asyncio.run(end())
    assert done == ["asked", "asked", "cpu-1", "client", "scheduler"]
    assert "cpu-0" in caplog.text
