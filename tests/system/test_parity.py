"""The same workflows through Snakemake's local executor and through this one, with the same results.

Each case is run by real `snakemake` command lines in a directory of its own. Compared are exit codes, every file with
its bytes and mode, the records that Snakemake keeps of outputs, the marks of incomplete ones, and the rules that were
reported as failed.
"""

import base64
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .kept_clusters import KEEP, Clusters

WORKFLOWS = Path(__file__).parent / "workflows"
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
COMMON = ("--cores", "2", "--scheduler", "firstfit", "--max-jobs-per-timespan", "1000/1s", "--latency-wait", "3")
DASK = ("--executor", "dask", "--jobs", "50", "--dask-worker-cores", "2")
EXECUTORS = {
    "local": ("--executor", "local"),
    "warm": (*DASK, "--dask-job-start", "warm"),
    "cold": (*DASK, "--dask-job-start", "cold"),
}
#: What differs between two runs of one executor, too.
VOLATILE = {"starttime", "endtime", "job_hash", "external_jobid"}


@dataclass(frozen=True)
class Case:
    """Steps are argument lists of Snakemake, or shell commands; all run in one directory, one after the other."""

    name: str
    workflow: str
    steps: tuple[tuple[str, ...] | str, ...] = ((),)
    environment: dict[str, str] = field(default_factory=dict)
    runs: tuple[str, ...] = ("warm",)  # how jobs start; a cold one costs more than a second
    variants: tuple[str, ...] = ()  # by `./run tests variants` alone
    #: Files, and records of files, in which remote executors differ by Snakemake's own design.
    unlike: frozenset[str] = frozenset()
    unlike_records: frozenset[str] = frozenset()
    #: Jobs run in groups: where the record of a job is written, its temporary inputs are gone already.
    grouped: bool = False
    records: int = 0  # at least so many outputs are on record afterwards


