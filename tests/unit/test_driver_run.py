"""The end of a run, where what it is to give back does not go."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snakemake_executor_plugin_dask.driver import run as run_module
from snakemake_executor_plugin_dask.jobs import RunSetup
from snakemake_executor_plugin_dask.messages import Begin
from snakemake_executor_plugin_dask.options import Options
from snakemake_executor_plugin_dask.pools import Pool

SETUP = RunSetup(
    run_id="abc12345", workdir="/w", umask=0o22, soft_limits=(), environment={}, replace_environment=True,
    python="python", snakefile="Snakefile", general_arguments=(), snakemake_version="9", plugin_version="1",
)  # fmt: skip


def test_a_batch_system_that_does_not_answer_keeps_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bounded time the driver gives up, names the workers that it did not see go, and keeps their record."""
    monkeypatch.setattr(run_module, "_CLOSE_S", 0.05)
    state_dir = tmp_path / "abc12345"
    state_dir.mkdir()
    (state_dir / "allocations.jsonl").write_text('{"submitting": "cpu-0"}\n')
    (state_dir / "tls-key.pem").write_text("secret")
    options = Options(pools=(Pool("cpu", "slurm", 0, 2, 4, 4000),))

    async def hang() -> tuple[str, ...]:
        await asyncio.Event().wait()
        return ()

    async def end() -> tuple[tuple[str, ...], dict[str, Any]]:
        run = run_module.Run(Begin(SETUP, options, str(state_dir), str(tmp_path / "events.jsonl")), lambda _: None)
        members = {name: SimpleNamespace(process=SimpleNamespace(name=name)) for name in ("cpu-1", "cpu-0")}
        run._fleet = SimpleNamespace(members=members, close=hang)  # type: ignore[assignment]
        return await asyncio.wait_for(run.close(), 30)

    left, _ = asyncio.run(end())
    assert left == ("cpu-0", "cpu-1")
    assert [path.name for path in state_dir.iterdir()] == ["allocations.jsonl"]
