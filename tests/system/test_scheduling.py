"""Snakemake's own process around the jobs: what it asks for, forgets or locks, and what the plugin makes of it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import snakemake, wait_for

RETRIED_WHILE_A_CHECKPOINT_ENDS = """
rule all:
    input: "late.txt", "retried.txt", "high1.txt", "high2.txt"

checkpoint grow:
    output: directory("grown")
    threads: 0
    resources: mem_mb=1
    shell: "until grep -q restart output.txt; do sleep 0.1; done; mkdir {output}; touch {output}/1 {output}/2"

def grown(wildcards):
    return [f"{checkpoints.grow.get().output}/{n}" for n in "12"]

rule late:
    input: grown
    output: "late.txt"
    threads: 0
    resources: mem_mb=1
    shell: "cat {input} > {output}"

# It waits for its second attempt, since what became ready meanwhile goes first, and takes all places.
rule retried:
    output: "retried.txt"
    retries: 3
    threads: 0
    resources: mem_mb=1
    shell: "until test -e soon.txt; do sleep 0.1; done; echo x >> tries; test $(wc -l < tries) -ge 2; touch {output}"

localrules: soon
rule soon:
    output: "soon.txt"
    shell: "touch {output}"

rule high:
    input: "soon.txt"
    output: "high{n}.txt"
    priority: 10
    threads: 0
    resources: mem_mb=1
    shell: "until grep -q 'Finished.*grow' output.txt; do sleep 0.1; done; touch {output}"
"""


def test_retried_job_that_waits_while_a_checkpoint_ends(tmp_path: Path) -> None:
    """Snakemake passes over it when it looks for ready jobs anew, unless it no longer counts as running."""
    with snakemake(tmp_path, RETRIED_WHILE_A_CHECKPOINT_ENDS, "--jobs", "3") as run:
        assert run.wait() == 0, run.output
        assert "Trying to restart job" in run.output
        assert (tmp_path / "tries").read_text().split() == ["x", "x"]


PRIORITIES = """
rule all:
    input: expand("{name}.txt", name=["low", "high", "first"])

rule first:
    output: "first.txt"
    priority: 5
    shell: "until grep -q 'Finished.*soon' output.txt && test -e handed; do sleep 0.1; done; touch {output}"

rule low:
    output: "low.txt"
    priority: 0.1
    shell: "echo low >> order; touch {output}"

localrules: soon
rule soon:
    output: "soon.txt"
    shell: "touch {output}"

rule high:
    input: "soon.txt"
    output: "high.txt"
    priority: 0.9
    shell: "echo high >> order; touch {output}"
"""


def test_priorities_that_are_no_whole_numbers(tmp_path: Path) -> None:
    """A job of priority 0.9 that was handed over later starts before one of 0.1 that waits."""
    with snakemake(tmp_path, PRIORITIES, "--dask-worker-cores", "1") as run:
        wait_for(lambda: len(run.events("job-queued")) == 3, "all three handed over")
        (tmp_path / "handed").touch()
        assert run.wait() == 0, run.output
        assert (tmp_path / "order").read_text().split() == ["high", "low"]


TERMINATED_WHILE_LOCKED = """
import os, signal

rule all:
    input: "last.txt", "slow.txt"

checkpoint first:
    output: "first.txt"
    shell: "until test -e started; do sleep 0.1; done; touch {output}"

def after(wildcards):
    checkpoints.first.get()
    if not os.path.exists("sent"):
        open("sent", "w").close()
        # Here Snakemake's main thread holds its scheduler's lock.
        os.kill(os.getpid(), signal.SIGTERM)
    return "first.txt"

rule last:
    input: after
    output: "last.txt"
    shell: "touch {output}"

rule slow:
    output: "slow.txt"
    shell: "touch started; until grep -q 'Will exit' output.txt; do sleep 0.1; done; touch {output}"
