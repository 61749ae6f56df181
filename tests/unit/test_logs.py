"""Where a job's log goes, and what of it is shown."""

import os
import time

import pytest

from snakemake_executor_plugin_dask.node.logs import (
    clean_tail,
    command_end,
    failed_members,
    remove_elsewhere,
    tail,
    usable_log,
)


def test_directories_are_made_and_content_stays(tmp_path):
    """The test write leaves no trace, in an old file either."""
    path = tmp_path / "a" / "b" / "job.log"
    assert usable_log(str(path), []) == (str(path), "")
    assert path.read_bytes() == b""
    path.write_text("before\n")
    assert usable_log(str(path), []) == (str(path), "")
    assert path.read_text() == "before\n"


def test_fallbacks_in_their_order(tmp_path):
    """The first place that takes a write; where none does, /dev/null, and it is said."""
    (tmp_path / "file").write_text("")
    (tmp_path / "good").mkdir()
    bad = str(tmp_path / "file" / "job.log")
    path, note = usable_log(bad, [str(tmp_path / "file"), str(tmp_path / "good")])
    assert path == str(tmp_path / "good" / f"snakemake-dask-{os.getuid()}" / "job.log")
    assert (bad in note, path in note, "Not a directory" in note) == (True, True, True)
    path, note = usable_log(bad, [str(tmp_path / "file")])
    assert (path, "output is lost" in note) == ("/dev/null", True)


def test_a_directory_that_goes_meanwhile_is_made_again(tmp_path, monkeypatch):
    """With its last log, by another supervisor of this node; it stays while there are others."""
    places, directory = [str(tmp_path)], tmp_path / f"snakemake-dask-{os.getuid()}"
    first, _ = usable_log("/dev/null/first.log", places)
    second, _ = usable_log("/dev/null/second.log", places)
    remove_elsewhere(first)
    assert os.listdir(directory) == ["second.log"]
    remove_elsewhere(second)
    assert not directory.exists()
    gone, lstat = [], os.lstat

    def remove(path):
        found = lstat(path)
        if not gone:
            gone.append(os.rmdir(path))
        return found

    monkeypatch.setattr(os, "lstat", remove)
    assert usable_log("/dev/null/third.log", places)[0] == str(directory / "third.log")
    assert gone


def test_place_that_another_user_took_is_not_used(tmp_path):
    """A link under the fallback directory's name, as another user may lay it in /dev/shm, is not followed."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "shm").mkdir()
    (tmp_path / "shm" / f"snakemake-dask-{os.getuid()}").symlink_to(tmp_path / "theirs")
    path, _ = usable_log("/dev/null/x", [str(tmp_path / "shm")])
    assert path == "/dev/null"
    assert not list((tmp_path / "theirs").iterdir())


def test_tail_is_short_and_clean():
    """Twenty lines, no control characters, what a progress bar overwrote left out, undecodable bytes replaced."""
    data = b"".join(b"line %d\n" % i for i in range(100)) + b"10%\r55%\r\x1b[1;31m99%\x1b[0m\a\r\nbad \xff\tend\n\n"
    lines = clean_tail(data, cut=False).split("\n")
    assert len(lines) == 20
    assert lines[-3:] == ["line 99", "99%", "bad \ufffd\tend"]


def test_tail_has_a_size_limit(tmp_path):
    """One endless line, of bytes that grow when they are replaced, stays below the limit."""
    path = tmp_path / "log"
    path.write_bytes(b"\xff" * 100_000)
    text = tail(str(path))
    assert 0 < len(text.encode()) <= 4096
    path.write_bytes(b"x" * 5000 + b"\nlast\n")
    assert tail(str(path)) == "last"


FRAMED = b"""[Fri Nov 27 06:49:01 2026]
localrule align:
    output: a.bam
    jobid: 3
    resources: tmpdir=/tmp, mem_mb=1000
%bRuleException:
CalledProcessError in file "/w/Snakefile", line 15:
Command 'set -euo pipefail;  bwa
mem' returned non-zero exit status 9.
[Fri Nov 27 06:49:02 2026]
Error in rule align:
    message: None
    jobid: 3
    shell:
        bwa
        (command exited with non-zero exit code)
Removing output files of failed job align since they might be corrupted:
a.bam, a.bai
Shutting down, this might take some time.
Exiting because a job execution failed. Look above for error messages
WorkflowError:
At least one job did not complete successfully.
"""


def test_tail_is_what_the_job_wrote():
    """Snakemake's blocks around it do not push it out, and are not shown where a job wrote nothing."""
    assert clean_tail(FRAMED % b"bwa: index not found\n    see: bwa index\n", cut=False) == (
        "bwa: index not found\n    see: bwa index"
    )
    assert clean_tail(FRAMED % b"", cut=False) == ""
    error = b'RuleException:\nValueError in file "/w/Snakefile", line 3:\nnot this way\n'
    assert clean_tail(FRAMED % error, cut=False) == error.decode().strip()


def test_failed_members_of_a_group(tmp_path):
    """Their rules and outputs, as the group's Snakemake tells of them."""
    path = tmp_path / "log"
    path.write_bytes(FRAMED % b"Error in rule none:\n    of the job's own\n" + FRAMED.replace(b"align", b"sort") % b"")
    assert failed_members(str(path)) == "in rule align, sort"
    path.write_bytes(b"\nError in rule a:\n    message: None\n    jobid: 1\n    output: a.txt, b.txt\n")
    assert failed_members(str(path)) == "in rule a (output a.txt, b.txt)"
    assert failed_members(str(tmp_path / "none")) == ""


def test_tail_of_nothing(tmp_path):
    """No file, no lines."""
    assert tail(str(tmp_path / "none")) == ""


def test_end_of_the_command_itself(tmp_path):
    """Exit code or signal as Snakemake wrote it, also far before the end; what a job itself printed does not count."""
    path = tmp_path / "log"
    head = b'RuleException:\nCalledProcessError in file "/w/Snakefile", line 6:\nCommand '
    for written, said in (
        (head + b"'set -u;  x\ny' returned non-zero exit status 7.\n", "its command failed with exit code 7"),
        (head + b"'x' returned non-zero exit status 137.\n", "its command failed with exit code 137 (SIGKILL)"),
        (head + b"'x' returned non-zero exit status 255.\n", "its command failed with exit code 255"),
        (head + b"'x' died with <Signals.SIGSEGV: 11>.\n", "its command was ended by SIGSEGV"),
        (b"Command 'x' returned non-zero exit status 3.\n", ""),
    ):
        path.write_bytes(b"output\n" + written + b"    shell: x\n" * 1000)
        assert command_end(str(path)) == said
    assert command_end(str(tmp_path / "none")) == ""


@pytest.mark.parametrize(
    "line",
    [
        b'RuleException:\nCalledProcessError in file "/w/Snakefile", line 1:\nCommand \'x\n',
        b'CalledProcessError in file "/w/Snakefile", line 1:\n',
        b"returned non-zero exit status " + b"1" * 5000 + b".\n",
        b'CalledProcessError in file "' + b", line 1" * 1000,
        b"\x1b[0000\x1b]0000",
        b"Error in rule x:\n    y\n",
        b"SNAKEMAKE\n=====\n  x",
    ],
)
def test_no_log_takes_long_to_read(tmp_path, line):
    """The interpreter is held meanwhile, and with it all other jobs of the worker."""
    path = tmp_path / "log"
    path.write_bytes(b"\n" + line * ((2 << 20) // len(line)))
    before = time.thread_time()
    assert command_end(str(path)) == ""
    assert failed_members(str(path)) == ""
    tail(str(path))
    assert time.thread_time() - before < 2
