"""The warm process itself: what it notices, what it refuses, how it ends, and what its children share."""

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from running import pss_mb, wait_for
from supervising import alive
from system.warm_harness import Warm, planned, read, run_cold

from snakemake_executor_plugin_dask.model.job_messages import Cold, Exited, Stale, Start
from snakemake_executor_plugin_dask.model.jobs import GroupMember
from snakemake_executor_plugin_dask.node.processes import children_of

SIMPLE = """
rule all:
    input: expand("{n}.txt", n=range(3))

rule one:
    output: "{n}.txt"
    shell: "echo {wildcards.n} > {output}"
"""


def test_a_changed_workflow_is_noticed(tmp_path: Path) -> None:
    """Once a file that the workflow was read from changes, jobs are refused with its name, and no old child serves."""
    (tmp_path / "part.smk").write_text(SIMPLE.replace("rule all", "rule every"))
    (tmp_path / "helper.py").write_text("")
    top = f'import sys\nsys.path.insert(0, "{tmp_path}")\nimport helper\n'
    all_of_them = "rule all:\n    input: expand('{n}.txt', n=range(60))\n\n"
    setup, specs = planned(tmp_path, f'{top}{all_of_them}include: "part.smk"\n')
    for name in ("part.smk", "helper.py"):
        with Warm(setup) as warm:
            assert warm.run(specs[0]).code == 0
            (tmp_path / name).write_text((tmp_path / name).read_text() + "# changed\n")
            for spec in specs[1:]:
                # After a look that took long there is none for a while.
                warm.channel.send(Start(spec))
                heard = warm.wait_for(Stale, Exited)
                if isinstance(heard, Stale):
                    break
                time.sleep(1)
            assert name in heard.reason
            assert name in warm.wait_for(Cold, key=spec.key).reason
            warm.socket.shutdown(socket.SHUT_WR)
            assert warm.process.wait(60) == 0


@pytest.mark.parametrize(
    ("helper", "code", "words"), [(None, 1, "No module named 'helper_module'"), ("import sys\nsys.exit(3)\n", 3, "")]
)
def test_a_workflow_that_cannot_be_read(tmp_path: Path, helper: str | None, code: int, words: str) -> None:
    """It is left to the jobs, each of which ends as a cold one does, with Snakemake's own words for the error."""
    module = tmp_path / "helper_module.py"
    module.write_text("")
    setup, specs = planned(tmp_path, "import helper_module\n" + SIMPLE)
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    module.unlink()
    if helper is not None:
        module.write_text(helper)
    with Warm(setup, stderr=subprocess.DEVNULL) as warm:
        assert warm.depth == 1
        ended = warm.run(specs[0])
    assert ended.code == code
    assert words in ended.log
    cold = run_cold(setup, specs[1])
    assert cold.code == code
    assert words in cold.log


def test_a_workflow_that_leaves_a_thread(tmp_path: Path) -> None:
    """A fork would lose the thread, so that each job reads the workflow itself."""
    setup, specs = planned(
        tmp_path,
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n" + SIMPLE,
    )
    with Warm(setup, stderr=subprocess.DEVNULL) as warm:
        assert warm.depth == 1
        assert warm.run(specs[0]).code == 0


def test_a_workflow_that_asks_for_its_cores(tmp_path: Path) -> None:
    """It is the run's, and not what a job holds, so that the workflow is read once; a group's own number is not."""
    snakefile = SIMPLE.replace("    shell:", "    threads: workflow.cores\n    shell:").replace(
        "{wildcards.n}", "{threads}"
    )
    setup, specs = planned(tmp_path, snakefile, "--cores", "4")
    members = (GroupMember(specs[1].name, specs[1].jobid),)
    arguments = (*specs[1].arguments, "--local-groupid", "g")
    group = replace(specs[1], arguments=arguments, members=members, call=None)
    with Warm(setup, stderr=subprocess.DEVNULL) as warm:
        assert warm.depth == 3
        assert warm.run(specs[0]).code == 0
        warm.channel.send(Start(group))
        assert "a group has its own" in warm.wait_for(Cold, key=group.key).reason
    assert (tmp_path / "0.txt").read_text() == "2\n"


def test_another_version(tmp_path: Path) -> None:
    """With another Snakemake than the main process's no job is started warm, and the versions are named."""
    setup, specs = planned(tmp_path, SIMPLE)
    with Warm(replace(setup, snakemake_version="9.0.1")) as warm:
        assert warm.depth == 0
        warm.channel.send(Start(specs[0]))
        assert "9.0.1" in warm.wait_for(Cold, key=specs[0].key).reason