"""


def test_sigterm_while_the_scheduler_is_locked(tmp_path: Path) -> None:
    """Snakemake's own handler would wait for ever: what runs ends, nothing else starts, and Snakemake leaves."""
    with snakemake(tmp_path, TERMINATED_WHILE_LOCKED) as run:
        assert run.wait() == 1, run.output
        assert (tmp_path / "slow.txt").exists()
        assert not (tmp_path / "last.txt").exists()
        run.expect_gone(10)


def asleep(pid: int) -> bool:
    """Whether a process's main thread waits for something, a hundred looks long."""
    return all(
        Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S" for _ in range(100)
    )


def test_second_ctrl_c(tmp_path: Path) -> None:
    """Who does not want to wait for the driver leaves at once, without a traceback; the driver goes on without it."""
    with snakemake(tmp_path, "rule all:\n    output: 'a'\n    shell: 'touch started; sleep 300'") as run:
        wait_for((tmp_path / "started").exists, "the job")
        driver = run.driver()
        os.kill(driver, signal.SIGSTOP)
        run.process.send_signal(signal.SIGINT)
        wait_for(lambda: "Terminating processes" in run.output and asleep(run.process.pid), "it waits for the driver")
        run.process.send_signal(signal.SIGINT)
        assert run.wait() != 0
        assert "Snakemake exits without waiting" in run.output
        assert "Traceback" not in run.output
        os.kill(driver, signal.SIGCONT)
        run.expect_gone(20)


FROM_A_QUEUE = """
import queue

found = queue.Queue()
end = object()
for number in range(3):
    found.put(f"{number}.txt")
found.put(end)

rule collect:
    input: from_queue(found, finish_sentinel=end)
    output: "all.txt"
    shell: "cat {input} > {output}"

rule make:
    output: "{i}.txt"
    shell: "echo {wildcards.i} > {output}"
"""


def test_input_from_a_queue(tmp_path: Path) -> None:
    """Only Snakemake's own process can read the queue: on this machine the job runs there, elsewhere it is refused."""
    with snakemake(tmp_path, FROM_A_QUEUE) as run:
        assert run.wait() == 0, run.output
        assert (tmp_path / "all.txt").read_text().split() == ["0", "1", "2"]
        told = "Rule collect takes its input from a queue (from_queue), which only Snakemake's own process can read"
        assert run.output.count(f"{told}: it runs there, as a local rule does.") == 1
    (tmp_path / "pools.yaml").write_text("pools:\n  a: {cluster: local, cores: 1}\n  b: {cluster: local, cores: 1}\n")
    with snakemake(tmp_path, FROM_A_QUEUE, "--dask-pools", "pools.yaml", "--forceall") as run:
        assert run.wait() == 1, run.output
        assert f"{told}; list it under localrules" in run.output


PIPES = """
rule all:
    input: "end.txt", "wide.txt"

rule one:
    output: pipe("one")
    threads: 2
    shell: "test {threads} = 2; seq 3 > {output}"

rule two:
    input: "one"
    output: pipe("two")
    shell: "while read n; do echo $((n + 1)); done < {input} > {output}"

rule three:
    input: "two"
    output: "end.txt"
    shell: "cat {input} > {output}"

rule wide:
    output: "wide.txt"
    threads: 4
    shell: "echo {threads} > {output}"
"""


@pytest.mark.parametrize("start", ["warm", pytest.param("cold", marks=pytest.mark.variant)])
def test_pipes_wider_than_the_worker(tmp_path: Path, start: str) -> None:
    """Jobs that pipes join run at once with the cores that they need; the worker counts what it has."""
    with snakemake(tmp_path, PIPES, "--dask-worker-cores", "2", "--dask-job-start", start) as run:
        assert run.wait() == 0, run.output
        assert (tmp_path / "end.txt").read_text().split() == ["2", "3", "4"]
        assert (tmp_path / "wide.txt").read_text().split() == ["2"]
        assert run.output.count("must run at once, with 4 cores; they share the local worker's 2") == 1
        assert sorted(event["request"]["cores"] for event in run.events("job-queued")) == [2, 2]


