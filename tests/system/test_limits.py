"""Limits of jobs that share a worker, through whole runs: who exceeds one is ended alone, and told so."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import SnakemakeRun, ended, slowness, snakemake, started, wait_for

from snakemake_executor_plugin_dask.worker.supervisor.attempt import HOST

#: Holds so many MB, written page by page, for so long: longer than from one look at a job's memory to the next.
HOLD = """
import os, sys, time
size, seconds = int(sys.argv[1]), float(sys.argv[2])
held = bytearray()
while len(held) < size * 1_000_000:
    held += b"x" * 5_000_000
    time.sleep(0.005)
for _ in range(int(sys.argv[3]) if len(sys.argv) > 3 else 0):
    if os.fork() == 0:
        time.sleep(seconds)
        os._exit(sum(held[::4096]) == 0)
time.sleep(seconds + (0.5 if len(sys.argv) > 3 else 0))
"""

MEMORY = """
rule all:
    input: "greedy.txt", "grows.txt", "neighbour.txt", "sharing.txt", "unlimited.txt"

rule greedy:
    output: "greedy.txt"
    resources: mem_mb=150
    shell: "echo start greedy >> log.txt; PYTHON hold.py 500 60; touch {output}"

rule grows:
    output: "grows.txt"
    retries: 2
    resources: mem_mb=lambda wildcards, attempt: 100 * 4 ** (attempt - 1)
    shell:
        "echo start grows {resources.mem_mb} >> log.txt; "
        "PYTHON hold.py 250 $(({resources.mem_mb} < 250 ? 60 : 1)); touch {output}"

rule neighbour:
    output: "neighbour.txt"
    priority: 10
    resources: mem_mb=150
    shell: "echo start neighbour >> log.txt; PYTHON hold.py 80 5; echo end neighbour >> log.txt; touch {output}"

rule sharing:
    output: "sharing.txt"
    resources: mem_mb=250
    shell: "PYTHON hold.py 150 2 4; touch {output}"

rule unlimited:
    output: "unlimited.txt"
    shell: "PYTHON hold.py 400 1; cat /proc/self/oom_score_adj > {output}"
"""


def limited(directory: Path, snakefile: str, *arguments: str) -> SnakemakeRun:
    directory.mkdir(exist_ok=True)
    (directory / "hold.py").write_text(HOLD)
    return snakemake(
        directory, snakefile.replace("PYTHON", sys.executable), "--keep-going", "--dask-worker-cores", "2", *arguments
    )


def outputs(directory: Path) -> set[str]:
    return {path.stem for path in directory.glob("*.txt")} - {"log", "output"}


def test_memory(tmp_path: Path) -> None:
    """Who exceeds `mem_mb` is ended alone; a retry with more succeeds; shared memory counts once; else no limit."""
    with limited(tmp_path, MEMORY) as run:
        assert run.wait() == 1
        assert outputs(tmp_path) == {"grows", "neighbour", "sharing", "unlimited"}
        found = re.search(
            r"Job of greedy: memory of (\d+) MB exceeded the limit of 150 MB \(mem_mb\) [\d.]+ m?s after the start "
            rf"\(on host {HOST}, worker local-0, after [\d.]+ s\)",
            run.output,
        )
        assert found, run.output
        assert 150 < int(found[1]) <= 500
        assert [line for line in started(run) if "grows" in line] == ["start grows 100", "start grows 400"]
        assert started(run).count("start neighbour") == 1, "the neighbour must not have been touched"
        assert ended(run) == ["end neighbour"]
        assert len(run.events("worker-joined")) == 1
        score = int((tmp_path / "unlimited.txt").read_text())
        assert score > int(Path("/proc/self/oom_score_adj").read_text()), "the kernel must prefer a job to a worker"
        assert not run.events("worker-lost")
        run.expect_gone(10)


KINDS = """
rule all:
    input: expand("{kind}_{size}.txt", kind=["run", "script", "shell", "daemon", "second"], size=["small", "large"])

SIZES = {"small": 90, "large": 400}
SECONDS = {"small": 2, "large": 60}  # who is to be ended waits for it

