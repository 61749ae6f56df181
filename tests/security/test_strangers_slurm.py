"""Another user against a run whose workers are allocations of a real Slurm."""

from pathlib import Path

import pytest
from clusters.slurm import VirtualSlurm
from running import logged_jobs, snakemake, started, wait_for
from system.conftest import slurm, slurm_cluster  # noqa: F401 - fixtures

from .conftest import Account
from .ports import fuzz, listening, silence

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

POOLS = """
pools:
  main:
    cluster: slurm
    workers: 0-1
    cores: 1
    memory: 900 MB
    walltime: 10m
    options: {{queue: cpu, interface: lo, log_directory: "{logs}"}}
"""


@pytest.mark.usefixtures("few_descriptors")
def test_silence_noise_and_a_planted_package(
    tmp_path: Path,
    attacker: Account,
    slurm: VirtualSlurm,  # noqa: F811
) -> None:
    """Connections end, slow and fill nothing; a package where the worker starts, among the logs, is not run."""
    logs = tmp_path / "logs"
    planted = logs / "snakemake_executor_plugin_dask"
    planted.mkdir(parents=True)
    (planted / "__init__.py").write_text(f"open({str(tmp_path / 'planted')!r}, 'w')\n")
    pools = tmp_path / "pools.yaml"
    pools.write_text(POOLS.format(logs=logs))
    body = "while ! test -e go; do sleep 0.1; done"
    with snakemake(tmp_path / "run", logged_jobs(2, body), "--dask-pools", str(pools)) as run:
        wait_for(lambda: started(run) or run.process.poll() is not None, "a job started", 300)
        assert not (tmp_path / "planted").exists()
        assert run.process.poll() is None, run.output
        ports = listening(run)
        assert len(ports) == 3, ports  # scheduler, leases, worker
        assert set(ports.values()) == {"127.0.0.1"}
        where = [(address, port) for port, address in ports.items()]
        assert attacker.does(silence, where, 1100, 3.0) == 3300
        assert attacker.does(fuzz, where, 1000, 2, 60.0) > 300
        (run.directory / "go").touch()
        assert run.wait() == 0, run.output
        assert not run.events("worker-lost")
        assert sum(path.stat().st_size for path in run.directory.glob(".snakemake/dask/**/*.log")) < 500_000
