"""Disks that are full, vanish or are slow: no job is lost by its log, and a run always ends, with a reason."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import snakemake, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts small file systems")


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of its own, of so little size."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill(directory: Path) -> Path:
    """Leave not a byte free."""
    path = directory / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    return path


LOGS = """
rule all:
    input: "fine.txt", "bad.txt"

rule fine:
    output: "fine.txt"
    shell: "seq 100000; echo fine > {output}"

rule bad:
    output: "bad.txt"
    shell: "echo the reason; exit 5"
"""


def test_full_under_the_logs(tmp_path: Path) -> None:
    """Jobs run as they would; the failing one's log is elsewhere, and the message says where and why."""
    with small_disk(tmp_path / "logs", "64k") as logs:
        fill(logs)
        with snakemake(tmp_path, LOGS, "--keep-going", "--dask-logdir", str(logs)) as run:
            assert run.wait() == 1
            assert (tmp_path / "fine.txt").read_text() == "fine\n"
            assert "its command failed with exit code 5" in run.output
            assert "could not be written (No space left on device), so it is in " in run.output
            assert "    the reason\n" in run.output
            found = re.search(r"\nIts log: (\S+)\n", run.output)
            assert found
            log = Path(found[1])
            assert "the reason" in log.read_text()
            log.unlink()
            run.expect_gone(10)


VANISHING = """
rule all:
    input: "second.txt", "bad.txt"

rule first:
    output: "first.txt"
    shell: "echo in the log; touch first.started; while ! test -e go; do sleep 0.1; done; echo more; touch {output}"

rule second:
    input: "first.txt"
    output: "second.txt"
    shell: "echo second; touch {output}"

rule bad:
    input: "first.txt"
    output: "bad.txt"
    shell: "echo the reason; exit 5"
"""


@pytest.mark.parametrize("how", ["gone", "a file"])
def test_log_directory_vanishes(tmp_path: Path, how: str) -> None:
    """The log directory is removed, or replaced, while jobs run: all of them end as they would."""
    with snakemake(tmp_path, VANISHING, "--keep-going") as run:
        wait_for((tmp_path / "first.started").exists, "the first job started")
        logs = tmp_path / ".snakemake" / "dask_logs"
        shutil.rmtree(logs)
        if how == "a file":
            logs.write_text("")
        (tmp_path / "go").touch()
        assert run.wait() == 1
        assert (tmp_path / "second.txt").exists()
        assert "Job of bad: its command failed with exit code 5" in run.output
        assert "    the reason\n" in run.output
        assert ("could not be written (Not a directory)" in run.output) == (how == "a file")
        run.expect_gone(10)


FILLING = """
rule all:
    input: "out/big.txt", "small.txt"

rule big:
    output: "out/big.txt"
    shell: "head -c 10000000 /dev/zero > {output}"

rule small:
    output: "small.txt"
    shell: "touch {output}"
"""


def test_full_under_the_outputs(tmp_path: Path) -> None:
    """The job that needs the room fails with its own error; the others go on."""
    with small_disk(tmp_path / "out", "1m") as out, snakemake(tmp_path, FILLING, "--keep-going") as run:
        assert run.wait() == 1
        assert "Job of big: its command failed with exit code 1" in run.output
        assert "No space left on device" in run.output
        assert (tmp_path / "small.txt").exists()
        assert not list(out.iterdir()), "what was half written is removed"
        run.expect_gone(10)


ALL_FULL = """
rule all:
    input: expand("{i}.txt", i=range(4))

rule fill:
    output: "{i}.txt"
    shell: "touch {wildcards.i}.started; while ! test -e go; do sleep 0.1; done; head -c 200000 /dev/zero > {output}"
"""


def test_full_under_everything(tmp_path: Path) -> None:
    """Outputs, event log, logs and Snakemake's records are on one full disk: the run ends, the next one does it all."""
    with small_disk(tmp_path / "work", "4m") as work:
        with snakemake(work, ALL_FULL, "--keep-going", "--dask-worker-cores", "2") as run:
            wait_for(lambda: len(list(work.glob("*.started"))) == 2, "two jobs started")
            fill(work)
            # An entry in a directory takes no room on this file system.
            (work / "go").touch()
            assert run.wait() == 1
            run.expect_gone(10)
        (work / "filler").unlink()
        with snakemake(work, ALL_FULL, "--rerun-incomplete") as run:
            assert run.wait() == 0, run.output
            assert [(work / f"{i}.txt").stat().st_size for i in range(4)] == [200000] * 4
            run.expect_gone(10)


def test_full_under_the_event_log(tmp_path: Path) -> None:
    """What the run keeps of itself cannot be written any more: it says so once, and goes on."""
    more = ALL_FULL.replace("range(4)", "range(24)")
    with small_disk(tmp_path / ".snakemake" / "dask", "1m") as disk, snakemake(tmp_path, more) as run:
        wait_for(lambda: len(list(tmp_path.glob("*.started"))) == 2, "two jobs started")
        fill(disk)
        (tmp_path / "go").touch()
        assert run.wait() == 0, run.output
        assert (
            len(re.findall(r"cannot be written \((No space left on device|the file system is full)\)", run.output)) == 1
        )
        assert all((tmp_path / f"{i}.txt").stat().st_size == 200000 for i in range(24))
        run.expect_gone(10)


LATE = """
rule all:
    input: "after.txt"

rule late:
    output: "late.txt"
    shell: "touch started"

rule after:
    input: "late.txt"
    output: "after.txt"
    shell: "cp {input} {output}"
"""


@pytest.mark.parametrize("start", ["warm", pytest.param("cold", marks=pytest.mark.variant)])
def test_late_output(tmp_path: Path, start: str) -> None:
    """`--latency-wait` is what it is with any executor: an output within it is taken, as of a slow file server."""

    def waits() -> bool:
        logs = (tmp_path / ".snakemake" / "dask_logs").glob("late/*.log")
        return any("Waiting at most" in log.read_text() for log in logs)

    with snakemake(tmp_path, LATE, "--latency-wait", "60", "--dask-job-start", start) as run:
        wait_for(waits, "the job's Snakemake misses its output")
        (tmp_path / "late.txt").write_text("late\n")
        assert run.wait() == 0, run.output
        assert (tmp_path / "after.txt").read_text() == "late\n"
        run.expect_gone(10)


def test_output_that_does_not_come(tmp_path: Path) -> None:
    """One that is not there after `--latency-wait` is missing."""
    with snakemake(tmp_path, LATE, "--latency-wait", "1") as run:
        assert run.wait() == 1
        assert "MissingOutputException" in run.output
        assert not (tmp_path / "after.txt").exists()
        run.expect_gone(10)