rule run:
    output: "run_{size}.txt"
    resources: mem_mb=150
    run:
        import time
        held = [b"x" * 10_000_000 for _ in range(SIZES[wildcards.size] // 10)]
        time.sleep(SECONDS[wildcards.size])
        open(output[0], "w").close()

rule script:
    output: "script_{size}.txt"
    params: size=lambda wildcards: SIZES[wildcards.size], seconds=lambda wildcards: SECONDS[wildcards.size]
    resources: mem_mb=150
    script: "hold_script.py"

rule shell:
    output: "shell_{size}.txt"
    params: size=lambda wildcards: SIZES[wildcards.size], seconds=lambda wildcards: SECONDS[wildcards.size]
    resources: mem_mb=150
    shell: "(PYTHON hold.py {params.size} {params.seconds} | cat) && touch {output}"

rule daemon:
    output: "daemon_{size}.txt"
    params: size=lambda wildcards: SIZES[wildcards.size], seconds=lambda wildcards: SECONDS[wildcards.size]
    resources: mem_mb=150
    shell: "setsid -f PYTHON hold.py {params.size} 60; sleep {params.seconds}; touch {output}"

rule first:
    output: touch("first_{size}.txt")
    group: "pair"
    resources: mem_mb=150
    shell: "true"

rule second:
    input: "first_{size}.txt"
    output: "second_{size}.txt"
    group: "pair"
    params: size=lambda wildcards: SIZES[wildcards.size], seconds=lambda wildcards: SECONDS[wildcards.size]
    resources: mem_mb=150
    shell: "PYTHON hold.py {params.size} {params.seconds}; touch {output}"
"""


@pytest.mark.parametrize("start", ["warm", pytest.param("cold", marks=pytest.mark.variant)])
def test_memory_of_every_kind_of_job(tmp_path: Path, start: str) -> None:
    """In `run:`, scripts, shells, daemons and groups: who holds more than `mem_mb` is ended, who holds less is not."""
    (tmp_path / "hold_script.py").write_text(
        "import time\nheld = [b'x' * 10_000_000 for _ in range(snakemake.params.size // 10)]\n"
        "time.sleep(snakemake.params.seconds)\nopen(snakemake.output[0], 'w').close()\n"
    )
    with limited(tmp_path, KINDS, "--dask-job-start", start) as run:
        assert run.wait() == 1
        assert outputs(tmp_path) - {"first_small"} == {
            f"{kind}_small" for kind in ("run", "script", "shell", "daemon", "second")
        }
        told = r"Job of (\w+)(?: \(.*?\))?: memory of \d+ MB exceeded the limit of 150 MB \(mem_mb\)"
        found = re.findall(told, run.output)
        assert sorted(found) == ["daemon", "pair_first_second", "run", "script", "shell"]
        assert not run.events("worker-lost")
        run.expect_gone(10)


RUNTIME = """
rule all:
    input: "slow.txt", "stubborn.txt", "quick.txt"

rule slow:
    output: "slow.txt"
    resources: runtime=1, mem_mb=100
    shell: "echo half a result > {output}; sleep 300"

rule stubborn:
    output: "stubborn.txt"
    resources: runtime=1, mem_mb=100
    shell:
        '''
        (trap "" TERM; setsid bash -c 'trap "" TERM; sleep 300' & sleep 300) &
        trap "" TERM
        sleep 300
        sleep 300
        '''

rule quick:
    output: "quick.txt"
    resources: runtime=1, mem_mb=100
    shell: "touch {output}"
"""


@pytest.mark.long
def test_runtime(tmp_path: Path) -> None:
    """After `runtime` a job's whole tree gets SIGTERM, then SIGKILL; the message says so; partial output is removed."""
    with limited(tmp_path, RUNTIME) as run:
        assert run.wait() == 1
        assert outputs(tmp_path) == {"quick"}
        for name in ("slow", "stubborn"):
            where = rf"\(on host {HOST}, worker local-0, after (\d+\.\d) s\)"
            found = re.search(rf"Job of {name}: runtime of 1 min exceeded after \d+ s {where}", run.output)
            assert found, run.output
            assert 60 <= float(found[1]) < 60 + 40 * slowness()
        run.expect_gone(10)


NOT_ENFORCED = """
rule all:
    input: "greedy.txt"

rule greedy:
    output: "greedy.txt"
    resources: mem_mb=50
    shell: "PYTHON hold.py 300 SECONDS; touch {output}"
"""


@pytest.mark.parametrize(("enforce", "code"), [("none", 0), ("memory", 1)])
def test_what_is_enforced(tmp_path: Path, enforce: str, code: int) -> None:
    """`--dask-enforce` says which limits end jobs; the others only place them."""
    # Whoever is to be ended waits for it.
    snakefile = NOT_ENFORCED.replace("SECONDS", "60" if code else "2")
    with limited(tmp_path, snakefile, "--dask-enforce", enforce) as run:
        assert run.wait() == code, run.output
        assert outputs(tmp_path) == ({"greedy"} if code == 0 else set())
        assert ("exceeded the limit of 50 MB" in run.output) == (code == 1)
        run.expect_gone(10)


FULL = """
rule all:
    input: "greedy.txt", "after.txt"

rule greedy:
    output: "greedy.txt"
    shell: "echo x >> greedy.starts; PYTHON hold.py 100000 60; touch {output}"

rule neighbour:
    output: "neighbour.txt"
    shell: "while ! test -e go; do sleep 0.1; done; touch {output}"

rule after:
    input: "neighbour.txt"
    output: "after.txt"
    shell: "touch {output}"
"""


@contextlib.contextmanager
def small_node(memory_mb: int) -> Iterator[None]:
    """What is started within is on a node of so little memory: in a cgroup, whose limit the kernel enforces."""
    for mount, limit in (("memory", "memory.limit_in_bytes"), (".", "memory.max")):
        group = Path("/sys/fs/cgroup", mount, f"snakemake-test-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            break
        group.rmdir()
    else:
        pytest.skip("no cgroup that limits memory can be made here")
    former = next(
        line.split(":", 2)[2]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.split(":")[1] == ("memory" if mount == "memory" else "")
    )
    procs = Path("/sys/fs/cgroup", mount, former.lstrip("/"), "cgroup.procs")
    (group / limit).write_text(str(memory_mb * 1_000_000))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        procs.write_text(str(os.getpid()))
        for pid in (group / "cgroup.procs").read_text().split():
            procs.write_text(pid)
        group.rmdir()


@pytest.mark.xdist_group("failures-told")  # other jobs that fail meanwhile are told of the kernel, too
def test_full_node(tmp_path: Path) -> None:
    """A job without `mem_mb` fills the node: the kernel ends that job alone, its message says so, the others go on."""
    with small_node(900), limited(tmp_path, FULL) as run:
        wait_for(lambda: "Job of greedy" in run.output, "the kernel ended the greedy job")
        (tmp_path / "go").touch()
        assert run.wait() == 1
        assert outputs(tmp_path) == {"neighbour", "after"}
        assert re.search(
            rf"Job of greedy: its command failed with exit code 137 \(SIGKILL\); meanwhile the kernel killed processes "
            rf"on {re.escape(HOST)}, since memory was full\.",
            run.output,
        ), run.output
        assert not run.events("worker-lost")
        assert len((tmp_path / "greedy.starts").read_text().split()) == 1
        run.expect_gone(10)
