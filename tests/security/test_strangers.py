"""Another user of the machine against a run: at its ports, and by what stands in the process table."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import SnakemakeRun, logged_jobs, slowness, snakemake, started, wait_for

from snakemake_executor_plugin_dask.model.kept import Ask, End
from snakemake_executor_plugin_dask.model.wire import frame
from snakemake_executor_plugin_dask.node import processes
from snakemake_executor_plugin_dask.node.certificate import self_signed

from .conftest import Account
from .ports import answers, fuzz, listening, silence

_CONNECTIONS = 1100  # more than the descriptors that a process may have open by default


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that others can enter, as home directories often are."""
    made = Path(tempfile.mkdtemp(prefix="strangers-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def log_sizes(run: SnakemakeRun) -> int:
    """Of the plugin's own logs."""
    return sum(path.stat().st_size for path in run.directory.glob(".snakemake/dask/**/*.log"))


def jobs_go_on(run: SnakemakeRun, of: int) -> None:
    """A job that starts after now also ends."""
    (run.directory / "go").touch()
    assert run.wait() == 0, run.output
    assert len(list((run.directory / "out").iterdir())) == of


def attack(run: SnakemakeRun, attacker: Account, noises: int) -> None:
    """Silence and noise at every port; nothing comes of it."""
    where = [(address, port) for port, address in sorted(listening(run).items())]
    before = log_sizes(run)
    assert attacker.does(silence, where, _CONNECTIONS, 3.0) == _CONNECTIONS * len(where)
    assert attacker.does(fuzz, where, noises, 1, 60.0) > 300
    assert run.process.poll() is None, run.output
    assert log_sizes(run) - before < 500_000
    assert len(run.events("worker-lost")) == 0


@pytest.mark.usefixtures("few_descriptors")
@pytest.mark.parametrize("noises", [1000, pytest.param(10_000, marks=pytest.mark.variant)])
def test_silence_and_noise_end_no_run_on_this_machine(directory: Path, attacker: Account, noises: int) -> None:
    """More connections than a process may have descriptors, and thousands that send what no client sends."""
    body = "while ! test -e go; do sleep 0.1; done"
    with snakemake(directory, logged_jobs(3, body), "--dask-worker-cores", "1", "--dask-dashboard", "auto") as run:
        wait_for(lambda: started(run), "a job started")
        ports = listening(run)
        assert set(ports.values()) == {"127.0.0.1"}
        assert len(ports) == 4, ports  # scheduler, leases, worker, dashboard
        attack(run, attacker, noises)
        jobs_go_on(run, 3)
    run.expect_gone(20)


@pytest.mark.usefixtures("few_descriptors")
def test_a_cluster_that_stays_is_closed_to_others(
    directory: Path, attacker: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head's door, too: no noise ends it or its run, and nobody else reads what is written down of it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(directory / "state"))
    body = "while ! test -e go; do sleep 0.1; done"
    with snakemake(directory, logged_jobs(3, body), "--dask-worker-cores", "1", "--dask-keep", "1h") as run:
        wait_for(lambda: started(run), "a job started")
        ports = listening(run)
        assert set(ports.values()) == {"127.0.0.1"}
        assert len(ports) == 4, ports  # scheduler, leases, the head's door, worker
        assert attacker.does(os.access, str(directory / "state" / "snakemake-dask"), os.X_OK) is False
        where = [(address, port) for port, address in sorted(ports.items())]
        (record,) = (directory / "state" / "snakemake-dask").iterdir()
        keys = [(record / f"tls-{name}.pem").read_text() for name in ("cert", "key")]
        assert any(b"until_s" in answer for answer in answers(where, frame(Ask()), keys))  # the head's
        for message in (Ask(), End(force=True)):
            assert attacker.does(answers, where, frame(message), list(self_signed())) == []
        attack(run, attacker, 1000)
        jobs_go_on(run, 3)
        assert run.processes()  # the cluster has not ended


def test_who_only_looks_like_a_supervisor_is_not_believed(directory: Path, attacker: Account) -> None:
    """A process of another user's that calls itself a supervisor of this run, and carries its jobs' key."""
    body = "while ! test -e go; do sleep 0.1; done"
    with snakemake(directory, logged_jobs(1, body)) as run:
        wait_for(lambda: started(run), "the job started")
        run_id = run.events("run-started")[0]["run_id"]
        state = directory / ".snakemake" / "dask" / run_id
        disguised = attacker.starts(
            "/usr/bin/env",
            f"SNAKEMAKE_DASK_JOB=work-{run_id}-0-1.1",
            "/bin/sh",
            "-c",
            "sleep 600; :",
            processes.SUPERVISOR.decode(),
            f"{state}/workers/lease-local-0.json",
        )
        try:
            wait_for(lambda: processes.SUPERVISOR in processes.command_line(disguised.pid), "its disguise")
            assert not processes.is_supervisor(disguised.pid)
            assert processes.job_key(disguised.pid) is None
            begun = time.monotonic()
            jobs_go_on(run, 1)
            assert "may still be running" not in run.output
            assert processes.kill_worker(str(state), "local-0", [run_id], timeout_s=60.0)
            assert time.monotonic() - begun < 60 * slowness()
            assert disguised.poll() is None  # it is none of the run's business
        finally:
            os.killpg(disguised.pid, 9)
            disguised.wait()
