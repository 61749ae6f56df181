"""What a user reads when something fails: the exact words, with cause, host, worker, duration and log."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running import snakemake, wait_for

from snakemake_executor_plugin_dask.worker.supervisor.attempt import HOST

pytestmark = pytest.mark.xdist_group("failures-told")

FAILING = """
rule all:
    input: "failing.txt", "missing.txt", "signal.txt", "killed.txt", "second.txt", "error.txt", "fine.txt",
        "logged.a.txt"

rule failing:
    output: "failing.txt"
    shell: "echo before the end; echo to stderr >&2; exit 7"

rule missing:
    output: "missing.txt"
    shell: "echo made nothing"

rule signal:
    output: "signal.txt"
    shell: "echo about to crash; kill -SEGV $$"

rule killed:
    output: "killed.txt"
    shell: "echo all of it; kill -KILL $PPID; sleep 60"

rule first:
    output: "first.txt"
    group: "pair"
    shell: "echo x > {output}"

rule second:
    input: "first.txt"
    output: "second.txt"
    group: "pair"
    shell: "echo the second one; exit 9"

rule logged:
    output: "logged.{x}.txt"
    log: "logs/{x}.log"
    shell: "echo the reason > {log}; touch {output}; exit 3"

rule error:
    output: "error.txt"
    run:
        raise ValueError("not this way")

rule fine:
    output: "fine.txt"
    shell: "echo fine > {output}"
"""

#: A group is named with its jobs.
MEMBERS = r"(?: \(\d+ jobs?: [^)]*\))?"
WHERE = rf" \\(on host {re.escape(HOST)}, worker local-0, after \\d+\\.\\d s\\)\n".replace("\\\\", "\\")


def message(output: str, name: str) -> str:
    """The whole message about a job, from its first words to the path of its log."""
    found = re.search(rf"Job of {name}{MEMBERS}: .*?\nIts log: \S+\n", output, re.DOTALL)
    assert found, f"no message about {name} in:\n{output}"
    # Said where anything on this machine ran out of memory meanwhile, as another test lets it.
    return re.sub(f";? meanwhile the kernel killed processes on {re.escape(HOST)}, since memory was full", "", found[0])


@pytest.mark.parametrize("start", ["warm", pytest.param("cold", marks=pytest.mark.variant)])
def test_failed_jobs(tmp_path: Path, start: str) -> None:
    """Each message holds what ended the job, where, after how long, its log's last lines, and the path of that log."""
    arguments = ("--keep-going", "--latency-wait", "1", "--dask-job-start", start)
    with snakemake(tmp_path, FAILING, *arguments) as run:
        assert run.wait() == 1
        expected = {
            "failing": ("its command failed with exit code 7.", ["before the end", "to stderr"]),
            "missing": ("it failed with exit code 1.", ["made nothing", "MissingOutputException", "missing.txt"]),
            "signal": ("its command was ended by SIGSEGV.", ["about to crash"]),
            "killed": ("it was ended by signal 9 (SIGKILL).", ["all of it"]),
            "pair_first_second": (
                "its command failed with exit code 9 in rule second (output second.txt).",
                ["the second one"],
            ),
            "error": ("it failed with exit code 1.", ["not this way"]),
        }
        logged = message(run.output, r"logged \(x=a\)")
        assert re.search(
            rf"exit code 3\.{WHERE}The last lines of {tmp_path}/logs/a.log:\n    the reason\nIts log: ", logged
        )
        assert {event["wildcards"]["x"] for event in run.events("job-queued") if event["rule"] == "logged"} == {"a"}
        for name, (cause, lines) in expected.items():
            text = message(run.output, name)
            assert re.match(
                rf"Job of {name}{MEMBERS}: {re.escape(cause)}{WHERE}The last lines of its log:\n    ", text
            ), text
            assert [line for line in lines if line not in text] == []
            log = Path(text.rpartition("Its log: ")[2].strip())
            assert log.parent.parent == tmp_path / ".snakemake" / "dask_logs"
            assert lines[0] in log.read_text()
        assert {path.name for path in tmp_path.glob("*.txt")} == {"fine.txt", "output.txt"}
        run.expect_gone(10)


def test_unwritable_log_directory(tmp_path: Path) -> None:
    """One sentence before anything starts, and nothing is left behind."""
    (tmp_path / "file").write_text("")
    with snakemake(tmp_path, FAILING, "--dask-logdir", "file/logs") as run:
        assert run.wait() == 1
        assert "--dask-logdir" in run.output
        assert "file/logs" in run.output
        assert "Traceback" not in run.output
        assert not run.events()
        assert not list((tmp_path / ".snakemake").glob("dask*"))
        run.expect_gone(10)


#: Ends every worker process before it does anything.
NO_WORKER = """
import os, sys
if "snakemake_executor_plugin_dask.worker" in sys.orig_argv:
    print("the node has no such device", file=sys.stderr, flush=True)
    os._exit(3)
"""


def test_worker_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is given up after some attempts; the jobs fail with what the worker said, and nothing waits for ever."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(NO_WORKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'path'}:{os.environ.get('PYTHONPATH', '')}")
    snakefile = (
        'rule all:\n    input: expand("out{i}.txt", i=range(3))\n'
        'rule work:\n    output: "out{i}.txt"\n    shell: "touch {output}"\n'
    )
    old = [tmp_path / "work" / f"out{number}.txt" for number in range(3)]
    (tmp_path / "work").mkdir()
    for path in old:
        path.write_text("of an earlier run")
    with snakemake(tmp_path / "work", snakefile, "--forceall") as run:
        assert run.wait() == 1
        assert "A worker of pool local did not come up: exit code 3" in run.output
        assert "Pool local is given up: its workers do not come up." in run.output
        assert "the node has no such device" in run.output
        assert run.output.count("Error in rule work") == 1
        assert "fix that, and run Snakemake again" in run.output
        assert "2 jobs that waited were not started; their outputs are as they were before." in run.output
        assert [path.read_text() for path in old] == ["of an earlier run"] * 3
        assert not list((tmp_path / "work" / ".snakemake" / "incomplete").glob("*"))
        run.expect_gone(10)