TOKENS = {"PARITY_TOKEN": "to,k'en $(x)", "PARITY_UNDECLARED": "seen"}
LANGUAGE_COLD = (
    *("shell/a.txt", "script/python.txt", "run/out.txt", "shadow/full.txt", "benchmark/out.txt", "temp/out.txt"),
    *("protected.txt", "token.txt", "tree", "updated.txt", "tmpdir.txt", "retried.txt", "template.txt"),
    *("other/script.txt", "files with spaces/in name.txt", "cores/read.txt", "cores/called.txt"),
)
FAILING = (
    *("good.txt", "after-bad.txt", "missing.txt", "empty.txt", "sum.txt", "signalled.txt", "pipefail.txt", "unset.txt"),
    *("script-error.txt", "run-error.txt", "shadow-error.txt", "plain", "dir-not-file", "kept.txt", "exhausted.txt"),
    *("updated.txt", "benchmarked.txt"),
)
WARM, COLD = ("warm",), ("cold",)
HOSTILE_CONFIG = ("one=1,2", "two=it's $(touch HACKED)", 'three={"k": "v,w", "l": [1, "`x`"]}')
CASES = (
    Case("language", "language", environment=TOKENS, records=41),
    Case("language-cold", "language", (LANGUAGE_COLD,), environment=TOKENS, runs=(), variants=COLD),
    Case(
        "language-again",
        "language",
        (
            ("shell/a.txt", "config.txt", "updated.txt", "--config", "given=x, 'y' $z"),
            "sleep 1; echo more >> data/a.txt",  # later, also where a file system counts whole seconds
            ("shell/a.txt", "config.txt", "updated.txt", "ancient.out", "--config", "given=a\\b"),
            (
                "shell/a.txt",
                "updated.txt",
                "--forceall",
                "--set-resources",
                "shell:mem_mb=321",
                "--set-threads",
                "shell=1",
            ),
        ),
        environment=TOKENS,
    ),
    Case(
        "configfile",
        "language",
        (
            "printf 'given: |\\n  two \"lines\",\\n  $(touch HACKED) `id`\\n' > more.yaml",
            ("config.txt", "--configfile", "config.yaml", "more.yaml"),
        ),
        environment=TOKENS,
        variants=COLD,
    ),
    Case(
        "no-hooks", "language", (("home.txt", "token.txt", "--no-hooks"),), environment=TOKENS, runs=(), variants=WARM
    ),
    Case("missing-envvar", "language", (("token.txt",),)),
    # A group's records keep the shell command of its first attempt; a job in a group is retried inside, out of sight.
    Case("groups", "groups", unlike_records=frozenset({"retried-group.txt"}), grouped=True, variants=COLD),
    Case(
        "group-failure",
        "groups",
        (("fail-second.txt",),),
        # A group is undone as one where it runs as one job.
        unlike=frozenset({"fail-first.txt"}),
        unlike_records=frozenset({"fail-first.txt", "fail-second.txt"}),
        grouped=True,
        variants=COLD,
    ),
    Case(
        "groups-by-option",
        "simple",
        (("--groups", "number=g", "next=g", "--group-components", "g=3"),),
        grouped=True,
        runs=(),
        variants=WARM,
    ),
    Case("checkpoints", "checkpoints", ((), ()), variants=COLD),
    Case("hostile", "hostile", (("--config", *HOSTILE_CONFIG),)),
    Case("hostile-few", "hostile", (("--config", "few=yes", *HOSTILE_CONFIG),), runs=COLD),
    Case("failures", "failures", (("--keep-going", *FAILING),), variants=COLD),
    Case("failure", "failures", (("bad.txt",),), runs=(), variants=WARM),
    Case("failure-retries", "failures", (("exhausted.txt", "--retries", "2"),), runs=(), variants=WARM),
    Case(
        "keep-incomplete",
        "failures",
        (("--keep-incomplete", "--keep-going", "bad.txt", "signalled.txt", "run-error.txt"),),
        runs=(),
        variants=WARM,
    ),
    Case(
        "rerun-incomplete",
        "failures",
        (
            ("--keep-incomplete", "bad.txt"),
            "sed -i 's/exit 5/true/' Snakefile",
            ("bad.txt",),
            ("bad.txt", "--rerun-incomplete"),
        ),
    ),
    Case("twice", "simple", ((), ()), runs=(), variants=WARM),
    Case(
        "cache",
        "simple",
        ("mkdir store", ("cached.txt", "--cache"), "rm cached.txt", ("cached.txt", "--cache")),
        {"SNAKEMAKE_OUTPUT_CACHE": "store"},
        variants=COLD,
    ),
    Case(
        "touch", "simple", (("where.txt",), ("--touch", "--force", "where.txt"), ("where.txt",)), runs=(), variants=WARM
    ),
    Case("dry-run", "simple", (("--dry-run",), ("where.txt",)), runs=(), variants=WARM),
    Case(
        "until",
        "simple",
        (("--until", "number"), ("--omit-from", "sum"), ("--until", "next", "--notemp")),
        runs=(),
        variants=WARM,
    ),
    Case(
        "forcerun",
        "simple",
        (("--notemp", "next/1.txt"), ("--forcerun", "number", "--notemp", "next/1.txt")),
        runs=(),
        variants=WARM,
    ),
    Case("protected", "simple", ((), ("--forcerun", "number"), ("--force", "sum.txt")), runs=(), variants=WARM),
    Case(
        "directory",
        "simple",
        (("--directory", "else where", "where.txt", "sum.txt", "--config", "add=5"),),
        variants=COLD,
    ),
    Case(
        "resources",
        "simple",
        (
            ("--set-resources", "number:mem_mb=77", "--resources", "mem_mb=100", "--max-threads", "1"),
            ("numbers/9.txt", "--default-resources", "mem_mb=123", "disk_mb=10", "--quiet", "all"),
        ),
        runs=(),
        variants=WARM,
    ),
    Case(
        "wait-for-files",
        "simple",
        (("numbers/1.txt", "--wait-for-files", "Snakefile"), ("numbers/2.txt", "--wait-for-files", "nowhere")),
        runs=(),
        variants=WARM,
    ),
    Case(
        "no-target",
        "simple",
        (("nothing-makes-this.txt",), ("numbers/-1.txt", "--printshellcmds")),
        runs=(),
        variants=WARM,
    ),
    Case(
        "delete-outputs",
        "simple",
        (("--until", "number"), ("--delete-all-output",), ("numbers/1.txt",)),
        runs=(),
        variants=WARM,
    ),
)