def test_more_cores_than_the_machine(tmp_path: Path) -> None:
    """Cores beyond the machine's are held as asked for, with a warning: as many jobs run at once."""
    number = os.cpu_count() or 1
    snakefile = f"""
rule all:
    input: expand("{{i}}.txt", i=range({number + 2}))

rule meet:
    output: "{{i}}.txt"
    shell: "touch h.{{wildcards.i}}; until test $(ls h.* | wc -l) = {number + 2}; do sleep 0.1; done; touch {{output}}"
"""
    with snakemake(tmp_path, snakefile, "--dask-worker-cores", str(number + 2)) as run:
        assert run.wait() == 0, run.output
        assert run.output.count(f"A worker is to have {number + 2} cores, but this machine has") == 1


API = """
import sys, threading
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ResourceSettings

def run(name):
    with SnakemakeApi() as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(nodes=10), snakefile=Path("Snakefile"), workdir=Path(sys.argv[1], name)
        )
        workflow.dag().execute_workflow(executor="dask")

for name in ("first", "second"):
    run(name)
thread = threading.Thread(target=run, args=("third",))
thread.start()
thread.join()
"""


def test_snakemakes_api_without_settings(tmp_path: Path) -> None:
    """The defaults are taken; twice in one process, and in a thread that is not the main one."""
    (tmp_path / "Snakefile").write_text("rule all:\n    output: 'done'\n    shell: 'echo $$ > {output}'\n")
    (tmp_path / "run.py").write_text(API)
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    done = subprocess.run(
        [sys.executable, "run.py", tmp_path], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.parent.name for path in sorted(tmp_path.glob("*/done"))] == ["first", "second", "third"]
    assert "Traceback" not in done.stderr


FIRSTFIT = (
    """
localrules: all, here

rule all:
    input: "all.txt", "grouped.txt", "here.txt", "broken.txt"

rule one_at_a_time:
    output: "slot/any"
    resources: slot=1
    shell: "mkdir taken; basename {output} >> order; rmdir taken; touch {output}"
"""
    + "".join(
        f"""
use rule one_at_a_time as rank_{rank} with:
    output: "slot/{rank}"
    priority: {rank}
"""
        for rank in range(6)
    )
    + """
checkpoint grow:
    input: expand("slot/{rank}", rank=range(6))
    output: directory("grown")
    shell: "mkdir {output}; touch {output}/1 {output}/2"

def grown(wildcards):
    return [f"{checkpoints.grow.get().output}/{n}" for n in "12"]

rule collect:
    input: grown
    output: "all.txt"
    shell: "cat {input} > {output}"

rule first_of_group:
    output: "first.txt"
    group: "both"
    resources: slot=1
    shell: "mkdir taken; touch {output}; rmdir taken"

rule second_of_group:
    input: "first.txt"
    output: "grouped.txt"
    group: "both"
    shell: "touch {output}"

rule here:
    output: "here.txt"
    shell: "touch {output}"

rule broken:
    output: "broken.txt"
    shell: "exit 3"
"""
)


def test_firstfit_keeps_what_snakemake_promises(tmp_path: Path) -> None:
    """With the recommended scheduler and unlimited jobs: priorities, --resources, groups, checkpoints, local rules."""
    arguments = "--jobs", "unlimited", "--resources", "slot=1", "--keep-going"
    with snakemake(tmp_path, FIRSTFIT, *arguments) as run:
        assert run.wait() == 1, run.output
        assert "Error in rule broken" in run.output
        # `mkdir` would have failed where two of them ran at once.
        assert [int(rank) for rank in (tmp_path / "order").read_text().split()] == [5, 4, 3, 2, 1, 0]
        assert all((tmp_path / name).exists() for name in ("all.txt", "grouped.txt", "here.txt"))
        queued = run.events("job-queued")
        assert sum(event["group"] for event in queued) == 1
        assert "here" not in {event["rule"] for event in queued}