def test_jobs_that_are_started_cold(tmp_path: Path) -> None:
    """A job script, and a rule that asks for a cold start, are refused; others are not."""
    setup, specs = planned(tmp_path, SIMPLE)
    with Warm(setup) as warm:
        for spec in (replace(specs[0], script="/script"), replace(specs[0], start="cold")):
            warm.channel.send(Start(spec))
            assert warm.wait_for(Cold, key=spec.key).reason
        assert warm.run(specs[0]).code == 0


@pytest.mark.parametrize("change", [{}, {"call": b"\x80\x04]."}], ids=["without a call", "with one that fails"])
def test_a_command_that_is_over_is_not_run_again(tmp_path: Path, change: dict[str, bytes]) -> None:
    """Where its own function cannot be called, a DAG would run it."""
    setup, specs = planned(tmp_path, SIMPLE, depth=3 if change else 2)
    with Warm(setup) as warm:
        spec = replace(specs[0], ended=7 << 8, **change)
        warm.channel.send(Start(spec))
        assert warm.wait_for(Cold, key=spec.key).reason
        assert not [path for path in tmp_path.glob("*.txt") if path.name != "output.txt"]
        assert warm.run(specs[0]).code == 0


SLEEPING = """
rule all:
    input: expand("{n}.txt", n=range(8))

rule one:
    output: "{n}.txt"
    params: own=lambda wildcards: wildcards.n  # so that the job's process is a Snakemake, and not the shell itself
    shell: "sleep 600; echo > {output}"
"""


def test_the_end_of_the_supervisor(tmp_path: Path) -> None:
    """Without its supervisor the warm process ends at once, and its jobs' leaders with it."""
    setup, specs = planned(tmp_path, SLEEPING)
    with Warm(setup) as warm:
        pids = [warm.start(spec) for spec in specs[:3]]
        wait_for(lambda: all(children_of(pid) for pid in pids), "the jobs' shells")
        assert warm.close() == 0
        wait_for(lambda: not any(map(alive, pids)), "the end of the jobs")


def test_a_killed_warm_process(tmp_path: Path) -> None:
    """Its children, idle ones too, end with it."""
    setup, specs = planned(tmp_path, SLEEPING)
    with Warm(setup) as warm:
        job = warm.start(specs[0])
        wait_for(lambda: children_of(job), "the job's shell")
        wait_for(lambda: len(children_of(warm.process.pid)) == 3, "idle children")
        pids = children_of(warm.process.pid)
        warm.process.kill()
        wait_for(lambda: not any(map(alive, pids)), "the end of the children")


def test_a_closed_end(tmp_path: Path) -> None:
    """Told that no more jobs come, the warm process ends once the last one has, and reports it."""
    setup, specs = planned(tmp_path, SIMPLE.replace("echo", "until test -e go; do sleep 0.1; done; echo"))
    with Warm(setup) as warm:
        warm.start(specs[0])
        warm.socket.shutdown(socket.SHUT_WR)
        (tmp_path / "go").touch()
        assert warm.end_of(specs[0]).code == 0
        assert warm.process.wait(60) == 0


def test_an_idle_child_that_dies(tmp_path: Path) -> None:
    """Idle children that were killed are replaced, and no job is lost."""
    setup, specs = planned(tmp_path, SIMPLE)
    with Warm(setup) as warm:
        wait_for(lambda: len(children_of(warm.process.pid)) == 2, "idle children")
        first = children_of(warm.process.pid)
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(children_of(warm.process.pid)) == 2 and not any(map(alive, first)), "other idle children")
        assert [warm.run(spec).code for spec in specs] == [0, 0, 0]


def test_a_killed_job(tmp_path: Path) -> None:
    """The signal that ended a job is reported; others go on."""
    setup, specs = planned(tmp_path, SLEEPING)
    with Warm(setup) as warm:
        job = warm.start(specs[0])
        wait_for(lambda: children_of(job), "the job's shell")
        os.killpg(job, signal.SIGKILL)
        assert warm.end_of(specs[0]).code == -signal.SIGKILL


def test_a_terminated_job_finishes(tmp_path: Path) -> None:
    """SIGTERM to a job's Snakemake alone lets its command finish, and makes the job fail, as it does cold."""
    command = "touch started; until test -e go; do sleep 0.1; done; echo JOB: finished; echo"
    setup, specs = planned(tmp_path, SIMPLE.replace("echo", command))
    with Warm(setup) as warm:
        job = warm.start(specs[0])
        wait_for((tmp_path / "started").exists, "the job's command")
        os.kill(job, signal.SIGTERM)
        (tmp_path / "go").touch()
        ended = warm.end_of(specs[0])
    assert ended.code == 1
    assert "JOB: finished" in ended.log


