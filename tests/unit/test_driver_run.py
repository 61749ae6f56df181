"""Pools that a run makes on its way, and its end, where what it is to give back does not go, or did not come up."""

import asyncio
import copy
import os
import platform
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import dask_jobqueue  # noqa: F401 - its first import adds its defaults to Dask's configuration
import psutil
import pytest
from clusters.daemons import free_ports
from distributed.utils import get_ip

from snakemake_executor_plugin_dask.batch.allocations import Ran
from snakemake_executor_plugin_dask.driver import pools as pools_module
from snakemake_executor_plugin_dask.driver.own import core as core_module
from snakemake_executor_plugin_dask.driver.own.cluster import OwnCluster
from snakemake_executor_plugin_dask.driver.run import Run
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.jobs import RunSetup
from snakemake_executor_plugin_dask.model.messages import Begin
from snakemake_executor_plugin_dask.model.options import DashboardAddress, Options
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.observe.events import read_events

SETUP = RunSetup(
    run_id="abc12345", workdir="/w", umask=0o22, soft_limits=(), environment={}, replace_environment=True,
    python="python", snakefile="Snakefile", general_arguments=(), snakemake_version="9", plugin_version="1",
)  # fmt: skip


@pytest.fixture
def dask_configuration() -> Iterator[None]:
    """As it was, once the test is over: a driver changes it."""
    before = copy.deepcopy(dask.config.config)
    yield
    dask.config.config.clear()
    dask.config.config.update(before)


@pytest.mark.usefixtures("dask_configuration")
def test_a_batch_system_that_does_not_answer_keeps_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bounded time the driver gives up, names workers not seen to go, and keeps their record and the lock."""
    state_dir = tmp_path / "abc12345"
    state_dir.mkdir()
    (state_dir / "allocations.jsonl").write_text('{"submitting": "cpu-0"}\n')
    (state_dir / "tls-key.pem").write_text("secret")
    options = Options(pools=(Pool("cpu", "slurm", 0, 2, 4, 4000),))

    async def hang() -> tuple[str, ...]:
        await asyncio.Event().wait()
        return ()

    members = {name: SimpleNamespace(process=SimpleNamespace(name=name)) for name in ("cpu-1", "cpu-0")}
    dask_clusters: list[Any] = []

    def fleet(dask_cluster: Any, *_: Any, **__: Any) -> Any:
        dask_clusters.append(dask_cluster)
        return SimpleNamespace(members=members, close=hang)

    monkeypatch.setattr(core_module, "Fleet", fleet)

    async def end() -> tuple[str, ...]:
        begin = Begin(SETUP, options, str(state_dir), str(tmp_path / "events.jsonl"))
        run = Run(begin, lambda _: None, partial(OwnCluster, close_s=0.05))
        await run.start()
        left = await asyncio.wait_for(run.close(), 30)
        await dask_clusters[0].close()
        return left

    assert asyncio.run(end()) == ("cpu-0", "cpu-1")
    assert {path.name for path in state_dir.iterdir()} == {"allocations.jsonl", "lock"}


@pytest.mark.parametrize("fails", [False, True])
def test_every_run_says_where_it_is_whatever_its_cluster(tmp_path: Path, fails: bool) -> None:
    """Host, directory and versions stand in the event log before the cluster is there, or fails to be."""
    (tmp_path / "abc12345").mkdir()
    log = tmp_path / "events.jsonl"
    seen: list[str] = []

    async def start(_: Any) -> None:
        while not seen:  # it is written beside what the driver does
            await asyncio.sleep(0.01)
            seen.extend(event["kind"] for event in (read_events(log) if log.exists() else ()))
        if fails:
            raise ConfigurationError("nothing listens there")

    async def close() -> tuple[str, ...]:
        return ("left-0",)

    async def play() -> None:
        cluster: Any = SimpleNamespace(start=start, close=close, uses=dict)
        begin = Begin(SETUP, Options(pools=()), str(tmp_path / "abc12345"), str(log))
        run = Run(begin, lambda _: None, lambda *_: cluster)
        try:
            await run.start()
        finally:
            assert await run.close() == ("left-0",)

    if fails:
        with pytest.raises(ConfigurationError):
            asyncio.run(play())
    else:
        asyncio.run(play())
    assert seen == ["run-started"]
    started, ended = read_events(log)
    assert (started["run_id"], started["workdir"], started["host"]) == ("abc12345", "/w", platform.node())
    assert started["versions"] == {"snakemake": "9", "plugin": "1"}
    assert (ended["kind"], ended["left"]) == ("run-ended", ["left-0"])


def test_one_request_too_large_keeps_no_other_from_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is made for all those that a node holds; Slurm is asked what it has once for all of them."""
    backend = SimpleNamespace(check=lambda _: None, complete=lambda pool: pool)
    monkeypatch.setattr(pools_module, "backend_for", lambda _: backend)
    asked: list[Sequence[str]] = []

    def sinfo(command: Sequence[str]) -> Ran:
        asked.append(command)
        return Ran(0, "new*|1-00:00:00|01:00:00|16|64000|(null)|(null)|4\n", "")

    key = (("slurm_partition", "new"),)
    large = Request(64, slurm=key)
    requests = [Request(cores, slurm=key) for cores in (1, 2, 8)]
    pools, refused = pools_module.pools_for(Pool("slurm", "slurm", 0, 10), [large, *requests], sinfo)
    ((pool,), (reason,)) = pools, refused.values()
    assert pool.slurm == key
    assert (pool.cores or 0) >= 8
    assert list(refused) == [large]
    assert "asks for 64 cores, which no node of partition new holds" in reason
    assert len(asked) == 1