@dataclass(frozen=True)
class Result:
    """What a case left, and what it said."""

    exit_codes: list[int]
    failed: list[set[str]]
    files: dict[str, tuple[str, int, bytes]]
    records: dict[str, Any]
    incomplete: set[str]
    leftovers: set[str]
    text: str


def files_of(root: Path) -> dict[str, tuple[str, int, bytes]]:
    """Everything below a directory but Snakemake's own: kind, mode and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if ".snakemake" in path.relative_to(root).parts or name.endswith(".snakemake_timestamp"):
            continue
        mode = stat.S_IMODE(path.lstat().st_mode)
        if path.is_symlink():
            found[name] = ("link", mode, os.fsencode(path.readlink()))
        elif path.is_dir():
            found[name] = ("directory", mode, b"")
        else:
            content = path.read_bytes()
            if name.startswith("benchmark") and name.endswith(".tsv"):  # measured times: the shape alone
                content = b"\n".join(re.sub(rb"[-\d.:]+|NA", b"#", line) for line in content.splitlines())
            if path.suffix == ".pyc":  # holds the time and the path of its source
                content = b""
            found[name] = ("file", mode, content)
    return found


def decoded(directory: Path) -> dict[str, Path]:
    """Files of Snakemake's record keeping by the path of the output they are about."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {
        base64.b64decode("".join(part.removeprefix("@") for part in path.relative_to(directory).parts)).decode(): path
        for path in paths
        if path.name != "migration_underway"
    }


def record_of(path: Path) -> dict[str, Any]:
    """What Snakemake keeps of an output, but for what two runs differ in."""
    record = {key: value for key, value in json.loads(path.read_text()).items() if key not in VOLATILE}
    if record["shellcmd"]:
        # Snakemake's main process does not know a remote job's temporary directory.
        record["shellcmd"] = record["shellcmd"].replace("<TBD>", tempfile.gettempdir())
    return record


