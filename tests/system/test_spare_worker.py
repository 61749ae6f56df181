"""The first worker on this machine, which is started before Snakemake knows the run: in the process table and files."""

from pathlib import Path

import pytest
from running import SnakemakeRun, processes_of, snakemake, wait_for

#: What its worker has written so far, as a job sees it.
LOOK = """
import sys

print("the workflow was read", file=sys.stderr)

rule look:
    output: "log"
    shell: "cat .snakemake/dask/*/workers/*-0.log > {output}; until test -e go; do sleep 0.1; done"
"""


def command_of_worker(run: SnakemakeRun) -> str:
    """While the job runs, which then ends."""
    command = Path("/proc", str(run.facts()["pid"]), "cmdline").read_text()
    (run.directory / "go").touch()
    return command


@pytest.mark.parametrize(
    ("arguments", "ahead"),
    [
        ((), True),
        (("--dask-worker-cores", "2"), True),
        (("--dask-job-start", "cold"), False),
        (("--dask-workers", "0-2"), True),
    ],
)
def test_it_is_the_runs_first_worker(tmp_path: Path, arguments: tuple[str, ...], ahead: bool) -> None:
    """Where it can be, and nowhere else; what its warm process writes is in the worker's log, as ever."""
    with snakemake(tmp_path, LOOK, *arguments) as run:
        assert ("--ahead" in command_of_worker(run)) is ahead
        assert run.wait() == 0, run.output
        assert ("the workflow was read" in (tmp_path / "log").read_text()) is ahead
        assert len(run.events("worker-joined")) == 1
        run.expect_gone(10)
    assert list((tmp_path / ".snakemake/dask").glob("*/")) == []


@pytest.mark.parametrize(
    "arguments",
    [("--dask-worker-cores", "none"), ("--dask-worker-memory", "999T"), ("--default-resources", "mem_mb=10**9")],
)
def test_a_run_that_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """By then its processes are there; they go, and nothing was written."""
    with snakemake(tmp_path, LOOK, *arguments) as run:
        assert run.wait() == 1
        run.expect_gone(10)
        wait_for(lambda: not processes_of(str(tmp_path)), "the processes ended", 10)
    assert not (tmp_path / ".snakemake/dask").exists()


def test_another_pool_of_this_machine(tmp_path: Path) -> None:
    """A pools file may have several; their workers start with the run."""
    (tmp_path / "pools.yaml").write_text("pools:\n  mine: {cluster: local, workers: 1, cores: 1, memory: 1G}\n")
    with snakemake(tmp_path, LOOK, "--dask-pools", "pools.yaml") as run:
        assert "--ahead" not in command_of_worker(run)
        assert run.wait() == 0, run.output
        run.expect_gone(10)