def test_a_job_cannot_reach_the_supervisor(tmp_path: Path) -> None:
    """No socket of the warm process is open in a job, at any depth."""
    snakefile = SIMPLE.replace(
        'shell: "echo {wildcards.n} > {output}"',
        'run:\n        import os\n        open(output[0], "w").write(" ".join(\n'
        '            os.readlink(f"/proc/self/fd/{n}") for n in range(100) if os.path.lexists(f"/proc/self/fd/{n}")))',
    )
    setup, specs = planned(tmp_path, snakefile)
    with Warm(setup) as warm:
        assert [warm.run(spec).code for spec in specs] == [0, 0, 0]
        link = f"socket:[{os.fstat(warm.socket.fileno()).st_ino}]"
    for n in range(3):
        found = (tmp_path / f"{n}.txt").read_text().split()
        assert link not in found
        # an asyncio loop of the job's own holds a pair
        assert sum(name.startswith("socket:") for name in found) <= 2


RANDOM = """
import random, tempfile
{top}
rule all:
    input: expand("{{n}}.txt", n=range(2))
rule one:
    output: "{{n}}.txt"
    run:
        there = workflow.snakemake_tmp_dir.exists()
        open(output[0], "w").write(f"{{random.random()}} {{tempfile.gettempdir()}} {{there}}")
"""


def test_random_state(tmp_path: Path) -> None:
    """Jobs draw different numbers, unless the workflow seeded: then each draws the same, as cold ones do."""
    setup, specs = planned(tmp_path, RANDOM.format(top=""))
    with Warm(setup) as warm:
        assert [warm.run(spec).code for spec in specs] == [0, 0]
    drawn = [(tmp_path / f"{n}.txt").read_text().split()[0] for n in range(2)]
    assert drawn[0] != drawn[1]
    setup, _ = planned(tmp_path, RANDOM.format(top="random.seed(7)"))
    with Warm(setup) as warm:
        assert [warm.run(spec).code for spec in specs] == [0, 0]
    drawn = [(tmp_path / f"{n}.txt").read_text().split()[0] for n in range(2)]
    assert drawn == [str(random.Random(7).random())] * 2


def test_directories_for_temporary_files(tmp_path: Path) -> None:
    """A job's TMPDIR is its own, Snakemake's directory too, and nothing of either is left."""
    setup, specs = planned(tmp_path, RANDOM.format(top=""))
    there = tmp_path / "tmp"
    there.mkdir()
    own = [replace(spec, environment=(("TMPDIR", str(there)),)) for spec in specs]
    with Warm(setup) as warm:
        assert [warm.run(spec).code for spec in own] == [0, 0]
        assert (tmp_path / "0.txt").read_text().split()[1:] == [str(there), "True"]
        assert list(there.iterdir()) == []


CHECKPOINT = """
def wanted(wildcards):
    return len(open(checkpoints.check.get().output[0]).read())

rule all:
    input: "after.txt", "check.txt"

checkpoint check:
    output: "check.txt"
    shell: "echo four > {output}"

rule after:
    input: "check.txt"
    output: "after.txt"
    resources: length=wanted
    params: length=wanted
    shell: "echo {resources.length} {params.length} > {output}"
"""


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_resources_that_depend_on_a_checkpoint(tmp_path: Path, depth: int) -> None:
    """They are evaluated with a DAG, as in a cold job."""
    for expected in ("check", "after"):
        setup, specs = planned(tmp_path, CHECKPOINT, depth=depth)
        assert [spec.name for spec in specs] == [expected]
        assert specs[0].call is not None
        with Warm(setup) as warm:
            ended = warm.run(specs[0])
        assert ended.code == 0, ended.log
    assert (tmp_path / "after.txt").read_text() == "5 5\n"


def test_a_library_with_threads_of_its_own(tmp_path: Path) -> None:
    """A workflow that uses NumPy stays warm, and NumPy works in its jobs."""
    numpy = pytest.importorskip("numpy")
    snakefile = SIMPLE.replace(
        'shell: "echo {wildcards.n} > {output}"',
        'run:\n        open(output[0], "w").write(str((numpy.ones((300, 300)) @ numpy.ones((300, 300))).sum()))',
    )
    setup, specs = planned(tmp_path, "import numpy\nnumpy.ones((300, 300)) @ numpy.ones((300, 300))\n" + snakefile)
    with Warm(setup, stderr=subprocess.PIPE) as warm:
        assert warm.depth == 3
        assert [warm.run(spec).code for spec in specs] == [0, 0, 0]
    assert (tmp_path / "1.txt").read_text() == str(float(numpy.float64(300**3)))


