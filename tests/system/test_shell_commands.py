"""Jobs that are one plain shell command: started without a Snakemake, and not to be told from others."""

import dataclasses
import os
import re
import resource
import signal
from pathlib import Path

import pytest
from running import SnakemakeRun, snakemake, wait_for
from supervising import RUN_ID, fake_worker
from system.warm_harness import planned

from snakemake_executor_plugin_dask.model.job_messages import Kill, Said, Start
from snakemake_executor_plugin_dask.model.jobs import JobSpec, RunSetup
from snakemake_executor_plugin_dask.node import versions

#: What a command sees of its process, but for what no two processes have in common.
LOOK = r"""
look=out/{wildcards.n}.look
env -0 | sort -z | tr '\0' '\n' | grep -v '^SNAKEMAKE_DASK_JOB=\|^SNAKEMAKE_DASK_WARM_DEPTH=\|^_=' > $look
{{ pwd; umask; ulimit -Sa; ulimit -Ha; echo "$- $0 $#"; cat /proc/self/oom_score_adj; }} >> $look
grep 'Sig[BI]\|Groups\|Cpus_allowed:' /proc/self/status >> $look
{{ ls /proc/$$/fd; readlink /proc/$$/fd/0; }} >> $look
test $(cut -d' ' -f6 /proc/$$/stat) = $$ && echo leads >> $look
"""
SNAKEFILE = """
import os
os.environ["FROM_THE_SNAKEFILE"] = "set"
os.environ.pop("TO_BE_REMOVED", None)
shell.prefix("set -euo pipefail; export PREFIX='$'; ")
rule all:
    input: expand("out/{n}.txt", n=range(2)), expand("deep/er/{n}/joined.txt", n=range(2))
rule look:
    output: "out/{n}.txt"
    log: "logs/{n}.log"
    threads: 2
    params: word="a b", numbers=[1, 2]
    shell: r'''LOOK
echo {params.word:q} {params.numbers} {threads} {rule} {config[key]} > {output}; echo said {log} >&2'''
rule join:
    input: first="out/{n}.txt", others=expand("in.{i}", i=range(2))
    output: temp("deep/er/{n}/joined.txt")
    shell: "cat {input.first} {input.others} > {output}; stat -c %a deep/er/{wildcards.n} > modes.{wildcards.n}"
""".replace("LOOK", LOOK)


def depths(run: SnakemakeRun) -> dict[str, set[int]]:
    """How deep the jobs of each rule started."""
    rules = {event["key"]: event["rule"] for event in run.events("job-queued")}
    found: dict[str, set[int]] = {}
    for event in run.events("job-started"):
        found.setdefault(rules[event["key"].rpartition(".")[0] + ".1"], set()).add(event["start_depth"])
    return found