#: What the jobs ask for is known only once a checkpoint has run. Of one pair of them each fits nowhere.
REFUSED = """
rule all:
    input: expand("{name}{i}.txt", name=["large", "small"], i=range(2)), "pair.txt"

checkpoint ask:
    output: "wanted.txt"
    shell: "echo 10000000 > {output}"

def wanted(wildcards):
    return int(open(checkpoints.ask.get().output[0]).read())

rule large:
    input: "wanted.txt"
    output: "large{i}.txt"
    resources: mem_mb=wanted
    shell: "echo new > {output}"

rule first:
    input: "wanted.txt"
    output: "first.txt"
    group: "pair"
    resources: mem_mb=wanted
    shell: "echo new > {output}"

rule pair:
    input: "first.txt"
    output: "pair.txt"
    group: "pair"
    shell: "echo new > {output}"

rule small:
    input: "wanted.txt"
    output: "small{i}.txt"
    shell: "echo new > {output}"
"""


def test_refused_jobs_keep_their_outputs(tmp_path: Path) -> None:
    """Jobs that fit nowhere, as is known only in the run, fail with the reason; what they made before stays."""
    old = [tmp_path / name for name in ("large0.txt", "large1.txt", "first.txt", "pair.txt")]
    for path in old:
        path.write_text("of an earlier run")
    with snakemake(tmp_path, REFUSED, "--forceall", "--keep-going") as run:
        assert run.wait() == 1
        assert run.output.count("Error in rule large") == 2
        assert run.output.count("Error in group") == 1
        assert run.output.count("mem_mb=10000000 is more than the") == 3
        assert [path.read_text() for path in old] == ["of an earlier run"] * 4
        assert [(tmp_path / f"small{i}.txt").read_text() for i in range(2)] == ["new\n"] * 2
        assert not list((tmp_path / ".snakemake" / "incomplete").glob("*"))
        run.expect_gone(10)
    listed = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--rerun-triggers", "mtime", "code"]
    planned = subprocess.run(listed, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "large" in planned, "a job that was refused does not count as done"


BROKEN_LATER = """
import os
if os.path.exists("edited"):
    raise ValueError("no longer a workflow")

localrules: edit

rule all:
    input: "out.txt"

rule edit:
    output: "edited"
    shell: "touch {output}"

rule work:
    input: "edited"
    output: "out.txt"
    shell: "touch {output}"
"""


def test_workflow_that_fails_on_the_worker(tmp_path: Path) -> None:
    """A Snakefile that cannot be read any more when the worker reads it: the job fails with that reason."""
    with snakemake(tmp_path, BROKEN_LATER) as run:
        assert run.wait() == 1
        text = message(run.output, "work")
        assert "it failed with exit code 1." in text
        assert "no longer a workflow" in text
        run.expect_gone(10)


def test_suspect_is_named(tmp_path: Path) -> None:
    """Without further attempts allowed a lost worker fails its job, with the number of losses and the setting."""
    snakefile = 'rule work:\n    output: "out.txt"\n    shell: "echo here; touch started; sleep 300"\n'
    with snakemake(tmp_path, snakefile, "--dask-lost-worker-retries", "0") as run:
        wait_for((tmp_path / "started").exists, "the job started")
        pid = run.facts()["pid"]
        subprocess.run([sys.executable, "-c", f"import os; os.kill({pid}, 9)"], check=True)
        assert run.wait() == 1
        assert "Worker local-0 was lost: its connection closed; 1 job ran on it." in run.output
        assert "Job of work: It lost its worker 1 times (worker local-0 was lost (its connection closed))" in run.output
        assert "--dask-lost-worker-retries is 0." in run.output
        run.expect_gone(10)


UNSTABLE = """
import time
workdir: "inner"
A, B, C, D = (f"{name}.{time.time_ns()}" for name in ("shell", "run", "shadow", "group"))

rule all:
    input: "fine.txt", A, B, C, D

rule fine:
    output: "fine.txt"
    shell: "touch {output}"

rule by_shell:
    output: A
    params: name=lambda wildcards: A
    shell: "touch {params.name}"

rule by_run:
    output: B
    run: open(output[0], "w")

rule in_shadow:
    output: C
    shadow: "minimal"
    shell: "touch {output}"

rule in_group:
    output: D
    group: "alone"
    shell: "echo from the job; touch {output}"
"""


def test_files_that_are_not_those_expected(tmp_path: Path) -> None:
    """Names that change with each reading are told as such, or the log stays. `--directory` goes before `workdir:`."""
    arguments = ("--directory", "outer", "--latency-wait", "1", "--keep-going", "--nocolor")
    with snakemake(tmp_path, UNSTABLE, *arguments) as run:
        assert run.wait() == 1
        assert (tmp_path / "outer/fine.txt").exists(), run.output
        for rule, name in (("by_shell", "shell"), ("by_run", "run"), ("in_shadow", "shadow")):
            words = (
                f"The output files of rule {rule} have other names each time the workflow is read: Snakemake expects"
            )
            assert f"{words} {name}." in run.output, run.output
        found = re.search(
            rf"Job of alone_in_group{MEMBERS}: its process ended without an error .* Its log: (.*)", run.output
        )
        assert found, run.output
        assert "from the job" in Path(found[1]).read_text()
        assert len(list(tmp_path.glob("outer/.snakemake/dask_logs/*/*"))) == 4