def listening() -> set[tuple[str, int]]:
    """Where this process listens."""
    found = psutil.net_connections("tcp")
    return {tuple(one.laddr) for one in found if one.status == psutil.CONN_LISTEN and one.pid == os.getpid()}


def bring_up(directory: Path, pool: Pool, then: Callable[[], None], **options: Any) -> list[Any]:
    """Start a run, look at it, and end it. Returns what it told Snakemake."""
    told: list[Any] = []
    state_dir = directory / "abc12345"
    state_dir.mkdir()

    async def start() -> None:
        begin = Begin(SETUP, Options(pools=(pool,), **options), str(state_dir), str(directory / "events.jsonl"))
        run = Run(begin, told.append)
        try:
            await run.start()
            then()
        finally:
            await run.close(failed=True)

    try:
        asyncio.run(start())
    finally:
        assert not state_dir.exists(), "what a run leaves"
    return told


@pytest.mark.usefixtures("dask_configuration")
def test_a_scheduler_that_cannot_listen_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """The port that is taken is named, and the run's keys go."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port: {port}.*in use"):
            bring_up(tmp_path, Pool("local", "local", 1, 1, 1, 1000), lambda: None, scheduler_port=port)


@pytest.mark.usefixtures("dask_configuration")
def test_leases_are_renewed_where_the_scheduler_listens(tmp_path: Path) -> None:
    """On its interface, and on the port after its own."""
    port = free_ports(2)
    before, where = listening(), set()
    pool = Pool("cpu", "slurm", 0, 2, 4, 4000)
    bring_up(tmp_path, pool, lambda: where.update(listening()), scheduler_interface="lo", scheduler_port=port)
    assert where - before == {("127.0.0.1", port), ("127.0.0.1", port + 1)}


@pytest.mark.usefixtures("dask_configuration")
def test_on_a_cluster_one_address_is_listened_on(tmp_path: Path) -> None:
    """The one that workers are given, where nothing else is said; not all that this host has."""
    before, where = listening(), set()
    bring_up(tmp_path, Pool("cpu", "slurm", 0, 2, 4, 4000), lambda: where.update(listening()))
    assert [host for host, _ in where - before] == [get_ip(), get_ip()]


@pytest.mark.usefixtures("dask_configuration")
def test_a_dashboards_port_that_is_taken_is_told(tmp_path: Path) -> None:
    """The run does not come up: at another port nobody would look for it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        pool = Pool("local", "local", 1, 1, 1, 1000)
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}"):
            bring_up(tmp_path, pool, lambda: None, dashboard=DashboardAddress("127.0.0.1", port))
