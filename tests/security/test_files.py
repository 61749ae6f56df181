"""What an attacker's account does in a directory that it may write, while a run works there.

Planted records, links and pickles, directories put in the place of others: none of it is followed, believed or run.
"""

import contextlib
import json
import os
import pickle
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters.slurm import VirtualSlurm
from running import RUN_S, SnakemakeRun, snakemake, wait_for
from security.conftest import Account
from system.conftest import slurm, slurm_cluster  # noqa: F401 - fixtures

pytestmark = pytest.mark.timeout(600)

SNAKEFILE = """
rule all:
    input: "second.txt"
rule first:
    output: "first.txt"
    shell: "touch started; while ! test -e go; do sleep 0.1; done; touch {output}"
rule second:
    input: "first.txt"
    output: "second.txt"
    shell: "echo said by the second job; exit 3"
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory in which everybody may write, as a group's is with umask 002."""
    directory = Path(tempfile.mkdtemp(prefix="shared-"))
    directory.chmod(0o2777)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def masked(umask: int) -> Iterator[None]:
    former = os.umask(umask)
    try:
        yield
    finally:
        os.umask(former)


class Evil:
    """Unpickled, it makes a file: with whose rights, the file's owner tells."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (os.fspath(self._path), 0o644)


def plant_links(directory: Path, target: Path) -> list[str]:
    """Links to a file of the victim's under the names that the next job's log and the report are going to have."""
    (log,) = directory.glob(".snakemake/dask_logs/first/*.log")
    run = log.name.split(".")[2]
    planted = [directory / ".snakemake" / "dask_logs" / "second" / f"{job}.1.{run}.log" for job in range(5)]
    planted += [directory / name for name in ("report.html", ".report.html.new")]
    planted[0].parent.mkdir()
    for path in planted:
        path.symlink_to(target)
    return [os.fspath(path) for path in planted]


def swap(directory: Path, names: list[str], evil: bytes) -> None:
    """Put a directory of one's own in the place of the run's, with the files that a worker reads."""
    root = directory / ".snakemake" / "dask"
    root.rename(root.with_name("away"))
    for name in names:
        run = root / name
        (run / "workers").mkdir(parents=True)
        (run / "setup.pickle").write_bytes(evil)
        (run / "driver.log").symlink_to("/etc/passwd")
        for number in range(3):
            text = json.dumps({"setup": os.fspath(run / "setup.pickle"), "scheduler": "tls://127.0.0.1:1"})
            (run / "workers" / f"local-{number}.json").write_text(text)


def first_started(run: SnakemakeRun) -> None:
    started = run.directory / "started"
    wait_for(lambda: started.exists() or run.process.poll() is not None, "the first job started", RUN_S)
    assert started.exists(), run.output


def closed(path: Path) -> bool:
    found = path.lstat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o077


@pytest.mark.parametrize(
    "umask", [0o000, *(pytest.param(umask, marks=pytest.mark.variant) for umask in (0o002, 0o022)), 0o077]
)
def test_a_run_on_this_machine(attacker: Account, shared: Path, umask: int) -> None:
    """Keys are out of reach with every umask; links under the names of logs and report leave their target alone.

    (The attacker is in no group of the victim's: links can be planted where everybody may write.)
    """
    secret = shared / "secret.txt"
    secret.write_text("for the victim alone\n")
    secret.chmod(0o600)
    open_to_all = not umask & 0o002
    with masked(umask), snakemake(shared, SNAKEFILE, "--dask-report", "report.html") as run:
        first_started(run)
        (directory,) = [path for path in shared.glob(".snakemake/dask/*") if path.is_dir()]
        # What Dask writes for itself follows the umask, behind directories that nobody else enters.
        ours = [path for path in directory.rglob("*") if "dask-scratch-space" not in path.parts]
        assert [path for path in (directory.parent, directory, *ours) if not closed(path)] == []
        with pytest.raises(PermissionError):
            attacker.does(os.listdir, directory.parent)
        if open_to_all:
            attacker.does(plant_links, shared, secret)
        (shared / "go").touch()
        assert run.wait() != 0
        assert "said by the second job" in run.output, run.output
        assert "for the victim alone" not in run.output
        assert secret.read_text() == "for the victim alone\n"
        assert not (shared / "report.html").is_symlink()


def test_a_directory_in_the_place_of_the_runs(attacker: Account, shared: Path) -> None:
    """Its pickle is not run by the next worker, its files stay, and the run's own keys are removed all the same."""
    marker = shared / "marker"
    with masked(0o000), snakemake(shared, SNAKEFILE) as run:
        first_started(run)
        (directory,) = [path for path in shared.glob(".snakemake/dask/*") if path.is_dir()]
        worker = run.facts()["pid"]
        attacker.does(swap, shared, [directory.name], pickle.dumps(Evil(marker)))
        os.kill(worker, signal.SIGKILL)
        (shared / "go").touch()
        assert run.wait() != 0
        run.expect_gone(60)
    assert not marker.exists()
    away = shared / ".snakemake" / "away" / directory.name
    assert not list(away.rglob("*.pem"))
    assert not list(away.rglob("setup.pickle"))
    assert (directory / "setup.pickle").exists()


def refused(run: SnakemakeRun) -> str:
    assert run.wait() != 0
    assert "which nobody else may write, but" in run.output, run.output
    return run.output


def plant_record(directory: Path) -> None:
    run = directory / ".snakemake" / "dask" / "abcdefg1"
    run.mkdir(parents=True)
    record(run)


def record(run: Path) -> None:
    """As an earlier run could have left it, but for what stands for the ids."""
    lines: list[dict[str, Any]] = []
    for number, planted in enumerate(("--user=root", "-u root", "0")):
        name = f"cpu-{number}"
        lines += [{"submitting": name, "name": "snakemake-abcdefg1-cpu", "system": "slurm", "where": None}]
        lines += [{"submitted": name, "id": planted}]
    run.joinpath("allocations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.joinpath("allocations.jsonl").chmod(0o600)


@pytest.mark.slurm
def test_planted_records_cancel_nothing(
    attacker: Account,
    shared: Path,
    slurm: VirtualSlurm,  # noqa: F811
) -> None:
    """Neither in a directory of the attacker's, nor in one that the group may write, nor under a dead run's name."""
    bystander = slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 600").strip()
    pool = ["--dask-cluster", "slurm", "--dask-workers", "0-1", "--dask-worker-cores", "1"]
    pool += ["--dask-worker-memory", "900 MB", "--dask-walltime", "10m"]
    snakefile = 'rule all:\n    output: "out.txt"\n    shell: "touch {output}"\n'
    root = shared / ".snakemake" / "dask"
    try:
        attacker.does(plant_record, shared)
        with snakemake(shared, snakefile, *pool) as run:
            assert "belongs to another user" in refused(run)
        shutil.rmtree(root)
        root.mkdir(mode=0o700)
        attacker.does(os.rename, root, root.with_name("mine"))
        attacker.does(os.symlink, root.with_name("mine"), root)
        with snakemake(shared, snakefile, *pool) as run:
            assert "it is a link" in refused(run)
        root.unlink()
        root.with_name("mine").rename(root)
        (root / "abcdefg1").mkdir(mode=0o700)
        record(root / "abcdefg1")
        # Of a process of this boot that is no more: known to be dead.
        from snakemake_executor_plugin_dask.node.former import this_process

        lock = this_process().to_json().replace(b'"start": "', b'"start": "9')
        (root / "abcdefg1" / "lock").write_bytes(lock)
        (root / "abcdefg1" / "lock").chmod(0o600)
        with snakemake(shared, snakefile, *pool) as run:
            assert run.wait() == 0, run.output
        assert slurm.run("squeue", "--noheader", f"--jobs={bystander}", "--format=%T").strip() in ("RUNNING", "PENDING")
    finally:
        slurm.run("scancel", bystander, check=False)
        wait_for(lambda: not slurm.queue(), "the queue empty", 60)