def test_memory_of_sleeping_jobs(tmp_path: Path) -> None:
    """Fifty sleeping jobs hold at most 15 MB each beyond what they share."""
    setup, specs = planned(tmp_path, SLEEPING.replace("range(8)", "range(50)"))
    with Warm(setup) as warm:
        pids = [warm.start(spec) for spec in specs]
        wait_for(lambda: all(children_of(pid) for pid in pids), "the jobs' shells")
        shells = [child for pid in pids for child in children_of(pid)]
        each = sum(pss_mb(pid) for pid in [*pids, *shells, warm.process.pid]) / len(pids)
    print(f"{each:.1f} MB a job, the shared part included")
    assert len(pids) == 50
    assert each <= 15


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    """The job fails; nothing else does."""
    setup, specs = planned(tmp_path, SIMPLE)
    with Warm(setup, stderr=subprocess.DEVNULL) as warm:
        lost = replace(specs[0], log_path=str(tmp_path / "no/such/directory/log"))
        assert warm.run(lost).code == 1
        assert not (tmp_path / "0.txt").exists()
        assert warm.run(specs[1]).code == 0
    assert "Finished jobid" in read(specs[1])


def test_a_trial_leaves_nothing(tmp_path: Path) -> None:
    """No file of its jobs stays, wherever Snakemake keeps something; the workflow's own settings have no part in it."""
    top = 'import os\nshell.prefix("touch used; ")\nshell.suffix("; touch used")\n'
    setup, specs = planned(tmp_path, top + SIMPLE, "--default-resources", "mem_mb=len(wildcards.n)")
    directories = {name: str(tmp_path / name.lower()) for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME")}
    for directory in directories.values():
        os.mkdir(directory)
    copies = tmp_path / "copies"
    setup = replace(setup, general_arguments=(*setup.general_arguments, "--runtime-source-cache-path", str(copies)))
    with Warm(setup, **directories) as warm:
        assert (warm.depth, warm.reason, warm.dag_reason) == (3, "", "")
        assert copies.is_dir()
        names = [path.name for path in tmp_path.rglob("*") if path.name != tmp_path.name]
        assert [name for name in names if "trial" in name or name == "used"] == []
        assert list((tmp_path / ".snakemake/incomplete").iterdir()) == []
        assert warm.run(specs[0]).code == 0
        assert (tmp_path / "used").exists()


COMMANDS = """
rule all:
    input: expand("{n}.txt", n=range(12))

rule one:
    output: "{n}.txt"
    shell:
        "echo pid $$ of $SNAKEMAKE_DASK_JOB in $X; grep Cpus_allowed_list /proc/self/status; "
        "cd /; export X=changed; echo {wildcards.n} > $OLDPWD/{output}"
"""


def test_shell_commands_share_a_child_and_nothing_else(tmp_path: Path) -> None:
    """Commands run one after the other from one child: each has its own shell, log, environment and cores."""
    setup, specs = planned(tmp_path, COMMANDS)
    with Warm(setup) as warm:
        pids = []
        for number, spec in enumerate(specs[:12]):
            one = min(os.sched_getaffinity(0))
            cores = (one,) if number % 2 else ()
            changed = replace(spec, environment=(("X", f"x{number}"),), affinity=cores)
            pids.append(warm.start(changed))
            ended = warm.end_of(changed)
            assert ended.code == 0, ended.log
            assert f"pid {pids[-1]} of {spec.key} in x{number}\n" in ended.log
            assert ended.log.count("pid ") == 1
            assert (f"Cpus_allowed_list:\t{one}\n" in ended.log) == (bool(cores) or os.sched_getaffinity(0) == {one})
        assert len(set(pids)) == 12
        # The two that were forked ahead, and at most two that ran the commands.
        assert len(children_of(warm.process.pid)) <= 4


def test_a_killed_shell(tmp_path: Path) -> None:
    """A job whose shell was killed fails as a cold one does, and says so in its log; the next command runs."""
    snakefile = COMMANDS.replace('"echo pid', '"test {wildcards.n} != 0 || kill -9 $$; echo pid')
    setup, specs = planned(tmp_path, snakefile)
    with Warm(setup) as warm:
        by_wildcard = sorted(specs, key=lambda spec: spec.arguments)
        ends = [warm.run(replace(spec, environment=(("X", "x"),))) for spec in by_wildcard[:3]]
    assert sorted(end.code for end in ends) == [0, 0, 1]
    assert any("died with <Signals.SIGKILL: 9>" in end.log for end in ends)
