"""A real Slurm as sites and users have it: answers that get lost, variables of one's own, paths that it reads."""

import os
import shutil
from pathlib import Path

import pytest
from clusters.slurm import VirtualSlurm
from running import snakemake

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


#: Submits, and then says that nobody answered: the first time.
LOSING_ANSWERS = """#!/bin/sh
case "$*" in *--test-only*) exec {sbatch} "$@" ;; esac
[ ! -e {once} ] || exec {sbatch} "$@"
touch {once}
{sbatch} "$@" >/dev/null || exit
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1
"""

ONE_WORKER = ("--dask-cluster", "slurm", "--dask-workers", "1", "--dask-worker-cores", "1")
SIZE = ("--dask-worker-memory", "900 MB", "--dask-walltime", "10m")
JOB = 'rule work:\n    output: "out.txt"\n    shell: "touch {output}"\n'


def test_a_lost_answer_and_variables_of_ones_own(
    slurm: VirtualSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocation that was queued all the same is found and used, and no second one is asked for.

    SQUEUE_PARTITION and SCANCEL_STATE would hide it; a relative `log_directory` is below the working directory.
    """
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(LOSING_ANSWERS.format(sbatch=shutil.which("sbatch"), once=tmp_path / "lost"))
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SQUEUE_PARTITION", "gpu")
    monkeypatch.setenv("SCANCEL_STATE", "SUSPENDED")
    options = ("--dask-options", "{queue: cpu, log_directory: logs/slurm}")
    with snakemake(tmp_path / "run", JOB, *ONE_WORKER, *SIZE, *options) as run:
        assert run.wait() == 0, run.output
        assert (tmp_path / "lost").exists()
        assert len(run.events("allocation-submitted")) == 1
        assert not [event for event in run.events("allocation-gone") if not event["joined"]]
        (output,) = (run.directory / "logs" / "slurm").glob("snakemake-*/*.out")
        assert output.parent.stat().st_mode & 0o077 == 0
        monkeypatch.delenv("SQUEUE_PARTITION")
        monkeypatch.delenv("SCANCEL_STATE")
        assert not slurm.queue()


@pytest.mark.parametrize(
    ("directory", "resources", "said"),
    [
        ("run%j", "runtime=1", "holds '%', which sbatch does not take literally"),
        ("run", r'slurm_account=lambda wildcards: "a\ntouch HACKED"', "The resource slurm_account="),
    ],
)
def test_what_slurm_would_read_as_something_else(
    slurm: VirtualSlurm, tmp_path: Path, directory: str, resources: str, said: str
) -> None:
    """A working directory with a pattern in its name, a name with a line break: told before anything is submitted."""
    snakefile = JOB.replace("    shell", f"    resources: {resources}\n    shell")
    with snakemake(tmp_path / directory, snakefile, *ONE_WORKER, *SIZE) as run:
        assert run.wait() != 0
        assert said in run.output, run.output
        assert not run.events("allocation-submitted")
    assert not list(tmp_path.rglob("HACKED"))