def run_at(depth: int, directory: Path, snakefile: str, *arguments: str, fails: bool = False) -> SnakemakeRun:
    """A whole run, whose jobs start no deeper."""
    for number in range(2):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"in.{number}").write_text(f"input {number}\n")
    before = os.umask(0o027)
    # What Snakemake was started with blocked no job has blocked.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SNAKEMAKE_DASK_WARM_DEPTH", str(depth))
            patch.setenv("TO_BE_REMOVED", "there")
            with snakemake(
                directory, snakefile, "--config", "key=value", "--dask-keep-successful-logs", *arguments
            ) as run:
                assert (run.wait() != 0) is fails, run.output
    finally:
        os.umask(before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    return run


def planned_command(workdir: Path, shell: str, *arguments: str) -> tuple[RunSetup, JobSpec]:
    """A job that is a plain shell command, and its run."""
    snakefile = f"rule a:\n    output: 'a.txt'\n    shell: {shell!r}\n"
    setup, (spec,) = planned(workdir, snakefile, *arguments, depth=4)
    own = {"run_id": RUN_ID, "plugin_version": versions.plugin_version(), "environment": dict(os.environ)}
    return dataclasses.replace(setup, **own), spec


def test_a_shell_cannot_tell_how_it_was_started(tmp_path: Path) -> None:
    """Environment, limits, signals, descriptors, files and their modes: with a Snakemake, and without one."""
    place = tmp_path / "run"
    found = []
    for depth in (3, 4):
        run = run_at(depth, place, SNAKEFILE, "--notemp")
        assert depths(run) == {"look": {depth}, "join": {depth}}
        for name in ("out", "deep", "deep/er/1"):
            assert (place / name).stat().st_mode & 0o777 == 0o750
        files = [*place.glob("out/*"), *place.glob("deep/er/*/*"), *place.glob("modes.*")]
        found.append({str(path): (path.stat().st_mode, path.read_text()) for path in files})
        logs = [path.read_text() for path in place.rglob("*.log") if path.parent.name == "look"]
        assert len(logs) == 2
        announced = r"rule look:\n    output: out/(\d).txt\n    log: logs/\1.log\n(?:.*\n)*said logs/\1.log\n"
        assert all(re.search(announced, log) for log in logs), logs
        assert not [path for path in (place / ".snakemake/incomplete").rglob("*") if path.is_file()]
        place.rename(tmp_path / str(depth))
    assert len(found[0]) == 8
    assert found[0] == found[1]


FAILING = """
rule all:
    input: "fails.txt", "missing.txt", "killed.txt", "late.txt"
rule fails:
    output: "fails.txt"
    shell: "echo half > {output}; echo what went wrong >&2; exit 7"
rule missing:
    output: "missing.txt"
    shell: "echo made nothing"
rule killed:
    output: "killed.txt"
    shell: "echo half > {output}; kill -KILL $$"
rule late:
    output: "late.txt"
    shell: "(sleep 1; echo late > {output}) & disown; sleep 0.1"
"""


def test_a_command_that_fails_fails_as_with_a_snakemake(tmp_path: Path) -> None:
    """What is told, what its log says, and what is left."""
    told = []
    for depth in (3, 4):
        run = run_at(depth, tmp_path / str(depth), FAILING, "--keep-going", "--latency-wait", "2", fails=True)
        assert depths(run) == {name: {depth} for name in ("fails", "missing", "killed", "late")}
        ends = {event["outcome"]["key"].partition("-")[0]: event["outcome"] for event in run.events("job-ended")}
        # What the kernel killed meanwhile is of the whole machine, and may be other tests' processes.
        details = {name: end["detail"].partition("; meanwhile the kernel")[0] for name, end in ends.items()}
        told.append({name: (end["status"], end["exit_code"], details[name]) for name, end in ends.items()})
        logs = {path.parent.name: path.read_text() for path in run.directory.rglob("*.log") if "dask" in str(path)}
        assert "what went wrong" in logs["fails"]
        assert "Error in rule fails:" in logs["fails"]
        assert "returned non-zero exit status 7." in logs["fails"]
        assert "made nothing" in logs["missing"]
        assert "MissingOutputException" in logs["missing"]
        assert "died with <Signals.SIGKILL: 9>" in logs["killed"]
        assert logs["fails"].count("rule fails:") == 2  # before it, and with its error
        assert not [name for name in ("fails", "missing", "killed") if (run.directory / f"{name}.txt").exists()]
    assert told[0] == told[1]
    assert told[1]["fails"][2] == "its command failed with exit code 7"


@pytest.mark.parametrize(
    ("snakefile", "why"),
    [
        ("import os\nPID = os.getpid()\n{all}\n    shell: f'echo {{PID}} > {{{{output}}}}'\n", "another text"),
        ("import os\nPID = os.getpid()\n{all}\n    shell: 'echo {{PID}} > {{output}}'\n", "a global variable"),
        (
            "import os\n{all}\n    params: pid=os.getpid()\n    shell: 'echo {{params.pid}} > {{output}}'\n",
            "a parameter",
        ),
        (
            "import os\nos.nice(1)\n{all}\n    shell: 'nice > {{output}}'\n",
            "what its processes have from that one",
        ),
        ("{all}\n    params: pid=lambda wildcards: 1\n    shell: 'echo {{params.pid}} > {{output}}'\n", "a function"),
        ("{all}\n    shell: 'echo {{resources.tmpdir}} > {{output}}'\n", "a resource"),
        ("{all}\n    benchmark: 'b.txt'\n    shell: 'echo 1 > {{output}}'\n", "a benchmark"),
        (
            "{all}\n    shell: 'echo $PPID > {{output}}'\n",
            "its parent, which a command may end, and which others have, too",
        ),
        ("{all}\n    shadow: 'minimal'\n    shell: 'echo 1 > {{output}}'\n", "a shadow directory"),
    ],
)
def test_a_command_that_only_a_worker_knows_is_left_to_a_snakemake(tmp_path: Path, snakefile: str, why: str) -> None:
    """What may be another one in each process that reads the workflow is what the worker makes of it."""
    rules = "rule all:\n    input: 'a.txt'\nrule one:\n    output: 'a.txt'"
    run = run_at(4, tmp_path, snakefile.format(all=rules))
    assert depths(run) == {"one": {3}}, why
    if "PID" in snakefile:
        assert (tmp_path / "a.txt").read_text().strip() != str(run.process.pid)


MODULE = """
configfile: "config.yaml"
module other:
    snakefile: "other.smk"
    config: config["other"]
use rule * from other as other_*
rule all:
    input: rules.other_one.output, rules.other_two.output
    default_target: True
"""
OF_MODULE = """
rule one:
    output: "one.txt"
    shell: "echo {config[key]} > {output}"
rule two:
    output: "two.txt"
    shell: "echo {rule} > {output}"
"""


def test_a_modules_rules_have_its_configuration(tmp_path: Path) -> None:
    """The main process knows another one."""
    (tmp_path / "other.smk").write_text(OF_MODULE)
    (tmp_path / "config.yaml").write_text("key: outer\nother:\n  key: inner\n")
    run = run_at(4, tmp_path, MODULE)
    assert depths(run) == {"other_one": {3}, "other_two": {4}}
    assert (tmp_path / "one.txt").read_text() == "inner\n"
    assert (tmp_path / "two.txt").read_text() == "other_two\n"


def test_files_that_are_there_are_left_to_a_snakemake(tmp_path: Path) -> None:
    """It removes them, or finds that they are protected."""
    rules = "rule one:\n    output: 'a.txt'\n    shell: 'test ! -e {output}; echo 2 > {output}'\n"
    (tmp_path / "a.txt").write_text("1\n")
    run = run_at(4, tmp_path, rules, "--force", "a.txt")
    assert depths(run) == {"one": {3}}
    assert (tmp_path / "a.txt").read_text() == "2\n"


CHANGED = """
rule all:
    input: "a.txt", "b.txt"
rule one:
    output: "a.txt"
    shell: "until test -e go; do sleep 0.1; done; echo 1 > {output}"
rule two:
    input: "a.txt"
    output: "b.txt"
    shell: "echo old > {output}"
"""


def test_a_workflow_that_changed_meanwhile_is_read_again(tmp_path: Path) -> None:
    """As it would be by each job that starts cold."""
    with snakemake(tmp_path, CHANGED) as run:
        wait_for(lambda: run.events("job-started"), "a job that runs")
        (tmp_path / "Snakefile").write_text(CHANGED.replace("old", "new"))
        (tmp_path / "go").touch()
        assert run.wait() == 0, run.output
    assert depths(run)["one"] == {4}
    assert depths(run)["two"] != {4}


def test_a_command_that_fails_where_no_snakemake_can_tell_of_it(tmp_path: Path) -> None:
    """The workflow changed meanwhile, so that the warm process takes no more jobs."""
    with snakemake(tmp_path, CHANGED.replace("echo 1 > {output}", "echo half > {output}; exit 7")) as run:
        wait_for(lambda: run.events("job-started"), "a job that runs")
        (tmp_path / "Snakefile").write_text(CHANGED)
        (tmp_path / "go").touch()
        assert run.wait() == 1, run.output
    (end,) = run.events("job-ended")
    assert end["outcome"]["status"] == "failed"
    assert "its command failed with exit code 7" in end["outcome"]["detail"]
    assert not (tmp_path / "a.txt").exists()


def test_a_command_is_ended_while_its_outputs_are_waited_for(tmp_path: Path) -> None:
    """Its shell is gone by then, and a Snakemake looks for what the shell has not made."""
    setup, spec = planned_command(tmp_path, "echo $$ > pid", "--latency-wait", "600")
    with fake_worker(tmp_path, setup) as worker:
        worker.send(Start(spec))
        shell = worker.wait_started(spec.key)
        wait_for(lambda: not os.path.exists(f"/proc/{shell}"), "the end of the shell")
        wait_for(lambda: "Waiting at most 600 seconds" in Path(spec.log_path).read_text(), "a Snakemake that waits")
        worker.send(Kill(spec.key, "enough"))
        outcome = worker.outcome(spec.key)
        assert (outcome.status, outcome.detail) == ("cancelled", "enough")


def test_limits_that_keep_commands_from_a_quick_start_are_told(tmp_path: Path) -> None:
    """With what differs, once; the job runs all the same, and has the limit."""
    setup, spec = planned_command(tmp_path, "ulimit -Su > {output}")
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    limit = 50_000 if limit == resource.RLIM_INFINITY else limit - 1
    with fake_worker(tmp_path, dataclasses.replace(setup, soft_limits=((resource.RLIMIT_NPROC, limit),))) as worker:
        worker.send(Start(spec))
        assert worker.outcome(spec.key).status == "succeeded"
        (said,) = [message.text for message in worker.others if isinstance(message, Said)]
        assert "depth 3 instead of 4, since: soft limits of the run differ from the worker's (RLIMIT_NPROC)" in said
    assert (tmp_path / "a.txt").read_text() == f"{limit}\n"