def run_snakemake(directory: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> tuple[int, str]:
    """One command line in a session of its own, which is ended with all its processes if it takes too long."""
    # Not `None`: a job must never wait for a terminal.
    with (directory / ".." / "output").open("w+", encoding="utf-8", errors="surrogateescape") as output:
        process = subprocess.Popen(
            [SNAKEMAKE, *arguments],
            cwd=directory,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(timeout=600)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return process.returncode, output.read()


def run_case(case: Case, executor: str, root: Path) -> Result:
    """Copy the case's workflow, take its steps, and look at what there is."""
    directory = root / "work"
    shutil.copytree(WORKFLOWS / case.workflow, directory)
    exit_codes, failed, texts = [], [], []
    for step in case.steps:
        if isinstance(step, str):
            subprocess.run(["bash", "-c", step], cwd=directory, check=True)
            continue
        # The targets come first: several options swallow what follows them.
        code, text = run_snakemake(directory, (*step, *COMMON, *EXECUTORS[executor]), case.environment)
        exit_codes.append(code)
        failed.append(set(re.findall(r"^\s*Error in (?:rule|checkpoint) (\S+?)[,:]", text, re.MULTILINE)))
        texts.append(f"$ snakemake {' '.join(step)}\n{text}")
    where = directory / case.steps[0][1] if case.name == "directory" else directory
    state = where / ".snakemake"
    records = {name: record_of(path) for name, path in decoded(state / "metadata").items()}
    for record in records.values() if case.grouped else ():
        del record["input_checksums"]
    return Result(
        exit_codes,
        failed,
        {name: found for name, found in files_of(directory).items() if name not in case.unlike},
        {name: record for name, record in records.items() if name not in case.unlike_records},
        set(decoded(state / "incomplete")),
        {path.name for part in ("locks", "shadow") for path in (state / part).glob("*")},
        "\n".join(texts),
    )


#: Exit codes of the steps of cases that are meant to fail; all others succeed.
FAILING_CASES = {
    "missing-envvar": [1],
    "group-failure": [1],
    "failures": [1],
    "failure": [1],
    "failure-retries": [1],
    "keep-incomplete": [1],
    "rerun-incomplete": [1, 0, 0],
    "protected": [0, 0, 0] if os.geteuid() == 0 else [0, 1, 1],  # nothing is protected from root
    "no-target": [1, 0],
}


@pytest.fixture(scope="session")
def locally(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Result]:
    """Each case's result by the local executor, run once."""
    results: dict[str, Result] = {}

    def run(case: Case) -> Result:
        if case.name not in results:
            results[case.name] = run_case(case, "local", tmp_path_factory.mktemp("local"))
        return results[case.name]

    return run


def _parameters() -> Iterator[Any]:
    for case in CASES:
        # On one worker of pytest-xdist, which runs it locally once.
        together = pytest.mark.xdist_group(f"parity-{case.name}")
        for executor in (*case.runs, *case.variants):
            marks = [together, pytest.mark.variant] if executor in case.variants else [together]
            yield pytest.param(case, executor, id=f"{case.name}-{executor}", marks=marks)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("case", "executor"), list(_parameters()))
def test_same_as_local(case: Case, executor: str, locally: Callable[[Case], Result], tmp_path: Path) -> None:
    """A workflow leaves the same files, records and exit codes as with the local executor."""
    same(case, executor, locally(case), tmp_path)


@pytest.mark.variant
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=pytest.mark.xdist_group(f"parity-{case.name}"))
        for case in CASES
        if case.name in ("language", "language-again", "groups", "checkpoints", "hostile", "failures")
    ],
)
def test_same_as_local_on_a_kept_cluster(
    case: Case, locally: Callable[[Case], Result], clusters: Clusters, tmp_path: Path
) -> None:
    """As on a run's own: the cluster was brought up before, by something else."""
    done = clusters.command("start", *KEEP, "--dask-worker-cores", "2", "--wait")
    assert done.returncode == 0, done.stderr
    assert "has 1 worker" in same(case, "warm", locally(case), tmp_path)


def same(case: Case, executor: str, expected: Result, tmp_path: Path) -> str:
    """What the runs said, which left what those with the local executor have left."""
    assert expected.exit_codes == FAILING_CASES.get(case.name, [0] * len(expected.exit_codes))
    assert len(expected.records) >= case.records
    result = run_case(case, executor, tmp_path)
    print(result.text)  # shown where the test fails
    assert result.exit_codes == expected.exit_codes
    assert set(result.files) == set(expected.files)
    assert result.files == expected.files
    # A job that fails in its output check is an error of Snakemake itself locally, and of its rule elsewhere.
    if not case.grouped:
        for there, here in zip(expected.failed, result.failed, strict=True):
            assert there <= here
    assert result.records == expected.records
    assert result.incomplete == expected.incomplete
    assert result.leftovers == expected.leftovers
    assert "HACKED" not in result.files
    return result.text


def test_job_script_and_job_name(tmp_path: Path) -> None:
    """A custom job script runs once for each job, and a job name changes no result."""
    marker = tmp_path / "marker"
    case = Case(
        "script",
        "simple",
        (("next/2.txt", "--notemp", "--jobscript", "jobscript.sh", "--jobname", "my.{name}.{jobid}.sh"),),
        {"PARITY_MARKER": str(marker)},
    )
    result = run_case(case, "warm", tmp_path)
    print(result.text)
    assert result.exit_codes == [0]
    assert result.files["next/2.txt"][2] == b"3\n"
    assert marker.read_text() == "used\n" * 2


def test_immediate_submit_is_refused(tmp_path: Path) -> None:
    """`--immediate-submit` needs dependencies that are not passed on: one sentence, and nothing is run."""
    result = run_case(Case("immediate", "simple", (("--immediate-submit", "--notemp"),)), "warm", tmp_path)
    assert result.exit_codes == [1]
    assert "immediate" in result.text
    assert not [name for name in result.files if name.endswith(".txt")]
